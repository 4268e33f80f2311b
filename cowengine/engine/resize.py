"""Resize of a head: one record makes it another size, at any moment.

Growing adds holes, and homes for them. Shrinking makes the lost blocks one tombstone, whatever lay there: a snapshot
that is deleted in the same record holds it, and the ordinary reclaim gives it back step by step. Both mark what they
add or cut off with the head's epoch, so lists of changes show it, and bytes that were cut off never come back.
Snapshots keep their size.

The bytes of the last block behind a smaller size become zeros in a new place, which the same record names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cowengine.engine.homes import add_region, region_for
from cowengine.errors import OutOfRangeError
from cowengine.format import (
    ENTRY_MAPPED,
    LINEAGE_AUTOMATIC,
    SIZE_MAX,
    SIZE_MIN,
    DeleteEvent,
    RegionEvent,
    ResizeEvent,
    encode_delta,
    size_is_legal,
)

if TYPE_CHECKING:
    from cowengine.core.roots import Head
    from cowengine.engine.allocator import Run
    from cowengine.engine.engine import Engine


def check_size(size: int) -> None:
    """Raises OutOfRangeError, which names the limits, unless a volume can have this size."""
    if not size_is_legal(size):
        raise OutOfRangeError(f"size {size}: a multiple of 512 from {SIZE_MIN} to {SIZE_MAX} bytes is needed")


def resize(engine: Engine, size: int, head: Head) -> None:
    """Makes a head `size` bytes long. Durable when it returns, and so is every write before; writes wait.

    What a shrink cuts off comes back by `reclaim`. Raises OutOfRangeError; NoSpaceError, and nothing has changed.
    """
    check_size(size)
    with engine.lock:
        engine.require_writable()
        engine.require_head(head)
        engine.make_room()
        with engine.paused(head):
            if size < head.size:
                _shrink(engine, size, head)
            elif size > head.size:
                _grow(engine, size, head)
            else:
                engine.commit(room_made=True)


def resized(engine: Engine, event: ResizeEvent) -> None:
    """What a resize event means in memory: the same for a commit and for replay."""
    engine.path.heads[event.head].resize(event.size, event.epoch)
    engine.lineage.resize_head(event.head, event.size)


def _grow(engine: Engine, size: int, head: Head) -> None:
    event = ResizeEvent(head=head.number, size=size, epoch=head.epoch)
    region = region_for(engine, -(-size // engine.path.block_bytes))
    homes = [] if region is None else [RegionEvent(*region)]
    with engine.undivided():
        engine.commit([*homes, event], room_made=True)
        if region is not None:
            add_region(engine, region)
        resized(engine, event)


def _shrink(engine: Engine, size: int, head: Head) -> None:
    engine.commit(room_made=True)
    engine.make_room()
    engine.lineage.names.load()
    last = _cut_block(engine, size, head)
    with engine.undivided():
        epoch = engine.path.fence(head)
        kept = engine.new_event(_unused_name(engine), b"", epoch=epoch, flags=LINEAGE_AUTOMATIC, head=head)
        kept.before = True  # the record's delta is of the epoch behind it
        event = ResizeEvent(head=head.number, size=size, epoch=head.epoch)
        delta = b""
        if last is not None:
            engine.barrier()  # I3
            block = size // engine.path.block_bytes
            delta = encode_delta(block, 1, ENTRY_MAPPED, last[0], event.epoch, head.number)
        engine.begin_take()
        others, freed, freed_nodes, writes, superseded, roots = engine.path.take_batch([head])
        batch = (others + delta, freed, freed_nodes, writes, superseded, roots)
        engine.commit([kept, event, DeleteEvent(kept.id)], batch=batch, room_made=True)
        engine.taken(kept, roots[0])
        engine.path.replay(delta)
        resized(engine, event)
        engine.lineage.delete(kept.id)
        engine.lineage.set_holders()  # what comes before counts from here on: its reclaim moves the free rule's cursor
        roots[0].retire()


def _unused_name(engine: Engine) -> str:
    name = f"before-resize-{engine.lineage.next_id}"
    while engine.lineage.find_name(name) is not None:
        name += "'"
    return name


def _cut_block(engine: Engine, size: int, head: Head) -> Run | None:
    """The block in which a smaller size ends, written to new slots with zeros behind it; None if it has them already.

    The head is paused. Raises NoSpaceError and StorageError.
    """
    path = engine.path
    kept = size % path.block_bytes
    stop = min(size - kept + path.block_bytes, head.size)
    if kept == 0 or not any(path.pread(stop - size, size, head)):
        return None
    data = path.pread(kept, size - kept, head)
    return engine.allocator.take_block(data + bytes(path.block_bytes - kept))
