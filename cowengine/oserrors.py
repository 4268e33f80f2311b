"""Errors of the operating system by what they mean to the caller of a store or a backup."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from cowengine.errors import CowEngineError, NoSpaceError, ReadOnlyError, StorageError

# What is said of a name, an argument or a lock that somebody has, not of the disk.
TOLD = frozenset({
    errno.EAGAIN, errno.EBADF, errno.EBUSY, errno.EEXIST, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG,
    errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY, errno.ETXTBSY, errno.EXDEV,
})  # fmt: skip


@contextmanager
def typed(path: str) -> Iterator[None]:
    """Within it a full disk is NoSpaceError, what may not be read or written ReadOnlyError, and what the system failed
    to do StorageError. What an error tells of names and locks stays: the caller knows what it means.
    """
    try:
        yield
    except CowEngineError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(
                "the file system is full; free some space; nothing that was there is lost", path
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise ReadOnlyError(f"this may not be read or written ({error.strerror})", path) from error
        if error.errno in TOLD:
            raise
        raise StorageError(f"the file system failed: {error.strerror}", path, error.errno or errno.EIO) from error
