"""Planted bugs of what lies where: writes in place, snapshots, deletes, clones, sizes, seals, lists of changes."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

from planted_hunts import AGAIN, ONCE, QUIET, Crashes
from planted_machines import Machine
from planting import Plant, bug

from cowengine import snapshot as snapshots
from cowengine.core.datapath import DataPath
from cowengine.engine import allocator, clones, holds, memory, reclaim, recovery, resize
from cowengine.engine.allocator import Allocator
from cowengine.engine.engine import Engine
from cowengine.engine.lineage import HEAD_ID, Lineage
from cowengine.format import DeleteEvent, GiveUpEvent, HoldEvent, encode_delta, iter_deltas
from cowengine.format.layout import ENTRY_MAPPED, SLOT_BYTES

PAIR = struct.Struct("<QQ")
SHARES = (("write", 5), ("snapshot", 3), ("flush", 1))
DELETES = (("write", 3), ("snapshot", 3), ("delete", 2))
BRANCHES = (("write", 4), ("snapshot", 2), ("rollback", 2), ("delete", 2))
CLONES = (("write", 3), ("snapshot", 2), ("make_clone", 2), ("clone_write", 3), ("delete", 1), ("clone_snapshot", 1))
REOPENED = (("reopen", 2), ("clone_write", 3))
SIZES = (("resize", 4), ("write", 3), ("snapshot", 1), ("flush", 1))
SEALS = (("write", 3), ("snapshot", 2), ("seal", 2), ("delete", 2))
ANCHORS = (("write", 4), ("snapshot", 4), ("anchor", 3), ("reclaim", 1), ("delete", 1))

SHARED = Crashes(SHARES, plan=QUIET)
# What most of them need first: data, a snapshot that holds it, or two, and data of its own above.
TWO = (("write", 0, 8), ("snapshot",), ("write", 2, 3), ("snapshot",), ("write", 4, 3))
CLONE = (("write", 0, 8), ("snapshot",), ("make_clone", 0))
SEAL = (("write", 0, 8), ("snapshot",), ("seal",), ("write", 2, 8))

DELETED = Crashes(DELETES, length=6, plan=QUIET, beginning=TWO)
BRANCHED = Crashes(BRANCHES, length=8, plan=QUIET, beginning=TWO)
CLONED = Crashes(CLONES, length=6, plan=QUIET, beginning=CLONE)
RESIZED = Crashes(SIZES, length=8, plan=QUIET)
SEALED = Crashes(SEALS, length=8, plan=QUIET, beginning=SEAL)
ANCHORED = Crashes(ANCHORS, length=8, plan=QUIET, beginning=TWO)
CHANGED = Crashes((("write", 4), ("discard", 3), ("snapshot", 3), ("rollback", 1)), length=8, plan=QUIET)

DIFFERENCES = Machine(("pwrite", "discard", "snapshot", "extents"))


# -- writing -----------------------------------------------------------------------------------------------------------
@bug("I1", SHARED, "the epoch of a snapshot is not frozen: what it holds is written in place")
def frozen_block_written_in_place(plant: Plant) -> None:
    @plant.method(Engine, "taken")
    def taken(original: Any, self: Engine, event: Any, root: Any) -> Any:
        record = original(self, event, root)
        head = self.path.heads[event.head]
        head.set_epochs(head.epoch, event.epoch - 1)
        return record


@bug("I2", Crashes((("partial", 4), ("snapshot", 2), ("write", 1)), plan=QUIET),
     "a write of a part of a shared block does not copy the rest of it")  # fmt: skip
def part_of_a_block_loses_the_rest(plant: Plant) -> None:
    class Careless(DataPath):
        def pwrite(self, data: Any, offset: int, head: Any = None, done: int = 0, status: int = 0) -> int:
            chosen, size = head or self.live, int(self.block_bytes)
            block, skip = divmod(offset, size)
            whole = skip and skip + len(data) < size and (block + 1) * size <= chosen.size
            if whole and not self.extents(chosen, block, block + 1, 1, chosen.frozen):
                return super().pwrite(bytes(skip) + bytes(data) + bytes(size - skip - len(data)), block * size, head)
            return super().pwrite(data, offset, head, done, status)

    plant.data_path(Careless)


# -- snapshots and deletes ---------------------------------------------------------------------------------------------
@bug("I13", DELETED, "a delete frees what an older snapshot holds as well")
def delete_frees_what_an_ancestor_holds(plant: Plant) -> None:
    @plant.function(reclaim, "_sides")
    def sides(original: Any, engine: Engine, number: int) -> Any:
        dead, kept, _, cursor = original(engine, number)
        return dead, kept, 0, cursor


@bug("I13", DELETED, "a delete frees what the snapshot behind it shares")
def delete_frees_what_a_child_shares(plant: Plant) -> None:
    @plant.function(reclaim, "_sides")
    def sides(original: Any, engine: Engine, number: int) -> Any:
        dead, _, before, cursor = original(engine, number)
        return dead, None, before, cursor


@bug("I13", BRANCHED, "a deleted snapshot is given back although two lines stand on it")
def branch_point_given_back(plant: Plant) -> None:
    @plant.method(Lineage, "sharers")
    def sharers(original: Any, self: Lineage, number: int) -> list[int]:
        return list(original(self, number))[:1]


@bug("I13", Crashes((("write", 4), ("snapshot", 3), ("delete", 4)), length=10, wide=True, plan=replace(ONCE, images=8)),
     "what a step of reclaim frees and how far it came are in two records")  # fmt: skip
def cursor_in_the_next_record(plant: Plant) -> None:
    @plant.function(reclaim, "reclaim_step")
    def reclaim_step(original: Any, engine: Engine) -> Any:
        commit = engine.commit

        def in_two(events: Any = (), **kwargs: Any) -> Any:
            if kwargs.get("batch") is None:
                return commit(events, **kwargs)
            commit(**kwargs)
            return commit(events, room_made=True)

        engine.commit = in_two  # type: ignore[method-assign]
        try:
            return original(engine)
        finally:
            engine.commit = commit  # type: ignore[method-assign]


@bug("M5", Crashes((("resize", 2), ("snapshot", 3), ("rollback", 3), ("write", 1)), length=6, plan=QUIET),
     "a rollback brings the map back, and not the size")  # fmt: skip
def rollback_keeps_the_size(plant: Plant) -> None:
    @plant.method(Engine, "turn_back")
    def turn_back(original: Any, self: Engine, event: Any) -> None:
        head = self.path.heads[event.head]
        size = head.size
        original(self, event)
        head.set_size(size)


@bug("M5", BRANCHED, "a rollback leaves the first block as the abandoned line had it")
def rollback_keeps_an_abandoned_block(plant: Plant) -> None:
    @plant.method(Engine, "turn_back")
    def turn_back(original: Any, self: Engine, event: Any) -> None:
        slot, _ = self.path.place(0, self.path.heads[event.head])
        original(self, event)
        if slot:
            self.path.replay(encode_delta(0, 1, ENTRY_MAPPED, slot, event.epoch - 1, event.head))


@bug("M3", Crashes((("snapshot", 2), ("hold", 2)), length=4, plan=QUIET), "a snapshot that is held can be deleted")
def hold_ignored(plant: Plant) -> None:
    @plant.function(holds, "_why_busy")
    def why_busy(original: Any, engine: Engine, record: Any) -> str | None:
        return None if record.hold_reason else original(engine, record)


@bug("M3", Machine(("snapshot", "retain", "delete")), "a snapshot that is retained can be deleted before its time")
def retention_ignored(plant: Plant) -> None:
    plant.value(holds, "why_retained", lambda engine, record: None)


@bug("I15", Crashes((("snapshot", 2), ("hold", 2), ("write", 1), ("flush", 1)), length=6),
     "replay forgets a hold that the running engine keeps")  # fmt: skip
def replay_forgets_a_hold(plant: Plant) -> None:
    @plant.function(recovery, "apply_event")
    def apply_event(original: Any, engine: Engine, event: Any) -> None:
        if not isinstance(event, HoldEvent):
            original(engine, event)


@bug("P8", Crashes((("write", 2), ("snapshot", 2), ("give_up", 3)), length=6),
     "a snapshot that is given up is not noted as lost when the log is replayed")  # fmt: skip
def loss_not_replayed(plant: Plant) -> None:
    @plant.function(recovery, "apply_event")
    def apply_event(original: Any, engine: Engine, event: Any) -> None:
        original(engine, DeleteEvent(event.id) if isinstance(event, GiveUpEvent) else event)


# -- anchors and lists of changes --------------------------------------------------------------------------------------
@bug("I26", ANCHORED, "an anchor that has given its data back loses its epoch")
def anchor_loses_its_epoch(plant: Plant) -> None:
    @plant.method(Lineage, "reclaimed")
    def reclaimed(original: Any, self: Lineage, number: int) -> None:
        original(self, number)
        record = self.get(number)
        if record is not None:
            record.epoch = max(1, self.epoch_before(number))


@bug("I26", ANCHORED, "an empty anchor is taken for what holds the data of those behind it")
def empty_anchor_counts_as_holder(plant: Plant) -> None:
    @plant.method(Lineage, "holder")
    def holder(original: Any, self: Lineage, number: int) -> Any:
        record = self.get(number)
        return None if record is None else self._above(record)


class Offset(DataPath):
    """Lists of changes leave out what was born in the first epoch behind the base."""

    def extents(self, root: Any, first: int, end: int, most: int, born_after: int | None = None) -> bytearray:
        return super().extents(root, first, end, most, born_after and born_after + 1)


@bug("I22", CHANGED, "changed extents begin one epoch too late")
def changed_extents_one_epoch_off(plant: Plant) -> None:
    plant.data_path(Offset)


class Short(DataPath):
    """Lists of changes lack the last block of a row of several."""

    def extents(self, root: Any, first: int, end: int, most: int, born_after: int | None = None) -> bytearray:
        rows = PAIR.iter_unpack(super().extents(root, first, end, most, born_after))
        return bytearray(b"".join(PAIR.pack(at, max(1, count - (born_after is not None))) for at, count in rows))


@bug("I22", DIFFERENCES, "changed extents lack the last block of each row")
def changed_extents_one_block_short(plant: Plant) -> None:
    plant.data_path(Short)


class Dataful(DataPath):
    """Lists of changes have only what holds data now."""

    def extents(self, root: Any, first: int, end: int, most: int, born_after: int | None = None) -> bytearray:
        rows = PAIR.iter_unpack(super().extents(root, first, end, most, born_after))
        if born_after is None:
            return bytearray(b"".join(PAIR.pack(*row) for row in rows))
        blocks = [block for at, count in rows for block in range(at, at + count) if self.place(block, root)[0]]
        return bytearray(b"".join(PAIR.pack(block, 1) for block in blocks))


@bug("I22", DIFFERENCES, "changed extents leave out what was discarded since the base")
def changed_extents_skip_tombstones(plant: Plant) -> None:
    plant.data_path(Dataful)


@bug("M4", Crashes((("write", 4), ("snapshot", 3), ("rollback", 3)), length=8, plan=QUIET),
     "changes against a snapshot of another line are found on one side only")  # fmt: skip
def changes_of_one_side_only(plant: Plant) -> None:
    @plant.function(snapshots, "_sides")
    def sides(original: Any, lineage: Lineage, target: int, base: Any) -> Any:
        numbers, common = original(lineage, target, base)
        return numbers[:1], common


# -- clones ------------------------------------------------------------------------------------------------------------
@bug("I38", CLONED, "a clone does not hold its origin")
def clone_does_not_hold_its_origin(plant: Plant) -> None:
    plant.value(Lineage, "clone_on", lambda self, number: None)


@bug("I37", CLONED, "a clone begins with nothing frozen: its first writes go into its origin's blocks")
def clone_begins_unfrozen(plant: Plant) -> None:
    @plant.function(clones, "cloned")
    def cloned(original: Any, engine: Engine, event: Any) -> Any:
        head = original(engine, event)
        head.set_epochs(event.epoch, 0)
        return head


@bug(
    "I37",
    Crashes(REOPENED, length=5, plan=QUIET, beginning=CLONE),
    "an open does not tell the data path what holds a clone's blocks",
)
def open_forgets_the_holder_of_a_clone(plant: Plant) -> None:
    plant.value(Lineage, "set_holders", lambda self: self.set_holder(HEAD_ID))


# -- sizes and homes ---------------------------------------------------------------------------------------------------
@bug("I44", RESIZED, "homes that growing adds end one slot before where they do: the last one is given out")
def homes_end_one_slot_early(plant: Plant) -> None:
    @plant.method(Allocator, "take_homes")
    def take_homes(original: Any, self: Allocator, blocks: int) -> int:
        slot: int = original(self, blocks)
        self._tail_start -= 1
        self.limit -= 1
        return slot


@bug("I29", RESIZED, "a shrink leaves its blocks behind the end; they are back when the volume grows")
def shrink_leaves_blocks(plant: Plant) -> None:
    @plant.function(resize, "resized")
    def resized(original: Any, engine: Engine, event: Any) -> None:
        head = engine.path.heads[event.head]
        if event.size >= head.size:
            original(engine, event)
            return
        head.set_size(event.size)
        engine.lineage.resize_head(event.head, event.size)


@bug(
    "I29",
    Crashes(SIZES, length=5, plan=QUIET, beginning=(("write", 0, 8), ("resize", 25))),
    "bytes behind a smaller size stay in the last block; they are back when the volume grows",
)
def shrink_leaves_bytes(plant: Plant) -> None:
    @plant.function(resize, "_cut_block")
    def cut_block(original: Any, *args: Any) -> None:
        return None


# -- seals -------------------------------------------------------------------------------------------------------------
class Keeping(DataPath):
    """A slot keeps its seal when it is freed or gets another block."""

    def account(self, deltas: bytes, freed: bytes) -> None:
        slots = int(self.block_bytes) // SLOT_BYTES
        placed = [(each.slot, each.block_count * slots) for each in iter_deltas(deltas) if each.slot]
        self.slots.mark_used(placed)
        self.slots.mark_used(list(PAIR.iter_unpack(freed)), False)


@bug("I40", SEALED, "a seal outlives its block: the next one in that slot counts as damaged")
def seal_kept_across_reuse(plant: Plant) -> None:
    plant.data_path(Keeping)


class Replaying(DataPath):
    """Replay of what was freed leaves the seals."""

    def free_runs(self, runs: Any) -> None:
        self.slots.mark_used(runs, False)


@bug(
    "I40",
    Crashes(SEALS, length=4, plan=replace(AGAIN, images=4, nested=0.6), beginning=SEAL),
    "replay leaves the seals of what a record freed",
)
def replay_keeps_seals(plant: Plant) -> None:
    plant.data_path(Replaying)


# -- free space --------------------------------------------------------------------------------------------------------
@bug("I19", Crashes((("write", 4), ("discard", 4), ("flush", 3)), length=24, plan=QUIET,
                    small=((allocator, "PUNCH_SLOTS_MIN", 1),)),
     "freed slots are punched when somebody may have them again")  # fmt: skip
def punched_too_late(plant: Plant) -> None:
    late: list[tuple[int, int]] = []

    @plant.method(Allocator, "_punch")
    def punch(original: Any, self: Allocator, slot: int, count: int) -> None:
        late.append((slot, count))
        if len(late) > 1:
            original(self, *late.pop(0))


@bug("I25", Crashes((("snapshot", 4), ("hold", 3), ("write", 1)), length=10, plan=QUIET,
                    small=((memory, "CACHE_BYTES", 1), (memory, "CACHE_BYTES_MIN", 1))),
     "the cache drops lineage records that no checkpoint has written yet")  # fmt: skip
def dirty_record_evicted(plant: Plant) -> None:
    @plant.method(Lineage, "unload_records")
    def unload_records(original: Any, self: Lineage, leaves_max: int) -> None:
        if len(self._leaves) > leaves_max:
            self._leaves = {}
