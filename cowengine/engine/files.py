"""Opening what must be a regular file, with a typed error for everything else that may lie under its name."""

from __future__ import annotations

import errno
import os

from cowengine.core.iotable import IOTable
from cowengine.errors import FormatError, NotFoundError, ReadOnlyError, StorageError


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
        if number in (errno.EROFS, errno.EACCES, errno.EPERM) and not read_only:
            raise ReadOnlyError("the file may not be written; open the volume read-only", path) from error
        raise StorageError(f"the file cannot be opened: {error.strerror}", path, number) from error
    if not io.is_file(path):
        io.close(fd)
        raise FormatError(f"{path}: not a regular file")
    return fd
