"""Errors of the operating system by what they mean to the caller of a store or a backup."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from cowengine.errors import CowEngineError, NoSpaceError, ReadOnlyError


@contextmanager
def typed(path: str) -> Iterator[None]:
    """Within it a full disk is NoSpaceError and what may not be read or written ReadOnlyError; the rest stays."""
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
        raise
