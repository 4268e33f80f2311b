"""Which files may be run with this process's rights: those that nobody but root and this user can change or replace.

Threads: stateless.
"""

from __future__ import annotations

import os
import stat

from cowengine.errors import NotFoundError, StorageError, WriterError

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def check_trusted(path: str) -> os.stat_result:
    """What `stat` says of `path`, every link followed.

    Raises WriterError if somebody else than root and this process's user owns it or a folder above it, or may write
    there, NotFoundError if it is not there, StorageError. A folder above may be writable by all if it is sticky.
    """
    real = os.path.realpath(path)
    found = _stat(real)
    if found.st_uid not in (0, os.geteuid()):
        raise WriterError(f"{real} belongs to user {found.st_uid}, who could change it: give it to root")
    if found.st_mode & _OTHERS_WRITE:
        mode = stat.S_IMODE(found.st_mode)
        raise WriterError(f"{real} has mode {mode:04o}, so others could change it: chmod go-w {real}")
    above = real
    while above != os.path.dirname(above):
        above = os.path.dirname(above)
        folder = _stat(above)
        is_guarded = not folder.st_mode & _OTHERS_WRITE or folder.st_mode & stat.S_ISVTX
        if folder.st_uid not in (0, os.geteuid()) or not is_guarded:
            raise WriterError(f"{real} could be replaced by others, who may write to {above}: move it elsewhere")
    return found


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError("there is no such file or folder", path) from None
    except OSError as error:
        raise StorageError(f"cannot be looked at: {error.strerror}", path, error.errno or 0) from error
