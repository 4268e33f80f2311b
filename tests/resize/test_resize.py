"""Resize: sizes, levels of the map, what was cut off, snapshots, threads, a full disk, backups."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cowengine import Volume
from cowengine.backup import restore, write_backup
from cowengine.core.iotable import IOTable
from cowengine.errors import BusyError, ClosedError, NoSpaceError, OutOfRangeError, ReadOnlyError
from cowengine.store import Store

BLOCK = 4096
LEAF = 256
FANOUT = 128
MiB = 1 << 20


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Volume]]:
    """Makes volumes; each is checked and closed at the end."""
    made: list[Volume] = []

    def one(size: int, **options: Any) -> Volume:
        made.append(Volume.create(tmp_path / f"v{len(made)}", size, **{"background": False, **options}))
        return made[-1]

    yield one
    for volume in made:
        if not volume.closed:
            assert volume.check().problems == []
            volume.close()


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_growing_and_shrinking_over_a_level_of_the_map(make: Callable[..., Volume], level: int) -> None:
    """The last block that a root of this level spans, and the first that it does not."""
    edge = LEAF * FANOUT**level * BLOCK
    volume = make(edge - BLOCK, log_size=1 << 18)
    shown = {}
    for number, size in enumerate((edge - 512, edge, edge + 512, edge + BLOCK, 3 * edge, edge - 512, edge + BLOCK)):
        old = volume.size
        volume.resize(size)
        assert volume.size == size
        assert volume.check().problems == []
        assert not any(volume.pread(min(max(0, size - old), MiB), min(old, size)))
        first = max(0, size - 2 * BLOCK)
        data = bytes([number + 1]) * (size - first)
        volume.pwrite(data, first)
        shown[volume.snapshot(f"s{number}")] = (first, data)
        assert volume.check().problems == []
        for snapshot, (offset, expected) in shown.items():
            assert snapshot.size == offset + len(expected)
            assert snapshot.pread(len(expected), offset) == expected
    for snapshot in reversed(shown):
        volume.rollback(snapshot)
        assert volume.size == snapshot.size
        assert volume.pread(len(shown[snapshot][1]), shown[snapshot][0]) == shown[snapshot][1]
        assert volume.check().problems == []
    for snapshot in volume.snapshots():
        snapshot.delete()
        assert volume.check().problems == []


@pytest.mark.parametrize("block_size", [4096, 65536, 1 << 20])
@pytest.mark.parametrize("with_snapshot", [False, True])
def test_bytes_cut_off_inside_a_block_never_come_back(
    make: Callable[..., Volume], block_size: int, with_snapshot: bool
) -> None:
    size = 3 * block_size
    volume = make(size, block_size=block_size)
    volume.pwrite(b"x" * size, 0)
    snapshot = volume.snapshot("whole") if with_snapshot else None
    for cut in (2 * block_size + 512, block_size + block_size // 2, block_size - 512, 512):
        volume.resize(cut)
        volume.resize(size)
        assert volume.pread(size, 0) == b"x" * cut + bytes(size - cut)
        assert volume.check().problems == []
    if snapshot is not None:
        assert snapshot.pread(size, 0) == b"x" * size
        assert volume.changed_extents(snapshot).tolist() == [[0, size]]


def test_a_shrink_takes_nothing_from_what_is_held_or_read(make: Callable[..., Volume]) -> None:
    """Snapshots keep their size, so nothing stands against a shrink, not even a snapshot that may not be given back."""
    data = random.Random(4).randbytes(2 * LEAF * BLOCK)
    volume = make(len(data))
    volume.pwrite(data, 0)
    held, read = volume.snapshot("held"), volume.snapshot("read")
    held.hold("audit")
    with Volume.open(volume.path, read_only=True) as reader:
        pinned = reader.get_snapshot("read")
        volume.resize(512)
        volume.reclaim()
        assert pinned.pread(len(data), 0) == held.pread(len(data), 0) == data
        for snapshot, why in ((held, "audit"), (read, "another process")):
            with pytest.raises(BusyError, match=why):
                snapshot.delete()
    volume.resize(len(data))
    assert volume.pread(len(data), 0) == data[:512] + bytes(len(data) - 512)


def test_a_resize_is_durable_when_it_returns(make: Callable[..., Volume], tmp_path: Path) -> None:
    volume = make(10 * BLOCK)
    volume.pwrite(b"x" * (10 * BLOCK), 0)
    for size in (5 * BLOCK + 512, 300 * BLOCK, BLOCK):
        volume.resize(size)
        copy = tmp_path / f"crashed-{size}"
        copy.write_bytes(Path(volume.path).read_bytes())
        with Volume.open(copy, background=False) as crashed:
            kept = min(size, 5 * BLOCK + 512)
            assert crashed.size == size
            assert crashed.pread(size, 0) == b"x" * kept + bytes(size - kept)
            assert crashed.check().problems == []


def test_a_shrink_costs_one_small_record_and_gives_the_space_back(make: Callable[..., Volume]) -> None:
    """However many scattered blocks lie behind the new size."""
    volume = make(LEAF * 64 * BLOCK, log_size=1 << 20)
    for leaf in range(64):
        for block in range(0, LEAF, 32):
            volume.pwrite(b"x" * BLOCK, (leaf * LEAF + block) * BLOCK)
    volume.engine.checkpoint()
    before, used = volume.stats()["commits"], os.stat(volume.path).st_blocks
    position = volume.engine.log.position
    reclaim, volume.engine.reclaim = volume.engine.reclaim, lambda: None  # type: ignore[method-assign]
    volume.resize(BLOCK)
    assert volume.stats()["commits"] - before <= 2
    assert volume.engine.log.position - position <= 2 * 4096
    assert volume.engine.path.map.dirty_count <= 4
    reclaim()
    assert os.stat(volume.path).st_blocks < used - 8 * 500
    assert volume.stats()["reclaims_pending"] == 0


@pytest.mark.parametrize("seed", range(4))
def test_changed_extents_across_resizes_cover_every_byte_that_differs(make: Callable[..., Volume], seed: int) -> None:
    """Between any two versions, rollbacks included; no answer lies outside the target."""
    rng = random.Random(seed)
    volume = make(300 * BLOCK, log_size=1 << 18)
    for number in range(8):
        for _ in range(4):
            volume.pwrite(rng.randbytes(700), rng.randrange(max(1, volume.size - 700)) if volume.size > 700 else 0)
        volume.snapshot(f"s{number}")
        volume.resize(512 * rng.choice((rng.randrange(2, 20), rng.randrange(2, 5000), rng.randrange(2000, 2100))))
        if rng.random() < 0.3:
            volume.rollback(rng.choice(volume.snapshots()))
    versions = [*volume.snapshots(), volume]
    contents = [version.pread(version.size, 0) for version in versions]
    for target, new in zip(versions, contents, strict=True):
        for base, old in zip(versions[:-1], contents, strict=False):
            rows = target.changed_extents(base).tolist()
            assert all(offset + length <= target.size for offset, length in rows)
            rebuilt = bytearray(old[: target.size].ljust(target.size, b"?"))
            for offset, length in rows:
                rebuilt[offset : offset + length] = new[offset : offset + length]
            assert rebuilt == new, f"{base.name} to {getattr(target, 'name', 'live')}"


def test_threads_write_and_discard_while_the_size_changes(make: Callable[..., Volume]) -> None:
    volume = make(64 * BLOCK, log_size=1 << 18)
    snapshot = volume.snapshot("empty")
    stop = threading.Event()
    problems: list[BaseException] = []

    def work(number: int) -> None:
        rng = random.Random(number)
        try:
            while not stop.is_set():
                block = rng.randrange(number * 16, number * 16 + 16)
                data = bytes([number + 1]) * BLOCK
                try:
                    if rng.random() < 0.2:
                        volume.discard(block * BLOCK, BLOCK)
                    else:
                        volume.pwrite(data, block * BLOCK)
                    assert volume.pread(BLOCK, block * BLOCK) in (data, bytes(BLOCK))
                except OutOfRangeError:
                    pass
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    rng = random.Random(5)
    for number in range(40):
        volume.resize(512 * rng.randrange(1, 520))
        if number % 10 == 0:
            volume.snapshot(f"s{number}")
            assert volume.check().problems == []
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []
    assert snapshot.pread(64 * BLOCK, 0) == bytes(64 * BLOCK)
    volume.resize(16 * BLOCK)
    volume.resize(64 * BLOCK)
    assert volume.pread(48 * BLOCK, 16 * BLOCK) == bytes(48 * BLOCK)
    assert set(volume.pread(16 * BLOCK, 0)) <= {0, 1}


@pytest.mark.parametrize("size", [0, -512, 100, 513, (1 << 48) - 512, 1 << 70, "4096", 4096.0, None])
def test_a_size_that_cannot_be_is_refused(make: Callable[..., Volume], size: Any) -> None:
    volume = make(4 * BLOCK)
    with pytest.raises(OutOfRangeError):
        volume.resize(size)
    assert volume.size == 4 * BLOCK


def test_only_an_open_writable_volume_is_resized(make: Callable[..., Volume]) -> None:
    volume = make(4 * BLOCK)
    path = volume.path
    volume.close()
    with pytest.raises(ClosedError):
        volume.resize(BLOCK)
    with Volume.open(path, read_only=True) as reader, pytest.raises(ReadOnlyError):
        reader.resize(BLOCK)


class FullDisk(IOTable):
    """Has no room for what is written behind `limit`, once that is set."""

    limit = 1 << 60

    def pwrite(self, fd: int, data: Any, offset: int) -> None:
        if offset >= self.limit:
            raise OSError(errno.ENOSPC, "full")
        super().pwrite(fd, data, offset)


def test_a_shrink_on_a_full_disk_works_or_changes_nothing(make: Callable[..., Volume]) -> None:
    disk = FullDisk()
    volume = make(32 * BLOCK, io=disk)
    volume.pwrite(b"x" * (32 * BLOCK), 0)
    volume.flush()
    disk.limit = os.stat(volume.path).st_size
    with pytest.raises(NoSpaceError):
        volume.resize(8 * BLOCK + 512)  # needs a new place for the rest of a block
    assert volume.size == 32 * BLOCK
    assert volume.pread(32 * BLOCK, 0) == b"x" * (32 * BLOCK)
    assert volume.check().problems == []
    volume.resize(8 * BLOCK)
    assert volume.pread(8 * BLOCK, 0) == b"x" * (8 * BLOCK)


def test_a_chain_of_backups_across_resizes_restores_every_version(make: Callable[..., Volume], tmp_path: Path) -> None:
    rng = random.Random(3)
    volume = make(40 * BLOCK + 512)
    contents = {}
    backups = []
    for number, size in enumerate(
        (40 * BLOCK + 512, 20 * BLOCK + 1024, 20 * BLOCK + 1536, 300 * BLOCK, 512, 30 * BLOCK)
    ):
        volume.resize(size)
        volume.pwrite(rng.randbytes(min(size, 5000)), rng.randrange(max(1, size - 5000)))
        snapshot = volume.snapshot(f"s{number}")
        contents[number] = snapshot.pread(size, 0)
        kind = "incremental" if number else "full"
        backups.append(write_backup(tmp_path / "target", {"main": snapshot}, kind=kind))
    for number, backup in enumerate(backups):
        restored = restore(tmp_path / "target", backup.id, tmp_path / f"restored-{number}")
        assert Path(restored["main"]).read_bytes() == contents[number]
    with Store.create(str(tmp_path / "store")) as store:
        restore(tmp_path / "target", backups[-1].id, store)
        with store.open_volume("main") as restored_volume:
            assert restored_volume.pread(restored_volume.size, 0) == contents[5]
            restored_volume.resize(BLOCK)
        with store.open_volume("main") as restored_volume:
            assert restored_volume.pread(restored_volume.size, 0) == contents[5][:BLOCK]
