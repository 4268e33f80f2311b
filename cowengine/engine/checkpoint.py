"""The checkpoint: the trees on disk catch up with the log, and the log can be recycled.

Order (I11, I12): commit; nodes of the map, of the lineage table, of the index of names, of the seals and of the free
map to slots that no checkpoint uses; barrier; superblock to the older slot; barrier. Only then is anything recycled,
and never what the older of the two superblocks needs.

Running out of space before the superblock leaves everything as it was: the log still holds all, and a later checkpoint
goes on. Only the index of names is given up for that, as nothing needs it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cowengine.core.checksum import xxh64
from cowengine.engine import memory
from cowengine.engine.allocator import Run
from cowengine.errors import NoSpaceError
from cowengine.format import (
    FEATURE_HEADS,
    FEATURE_SEALS,
    HOLE,
    POINTER_NODE,
    SLOT_BYTES,
    TREE_NAMES,
    Pointer,
    Superblock,
    blob_seed,
)

if TYPE_CHECKING:
    from cowengine.core.pagedtable import PagedTable
    from cowengine.core.roots import Root
    from cowengine.engine.engine import Engine


def checkpoint(engine: Engine, *, clean: bool = False) -> None:
    """Commits, then writes the trees as of that commit and a superblock that leads to them. Durable when it returns.

    The commit lock is held, so nothing but writes to heads goes on meanwhile, and those copy what is written here.
    Raises NoSpaceError if the nodes have no room; then nothing is lost and nothing recycled. A failing write
    poisons (I10).
    """
    names = engine.lineage.names
    try:
        _checkpoint(engine, clean)
    except NoSpaceError:
        if not names.kept or not engine.log.fits(engine.log.record_max):
            raise
        names.give_up("a checkpoint has no room for it", for_good=True)
        _checkpoint(engine, clean)
    memory.trim_locked(engine)


def _checkpoint(engine: Engine, clean: bool) -> None:
    heads = list(engine.path.heads.values())
    roots = engine.commit(keep=heads, room_made=True)
    engine.lineage.names.merge()
    with engine.undivided(NoSpaceError):
        write_map(engine, roots)
        _write_metadata(engine)
        _write_lineage(engine, {head.number: root for head, root in zip(heads, roots, strict=True)})
        _write_names(engine)
        _write_sparse(engine, engine.seals)
        _write_free_map(engine)
        engine.barrier()
        engine.write_superblock(_superblock(engine, clean))
        _recycle(engine)


def _superblock(engine: Engine, clean: bool) -> Superblock:
    log, sb, seal_root = engine.log, engine.superblock, Pointer.decode(engine.seals.pointer)
    features = sb.features_incompatible & ~FEATURE_HEADS  # which comes back if there are clones
    features |= FEATURE_SEALS if seal_root != HOLE else 0
    return replace(
        sb, clean=clean, regions=engine.regions, features_incompatible=features, seal_root=seal_root,
        base_sequence=log.sequence, base_checksum=log.checksum,
        base_offset=log.position % log.size, tip_sequence=log.sequence, tip_checksum=log.checksum,
        epoch=engine.path.map.epoch, next_id=engine.lineage.next_id, store_sequence=engine.durable_store_sequence,
        needs_store=sb.needs_store and not clean,
        sealed_below=engine.lineage.sealed_before(),
        lineage_root=Pointer.decode(engine.table.pointer), free_map_root=Pointer.decode(engine.free_map.pointer),
        **engine.lineage.names.superblock_fields(), **engine.space.superblock_fields(),
        **engine.retention.superblock_fields(),
    )  # fmt: skip


def write_map(engine: Engine, heads: list[Root]) -> None:
    """Writes the dirty nodes of the map below some roots; it counts when a superblock leads there."""
    path, lineage = engine.path, engine.lineage
    roots = [lineage.root(number) for number in lineage.fresh]
    taken = engine.allocator.take(path.dirty_nodes())
    with engine.undivided():  # from here on the nodes count as written: no way back, not for want of space either
        left = path.flush_map([*roots, *heads], taken)
    path.slots.mark_used(without(taken, left))
    engine.superseded += path.take_stillborn()
    engine.allocator.give_back(left)


def _write_metadata(engine: Engine) -> None:
    """The metadata of new snapshots goes into slots of its own."""
    for number, data in list(engine.lineage.metadata.items()):
        record = engine.lineage.get(number)
        if record is None or record.metadata_slot:
            continue
        (run,) = engine.allocator.take(1)
        with engine.undivided():
            engine.io.pwrite(engine.fd, data, run[0] * SLOT_BYTES)
        engine.path.slots.mark_used([run])
        record.metadata_slot, record.metadata_bytes = run[0], len(data)
        record.metadata_checksum = xxh64(data, blob_seed(engine.fold, number))


def _write_lineage(engine: Engine, head_roots: dict[int, Root]) -> None:
    engine.lineage.write_table(head_roots)
    _write_sparse(engine, engine.table)
    engine.superseded += engine.lineage.dropped_slots
    engine.lineage.dropped_slots = []


def _write_names(engine: Engine) -> None:
    names = engine.lineage.names
    for root, written in names.lost:
        engine.superseded += _slots_of_index(engine, root, written)
    names.lost = []
    runs = engine.allocator.take(names.table.dirty_nodes(), dispensable=True)
    engine.path.slots.mark_used(runs)
    names.written += runs
    with engine.undivided():
        left = names.table.flush(runs)
        assert not left, "SM2: the free map counts slots that no node took"
    engine.superseded += names.table.take_superseded()


def _slots_of_index(engine: Engine, root: Pointer, written: list[Run]) -> list[Run]:
    """The slots of an index of names that was given up, as far as it can be read, but for those already let go."""
    from cowengine.engine.check_trees import Problems, Trees

    trees = Trees(engine.io, engine.fd, engine.fold, 1, Problems())
    if root.kind == POINTER_NODE:
        trees.leaves(TREE_NAMES, root)
    slots = set(trees.nodes).union(*(range(slot, slot + count) for slot, count in written))
    slots.difference_update(*(range(slot, slot + count) for slot, count in (*engine.superseded, *engine.retired)))
    return engine.path.slots.used_slots([(slot, 1) for slot in sorted(slots)])


def _write_sparse(engine: Engine, table: PagedTable) -> None:
    """A table whose nodes take no slot if nothing is left in them: of the lineage, or of seals."""
    taken = engine.allocator.take(table.dirty_nodes())
    with engine.undivided():
        left = table.flush(taken)
    engine.path.slots.mark_used(without(taken, left))
    engine.superseded += table.take_superseded()
    engine.allocator.give_back(left)


def _write_free_map(engine: Engine) -> None:
    """The free map last: giving its own nodes places changes it, until nothing new becomes dirty."""
    slots, free_map = engine.path.slots, engine.free_map
    taken: list[Run] = []
    try:
        while True:
            engine.superseded += free_map.take_superseded()
            slots.mark_used(engine.superseded, False)
            engine.retired += engine.superseded
            engine.superseded = []
            missing = free_map.dirty_nodes() - sum(count for _, count in taken)
            if missing <= 0:
                break
            more = engine.allocator.take(missing)
            slots.mark_used(more)
            taken += more
    except NoSpaceError:
        slots.mark_used(taken, False)
        engine.allocator.recycle(taken)
        raise
    with engine.undivided():
        left = free_map.flush(taken)
        assert not left, "SM2: the free map counts slots that no node took"


def _recycle(engine: Engine) -> None:
    """I12: what only the older superblock before this one needed comes back."""
    log = engine.log
    engine.allocator.recycle(engine.retired_before)
    engine.retired_before, engine.retired = engine.retired, []
    engine.bases = (engine.bases[1], log.position)
    log.tail = engine.bases[0]
    engine.lineage.written()
    engine.lineage.names.is_durable()
    engine.counters["checkpoints"] += 1


def without(runs: list[Run], left: list[Run]) -> list[Run]:
    """The slots of `runs` that are not in `left`; `left` is the tail of `runs`, its first run perhaps cut."""
    unused = sum(count for _, count in left)
    used = sum(count for _, count in runs) - unused
    result: list[Run] = []
    for slot, count in runs:
        part = min(count, used)
        if part > 0:
            result.append((slot, part))
        used -= part
    return result
