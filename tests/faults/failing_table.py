"""An I/O table that fails at a chosen call, on real files."""

from __future__ import annotations

import os
from typing import Any

from cowengine.core.iotable import IOTable


class FailingTable(IOTable):
    """Counts the calls that can fail; call number `fail_at` (from 1) gets `number`, and all after it if `for_ever`."""

    def __init__(self, fail_at: int = 0, number: int = 0, *, for_ever: bool = False) -> None:
        self.fail_at = fail_at
        self.number = number
        self.for_ever = for_ever
        self.calls = 0
        self.failed: list[str] = []

    def _count(self, what: str, fd: int = -1, half: tuple[Any, int] | None = None) -> None:
        self.calls += 1
        if self.fail_at and (self.calls == self.fail_at or (self.for_ever and self.calls > self.fail_at)):
            self.failed.append(what)
            if half is not None:  # a write that fails may have written a part
                data = bytes(half[0])
                os.pwrite(fd, data[: len(data) // 2], half[1])
            raise OSError(self.number, os.strerror(self.number))

    def pread_into(self, fd: int, buffer: Any, offset: int) -> int:
        self._count("pread")
        return super().pread_into(fd, buffer, offset)

    def pwrite(self, fd: int, data: Any, offset: int) -> None:
        self._count("pwrite", fd, (data, offset))
        super().pwrite(fd, data, offset)

    def fdatasync(self, fd: int) -> None:
        self._count("fdatasync")  # and no more: nothing here can tell what is durable, and the disk is slow

    def truncate(self, fd: int, size: int) -> None:
        self._count("truncate")
        super().truncate(fd, size)

    def punch(self, fd: int, offset: int, length: int) -> None:
        self._count("punch")
        super().punch(fd, offset, length)

    def sync_directory(self, path: str) -> None:
        self._count("sync_directory")
