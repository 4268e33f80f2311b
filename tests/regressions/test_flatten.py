"""What flattening in place once got wrong, and what is left of it after a crash."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest
from memory_disk import MemoryDisk

from cowengine import ClosedError, FormatError, StorageError, Volume
from cowengine.core.iotable import IOTable
from cowengine.engine.names import KEPT_FROM

BLOCK = 4096


class AtTheEnd(IOTable):
    """Begins a write in another thread when the file has become the raw image and the intent file is about to go."""

    def __init__(self) -> None:
        self.volume: Volume | None = None
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def unlink(self, path: str) -> None:
        if self.volume is not None:
            self.thread = threading.Thread(target=self._write, args=(self.volume,))
            self.volume = None
            self.thread.start()
            time.sleep(0.1)  # it waits, as the volume is paused
        super().unlink(path)

    def _write(self, volume: Volume) -> None:
        try:
            volume._path.pwrite(b"late" * 1024, 8 * BLOCK)  # it was asked before whether the volume can be written
        except BaseException as error:
            self.error = error


def test_a_write_that_waited_does_not_reach_the_raw_image(tmp_path: Path) -> None:
    """Writers waited for the end of the step, and then wrote into a file that was a volume no more."""
    path, contents, table = tmp_path / "image", bytes(range(256)) * 16 * 40, AtTheEnd()
    path.write_bytes(contents)
    with Volume.adopt(path, log_size=16384, io=table, background=False) as volume:
        table.volume = volume
        volume.flatten()
    assert table.thread is not None
    table.thread.join()
    assert isinstance(table.error, ClosedError)
    assert path.read_bytes() == contents


class Torn(IOTable):
    """Of the write that ends the superblocks, the first sector of either arrives."""

    armed = False

    def pwrite(self, fd: int, data: bytes, offset: int) -> None:
        if not self.armed or (offset, len(data)) != (0, 2 * BLOCK):
            super().pwrite(fd, data, offset)
            return
        for slot in (0, 1):
            super().pwrite(fd, data[slot * BLOCK : slot * BLOCK + 512], slot * BLOCK)
        raise OSError(errno.EIO, "power cut")


def test_a_superblock_that_is_half_gone_is_known_by_all_of_its_fields(tmp_path: Path) -> None:
    """What was left of one that had an index of names passed for a change that somebody made to the image."""
    path, contents, table = tmp_path / "image", bytes(range(256)) * 16 * 40, Torn()
    path.write_bytes(contents)
    with Volume.adopt(path, log_size=16384, io=table, background=False) as volume:
        for number in range(KEPT_FROM + 1):
            volume.snapshot(f"{number}").delete()
        volume.reclaim()
        table.armed = True
        with pytest.raises((StorageError, OSError)):
            volume.flatten(in_place=True)
    with open(path, "rb") as file:
        start = file.read(1024)
    assert start[:512] == contents[:512]
    assert start[512:] != contents[512:1024] and any(start[512:528]), "fields of the index of names"
    with pytest.raises(FormatError, match="undo"):
        Volume.open(path)
    Volume.undo_adoption(path)
    assert path.read_bytes() == contents


class Ordered(IOTable):
    """Notes what makes names durable, and which files are made."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        if flags & os.O_CREAT:
            self.calls.append(os.path.basename(path))
        return super().open(path, flags, mode)

    def rename(self, source: str, target: str) -> None:
        self.calls.append(os.path.basename(target))
        super().rename(source, target)

    def sync_directory(self, path: str) -> None:
        self.calls.append("sync")
        super().sync_directory(path)


def test_an_image_has_its_name_for_good_before_an_intent_file_lies_beside_it(tmp_path: Path) -> None:
    """A flattening by copy was killed behind its rename, and the image adopted at once: a power cut could bring the
    volume back under that name, and beside it the intent file of the other one.
    """
    path, table = tmp_path / "v", Ordered()
    Volume.create(path, 1024 * BLOCK).close()
    with Volume.open(path, io=table, background=False) as volume:
        volume.flatten()
    del table.calls[table.calls.index("v") + 1 :]  # killed here
    Volume.adopt(path, raw=True, io=table).close()
    renamed = table.calls.index("v")
    assert "sync" in table.calls[renamed : table.calls.index("v.adopting")]


class WithoutHoles(MemoryDisk):
    """A file system that cannot give a range back."""

    def punch(self, fd: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")


def test_a_file_system_without_holes_is_no_obstacle() -> None:
    """What was discarded is zeros in the raw image, written where it cannot be punched (found by every_call.py)."""
    disk, data = WithoutHoles(), bytearray(b"data" * 12 * 1024)
    image = disk.open("/disk/image", os.O_RDWR | os.O_CREAT)
    disk.pwrite(image, data, 0)
    disk.close(image)
    with Volume.adopt("/disk/image", log_size=16384, raw=True, io=disk, background=False) as volume:
        for block in (1, 9):
            volume.discard(block * 4096, 4096)
            data[block * 4096 : (block + 1) * 4096] = bytes(4096)
        volume.flatten(in_place=True)
    assert disk.cache.files[disk.cache.entries["/disk/image"]] == data
