"""Small disks that really fill up: ext4 and XFS on loop devices, and a quota in the I/O table where root is missing."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cowengine.core.iotable import KERNEL, IOTable

EXT4 = pytest.param("ext4", marks=pytest.mark.privileged("mkfs.ext4", "mount"))
XFS = pytest.param("xfs", marks=pytest.mark.privileged("mkfs.xfs", "mount"))
PAGE = 4096
MIB = 1 << 20


class MountedDisk:
    """A file system in an image of its own, filled up with a file of ballast."""

    io: IOTable = KERNEL

    def __init__(self, mkfs: list[str], image: Path, place: Path, size: int) -> None:
        self.path = place
        self.ballast = place / "ballast"
        with open(image, "wb") as file:
            file.truncate(size)
        place.mkdir()
        subprocess.run([*mkfs, str(image)], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True, capture_output=True)

    def unmount(self) -> None:
        """For good; what a test that failed still has open does not keep it."""
        subprocess.run(["umount", "--lazy", str(self.path)], check=True, capture_output=True)

    def fill(self, left: int = 0) -> None:
        """Takes all space but `left` bytes (about as many: the file system needs some for itself)."""
        fd = os.open(self.ballast, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            for step in (64 * MIB, 8 * MIB, MIB):
                with suppress(OSError):
                    while True:
                        os.posix_fallocate(fd, os.fstat(fd).st_size, step)
            for step in (16 * PAGE, PAGE):  # to the last page: XFS wants a reserve for more than that
                with suppress(OSError):
                    while True:
                        os.pwrite(fd, bytes(step), os.fstat(fd).st_size)
            size = os.fstat(fd).st_size
            os.fsync(fd)
            os.ftruncate(fd, max(0, size - left))
            os.fsync(fd)
        finally:
            os.close(fd)

    def clear(self) -> None:
        """Gives back what `fill` took."""
        self.ballast.unlink(missing_ok=True)
        self._sync()

    def _sync(self) -> None:
        """What waits to be allocated or given back is."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            assert ctypes.CDLL(None).syncfs(fd) == 0
        finally:
            os.close(fd)

    def free(self) -> int:
        """Bytes that are left."""
        self._sync()
        state = os.statvfs(self.path)
        return state.f_bfree * state.f_bsize


class QuotaDisk(IOTable):
    """An I/O table under which all files together may take so many bytes, page by page."""

    def __init__(self, path: Path, size: int = 64 * MIB) -> None:
        path.mkdir(exist_ok=True)
        self.path = path
        self.io = self
        self.room = self.limit = size // PAGE
        self.pages: dict[int, set[int]] = {}

    def unmount(self) -> None:
        """Nothing to do."""

    def used(self) -> int:
        """Pages in use."""
        return sum(map(len, self.pages.values()))

    def fill(self, left: int = 0) -> None:
        """From now on only `left` bytes more."""
        self.limit = self.used() + left // PAGE

    def clear(self) -> None:
        """Room again."""
        self.limit = self.room

    def free(self) -> int:
        """Bytes that are left."""
        return (self.limit - self.used()) * PAGE

    def space(self, fd: int) -> tuple[int, int, int]:
        return len(self._of(fd)) * PAGE, self.free(), self.room * PAGE

    def _of(self, fd: int) -> set[int]:
        return self.pages.setdefault(os.fstat(fd).st_ino, set())

    def pwrite(self, fd: int, data: Any, offset: int) -> None:
        view = memoryview(data).cast("B")
        mine = self._of(fd)
        for page in range(offset // PAGE, -(-(offset + len(view)) // PAGE)):
            if page not in mine:
                if self.used() >= self.limit:
                    super().pwrite(fd, view[: max(0, page * PAGE - offset)], offset)  # what fits is written
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                mine.add(page)
        super().pwrite(fd, view, offset)

    def copy_range(self, source_fd: int, source: int, fd: int, offset: int, length: int) -> int:
        return 0  # left to `pwrite`

    def punch(self, fd: int, offset: int, length: int) -> None:
        super().punch(fd, offset, length)
        self._of(fd).difference_update(range(-(-offset // PAGE), (offset + length) // PAGE))

    def truncate(self, fd: int, size: int) -> None:
        super().truncate(fd, size)
        self.pages[os.fstat(fd).st_ino] = {page for page in self._of(fd) if page * PAGE < size}

    def unlink(self, path: str) -> None:
        number = os.lstat(path).st_ino
        super().unlink(path)
        self.pages.pop(number, None)


Disk = MountedDisk | QuotaDisk
