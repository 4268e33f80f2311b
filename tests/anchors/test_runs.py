"""Runs of empty anchors: what lies behind them is what a walk finds, and finding it takes a few steps."""

from __future__ import annotations

import random

import pytest
from memory_disk import MemoryDisk

from cowengine import Volume
from cowengine.engine.lineage import Lineage
from cowengine.errors import AnchorError, BusyError
from cowengine.format import LINEAGE_EMPTY, NONE_ID

BLOCK = 4096
PATH = "/disk/volume"


def members(lineage: Lineage) -> list[int]:
    return [number for number in range(lineage.next_id) if lineage.get(number) is not None]


def is_empty(lineage: Lineage, number: int) -> bool:
    record = lineage.get(number)
    assert record is not None
    return bool(record.flags & LINEAGE_EMPTY)


def walked_holder(lineage: Lineage, number: int) -> int:
    for record in list(lineage.ancestors(number))[1:]:
        if not record.flags & LINEAGE_EMPTY:
            return record.id
    return NONE_ID


def walked_sharers(lineage: Lineage, number: int) -> set[int]:
    found = set()
    for child in lineage.children(number):
        found |= walked_sharers(lineage, child) if is_empty(lineage, child) else {child}
    return found


@pytest.mark.parametrize("seed", range(6))
def test_what_lies_behind_a_run_is_what_a_walk_finds(seed: int) -> None:
    """Anchors, deletes of both kinds, rollbacks; whoever holds for whom is asked of all of them after each step."""
    rng = random.Random(seed)
    with Volume.create(PATH, 16 * BLOCK, io=MemoryDisk(recorded=False), background=False) as volume:
        lineage = volume.engine.lineage
        longest = 0
        for step in range(250):
            volume.pwrite(bytes([step % 255 + 1]) * BLOCK, rng.randrange(16) * BLOCK)
            shown = volume.snapshots()
            choice = rng.random()
            if len(shown) < 40 and (choice < 0.35 or not shown):
                volume.snapshot(f"s{step}")
            elif choice < 0.6:
                rng.choice(shown).to_anchor()
            elif choice < 0.8:
                rng.choice(shown).delete()
            else:
                with_data = [snapshot for snapshot in shown if not snapshot.is_anchor]
                if with_data:
                    volume.rollback(rng.choice(with_data))
            for number in members(lineage):
                holder = lineage.holder(number)
                assert (NONE_ID if holder is None else holder.id) == walked_holder(lineage, number)
                assert sorted(lineage.sharers(number)) == sorted(walked_sharers(lineage, number))
            longest = max(longest, sum(is_empty(lineage, number) for number in members(lineage)))
        assert longest > 8
        assert volume.check().problems == []


@pytest.mark.parametrize("oldest_first", [True, False])
def test_reclaims_beside_a_run_of_a_thousand_do_not_walk_it(
    oldest_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [0]
    get = Lineage.get

    def counted(lineage: Lineage, number: int) -> object:
        asked[0] += 1
        return get(lineage, number)

    count = 1000
    disk = MemoryDisk(recorded=False)
    with Volume.create(PATH, 16 * BLOCK, io=disk, background=False) as volume:
        taken = [volume.snapshot(f"s{number}") for number in range(count)]
        monkeypatch.setattr(Lineage, "get", counted)
        in_turn = taken if oldest_first else taken[::-1]
        for snapshot in in_turn:
            snapshot.to_anchor()
        assert asked[0] < 100 * count, asked
        asked[0] = 0
        for snapshot in in_turn[: count // 2]:  # now anchors go, from one end of the run
            snapshot.delete()
        assert asked[0] < 100 * count, asked
    with Volume.open(PATH, io=disk, background=False) as volume:
        volume.engine.lineage.set_holder(0)
        asked[0] = 0
        volume.snapshot("new")
        volume.get_snapshot("new").delete()
        assert asked[0] < 200


def test_neither_a_read_nor_a_rollback_goes_by_an_empty_anchor() -> None:
    """What shortcuts go by: the live volume never comes to stand on one."""
    with Volume.create(PATH, 16 * BLOCK, io=MemoryDisk(recorded=False), background=False) as volume:
        volume.snapshot("a").to_anchor()
        with pytest.raises((AnchorError, BusyError)):
            volume.rollback("a")
