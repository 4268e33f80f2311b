"""What growing gains has homes: written there, brought back there by compaction, and never given to anybody else."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from cowengine import Volume
from cowengine.core.iotable import IOTable
from cowengine.engine import homes
from cowengine.errors import StorageError
from cowengine.format import REGIONS_MAX

BLOCK = 4096
LOG = 16384


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    with Volume.create(tmp_path / "v", 16 * BLOCK, log_size=LOG, background=False) as volume:
        yield volume
        if not volume.closed:
            assert volume.check().problems == []


def slots(volume: Volume) -> list[int]:
    """Where each block of the live volume lies; 0: it is a hole."""
    return [volume.engine.path.place(block)[0] for block in range(volume.size // BLOCK)]


def home_slots(volume: Volume) -> list[int]:
    """Where each block of the live volume is at home."""
    found = []
    for block in range(volume.size // BLOCK):
        own = [r for r in volume.engine.regions if r.first_block <= block < r.first_block + r.block_count]
        found.append(own[0].slot + block - own[0].first_block)
    return found


def crashed(volume: Volume) -> Volume:
    """The volume as another process finds it when this one died."""
    path = volume.path
    volume.engine.abandon()
    return Volume.open(path, background=False)


def test_each_growth_has_homes_and_they_stay_the_same(volume: Volume) -> None:
    volume.pwrite(b"a" * (16 * BLOCK), 0)
    for number, blocks in enumerate((20, 33, 90, 200)):
        old = volume.size
        volume.snapshot(f"s{number}")
        volume.pwrite(b"b" * (8 * BLOCK), 0)  # redirected: the file has something behind its last region
        volume.resize(blocks * BLOCK)
        volume.pwrite(b"c" * (volume.size - old), old)
        assert slots(volume)[old // BLOCK :] == home_slots(volume)[old // BLOCK :]
        assert volume.check().problems == []
    before = home_slots(volume)
    assert len(volume.engine.regions) <= 5
    for _ in range(2):
        volume.engine.checkpoint()
    assert volume.engine.superblock.regions == volume.engine.regions
    with crashed(volume) as again:
        assert home_slots(again) == before
        assert again.check().problems == []


def test_regions_that_only_the_log_knows_are_there_after_a_crash(tmp_path: Path) -> None:
    volume = Volume.create(tmp_path / "v", 16 * BLOCK, log_size=LOG, background=False)
    for blocks in (40, 100):
        volume.resize(blocks * BLOCK)
        volume.pwrite(b"x" * BLOCK, volume.size - BLOCK)
        volume.flush()
        regions = volume.engine.regions
        volume = crashed(volume)
        assert volume.engine.regions == regions != volume.engine.superblock.regions
        assert slots(volume)[-1] == home_slots(volume)[-1]
        assert volume.check().problems == []
    volume.close()


def test_a_shrink_keeps_the_homes_of_what_snapshots_hold(volume: Volume) -> None:
    volume.resize(64 * BLOCK)
    volume.pwrite(old := random.Random(1).randbytes(64 * BLOCK), 0)
    snapshot = volume.snapshot("s")
    held = slots(volume)
    volume.resize(8 * BLOCK)
    volume.resize(64 * BLOCK)
    volume.pwrite(new := random.Random(2).randbytes(64 * BLOCK), 0)
    assert not set(slots(volume)) & set(held)
    assert snapshot.pread(64 * BLOCK, 0) == old and volume.pread(64 * BLOCK, 0) == new
    snapshot.delete()
    assert volume.compact().moved_bytes == 64 * BLOCK
    assert slots(volume) == held == home_slots(volume)
    assert volume.pread(64 * BLOCK, 0) == new


def test_compaction_on_a_grown_volume_makes_the_file_sequential(volume: Volume) -> None:
    rng = random.Random(3)
    for blocks in (60, 130, 500):
        volume.resize(blocks * BLOCK)
        volume.pwrite(rng.randbytes(volume.size), 0)
        volume.snapshot("s")
        for block in rng.sample(range(blocks), blocks // 2):
            volume.pwrite(rng.randbytes(BLOCK), block * BLOCK)
        volume.get_snapshot("s").delete()
    contents = volume.pread(volume.size, 0)
    assert volume.compact().moved_bytes > 0
    assert slots(volume) == home_slots(volume)
    assert volume.pread(volume.size, 0) == contents


def test_when_the_table_is_full_blocks_go_wherever_there_is_room(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(homes, "AHEAD", 0)
    for blocks in range(20, 80, 4):
        volume.resize(blocks * BLOCK)
        volume.pwrite(bytes([blocks]) * (4 * BLOCK), volume.size - 4 * BLOCK)
        assert volume.check().problems == []
    assert len(volume.engine.regions) == REGIONS_MAX
    assert volume.compact().done
    assert [volume.pread(1, block * BLOCK)[0] for block in range(16, 76)] == [20 + n // 4 * 4 for n in range(60)]


class ShortFiles(IOTable):
    """A file system that has no file longer than `longest` bytes, or one that cannot be written."""

    longest = 1 << 60
    number = errno.EFBIG

    def truncate(self, fd: int, size: int) -> None:
        if size > self.longest:
            raise OSError(self.number, os.strerror(self.number))
        super().truncate(fd, size)


def test_where_the_file_cannot_be_so_long_growing_works_all_the_same(tmp_path: Path) -> None:
    disk = ShortFiles()
    with Volume.create(tmp_path / "v", 16 * BLOCK, log_size=LOG, io=disk, background=False) as volume:
        disk.longest = os.stat(volume.path).st_size + 300 * BLOCK  # a start at a multiple of 256 slots, and 30 blocks
        volume.resize(30 * BLOCK)
        assert [region.block_count for region in volume.engine.regions] in ([16, 14], [16, 16])
        volume.resize(10_000 * BLOCK)
        assert len(volume.engine.regions) == 2
        volume.pwrite(b"x" * BLOCK, 9_999 * BLOCK)
        disk.number = errno.EIO
        with pytest.raises(StorageError):
            volume.resize(20_000 * BLOCK)
        assert volume.size == 10_000 * BLOCK and volume.pread(1, 9_999 * BLOCK) == b"x"
        assert volume.check().problems == []


def test_what_is_free_between_two_regions_is_used_again(volume: Volume) -> None:
    volume.pwrite(b"a" * (16 * BLOCK), 0)
    volume.snapshot("s")
    volume.pwrite(b"b" * (16 * BLOCK), 0)
    volume.resize(40 * BLOCK)
    gap = (volume.engine.regions[0].slot + 16, volume.engine.regions[1].slot)
    volume.engine.allocator.tighten()  # as if the file system were full
    for number in range(20):
        volume.snapshot(f"t{number}")
        volume.pwrite(bytes([number]) * BLOCK, 0)
    assert gap[0] <= slots(volume)[0] < gap[1]
    assert volume.check().problems == []
