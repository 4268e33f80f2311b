"""Anchors: what is left of a snapshot when its data was given up, and what it still answers."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from memory_disk import MemoryDisk
from model_volume import ModelSnapshot, ModelVolume

from cowengine import Volume
from cowengine.engine import reclaim
from cowengine.errors import AnchorError, CorruptionError, ExistsError, FullBackupRequired, NotFoundError, ReadOnlyError

BLOCK = 4096
BLOCKS = 300  # two leaves of the map
PATH = "/disk/volume"


class Pair:
    """A volume and its model, changed alike."""

    def __init__(self, **options: Any) -> None:
        self.disk = MemoryDisk(recorded=False)
        self.volume = Volume.create(PATH, BLOCKS * BLOCK, io=self.disk, background=False, **options)
        self.model = ModelVolume(BLOCKS * BLOCK, BLOCK)
        self.serial = 0

    def write(self, first: int, count: int = 1) -> None:
        self.serial += 1
        data = bytes([self.serial % 251 + 1]) * (count * BLOCK)
        self.volume.pwrite(data, first * BLOCK)
        self.model.pwrite(data, first * BLOCK)

    def discard(self, first: int, count: int) -> None:
        self.volume.discard(first * BLOCK, count * BLOCK)
        self.model.discard(first * BLOCK, count * BLOCK)

    def snapshot(self, name: str) -> None:
        self.volume.snapshot(name)
        self.model.snapshot(name)

    def anchor(self, name: str) -> None:
        self.volume.get_snapshot(name).to_anchor()
        self.model.anchor(name)

    def delete(self, name: str) -> None:
        self.volume.get_snapshot(name).delete()
        self.model.delete(name)

    def rollback(self, name: str) -> None:
        self.model.rollback(name, self.volume.rollback(name).name)

    def reopen(self) -> None:
        self.volume.close()
        self.volume = Volume.open(PATH, io=self.disk, background=False)

    def versions(self) -> list[tuple[Any, ModelSnapshot]]:
        return [*zip(self.volume.snapshots(), self.model.snapshots, strict=True), (self.volume, self.model.live())]

    def agree(self) -> None:
        """All contents, all pairs' changes, and a clean check."""
        versions = self.versions()
        for shown, version in versions:
            if not version.anchor:
                assert shown.pread(self.model.size, 0) == version.content
        for (target, new), (base, old) in itertools.product(versions, versions[:-1]):
            if self.model.comparable(old, new):
                rows = [(int(offset), int(length)) for offset, length in target.changed_extents(base)]
                assert rows == self.model.changed_extents(old, new)
            else:
                with pytest.raises(FullBackupRequired, match="anchor"):
                    target.changed_extents(base)
        report = self.volume.check()
        assert report.problems == []
        assert report.counts["anchors"] == sum(version.anchor for _, version in versions)

    def blocks_in_use(self) -> tuple[int, int]:
        """What the volume holds, and what it must: each block once for each version of it that somebody shows."""
        held = {
            (block, birth)
            for _, version in self.versions()
            for block, birth in enumerate(version.births)
            if version.mapped[block] and not version.anchor
        }
        return self.volume.check().counts["blocks"], len(held)


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.volume.close()


def chain(pair: Pair, count: int, rng: random.Random) -> list[str]:
    """Snapshots in a row, with rewrites, new blocks and discards between them."""
    names = [f"s{number}" for number in range(count)]
    pair.write(0, 40)
    for name in names:
        for _ in range(3):
            pair.write(rng.randrange(50), rng.randrange(1, 5))
            pair.write(rng.randrange(250, 295))
        pair.discard(rng.randrange(40), rng.randrange(1, 4))
        pair.snapshot(name)
    pair.write(rng.randrange(40), 3)
    return names


# -- what an anchor keeps and what it does not ------------------------------------------------------------------------
def test_an_anchor_keeps_its_identity_and_gives_up_its_bytes(pair: Pair) -> None:
    pair.write(0, 8)
    snapshot = pair.volume.snapshot("monday", metadata={"job": 17})
    pair.write(2, 2)
    before = (snapshot.id, snapshot.name, snapshot.epoch, snapshot.change_id, snapshot.created, snapshot.size)
    assert not snapshot.is_anchor
    snapshot.to_anchor()
    for _ in range(2):
        again = pair.volume.get_snapshot("monday")
        assert snapshot.is_anchor and again.is_anchor
        assert (again.id, again.name, again.epoch, again.change_id, again.created, again.size) == before
        assert again.metadata == {"job": 17}
        assert pair.volume.changed_extents(again).tolist() == [[2 * BLOCK, 2 * BLOCK]]
        for refused in (
            lambda a=again: a.pread(1, 0),
            lambda a=again: a.pread_into(bytearray(1), 0),
            again.open,
            again.allocated_extents,
            lambda a=again: pair.volume.rollback(a),
        ):
            with pytest.raises(AnchorError, match="'monday' is an anchor"):
                refused()
        with pytest.raises(ExistsError):
            pair.volume.snapshot("monday")
        pair.reopen()


def test_a_file_object_over_a_snapshot_fails_once_that_is_an_anchor(pair: Pair) -> None:
    pair.write(0)
    snapshot = pair.volume.snapshot("s")
    file = snapshot.open()
    assert file.read(1) == b"\2"
    snapshot.to_anchor()
    with pytest.raises(AnchorError):
        file.read(1)


def test_the_blocks_come_back_and_an_anchor_costs_none(pair: Pair) -> None:
    pair.write(0, 100)
    pair.snapshot("s")
    pair.write(0, 100)
    assert pair.blocks_in_use() == (200, 200)
    pair.anchor("s")
    assert pair.blocks_in_use() == (100, 100)
    assert pair.volume.stats()["reclaims_pending"] == 0


def test_anchoring_twice_changes_nothing_and_an_anchor_can_be_deleted(pair: Pair) -> None:
    pair.snapshot("s")
    snapshot = pair.volume.get_snapshot("s")
    snapshot.to_anchor()
    commits = pair.volume.stats()["commits"]
    snapshot.to_anchor()
    assert pair.volume.stats()["commits"] == commits
    pair.volume.get_snapshot("s").delete()
    assert pair.volume.check().counts["anchors"] == 0
    for gone in (snapshot.delete, snapshot.to_anchor, lambda: pair.volume.get_snapshot("s")):
        with pytest.raises(NotFoundError):
            gone()
    with pytest.raises(FullBackupRequired):
        pair.volume.changed_extents(snapshot.change_id)
    pair.volume.snapshot("s")


def test_an_anchor_that_only_the_log_knows_of_is_one(tmp_path: Path) -> None:
    """As after a crash: the file is copied while it is open."""
    with Volume.create(tmp_path / "v", 1 << 20, background=False) as volume:
        volume.pwrite(b"a" * BLOCK, 0)
        first, second = volume.snapshot("first"), volume.snapshot("second")
        volume.pwrite(b"b" * BLOCK, 0)
        volume.flush()
        volume.engine.to_anchor(first.id)  # not reclaimed yet
        shutil.copy(tmp_path / "v", tmp_path / "begun")
        second.to_anchor()
        shutil.copy(tmp_path / "v", tmp_path / "done")
    for name, anchors in (("begun", [True, False]), ("done", [True, True])):
        for read_only in (True, False):
            with Volume.open(tmp_path / name, read_only=read_only, background=False) as volume:
                assert [snapshot.is_anchor for snapshot in volume.snapshots()] == anchors
                with pytest.raises(AnchorError):
                    volume.get_snapshot("first").pread(1, 0)
                assert volume.changed_extents("first").tolist() == [[0, BLOCK]]
                assert volume.check().problems == []
                if not read_only:
                    volume.reclaim()
                    assert volume.check().counts["blocks"] == 2 - all(anchors)


def test_a_read_only_volume_makes_no_anchors(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "v", 1 << 20) as volume:
        volume.snapshot("s")
        volume.snapshot("t").to_anchor()
    with Volume.open(tmp_path / "v", read_only=True) as volume:
        assert [snapshot.is_anchor for snapshot in volume.snapshots()] == [False, True]
        with pytest.raises(ReadOnlyError):
            volume.get_snapshot("s").to_anchor()
        with pytest.raises(ReadOnlyError):
            volume.get_snapshot("t").delete()


# -- changed extents --------------------------------------------------------------------------------------------------
def test_an_anchor_stays_exact_through_rewrites_discards_and_rollbacks(pair: Pair) -> None:
    pair.write(0, 10)
    pair.snapshot("base")
    pair.anchor("base")
    pair.write(3)
    pair.write(3)  # twice, in the same epoch
    pair.discard(5, 2)
    pair.snapshot("next")
    pair.write(6)  # into what was discarded
    pair.agree()
    pair.anchor("next")
    pair.agree()
    pair.snapshot("third")
    pair.write(9)
    pair.rollback("third")
    pair.agree()
    pair.reopen()
    pair.agree()


def test_a_rollback_to_before_an_anchor_leaves_it_without_an_answer(pair: Pair) -> None:
    pair.write(0, 4)
    pair.snapshot("early")
    pair.write(1)
    pair.snapshot("late")
    pair.anchor("late")
    pair.write(2)
    pair.snapshot("later")
    assert pair.volume.changed_extents("late").tolist() == [[2 * BLOCK, BLOCK]]
    pair.rollback("early")
    with pytest.raises(FullBackupRequired, match="'late' is an anchor"):
        pair.volume.changed_extents("late")
    pair.agree()
    pair.rollback("later")
    assert pair.volume.changed_extents("late").tolist() == [[2 * BLOCK, BLOCK]]
    pair.agree()


@pytest.mark.parametrize("seed", range(12))
def test_any_history_agrees_with_the_model(seed: int) -> None:
    """Writes, discards, snapshots, anchors, deletes, rollbacks and opens: all pairs compared, and no block leaked."""
    rng = random.Random(seed)
    pair = Pair(log_size=16384)
    chain(pair, 3, rng)
    for step in range(40):
        names = [snapshot.name for snapshot in pair.model.snapshots]
        held = [snapshot.name for snapshot in pair.model.snapshots if not snapshot.anchor]
        what = rng.choice(("write", "write", "discard", "snapshot", "anchor", "anchor", "delete", "rollback", "reopen"))
        if what == "write":
            pair.write(rng.choice((rng.randrange(45), rng.randrange(250, 295))), rng.randrange(1, 5))
        elif what == "discard":
            pair.discard(rng.randrange(290), rng.randrange(1, 10))
        elif what == "snapshot" and len(names) < 8:
            pair.snapshot(f"n{step}")
        elif what == "anchor" and held:
            pair.anchor(rng.choice(held))
        elif what == "delete" and len(names) > 3:
            pair.delete(rng.choice(names))
        elif what == "rollback" and held and len(names) < 8:
            pair.rollback(rng.choice(held))
        elif what == "reopen":
            pair.reopen()
        pair.agree()
    for name in [snapshot.name for snapshot in pair.model.snapshots]:
        pair.delete(name)
        pair.agree()
    used, wanted = pair.blocks_in_use()
    assert used == wanted
    pair.volume.close()


# -- space ------------------------------------------------------------------------------------------------------------
def give_up(names: list[str], rng: random.Random) -> list[tuple[str, str]]:
    """Each is deleted or anchored, in any order; what was anchored may be deleted later."""
    steps = [(rng.choice(("delete", "anchor")), name) for name in rng.sample(names, len(names))]
    anchors = [name for what, name in steps if what == "anchor"]
    return [*steps, *(("delete", name) for name in rng.sample(anchors, rng.randrange(len(anchors) + 1)))]


EVERY_ORDER = [
    list(zip(choice, order, strict=True))
    for order in itertools.permutations(["s0", "s1", "s2"])
    for choice in itertools.product(["delete", "anchor"], repeat=3)
]


@pytest.mark.parametrize("part", range(4))
def test_anchors_and_deletes_in_every_order_free_exactly_what_nobody_holds(part: int) -> None:
    """Of three snapshots each order and choice; of six some, with anchors deleted again at the end."""
    rng = random.Random(part)
    histories = EVERY_ORDER[part::4] + [give_up([f"s{number}" for number in range(6)], rng) for _ in range(4)]
    for steps in histories:
        pair = Pair()
        chain(pair, len({name for _, name in steps}), rng)
        for number, (what, name) in enumerate(steps):
            getattr(pair, what)(name)
            if number == 1:
                pair.write(rng.randrange(40), 4)  # the free rule looks through anchors as well
                pair.discard(rng.randrange(40), 3)
            if number == 2:
                pair.reopen()
            used, wanted = pair.blocks_in_use()
            assert used == wanted, steps[: number + 1]
        pair.agree()
        pair.volume.close()


def test_a_branch_point_that_becomes_an_anchor_waits_until_one_line_is_left(pair: Pair) -> None:
    pair.write(0, 10)
    pair.snapshot("fork")
    pair.write(0, 5)
    pair.rollback("fork")
    pair.write(5, 3)
    other = pair.model.snapshots[-1].name
    pair.anchor("fork")
    assert pair.volume.stats()["reclaims_pending"] == 1
    pair.agree()
    pair.reopen()
    pair.agree()
    pair.delete(other)
    assert pair.volume.stats()["reclaims_pending"] == 0
    assert pair.blocks_in_use() == (10, 10)
    pair.agree()


def test_what_lies_under_an_anchor_is_reclaimed_against_what_stands_on_it(pair: Pair) -> None:
    """The only child is an empty anchor: the next one that holds data shares most of the blocks."""
    pair.write(0, 50)
    pair.snapshot("bottom")
    pair.write(0, 5)
    for name in ("middle", "upper"):
        pair.snapshot(name)
        pair.anchor(name)
    pair.snapshot("top")
    pair.write(5, 5)
    pair.delete("bottom")
    assert pair.blocks_in_use() == (55, 55)
    pair.agree()


def test_an_anchor_under_reclaim_can_be_deleted(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reclaim, "LEAVES_A_STEP", 1)
    monkeypatch.setattr(reclaim, "PARTS_A_STEP", 1)
    pair.write(0, BLOCKS)
    pair.snapshot("below")
    pair.write(0, 200)
    pair.snapshot("s")
    pair.write(100, 50)
    pair.volume.engine.to_anchor(pair.volume.get_snapshot("s").id)
    pair.model.anchor("s")
    reclaim.reclaim_step(pair.volume.engine)
    assert pair.volume.check().problems == []
    pair.write(0, BLOCKS)  # on both sides of the cursor; some of it is what the snapshot below holds
    pair.agree()
    pair.reopen()
    pair.delete("s")
    assert pair.blocks_in_use() == (2 * BLOCKS, 2 * BLOCKS)
    pair.agree()


@pytest.mark.parametrize("empty", [True, False])
def test_a_write_while_an_anchor_goes_frees_nothing_that_is_held(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, empty: bool
) -> None:
    """The live volume stands on the anchor, but the free rule goes by the snapshot below it."""
    pair.write(0, 20)
    pair.snapshot("below")
    pair.snapshot("going")
    if empty:
        pair.anchor("going")
    barrier = pair.volume.engine.barrier

    def write_meanwhile() -> None:
        barrier()
        pair.write(pair.serial % 20)

    monkeypatch.setattr(pair.volume.engine, "barrier", write_meanwhile)
    (pair.delete if empty else pair.anchor)("going")
    monkeypatch.undo()
    pair.agree()
    used, wanted = pair.blocks_in_use()
    assert used == wanted > 20


def test_who_still_has_the_map_of_an_anchor_does_no_harm_when_it_is_deleted(pair: Pair) -> None:
    """A walk that runs keeps the old root; the delete of the empty anchor must not free its nodes again."""
    pair.write(0, 40)
    pair.snapshot("s")
    pair.discard(0, 40)
    root = pair.volume.engine.lineage.root(pair.volume.get_snapshot("s").id)
    pair.anchor("s")
    pair.write(0, 40)  # into the home slots, which the anchor gave up
    pair.delete("s")
    assert pair.blocks_in_use() == (40, 40)
    pair.agree()
    del root


def test_an_empty_anchor_beside_the_live_volume_keeps_nobody_from_going(pair: Pair) -> None:
    pair.write(0, 10)
    pair.snapshot("fork")
    pair.write(0, 5)
    pair.rollback("fork")
    pair.write(5, 3)
    pair.anchor(pair.model.snapshots[-1].name)
    pair.delete("fork")
    assert pair.volume.stats()["reclaims_pending"] == 0
    assert pair.blocks_in_use() == (10, 10)
    pair.agree()


def test_a_thousand_rounds_of_snapshot_and_anchor_take_no_more_space_than_one(pair: Pair) -> None:
    rng = random.Random(1)
    pair.write(0, 100)
    first = pair.volume.snapshot("first")
    changed: set[int] = set()
    before = first
    for number in range(1000):
        block = rng.randrange(100)
        changed.add(block)
        pair.write(block)
        taken = pair.volume.snapshot(f"round {number}")
        before.to_anchor()
        before = taken
        if number == 100:
            early = pair.volume.check().counts
    report = pair.volume.check()
    assert report.problems == []
    assert report.counts["anchors"] == 1000 and report.counts["blocks"] == 100
    records = 900 // 8 * 2  # leaves of the lineage table, of two checkpoints
    assert report.counts["slots_used"] - early["slots_used"] <= records
    assert pair.volume.stats()["file_bytes"] < (BLOCKS + 1024) * BLOCK * 2
    rows = pair.volume.changed_extents(first).tolist()
    assert {block for offset, length in rows for block in range(offset // BLOCK, (offset + length) // BLOCK)} == changed


# -- the file ---------------------------------------------------------------------------------------------------------
def test_a_log_that_rolls_back_to_an_anchor_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine never writes, and what would show blocks that belong to somebody else."""
    path, copy = tmp_path / "v", tmp_path / "copy"
    with Volume.create(path, 64 * BLOCK, background=False) as volume:
        volume.snapshot("s").to_anchor()
        engine = type(volume.engine)
        monkeypatch.setattr(engine, "readable_snapshot", engine.live_snapshot)
        monkeypatch.setattr(engine, "turn_back", lambda *arguments: None)
        volume.rollback("s")
        monkeypatch.undo()
        assert any("rollback to 1" in problem for problem in volume.check().problems)
        shutil.copy(path, copy)
    with pytest.raises(CorruptionError, match="a rollback to snapshot 1"):
        Volume.open(copy, background=False)
