"""Opening what must be a regular file, with a typed error for everything else that may lie under its name."""

from __future__ import annotations

import errno
import os
import time

from cowengine.core.iotable import IOTable
from cowengine.errors import BusyError, FormatError, NotFoundError, ReadOnlyError, StorageError

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
            raise ReadOnlyError("the file may not be written; open the volume read-only", path) from error
        raise StorageError(f"the file cannot be opened: {error.strerror}", path, number) from error
    if not io.is_file(path):
        io.close(fd)
        raise FormatError(f"{path}: not a regular file")
    return fd


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
