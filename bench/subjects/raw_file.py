"""The raw file: what everything is compared with. Workloads write it in full before they measure."""

from __future__ import annotations

import os
from pathlib import Path

from subjects.subject import Disk, Subject


class RawDisk(Disk):
    """A plain file. Short calls go past this class: a row's raw lane uses `fd` with `os.pwrite` and `os.preadv`."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.truncate(self.fd, size)

    def pwrite(self, data: bytes, offset: int) -> None:
        os.pwrite(self.fd, data, offset)

    def pread_into(self, buffer: bytearray | memoryview, offset: int) -> None:
        os.preadv(self.fd, [buffer], offset)

    def flush(self) -> None:
        os.fdatasync(self.fd)

    def close(self) -> None:
        os.close(self.fd)
        self.path.unlink()


class RawFile(Subject):
    """os.pwrite, os.preadv and os.fdatasync, and nothing else."""

    name = "raw file"
    settings = "os.pwrite, os.preadv; every byte written before; flush = fdatasync"

    def create(self, folder: Path, name: str, size: int) -> RawDisk:
        return RawDisk(folder / name, size)
