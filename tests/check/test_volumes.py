"""The checker over volumes that the engine wrote: clean after everything, and damage in any region is reported."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cowengine import Volume
from cowengine import format as f
from cowengine.core.iotable import KERNEL
from cowengine.engine import check as checker
from cowengine.engine.check import check_file
from cowengine.engine.check_trees import PROBLEMS_MAX
from cowengine.errors import BusyError, FormatError


@pytest.fixture
def path(tmp_path):
    """Snapshots, two branches, metadata, a discard, and a deleted snapshot that two children stand on."""
    path = str(tmp_path / "volume.cow")
    with Volume.create(path, 700 * 4096, log_size=16384, background=False) as volume:
        volume.pwrite(b"a" * 4096 * 20, 0)
        volume.snapshot("one", metadata={"why": "first"})
        volume.pwrite(b"b" * 4096 * 5, 4096 * 290)
        base = volume.snapshot("two")
        volume.pwrite(b"c" * 4096, 0)
        volume.rollback(base)
        volume.discard(0, 8192)
        volume.snapshot("three")
        base.delete()
    return path


def spoil(path: str, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x40]))


def metadata_slots(path: str) -> dict[int, str]:
    """Slot -> what lies there, of nodes and metadata."""
    fd = KERNEL.open(path, 0)
    try:
        sb = f.decode_superblock(KERNEL.pread(fd, 4096, 0))
        other = f.decode_superblock(KERNEL.pread(fd, 4096, 4096))
        sb = max(sb, other, key=lambda one: one.generation)
        trees = checker.Trees(KERNEL, fd, f.fold_of(sb.volume_uuid), 1, checker.Problems())
        trees.used_slots(sb.free_map_root)
        lineage = trees.lineage(sb.lineage_root)
        for record in lineage.values():
            trees.collect(record.root, checker.Intervals([(0, f.SLOTS_MAX)]), set())
        found = {slot: f"node {place}" for slot, place in trees.nodes.items()}
        found |= {r.metadata_slot: f"metadata of {r.id}" for r in lineage.values() if r.metadata_slot}
        return found
    finally:
        KERNEL.close(fd)


def test_a_volume_is_clean_and_counted(path):
    report = check_file(path)
    assert report.problems == []
    assert report.counts["snapshots"] == 3
    assert report.counts["deleted"] == 1
    with Volume.open(path, read_only=True) as volume:
        assert volume.check().problems == []
    with Volume.open(path, background=False) as volume:
        volume.pwrite(b"more", 5000)
        assert volume.check().problems == []


def test_a_volume_open_for_writing_is_busy(path):
    with Volume.open(path, background=False), pytest.raises(BusyError):
        check_file(path)


def test_a_flipped_bit_in_any_node_or_metadata_is_reported(path):
    slots = metadata_slots(path)
    assert {what.split()[0] for what in slots.values()} == {"node", "metadata"}
    assert {what[6] for what in slots.values() if what.startswith("node")} == {"1", "2", "3"}
    for slot, what in slots.items():
        offset = slot * 4096 + 1
        spoil(path, offset)
        assert not check_file(path).ok, what
        spoil(path, offset)
    assert check_file(path).ok


def test_two_damaged_superblocks_are_reported_and_one_is_not_needed(path):
    spoil(path, 100)
    spoil(path, 4096 + 100)
    assert any("superblocks are damaged" in problem for problem in check_file(path).problems)


def test_a_file_cut_anywhere_is_reported_or_no_volume(path):
    needed = max(metadata_slots(path)) * 4096
    rng = random.Random(3)
    for length in sorted(rng.sample(range(needed), 30), reverse=True):
        with open(path, "r+b") as file:
            file.truncate(length)
        try:
            assert not check_file(path).ok
        except FormatError:
            assert length < 4096 * 2


@pytest.mark.parametrize("seed", range(3))
def test_random_damage_never_raises_anything_but_a_format_error(path, seed):
    rng = random.Random(seed)
    whole = Path(path).read_bytes()
    places = [*range(2 * 4096), *range(8192, 8192 + 16384)] + [
        slot * 4096 + byte for slot in metadata_slots(path) for byte in range(0, 4096, 7)
    ]
    for _ in range(60):
        for _ in range(rng.randint(1, 8)):
            spoil(path, rng.choice(places))
        try:
            report = check_file(path)
            assert len(report.problems) <= PROBLEMS_MAX + 1
        except FormatError:
            pass
        with open(path, "r+b") as file:
            file.write(whole)
