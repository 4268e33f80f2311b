"""Errors of the operating system by what they mean to the caller of a store or a backup."""

from __future__ import annotations

import errno
from types import TracebackType

from cowengine.errors import CowEngineError, NoSpaceError, ReadOnlyError, StorageError

# What is said of a name, an argument or a lock that somebody has, not of the disk.
TOLD = frozenset({
    errno.EAGAIN, errno.EBADF, errno.EBUSY, errno.EEXIST, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG,
    errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY, errno.ETXTBSY, errno.EXDEV,
})  # fmt: skip


class typed:  # reads as what it does, and costs less than a generator: every commit comes here
    """Within it a full disk is NoSpaceError, what may not be read or written ReadOnlyError, and what the system failed
    to do StorageError. What an error tells of names and locks stays: the caller knows what it means.
    """

    __slots__ = ("_path",)

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, OSError) or isinstance(error, CowEngineError):
            return
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(
                "the file system is full; free some space; nothing that was there is lost", self._path
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise ReadOnlyError(f"this may not be read or written ({error.strerror})", self._path) from error
        if error.errno not in TOLD:
            number = error.errno or errno.EIO
            raise StorageError(f"the file system failed: {error.strerror}", self._path, number) from error
