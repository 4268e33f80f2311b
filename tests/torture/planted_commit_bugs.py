"""Planted bugs of barriers, commits, checkpoints and opening."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

from barriers import KINDS
from planted_hunts import AGAIN, KILLED, QUIET, ROTTEN, Crashes, SetCrashes
from planting import Bug, Plant, add, bug

from cowengine.core.datapath import DataPath
from cowengine.engine import allocator, checkpoint, recovery
from cowengine.engine import engine as engine_module
from cowengine.engine.allocator import runs_of
from cowengine.engine.engine import Engine
from cowengine.engine.log import CommitLog
from cowengine.engine.vouching import Vouching
from cowengine.errors import StorageError
from cowengine.format import SnapshotEvent, record, superblock
from cowengine.format.layout import SLOT_BYTES

PAIR = struct.Struct("<QQ")
CALM = (("write", 5), ("partial", 2), ("flush", 3), ("snapshot", 3))
BUSY = (("write", 6), ("discard", 2), ("flush", 4), ("snapshot", 4), ("delete", 3), ("checkpoint", 2), ("reclaim", 1))
CHECKPOINTS = (("write", 4), ("checkpoint", 4), ("snapshot", 1))
CLOSES = (("write", 2), ("snapshot", 1), ("reopen", 3))

COMMITS = Crashes(CALM)
LIVES = Crashes(BUSY, length=10)
TIGHT = ((allocator, "RUNWAY_SLOTS", 1), (engine_module, "RESERVE_SLOTS_SMALL", 0))
REUSES = (("write", 5), ("snapshot", 2), ("checkpoint", 4), ("delete", 2), ("discard", 2))
ROTS = Crashes(REUSES, length=16, plan=ROTTEN, small=TIGHT)
RESIZES = Crashes((("resize", 1),), length=2)
KILLS = Crashes(CALM, length=3, plan=KILLED)
FAILS = Crashes(CALM, length=4, fails=True)

HUNT_OF = {
    "recovery begins": Crashes((("write", 1), ("snapshot", 1)), length=2, plan=replace(KILLED, images=64)),
    "home slots": RESIZES,
    "superblock of a recovery": Crashes(CLOSES, length=3),
    "second superblock of a recovery": Crashes(
        CALM, length=1, plan=replace(ROTTEN, nested=1.0), beginning=(("snapshot",), ("reopen",), ("snapshot",))
    ),
    "superblock of a clean close": Crashes(CLOSES, length=2),
    "nodes": Crashes(CHECKPOINTS, length=4),
    "superblock of a checkpoint": ROTS,
}
for kind in KINDS:
    add(Bug(
        f"no-barrier-{kind.replace(' ', '-')}", "I3 I4 I11 I12 I14 I16 I17",
        f"the barrier of this kind does nothing: {kind}", HUNT_OF.get(kind, COMMITS), barrier=kind,
    ))  # fmt: skip


# -- commit ------------------------------------------------------------------------------------------------------------
@bug("I3", COMMITS, "one barrier for the data and the record that places it, as if the record could vouch for it")
def one_barrier_for_data_and_record(plant: Plant) -> None:
    @plant.method(Engine, "commit")
    def commit(original: Any, self: Engine, *args: Any, **kwargs: Any) -> Any:
        self._synced_writes = self.path.data_writes
        return original(self, *args, **kwargs)


@bug(
    "I3",
    Crashes((("write", 2), ("flush", 5)), intruder=True, length=24, plan=QUIET),
    "what is written while a barrier runs counts as covered by it",
)
def barrier_counts_from_its_return(plant: Plant) -> None:
    @plant.method(Engine, "_acknowledge")
    def acknowledge(original: Any, self: Engine, *args: Any) -> None:
        original(self, *args)
        self._synced_writes = self.path.data_writes


@bug("I4", COMMITS, "a commit is acknowledged before its record's barrier, which the next commit catches up on")
def acknowledged_before_the_barrier(plant: Plant) -> None:
    @plant.method(Engine, "_write_record")
    def write_record(original: Any, self: Engine, *args: Any) -> None:
        original(self, *args)

        def skipped() -> None:
            del self.barrier

        self.barrier = skipped  # type: ignore[method-assign]


@bug("I7", Crashes((("write", 6), ("discard", 4), ("flush", 2)), length=12),
     "what a discard frees is given out before the record that frees it is durable")  # fmt: skip
def reuse_before_the_record(plant: Plant) -> None:
    early: set[int] = set()

    class Hasty(DataPath):
        def discard(self, first: int, end: int, size: int = 0, head: Any = None) -> bool:
            chosen = head or self.live
            own = list(PAIR.iter_unpack(self.extents(chosen, first, end, 99, chosen.frozen)))
            slots = {self.place(block, chosen)[0] for at, count in own for block in range(at, at + count)} - {0}
            done = super().discard(first, end, size, head)
            early.update(slots)
            self.slots.mark_used([(slot, self.block_bytes // SLOT_BYTES) for slot in slots], False)
            self.slots.release([(slot, self.block_bytes // SLOT_BYTES) for slot in slots])
            return done

    plant.data_path(Hasty)

    @plant.method(Engine, "_acknowledge")
    def acknowledge(original: Any, self: Engine, deltas: bytes, freed: bytes, *rest: Any) -> None:
        kept = [run for run in runs_of(freed) if run[0] not in early]
        early.clear()
        original(self, deltas, b"".join(PAIR.pack(*run) for run in kept), *rest)


# -- one barrier -------------------------------------------------------------------------------------------------------
# Blocks that are written in place, as nothing vouches for them any more.
CONFIRMED = Crashes(
    (("write", 3), ("snapshot", 1)), length=5, beginning=(("write", 0, 8), ("flush",), ("write", 9, 1), ("flush",))
)
DISCARDS = Crashes((("write", 6), ("discard", 4), ("flush", 4)), length=12)


@bug("I48", Crashes(CALM, length=10), "what the last record vouches for is written in place as soon as that is durable")
def unconfirmed_overwritten(plant: Plant) -> None:
    @plant.method(Vouching, "acknowledged")
    def acknowledged(original: Any, self: Vouching, freed: Any, *, vouches: bool) -> Any:
        back = original(self, freed, vouches=vouches)
        self._path.unconfirmed.acknowledge(False)
        return back


@bug("I48", Crashes(CALM, length=10, intruder=True), "a batch on its way to its record is written in place")
def fenced_overwritten(plant: Plant) -> None:
    @plant.method(Vouching, "checks")
    def checks(original: Any, self: Vouching, *args: Any) -> Any:
        found = original(self, *args)
        self._path.unconfirmed.acknowledge(False)
        return found


@bug("I49", DISCARDS, "what a record freed that vouches for its blocks is given out as soon as that is durable")
def reuse_before_confirmed(plant: Plant) -> None:
    @plant.method(Vouching, "acknowledged")
    def acknowledged(original: Any, self: Vouching, freed: Any, *, vouches: bool) -> Any:
        back = original(self, freed, vouches=vouches)
        self._held_back = b""
        return back + freed if vouches else back


@bug("I50", CONFIRMED, "a snapshot takes one barrier although a block was written in place that it freezes")
def frozen_without_a_check(plant: Plant) -> None:
    @plant.method(Vouching, "checks")
    def checks(original: Any, self: Vouching, freed: Any, events: Any, in_place: int) -> Any:
        return original(self, freed, (), in_place)


@bug("I52", COMMITS, "an open believes a last record that vouches for blocks without looking at them")
def checks_skipped_at_open(plant: Plant) -> None:
    @plant.function(recovery, "_is_whole")
    def is_whole(original: Any, engine: Engine, found: Any) -> bool:
        return True


@bug("I47", COMMITS, "a record vouches for all of its blocks but the last")
def one_check_left_out(plant: Plant) -> None:
    @plant.method(Vouching, "checks")
    def checks(original: Any, self: Vouching, *args: Any) -> Any:
        return original(self, *args)[:-1]


@bug("I49", ROTS, "a checkpoint confirms the record that it holds: what that one freed is given out")
def checkpoint_confirms(plant: Plant) -> None:
    @plant.function(checkpoint, "_recycle")
    def recycle(original: Any, engine: Engine) -> None:
        engine.allocator.retire(engine.vouching.acknowledged(b"", vouches=False), punch_all=False)
        original(engine)


@bug("I52", Crashes(CALM, length=6), "an open drops the last record that vouches for blocks although they are there")
def whole_record_dropped(plant: Plant) -> None:
    @plant.function(recovery, "_is_whole")
    def is_whole(original: Any, engine: Engine, found: Any) -> bool:
        return not found.one_barrier


@bug("I10", FAILS, "a failed fdatasync is tried again, and its success believed")
def failed_barrier_is_tried_again(plant: Plant) -> None:
    @plant.method(Engine, "barrier")
    def barrier(original: Any, self: Engine) -> None:
        try:
            self.io.fdatasync(self.fd)
        except OSError:
            original(self)


@bug("I10", FAILS, "a failed fdatasync is told, and the handle goes on as if nothing was lost")
def failed_barrier_does_not_poison(plant: Plant) -> None:
    @plant.method(Engine, "poison")
    def poison(original: Any, self: Engine, cause: BaseException) -> StorageError:
        return StorageError(f"a sync or commit failed ({cause})")


@bug("I9", Crashes((("snapshot", 1), ("hold", 9)), length=45, plan=QUIET),
     "no checkpoint comes before the log is full: records are written over what replay needs")  # fmt: skip
def log_wraps_over_what_is_needed(plant: Plant) -> None:
    @plant.method(Engine, "make_room")
    def make_room(original: Any, self: Engine, **kwargs: Any) -> None:
        self.path.check_state()

    plant.value(CommitLog, "fits", lambda self, length: True)


# -- checkpoint --------------------------------------------------------------------------------------------------------
@bug("I12", ROTS, "what only the older of two checkpoints needs is reused when one superblock is durable")
def older_checkpoint_reused(plant: Plant) -> None:
    @plant.function(checkpoint, "_recycle")
    def recycle(original: Any, engine: Engine) -> None:
        engine.retired_before, engine.retired = engine.retired_before + engine.retired, []
        original(engine)


@bug(
    "I11",
    Crashes(CHECKPOINTS, length=4),
    "each superblock goes to the slot of the newest one, so a torn one costs both",
)
def superblock_in_one_slot(plant: Plant) -> None:
    @plant.method(Engine, "write_superblock")
    def write_superblock(original: Any, self: Engine, new: Any) -> None:
        self.newest_slot = 1
        original(self, new)


@bug("I11", Crashes(CHECKPOINTS, length=4), "a checkpoint's superblock leads to the lineage table of the one before")
def superblock_leads_to_old_trees(plant: Plant) -> None:
    @plant.function(checkpoint, "_superblock")
    def superblock_of(original: Any, engine: Engine, clean: bool) -> Any:
        new, old = original(engine, clean), engine.superblock
        return replace(new, lineage_root=old.lineage_root) if old.generation > 1 else new


# -- opening -----------------------------------------------------------------------------------------------------------
@bug("I14", KILLS, "an open goes on although its first barrier failed")
def open_ignores_a_failed_barrier(plant: Plant) -> None:
    @plant.function(recovery, "_make_durable")
    def make_durable(original: Any, io: Any, fd: int, path: str) -> None:
        try:
            io.fdatasync(fd)
        except OSError:
            pass  # this is the bug
        io.forget(fd)


@bug("I14", Crashes(CALM, length=4, fails=True, plan=replace(KILLED, images=4), recoveries=1000),
     "an open believes pages of the cache that a failed writeback left clean")  # fmt: skip
def open_believes_the_cache(plant: Plant) -> None:
    @plant.function(recovery, "_make_durable")
    def make_durable(original: Any, io: Any, fd: int, path: str) -> None:
        io.fdatasync(fd)


@bug("I14", Crashes(CLOSES, length=3, plan=ROTTEN), "an open confirms the tip in one superblock only")
def open_writes_one_superblock(plant: Plant) -> None:
    left: list[int] = []

    @plant.function(recovery, "_commit_recovery")
    def commit_recovery(original: Any, *args: Any) -> None:
        left[:] = [2]
        original(*args)

    @plant.method(Engine, "write_superblock")
    def write_superblock(original: Any, self: Engine, new: Any) -> None:
        if left:
            left[0] -= 1
            if left[0] == 0:
                left.clear()
                return
        original(self, new)


@bug("I21", SetCrashes(plan=AGAIN), "an open skips no epochs, so one that a lost record named is given out again")
def epochs_not_skipped(plant: Plant) -> None:
    plant.value(recovery, "EPOCH_SKIP", 0)


@bug("I15", Crashes(CHECKPOINTS, length=5), "a stale superblock is chosen, and what follows its tip in the log ignored")
def stale_superblock_chosen(plant: Plant) -> None:
    @plant.function(recovery, "choose_superblock")
    def choose(original: Any, io: Any, fd: int, path: str) -> Any:
        newest, slot, both = original(io, fd, path)
        if not both:
            return newest, slot, both
        data = io.pread(fd, SLOT_BYTES, (1 - slot) * SLOT_BYTES)
        return superblock.decode_superblock(data), 1 - slot, both

    @plant.function(recovery, "_next_record")
    def next_record(original: Any, engine: Engine, data: bytes) -> Any:
        return original(engine, data) if engine.log.sequence < engine.superblock.tip_sequence else None


@bug("I15", Crashes((("write", 6), ("discard", 6), ("flush", 1)), length=40),
     "a torn record at the end of the log is taken for a whole one")  # fmt: skip
def torn_tail_accepted(plant: Plant) -> None:
    @plant.function(record, "_checked_bytes")
    def checked_bytes(original: Any, buffer: Any, offset: int, header: Any, fold: int) -> bytes:
        data = bytearray(memoryview(buffer)[offset : offset + header.record_bytes])
        data[record.RECORD_CHECKSUM_OFFSET : record.RECORD_CHECKSUM_OFFSET + 8] = bytes(8)
        return bytes(data)


@bug("I15", LIVES, "replay leaves out the changes of a record in the middle of the log")
def record_skipped_in_replay(plant: Plant) -> None:
    @plant.function(recovery, "_apply")
    def apply(original: Any, engine: Engine, found: Any) -> None:
        original(engine, replace(found, deltas=b"") if found.sequence % 3 == 0 else found)


@bug("I15", Crashes(CALM, length=12), "replay applies a record once more behind the next one")
def record_replayed_twice(plant: Plant) -> None:
    @plant.function(recovery, "_apply")
    def apply(original: Any, engine: Engine, found: Any) -> None:
        original(engine, found)
        engine.path.replay(getattr(engine, "last_applied", b""))
        engine.last_applied = bytes(found.deltas)  # type: ignore[attr-defined]


@bug(
    "I15",
    Crashes(CALM, plan=AGAIN),
    "replay of a snapshot does not freeze its epoch: what it holds is then written in place",
)
def replay_does_not_freeze(plant: Plant) -> None:
    @plant.function(recovery, "apply_event")
    def apply_event(original: Any, engine: Engine, event: Any) -> None:
        frozen = engine.path.live.frozen
        original(engine, event)
        if isinstance(event, SnapshotEvent):
            engine.path.live.set_epochs(engine.path.live.epoch, frozen)
