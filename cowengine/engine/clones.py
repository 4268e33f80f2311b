"""Clones: further heads of a volume, each with a line of snapshots of its own.

A clone begins as a snapshot: it takes the snapshot's root, so it costs the same however large the volume is. The
snapshot that it was made of, or rolled back to last, is its *origin* and is held while it lives (I38). A clone that is
deleted becomes a snapshot that is deleted at once; the ordinary reclaim gives its space back.

Durability   Both are one record, and durable on return.
Threads      Any; the commit lock is taken.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cowengine.engine.lineage import LIVE_NAME
from cowengine.errors import BusyError, ExistsError, NotFoundError, OutOfRangeError
from cowengine.format import HEADS_MAX, CloneEvent, DeleteHeadEvent, LineageRecord

if TYPE_CHECKING:
    from cowengine.core.roots import Head, Root
    from cowengine.engine.engine import Engine


def make_clone(engine: Engine, number: int, name: str) -> Head:
    """A head that begins as a snapshot; it is not open.

    Raises ExistsError, OutOfRangeError if there are as many as there can be, NotFoundError, AnchorError.
    """
    with engine.lock:
        engine.require_writable()
        engine.readable_snapshot(number)
        if engine.lineage.find_head(name) is not None:
            raise ExistsError(f"a head named {name!r} exists", engine.name)
        free = next((free for free in range(1, HEADS_MAX) if free not in engine.path.heads), None)
        if free is None:
            raise OutOfRangeError(f"the volume has {HEADS_MAX - 1} clones, as many as it can have", engine.name)
        engine.make_room()
        engine.lineage.prepare()  # what is damaged says so before anything is done
        engine.lineage.root(number)
        event = CloneEvent(
            number=free, id=engine.lineage.next_id, snapshot=number, epoch=engine.path.map.epoch + 1,
            created_ns=time.time_ns(), name=name,
        )  # fmt: skip
        with engine.undivided():
            engine.commit([event], epoch=event.epoch, room_made=True)
            return cloned(engine, event)


def cloned(engine: Engine, event: CloneEvent) -> Head:
    """What a clone event means in memory: the same for a commit and for replay."""
    engine.lineage.clone(event)
    head = engine.path.add_head(event.number)
    head.replace_root(engine.lineage.root(event.snapshot))
    head.set_size(engine.lineage.heads[event.number].size)
    head.set_epochs(event.epoch, event.epoch - 1)
    engine.lineage.set_holder(event.number)
    return head


def find_clone(engine: Engine, name: str) -> LineageRecord:
    """The record of a clone. Raises NotFoundError, BusyError if it is the live volume."""
    record = engine.lineage.find_head(name)
    if record is None:
        raise NotFoundError(f"there is no head named {name!r}", engine.name)
    if record.name == LIVE_NAME:
        raise BusyError("the live volume is always open, and goes with its file", engine.name)
    return record


def open_clone(engine: Engine, name: str) -> Head:
    """Opens a clone. Raises NotFoundError, BusyError if it is open."""
    with engine.lock:
        engine.path.check_state()
        _close_dropped(engine)
        head = engine.path.heads[find_clone(engine, name).number]
        if head.is_open:
            raise BusyError(f"head {name!r} is open already", engine.name)
        head.open()
        return head


def _close_dropped(engine: Engine) -> None:
    """Closes the clones whose handles were dropped open. The lock is held."""
    while engine.dropped_heads:
        engine.dropped_heads.popleft().close()


def delete_clone(engine: Engine, name: str) -> None:
    """Deletes a clone: gone when it returns, even after a crash. Its space comes back by `reclaim`.

    Raises NotFoundError, BusyError if it is open or the live volume.
    """
    with engine.lock:
        engine.require_writable()
        _close_dropped(engine)
        record = find_clone(engine, name)
        head = engine.path.heads[record.number]
        if head.is_open:
            raise BusyError(f"head {name!r} is open; close it first", engine.name)
        engine.make_room(for_delete=True)
        engine.lineage.names.load()
        event = DeleteHeadEvent(head.number, head.epoch)
        with engine.undivided():
            (root,) = engine.commit([event], keep=[head], room_made=True)
            clone_deleted(engine, event, root)


def clone_deleted(engine: Engine, event: DeleteHeadEvent, root: Root) -> None:
    """What a delete_head event means in memory: the same for a commit and for replay. `root` is the head's map."""
    engine.lineage.delete_head(event, root)
    engine.path.drop_head(engine.path.heads[event.number])
    engine.lineage.set_holders()
