"""Opening what must be a regular file or directory, with a typed error for all else that may lie under its name."""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress

from cowengine.core.iotable import IOTable
from cowengine.errors import BusyError, CorruptionError, FormatError, NotFoundError, ReadOnlyError, StorageError
from cowengine.oserrors import typed

SOLE_TRIES, SOLE_PAUSE = 50, 0.02  # seconds; tries, not a deadline: a machine that stands still uses none up


def open_regular(io: IOTable, path: str, *, read_only: bool) -> int:
    """A descriptor of a regular file; follows no symbolic link and never waits for the other end of a pipe."""
    try:
        fd = io.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_NONBLOCK)
    except OSError as error:
        number = error.errno or errno.EIO
        if number in (errno.ENOENT, errno.ENOTDIR):
            raise NotFoundError("there is no such file", path) from None
        if number in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise FormatError(f"{path}: not a regular file ({error.strerror})") from error
        if number == errno.EAGAIN:  # it asks this moment whether it is alone (`require_sole`)
            raise BusyError("another process is taking the file over", path) from None
        if number in (errno.EROFS, errno.EACCES, errno.EPERM) and not read_only:
            raise ReadOnlyError(
                f"the file may not be written ({error.strerror}); open it read-only, or run as its owner", path
            ) from error
        if number in (errno.EACCES, errno.EPERM):
            raise StorageError("the file may not be read by this user; run as its owner", path, number) from error
        raise StorageError(f"the file cannot be opened: {error.strerror}", path, number) from error
    try:
        with typed(path):
            if not io.is_file(path):
                raise FormatError(f"{path}: not a regular file")
    except BaseException:
        io.close(fd)
        raise
    return fd


def give_name(io: IOTable, made: str, target: str) -> None:
    """Gives a finished file its own name, durably; if that cannot be made durable there is no such file."""
    io.rename(made, target)
    try:
        io.sync_directory(os.path.dirname(target) or ".")
    except BaseException:
        with suppress(OSError):
            io.unlink(target)
        raise


def open_unfinished(io: IOTable, path: str) -> int:
    """A new file, mode 0600 and locked, under a name for what is not finished yet.

    What a crash left of an earlier one goes; what another process writes, or is no regular file, does not. The old one
    is not written: it may be somebody else's, or by now that process's image under its own name.
    """
    new = os.O_RDWR | os.O_CREAT | os.O_EXCL
    try:
        fd = io.open(path, new, 0o600)
    except FileExistsError:
        old = open_regular(io, path, read_only=False)
        try:
            _lock(io, old, path)
            io.unlink(path)
        finally:
            io.close(old)
        fd = io.open(path, new, 0o600)
    try:
        _lock(io, fd, path)
    except BaseException as error:
        if not isinstance(error, BusyError):  # else it is somebody else's by now
            with suppress(OSError):
                io.unlink(path)
        io.close(fd)
        raise
    return fd


def _lock(io: IOTable, fd: int, path: str) -> None:
    try:
        io.lock(fd, True)
    except BlockingIOError:
        raise BusyError("another process writes this file", path) from None


def require_folder(io: IOTable, path: str) -> None:
    """Raises CorruptionError unless a directory is there: no link leads out of a store or a backup target."""
    if not io.is_folder(path):
        raise CorruptionError("a directory belongs here, and it is missing or a link or file in its place", path)


class Whereabouts:
    """Whether a file that is open is still the one that an open will find, as far as its descriptor can tell.

    It has been deleted or replaced (what is committed to it would be gone with the descriptor), or cut. One that was
    cut and made longer again since the last look is not told from one that nobody touched: see docs/reliability.md.
    """

    def __init__(self, io: IOTable, fd: int, path: str) -> None:
        self._io, self._fd, self._path = io, fd, path
        self._size, self._names = io.stands(fd)  # some file systems in user space say 0 of every file

    def lost(self) -> str:
        """What happened to the file, for a message; empty if nothing did."""
        try:
            size, names = self._io.stands(self._fd)
        except OSError:
            with typed(self._path):
                raise
        if self._names and not names:
            return "the file was deleted or replaced while it was open"
        if size < self._size:
            return f"the file was cut to {size} bytes while it was open"
        self._size = size  # nothing but a flatten in place, the end of the engine, makes it shorter
        return ""

    def error(self, lost: str) -> StorageError:
        """What a commit raises then: nothing was changed, and what is there can still be read."""
        message = f"{lost}; copy what is needed with export or flatten, and close it"
        return StorageError(message, self._path, errno.ESTALE)


def require_sole(io: IOTable, fd: int, path: str) -> None:
    """By the owner, who wants the file for itself. Raises BusyError, after a second, if others have it open.

    Whoever opens it to own it finds the owner's lock and closes it at once: of many that begin together, the one that
    got the lock waits for the others to be gone.
    """
    for _ in range(SOLE_TRIES):
        if io.is_sole(fd):
            return
        time.sleep(SOLE_PAUSE)
    raise BusyError("the file is open elsewhere (another program, or a loop device); close it there first", path)
