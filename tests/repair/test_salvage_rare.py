"""Salvage of what is seldom met: holes and runs, sparse seals, places that cannot be, disks that give nothing."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_image import SLOT, Image
from salvage_damage import flipped, structures

from cowengine import CorruptionError, Salvaged, StorageError, Volume
from cowengine.core.iotable import KERNEL, IOTable
from cowengine.engine import salvage, salvage_seals

BLOCKS = 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "v"


def of_a_crash(path: Path, blocks: int, work: Callable[[Volume], object]) -> bytes:
    """A volume that `work` has written to and whose process then died; what it showed."""
    volume = Volume.create(path, blocks * SLOT, background=False)
    work(volume)
    shown, data = volume.pread(volume.size, 0), path.read_bytes()
    volume.close()
    path.write_bytes(data)
    return shown


def salvaged(path: Path, **options: object) -> tuple[Salvaged, bytes]:
    """The report, and the image, of the live volume."""
    target = path.with_suffix(".img")
    report = Volume.salvage(path, target, **options)  # type: ignore[arg-type]
    return report, target.read_bytes()


def test_what_was_discarded_behind_the_checkpoint_is_a_hole(path: Path) -> None:
    def work(volume: Volume) -> None:
        volume.pwrite(b"a" * 8 * SLOT, 0)
        volume.snapshot("s")
        volume.engine.checkpoint()
        volume.discard(2 * SLOT, 3 * SLOT)
        volume.flush()

    shown = of_a_crash(path, BLOCKS, work)
    report, image = salvaged(path)
    assert report.ok and image == shown == b"a" * 2 * SLOT + bytes(3 * SLOT) + b"a" * 3 * SLOT + bytes(56 * SLOT)


def test_an_adopted_image_lies_in_one_run(path: Path) -> None:
    raw = os.urandom(512 * SLOT)
    path.write_bytes(raw)
    with Volume.adopt(path, background=False) as volume:
        volume.pwrite(b"new", 300 * SLOT)
        shown = volume.pread(volume.size, 0)
    report, image = salvaged(path)
    assert report.ok and image == shown and report.counts["blocks"] == 512


@pytest.mark.parametrize("kept", [1, 64])
def test_seals_are_found_leaf_by_leaf(path: Path, monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    """Blocks whose seals lie in two leaves of the table, and one whose leaf is not there."""
    monkeypatch.setattr(salvage_seals, "LEAVES_MAX", kept)
    with Volume.create(path, 4000 * SLOT, background=False) as volume:
        for block in (0, 1, 1500, 1501):
            volume.pwrite(os.urandom(SLOT), block * SLOT)
        volume.snapshot("s")
        volume.seal()
        volume.pwrite(os.urandom(SLOT), 3500 * SLOT)
        shown = volume.pread(volume.size, 0)
    report, image = salvaged(path)
    assert report.ok and image == shown
    assert report.counts == {"blocks": 5, "verified": 4, "unsealed": 1, "lost": 0}


def test_many_extents_that_are_lost_are_listed_and_told_of_in_short(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(salvage, "PROBLEMS_MAX", 2)

    def work(volume: Volume) -> None:
        for block in range(0, 8, 2):
            volume.pwrite(b"x" * SLOT, block * SLOT)
        volume.flush()

    shown = of_a_crash(path, BLOCKS, work)
    with Volume.open(path, background=False) as volume:
        slots = [volume.engine.path.place(block)[0] for block in range(0, 8, 2)]

    class Unreadable(IOTable):
        def pread(self, fd: int, length: int, offset: int) -> bytes:
            if any(offset <= slot * SLOT < offset + length for slot in slots[:3]):
                raise OSError(5, os.strerror(5))
            return KERNEL.pread(fd, length, offset)

    report, image = salvaged(path, io=Unreadable())
    assert [lost.offset for lost in report.lost] == [0, 2 * SLOT, 4 * SLOT]
    assert len(report.problems) == 3 and "1 more extents" in report.problems[-1]
    assert image == bytes(6 * SLOT) + shown[6 * SLOT :]


def test_a_map_that_leads_into_the_log_gives_nothing_of_it(path: Path) -> None:
    shown = of_a_crash(path, BLOCKS, lambda volume: (volume.pwrite(b"x" * 3 * SLOT, 0), volume.engine.checkpoint()))
    image = Image(path.read_bytes())
    (target,) = (spot.offset for spot in image.spots if spot.what == "map.target" and spot.offset % SLOT == 16)
    image.put(target, 1 << 56 | 3)
    image.seal()
    path.write_bytes(image.data)
    report, found = salvaged(path)
    assert [lost.why for lost in report.lost] == ["slot 3 cannot hold a block"]
    assert found == shown[:SLOT] + bytes(SLOT) + shown[2 * SLOT :]


def test_a_disk_that_gives_no_superblock_is_told_of_as_such(path: Path) -> None:
    class Dead(IOTable):
        def pread(self, fd: int, length: int, offset: int) -> bytes:
            raise OSError(5, os.strerror(5))

    of_a_crash(path, BLOCKS, lambda volume: volume.flush())
    with pytest.raises(StorageError, match="a read failed: Input/output error"):
        salvaged(path, io=Dead())
    assert not path.with_suffix(".img").exists()


def test_an_open_volume_that_is_only_read_is_salvaged_as_it_is(path: Path, tmp_path: Path) -> None:
    shown = of_a_crash(path, BLOCKS, lambda volume: (volume.pwrite(b"x" * SLOT, 0), volume.flush()))
    before = path.read_bytes()
    with Volume.open(path, read_only=True, background=False) as volume:
        assert volume.export(tmp_path / "image", salvage=True).ok
    assert (tmp_path / "image").read_bytes() == shown
    assert path.read_bytes() == before


def test_what_no_lineage_table_shows_cannot_be_found(path: Path) -> None:
    tables: list[int] = []

    def work(volume: Volume) -> None:
        for name in ("one", "two"):
            volume.snapshot(name)
            volume.engine.checkpoint()
            tables.extend(structures(path.read_bytes())["tree 2"])

    of_a_crash(path, BLOCKS, work)
    data, rng = path.read_bytes(), random.Random(1)
    for at in tables:
        data = flipped(data, at, rng)
    path.write_bytes(data)
    with pytest.raises(CorruptionError, match=r"snapshot 'one' cannot be found: .*checksum is wrong"):
        salvaged(path, snapshot="one")


def test_an_older_state_is_never_passed_off_as_the_newest(path: Path) -> None:
    """The newest lineage table is damaged, and the records that lead from the older one to it are gone."""

    def work(volume: Volume) -> None:
        volume.pwrite(b"o" * SLOT, 0)
        volume.engine.checkpoint()
        volume.pwrite(b"n" * SLOT, SLOT)
        volume.snapshot("new")
        volume.engine.checkpoint()

    of_a_crash(path, BLOCKS, work)
    image = Image(path.read_bytes())
    first, slots = image.u64(image.superblock + 96), image.u64(image.superblock + 104)
    (leaf,) = image.leaves(2).values()
    image.data[leaf + 100] ^= 1
    image.data[first * SLOT : (first + slots) * SLOT] = bytes(slots * SLOT)
    path.write_bytes(image.data)
    report, _ = salvaged(path, doubtful=True)
    assert not report.ok and "the newest state, that of record" in report.problems[0]
