"""Found by tests/torture/soak.py: what snapshots that are gone left behind, in the file and in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from memory_disk import MemoryDisk

from cowengine import Volume
from cowengine.engine import shortcuts, usage

PATH = "/disk/volume"


@pytest.fixture
def disk() -> MemoryDisk:
    return MemoryDisk(recorded=False)


@pytest.fixture
def volume(disk: MemoryDisk) -> Iterator[Volume]:
    with Volume.create(PATH, 1 << 20, log_size=65536, background=False, io=disk) as volume:
        yield volume


def in_use(volume: Volume) -> int:
    """Slots, behind checkpoints that have written all that there is to write."""
    for _ in range(3):
        volume.engine.checkpoint()
    return volume.check().counts["slots_used"]


def rounds(volume: Volume, first: int, count: int) -> None:
    for number in range(first, first + count):
        volume.pwrite(b"x" * 4096, 0)
        volume.snapshot(f"snapshot {number}").delete()


def test_records_of_snapshots_that_are_gone_take_no_space(volume: Volume) -> None:
    """8 records fill a node of the lineage table; nodes without a record stayed for ever."""
    rounds(volume, 0, 100)
    before = in_use(volume)
    rounds(volume, 100, 800)
    assert in_use(volume) <= before + 1


def test_nodes_that_were_given_up_are_no_hindrance(volume: Volume, disk: MemoryDisk) -> None:
    """The table below an id is a hole: behind an open it is one, and so it is for lists and for new snapshots."""
    rounds(volume, 0, 700)
    kept = volume.snapshot("kept")
    for _ in range(2):
        volume.engine.checkpoint()
    volume.close()
    with Volume.open(PATH, background=False, io=disk) as again:
        assert [each.id for each in again.snapshots()] == [kept.id]
        rounds(again, 700, 20)
        assert again.check().problems == []
        again.get_snapshot("kept").delete()
        again.reclaim()
        assert again.snapshots() == []
        assert again.check().problems == []


def test_space_of_snapshots_that_are_gone_is_not_remembered(volume: Volume) -> None:
    for number in range(3 * usage.KEPT_MIN):
        volume.pwrite(number.to_bytes(2, "little") * 2048, 0)
        snapshot = volume.snapshot(f"snapshot {number}")
        assert volume.du().used_bytes == 4096
        snapshot.delete()
    assert len(volume.engine.amounts) <= usage.KEPT_MIN


def test_anchors_that_are_gone_are_not_remembered(volume: Volume) -> None:
    anchors = []
    for number in range(4 * shortcuts.GONE_MAX):
        volume.pwrite(b"x" * 4096, number % 16 * 4096)
        anchors.append(volume.snapshot(f"snapshot {number}"))
        anchors[-1].to_anchor()
        if len(anchors) > 5:
            anchors.pop(2).delete()
    lineage = volume.engine.lineage
    for passed in (lineage._past_above, lineage._past_below):
        assert len(passed._further) <= shortcuts.GONE_MAX + len(anchors)
    assert volume.check().problems == []
