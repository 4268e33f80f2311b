"""What an open volume may keep in memory: the nodes of its trees, and its bitmaps of slots.

Clean nodes are on disk and can be read again at any time. When there are more than the limit those go first that nobody
has read of late, and then the rest, in the order of their keys, down to three quarters. Dirty nodes stay until the next
checkpoint, which commits begin when there are many (`engine.DIRTY_NODES_MAX`).

Threads   Under the commit lock: while a checkpoint runs, a clean node may not be on disk yet. A reader that finds the
          lock taken leaves the matter to the one who has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import ref

if TYPE_CHECKING:
    from cowengine.engine.engine import Engine

NODE_BYTES = 4608  # of memory: the node, its header, and a leaf's share of the tables of children above it
CACHE_BYTES = 48 << 20  # of the map; with seals and tables beside it a volume stays below 64 MiB
CACHE_BYTES_MIN = 1 << 20
SHARE_OF_SEALS = 4  # the seals of a block take a quarter of what its map does
SHARE_OF_TABLES = 16  # the lineage table, its records, the index of names and the bitmaps: one part in so many each


def bound(engine: Engine, cache_bytes: int) -> None:
    """Sets the limit, in bytes. Not durable."""
    engine.cache_nodes = max(cache_bytes, CACHE_BYTES_MIN) // NODE_BYTES
    here = ref(engine)  # the path may outlive its engine, and must not keep it

    def trim_it() -> None:
        found = here()
        if found is not None:
            trim(found)

    engine.path.bound(engine.cache_nodes, trim_it)


def trim(engine: Engine) -> None:
    """Comes back under the limit, if nobody has the commit lock."""
    if not engine.lock.acquire(blocking=False):
        return
    try:
        if engine.is_between_steps():
            trim_locked(engine)
    finally:
        engine.lock.release()


def trim_locked(engine: Engine) -> None:
    """The same for who has the commit lock and runs no checkpoint."""
    path, limit = engine.path, engine.cache_nodes
    engine.lineage.unload_roots()
    # What cannot go (it is dirty, or just being read) must not make every read try again.
    path.node_limit = limit
    if path.map.node_count > limit:
        _trim_map(engine, limit - limit // 4)
        path.node_limit = max(limit, path.map.node_count + limit // 4)
    path.seal_limit = seal_limit = limit // SHARE_OF_SEALS
    if engine.seals.nodes() > seal_limit:
        engine.seals.unload()
        path.seal_limit = max(seal_limit, engine.seals.nodes() + seal_limit // 4)
    if engine.table.nodes() > limit // SHARE_OF_TABLES:
        engine.table.unload()
    engine.lineage.unload_records(limit // SHARE_OF_TABLES)
    if engine.lineage.names.table.nodes() > limit // SHARE_OF_TABLES:
        engine.lineage.names.table.unload()
    if path.slots.busy_count + engine.free_map.nodes() > limit // SHARE_OF_TABLES:
        path.slots.unload()
        engine.free_map.unload()


def trim_records(engine: Engine) -> None:
    """After a look-up in the lineage: comes back under the limit if it has left many records in memory."""
    if engine.lineage.loaded_leaves() > engine.cache_nodes // SHARE_OF_TABLES:
        trim(engine)


def _trim_map(engine: Engine, keep: int) -> None:
    for root in (*engine.path.heads.values(), *list(engine.lineage.loaded_roots.values())):
        if engine.path.map.node_count <= keep:
            return
        root.unload(keep)


def used(engine: Engine) -> int:
    """Bytes of memory that nodes and bitmaps take now."""
    tables = (engine.table, engine.lineage.names.table, engine.free_map, engine.seals)
    nodes = engine.path.map.node_count + sum(table.nodes() for table in tables) + engine.path.slots.busy_count
    return int((nodes + engine.lineage.loaded_leaves()) * NODE_BYTES)
