"""Giving back what a deleted snapshot or an anchor alone holds, in bounded steps that survive a crash.

One snapshot is reclaimed at a time, against the only one that stands on it and holds data (or none; I26). A branch
point waits until one is left.
Each step is one commit: what it frees and how far it came are in one record (I13), and if what shares with it is a
head, that head's free rule moves with the cursor under the data path's mutex.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from cowengine.core.reclaiming import reclaim, replay_reclaim
from cowengine.engine.allocator import PAIR
from cowengine.engine.checkpoint import checkpoint
from cowengine.errors import CorruptionError, NoSpaceError
from cowengine.format import LINEAGE_EMPTY, NO_CURSOR, ReclaimedEvent, ReclaimEvent

if TYPE_CHECKING:
    from cowengine.core.roots import Root
    from cowengine.engine.engine import Engine

LEAVES_A_STEP = 64  # under one hold of the mutex, and read from the disk by a step
PARTS_A_STEP = 8  # times as many leaves, where few have to be read
RUNS_A_STEP = 1 << 13  # that it frees: 128 KiB of its record
UNPUNCHED_MAX = 1 << 16  # runs of slots, 16 bytes each


def reclaim_step(engine: Engine) -> bool:
    """One step; returns whether there may be more to do. Durable when it returns."""
    with engine.lock:
        engine.require_writable()
        number = _next(engine)
        if number is None:
            return False
        engine.make_room(for_delete=True)
        lineage = engine.lineage
        if number in lineage.fresh:
            lineage.root(number).used = True  # what is in memory of it stays there
            _write_first(engine)
            engine.make_room(for_delete=True)
        sides = _sides(engine, number)
        with engine.undivided():
            engine.begin_take()
            cursor, at_end, batch = reclaim(engine.path, *sides, LEAVES_A_STEP, PARTS_A_STEP, RUNS_A_STEP)
            event = ReclaimedEvent(number) if at_end else ReclaimEvent(number, cursor)
            engine.commit([event], batch=batch, room_made=True)
            if at_end:
                lineage.reclaimed(number)
                engine.locks.release(number)
                engine.reclaiming = None
            else:
                lineage.move_cursor(number, cursor)
            lineage.set_holders()
        return True


def punch(engine: Engine, least: int = 1) -> None:
    """Gives the space of what steps freed back to the file system, if that are at least so many runs of slots.

    A call for each run, which may take as long as a barrier: so only now, when all of it can be used again, and one at
    a time. What a crash or a close leaves, gives its space back with its neighbours, or when the file system is full.
    """
    with engine.lock:
        runs = engine.allocator.take_unpunched(least)
    for run in PAIR.iter_unpack(runs):
        with engine.lock:
            engine.require_writable()
            engine.allocator.punch_free(*run)


def _sides(engine: Engine, number: int) -> tuple[Root, Root | None, int, int]:
    """What a step compares: the map that goes and the one that stays; then the epoch of the holder above, and the
    cursor.
    """
    lineage = engine.lineage
    record = lineage.get(number)
    assert record is not None
    empty = record.flags & LINEAGE_EMPTY
    # An empty anchor's root is that of the record: a reader may still have left the old one in the cache.
    dead = engine.path.root_at(record.root.encode()) if empty else lineage.root(number)
    child = None if empty else next(iter(lineage.sharers(number)), None)
    kept = None if child is None else lineage.root(child)
    before = 0 if record.cursor == NO_CURSOR else record.cursor
    return dead, kept, lineage.epoch_before(number), before


def replay_step(engine: Engine, number: int, cursor: int) -> None:
    """A step as the log tells of it. The nodes that it passed are in memory only if no checkpoint wrote the snapshot
    (the file system was full): the next one gives them slots, and those are free (RT5).
    """
    if number in engine.lineage.fresh and not engine.read_only:
        with suppress(CorruptionError):  # damage is told by who needs the node; opening does not
            replay_reclaim(engine.path, *_sides(engine, number), cursor)
    engine.lineage.move_cursor(number, cursor)


def _write_first(engine: Engine) -> None:
    """A snapshot is on disk before its reclaim begins: each node that a step passes has a slot, which its record frees.

    A node passed before it was ever written would get its slot from a later checkpoint, and nothing would free it.
    """
    try:
        checkpoint(engine)
    except NoSpaceError:
        pass  # then giving space back comes first


def _next(engine: Engine) -> int | None:
    """The snapshot under reclaim, or the next one that at most one other shares data with and nobody reads."""
    if engine.reclaiming is None:
        waiting, sharers = engine.lineage.pending(), engine.lineage.sharers
        number = next((record.id for record in waiting if record.cursor != NO_CURSOR), None)
        if number is not None and len(sharers(number)) > 1:
            raise CorruptionError(f"the lineage is broken at snapshot {number}: it is a branch point under reclaim")
        ready = (record.id for record in waiting if len(sharers(record.id)) < 2)
        # I36: a reader may have pinned what an owner gave up that died then.
        candidates = ready if number is None else [number]
        engine.reclaiming = next((number for number in candidates if engine.locks.claim(number)), None)
    return engine.reclaiming


def pending(engine: Engine) -> int:
    """How many deleted snapshots and anchors still hold space."""
    return len(engine.lineage.pending())
