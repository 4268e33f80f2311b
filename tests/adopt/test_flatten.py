"""A plain raw image again: in place where the file holds nothing else, else as a copy that keeps holes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from raw_images import write_image

from cowengine import (
    BusyError,
    ExistsError,
    NoSpaceError,
    NotFoundError,
    OutOfRangeError,
    ReadOnlyError,
    StorageError,
    Store,
    Volume,
)
from cowengine.core.iotable import KERNEL, IOTable

MIB = 1 << 20


@pytest.mark.parametrize("size", [512, 300 * 1024 + 512, 20 * MIB + 512])
@pytest.mark.parametrize("block_size", [4096, MIB])
def test_in_place_gives_the_adopted_image_back(tmp_path: Path, size: int, block_size: int) -> None:
    path = tmp_path / "disk.img"
    data = bytearray(write_image(path, size))
    inode = path.stat().st_ino
    volume = Volume.adopt(path, block_size=block_size)
    volume.pwrite(b"new", size - 300)
    data[size - 300 : size - 297] = b"new"
    volume.discard(0, size // 2)
    whole = size // 2 // block_size * block_size
    data[:whole] = bytes(whole)
    volume.flatten()
    assert volume.closed
    assert path.read_bytes() == data
    assert path.stat().st_ino == inode
    assert os.listdir(tmp_path) == ["disk.img"]
    with Volume.adopt(path) as volume:
        assert volume.pread(size, 0) == data


def test_in_place_after_a_rollback_once_the_snapshots_are_deleted(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    data = write_image(path, 20 * MIB)
    with Volume.adopt(path) as volume:
        snapshot = volume.snapshot("before")
        volume.pwrite(b"x" * MIB, 0)
        replaced = volume.rollback(snapshot)
        with pytest.raises(BusyError, match="2 snapshots"):
            volume.flatten()
        assert volume.pread(len(data), 0) == data, "a refused one leaves the volume open"
        replaced.delete()
        snapshot.delete()
        volume.reclaim()
        volume.flatten(path)
    assert path.read_bytes() == data


def test_in_place_is_refused_where_blocks_lie_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    write_image(path, 20 * MIB, pieces=200)
    with Volume.adopt(path) as volume:
        snapshot = volume.snapshot("before")
        for start in range(5 * MIB, 20 * MIB, MIB):
            volume.pwrite(b"x" * MIB, start)
        snapshot.delete()
        volume.reclaim()
        before = volume.pread(volume.size, 0)
        with pytest.raises(BusyError, match="elsewhere in the file"):
            volume.flatten(in_place=True)
        assert volume.pread(volume.size, 0) == before
        volume.flatten(tmp_path / "copy.img")
        assert (tmp_path / "copy.img").read_bytes() == before
        assert volume.check().ok
    with Volume.create(tmp_path / "made.cow", MIB) as volume:
        with pytest.raises(BusyError, match="was created"):
            volume.flatten(in_place=True)
        with pytest.raises(OutOfRangeError):
            volume.flatten(tmp_path / "made.img", in_place=True)
    with Volume.open(path, read_only=True) as volume, pytest.raises(ReadOnlyError):
        volume.flatten()


def created(path: Path) -> Volume:
    volume = Volume.create(path, 64 * MIB)
    volume.pwrite(b"c" * MIB, 30 * MIB - 7)
    return volume


def grown(path: Path) -> Volume:
    write_image(path, 20 * MIB)
    volume = Volume.adopt(path)
    volume.resize(64 * MIB)
    volume.pwrite(b"g" * MIB, 20 * MIB - 7)
    volume.pwrite(b"end", 64 * MIB - 3)
    return volume


def displaced(path: Path) -> Volume:
    write_image(path, 64 * MIB)
    volume = Volume.adopt(path)
    volume.pwrite(b"a" * MIB, 30 * MIB)
    snapshot = volume.snapshot("before")
    volume.pwrite(b"d" * MIB, 30 * MIB - 7)
    snapshot.delete()
    volume.reclaim()
    return volume


@pytest.mark.parametrize("make", [created, grown, displaced])
def test_a_copy_takes_the_file_s_name_where_blocks_lie_elsewhere(
    tmp_path: Path, make: Callable[[Path], Volume]
) -> None:
    path = tmp_path / "disk.img"
    with make(path) as volume:
        before = volume.pread(volume.size, 0)
        with pytest.raises(BusyError, match="another file"):
            volume.flatten(in_place=True)
        snapshot = volume.snapshot("in the way")
        with pytest.raises(BusyError, match="1 snapshots"):
            volume.flatten()
        snapshot.delete()
        volume.reclaim()
        assert volume.pread(volume.size, 0) == before, "a refused one leaves the volume open"
        volume.flatten()
        assert volume.closed
    assert path.read_bytes() == before
    assert path.stat().st_blocks * 512 < 32 * MIB
    assert os.listdir(tmp_path) == ["disk.img"]
    with Volume.adopt(path) as volume:
        assert volume.pread(volume.size, 0) == before


def test_in_place_once_a_growth_was_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with grown(path) as volume:
        volume.resize(20 * MIB)
        before = volume.pread(20 * MIB, 0)
        inode = path.stat().st_ino
        volume.flatten(in_place=True)
    assert path.read_bytes() == before
    assert path.stat().st_ino == inode


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_in_place_is_refused_where_no_file_may_be_made_beside_it(tmp_path: Path, number: int) -> None:
    class Closed(IOTable):
        def open(self, path: str, flags: int, mode: int = 0o600) -> int:
            if flags & os.O_CREAT:
                raise OSError(number, os.strerror(number))
            return super().open(path, flags, mode)

    path = tmp_path / "disk.img"
    data = write_image(path, 20 * MIB)
    Volume.adopt(path).close()
    with Volume.open(path, io=Closed()) as volume:
        with pytest.raises(ReadOnlyError, match="its directory may not be written"):
            volume.flatten()
        volume.pwrite(b"goes on", 0)
    assert os.listdir(tmp_path) == ["disk.img"]
    with Volume.open(path) as volume:
        volume.flatten()
    assert path.read_bytes() == b"goes on" + data[7:]


def test_a_full_disk_leaves_the_volume_that_a_copy_would_have_replaced(tmp_path: Path) -> None:
    class Full(IOTable):
        def copy_range(self, source: int, source_offset: int, target: int, target_offset: int, length: int) -> int:
            raise OSError(28, os.strerror(28))

    path = tmp_path / "disk.img"
    grown(path).close()
    with Volume.open(path, io=Full()) as volume:
        before = volume.pread(volume.size, 0)
        with pytest.raises(NoSpaceError):
            volume.flatten()
        volume.pwrite(b"goes on", 0)
    assert os.listdir(tmp_path) == ["disk.img"]
    with Volume.open(path) as volume:
        assert volume.pread(volume.size, 0) == b"goes on" + before[7:]
        assert volume.check().ok


def test_a_copy_that_another_process_writes_is_left_alone(tmp_path: Path) -> None:
    part = tmp_path / "disk.img.part"
    part.write_bytes(b"half of it")
    with Volume.create(tmp_path / "disk.cow", MIB) as volume, open(part, "r+b") as file:
        KERNEL.lock(file.fileno(), True)
        with pytest.raises(BusyError, match="another process"):
            volume.flatten(tmp_path / "disk.img")
        assert part.read_bytes() == b"half of it"
        KERNEL.unlock(file.fileno())
        volume.flatten(tmp_path / "disk.img")
        assert file.read() == b"half of it", "it may be an image under its own name"
    assert sorted(os.listdir(tmp_path)) == ["disk.cow", "disk.img"]


def test_a_copy_keeps_holes_and_the_volume(tmp_path: Path) -> None:
    path, copy = tmp_path / "disk.cow", tmp_path / "disk.img"
    with Volume.create(path, 1 << 40) as volume:
        for start in (0, 33 * MIB, (1 << 40) - 5000):
            volume.pwrite(b"d" * 5000, start)
        snapshot = volume.snapshot("one")
        volume.pwrite(b"later", 0)
        snapshot.flatten(tmp_path / "one.img")
        volume.flatten(copy)
        assert [found.name for found in volume.snapshots()] == ["one"]
        with pytest.raises(ExistsError):
            volume.flatten(copy)
        with pytest.raises(NotFoundError):
            volume.flatten(tmp_path / "nowhere" / "disk.img")
    with Volume.open(path, read_only=True) as volume:
        volume.flatten(tmp_path / "again.img")
    for name, start in (("one.img", b"ddddd"), ("disk.img", b"later"), ("again.img", b"later")):
        with open(tmp_path / name, "rb") as file:
            assert os.fstat(file.fileno()).st_size == 1 << 40
            assert os.fstat(file.fileno()).st_blocks * 512 < MIB
            assert file.read(5001) == start + b"d" * 4995 + b"\0"
            file.seek((1 << 40) - 5001)
            assert file.read() == b"\0" + b"d" * 5000
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]


@pytest.mark.parametrize("shares", [True, False])
def test_a_copy_that_fails_leaves_nothing(tmp_path: Path, shares: bool) -> None:
    class Full(IOTable):
        full = False

        def copy_range(self, source: int, source_offset: int, target: int, target_offset: int, length: int) -> int:
            if shares and Full.full:
                raise OSError(28, os.strerror(28))
            return super().copy_range(source, source_offset, target, target_offset, length) if shares else 0

        def pwrite(self, fd: int, data: bytes, offset: int) -> None:
            if Full.full and not shares:
                raise OSError(28, os.strerror(28))
            super().pwrite(fd, data, offset)

    path, copy = tmp_path / "disk.cow", tmp_path / "disk.img"
    with Volume.create(path, 8 * MIB, io=Full(), background=False) as volume:
        volume.pwrite(b"d" * 3 * MIB, MIB)
        snapshot = volume.snapshot("one")
        Full.full = True
        with pytest.raises(NoSpaceError):
            snapshot.flatten(copy)
        Full.full = False
        assert os.listdir(tmp_path) == ["disk.cow"]
        (tmp_path / "disk.img.part").write_bytes(b"what a crash left" * MIB)
        snapshot.flatten(copy)
        assert copy.read_bytes() == snapshot.pread(8 * MIB, 0)
        assert sorted(os.listdir(tmp_path)) == ["disk.cow", "disk.img"]


def test_a_volume_of_a_store_is_copied_or_detached_first(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    data = write_image(path, MIB)
    with Store.create(tmp_path / "store") as store:
        volume = store.adopt_volume("mail", path)
        with pytest.raises(BusyError, match="store"):
            volume.flatten()
        volume.flatten(tmp_path / "copy.img")
        assert (tmp_path / "copy.img").read_bytes() == data
        volume.close()
        alone = store.detach("mail")
    with Volume.open(alone) as volume:
        volume.flatten()
    assert Path(alone).read_bytes() == data


def test_a_copy_that_another_process_begins_in_the_same_instant_is_left_to_it(tmp_path: Path) -> None:
    """It locked the new file between our making it and our locking it."""
    taken: list[int] = []

    class Beaten(IOTable):
        def lock(self, fd: int, exclusive: bool, start: int = 0, length: int = 0) -> None:
            if os.readlink(f"/proc/self/fd/{fd}").endswith(".part"):
                taken.append(fd)
                raise BlockingIOError
            super().lock(fd, exclusive, start, length)

    with Volume.create(tmp_path / "v", MIB, background=False, io=Beaten()) as volume:
        volume.pwrite(b"x" * 512, 0)
        with pytest.raises(BusyError, match="another process writes this file"):
            volume.flatten(tmp_path / "copy")
        assert not os.path.lexists(f"/proc/self/fd/{taken[0]}")
        assert not (tmp_path / "copy").exists() and (tmp_path / "copy.part").exists()
        assert volume.pread(512, 0) == b"x" * 512


@pytest.mark.parametrize("call", ["lock", "sync_directory"])
def test_a_copy_that_cannot_be_locked_or_made_durable_leaves_nothing(tmp_path: Path, call: str) -> None:
    class Failing(IOTable):
        failing = ""

        def lock(self, fd: int, exclusive: bool, start: int = 0, length: int = 0) -> None:
            if self.failing == "lock" and os.readlink(f"/proc/self/fd/{fd}").endswith(".part"):
                raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
            super().lock(fd, exclusive, start, length)

        def sync_directory(self, path: str) -> None:
            if self.failing == "sync_directory":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            super().sync_directory(path)

    io = Failing()
    with Volume.create(tmp_path / "v", MIB, background=False, io=io) as volume:
        volume.pwrite(b"x" * 512, 0)
        io.failing = call
        with pytest.raises(StorageError):
            volume.flatten(tmp_path / "copy")
        io.failing = ""
        assert os.listdir(tmp_path) == ["v"]
        volume.flatten(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"x" * 512 + bytes(MIB - 512)
