"""XFS with reflinks: a disk is a file, a snapshot is another file that shares its extents (FICLONE)."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from subjects.daemon import run
from subjects.loop_mount import lacking_for_mounts, mounted
from subjects.raw_file import RawDisk
from subjects.subject import Disk, NotOffered, Subject

FICLONE = 0x40049409
GiB = 1 << 30


class FileView(Disk):
    """A snapshot that is a file."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def pread_into(self, buffer: bytearray | memoryview, offset: int) -> None:
        os.preadv(self._fd, [buffer], offset)

    def close(self) -> None:
        os.close(self._fd)


class ReflinkDisk(RawDisk):
    """A file, and beside it a file for each snapshot."""

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(path, size)
        self._folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._snapshots: set[Path] = set()

    def snapshot(self, name: str) -> None:
        """FICLONE writes what is dirty back before it shares the extents. fsync of the clone then forces the log, and
        with it the disk's cache: that makes data, clone and, as logs are written in order, its name durable. The
        fsync of the folder says the last in the way that is promised; it finds nothing left to be written.
        """
        path = self._path(name)
        clone = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.ioctl(clone, FICLONE, self.fd)
            os.fsync(clone)
        finally:
            os.close(clone)
        os.fsync(self._folder)
        self._snapshots.add(path)

    def open_snapshot(self, name: str) -> Disk:
        return FileView(self._path(name))

    def delete(self, name: str) -> None:
        path = self._path(name)
        path.unlink()
        os.fsync(self._folder)
        self._snapshots.remove(path)

    def changed(self, base: str, target: str) -> int:
        raise NotOffered("XFS knows no difference between files that share extents")

    def close(self) -> None:
        super().close()
        for path in self._snapshots:
            path.unlink()
        os.close(self._folder)

    def _path(self, name: str) -> Path:
        return self.path.with_name(f"{self.path.name}@{name}")


class XfsReflink(Subject):
    """XFS in a loop-mounted image that is written in full before."""

    name = "XFS reflink"

    def __init__(self, room: int = 4 * GiB) -> None:
        """`room` bytes for all disks; XFS takes no less than 300 MiB."""
        self._room = room

    @property
    def settings(self) -> str:
        version = run("mkfs.xfs", "-V").split()[-1]
        return (
            f"xfsprogs {version}, in a fully written image on a loop device with direct I/O; FICLONE, fsync of the "
            "clone and of its folder; flush = fdatasync"
        )

    def why_missing(self) -> str:
        return lacking_for_mounts({"mkfs.xfs": "xfsprogs"})

    @contextmanager
    def running(self, folder: Path) -> Iterator[None]:
        with mounted(folder, self._room, ["mkfs.xfs", "-q", "-K", "-m", "reflink=1"], "noatime") as self._mount:
            yield

    def create(self, folder: Path, name: str, size: int) -> Disk:
        return ReflinkDisk(self._mount / name, size)
