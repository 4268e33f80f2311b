"""A file system that fills up, without one."""

from __future__ import annotations

import errno
import os
from typing import Any

from cowengine.core.iotable import IOTable

BLOCK = 4096


class SmallDisk(IOTable):
    """A file system with so many free pages: writing to a hole takes one, punching gives it back."""

    free = 1 << 40

    def __init__(self) -> None:
        self.pages: set[int] = set()

    def pwrite(self, fd: int, data: Any, offset: int) -> None:
        wanted = set(range(offset // BLOCK, (offset + len(data) - 1) // BLOCK + 1)) - self.pages
        if len(wanted) > self.free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.free -= len(wanted)
        self.pages |= wanted
        super().pwrite(fd, data, offset)

    def punch(self, fd: int, offset: int, length: int) -> None:
        gone = self.pages & set(range(offset // BLOCK, (offset + length) // BLOCK))
        self.free += len(gone)
        self.pages -= gone
        super().punch(fd, offset, length)

    def fdatasync(self, fd: int) -> None:
        """Durability is not what is tested here."""
