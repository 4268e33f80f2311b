"""Finds heads and snapshots by name, epoch, parent and position without reading them all (I43).

The index on disk (tree 5) is as of the checkpoint; what changed since, by replay or now, stands in memory beside it
until the next one. It only leads to lineage records, which confirm what it says, and it is dispensable: small volumes
have none, one that is damaged is given up, and so is one that a checkpoint has no room for. Then one scan over all
lineage records puts everything in memory, and a later checkpoint writes a new index.

Threads   The engine's commit lock is held.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from uuid import UUID

from cowengine.core.pagedtable import name_table
from cowengine.engine.changes import Changes
from cowengine.engine.counts import Counts
from cowengine.engine.hashindex import HashIndex
from cowengine.errors import CorruptionError
from cowengine.format import (
    LINEAGE_ANCHOR,
    LINEAGE_DELETED,
    LINEAGE_EMPTY,
    LINEAGE_HEAD,
    NAMED_IDS_MAX,
    NONE_ID,
    POINTER_NODE,
    LineageRecord,
    Pointer,
    Superblock,
    hole,
)
from cowengine.format.layout import IDS_PER_COUNT
from cowengine.format.names import (
    KIND_EPOCH,
    KIND_MASK,
    KIND_NAME,
    KIND_PARENT,
    epoch_hash,
    has_parent_entry,
    name_hash,
    parent_hash,
)

if TYPE_CHECKING:
    from cowengine.core.datapath import DataPath
    from cowengine.engine.allocator import Run
    from cowengine.engine.lineage import Lineage

logger = logging.getLogger("cowengine.engine")

KEPT_FROM = 64  # ids given out: up to here a scan reads as few nodes as the index has


def is_pending(flags: int) -> bool:
    """Whether the space of a snapshot with these flags is to be given back, or its place in the lineage."""
    return bool(flags & LINEAGE_DELETED or flags & (LINEAGE_ANCHOR | LINEAGE_EMPTY) == LINEAGE_ANCHOR)


class Names:
    """`kept`: the index on disk counts. `loaded`: counts and what is pending are known; without an index, all is."""

    def __init__(self, lineage: Lineage, path: DataPath, fold: int, superblock: Superblock) -> None:
        self._lineage = lineage
        self._path = path
        self._fold = fold
        self._volume = UUID(bytes=superblock.volume_uuid)
        self.kept = superblock.name_root.kind == POINTER_NODE
        self.linear = superblock.linear or not self.kept  # no rollback: every snapshot stands on the one before it
        self._may_be_kept = True
        self._last = "", name_hash(fold, "")  # the name that was asked for last, and its hash: most are added then
        self.durable_root = superblock.name_root  # that of the last checkpoint
        self.written: list[Run] = []  # slots of nodes written since
        self.lost: list[tuple[Pointer, list[Run]]] = []  # durable_root and written of indexes that were given up
        self._begin(superblock.name_buckets)
        self._index.entries = superblock.name_entries
        if self.kept:
            self.table.pointer = superblock.name_root.encode()

    def _begin(self, buckets: int) -> None:
        self.table = name_table(self._path, self._fold)
        self._index = HashIndex(self.table, buckets, 0)
        self._changes = Changes()
        self.counts = Counts()
        self.pending: dict[int, None] = {}  # deleted ones and anchors, until their space is given back
        self.loaded = False

    # -- knowing ------------------------------------------------------------------------------------------------------
    def load(self) -> None:
        """Reads the counts and what is pending; without an index, everything."""
        if self.loaded:
            return
        if self.kept:
            try:
                self._load()
            except CorruptionError as problem:
                self.give_up(f"it is damaged: {problem}")
        if not self.kept:
            self._scan()
        self.loaded = True

    def prepare(self) -> None:
        """Before the lineage changes: what the changes are noted beside is known."""
        if self.kept and not self.loaded:
            self.load()

    def _load(self) -> None:
        self.counts, self.pending = Counts(), {}
        for first in self.counts.load(self.table, self._lineage.next_id):
            for number in range(first, first + IDS_PER_COUNT):
                record = self._lineage.get(number)
                if record is not None and record.kind != LINEAGE_HEAD and is_pending(record.flags):
                    self.pending[number] = None

    def _scan(self) -> None:
        """Names, epochs and parents of all records; the records themselves are still read when asked for."""
        self._changes, self.counts, self.pending = Changes(), Counts(), {}
        above = NONE_ID
        under_heads = []
        for number, (kind, flags, parent, epoch, name) in self._lineage.essentials():
            if has_parent_entry(number, parent):
                self._changes.add(parent_hash(self._fold, parent), KIND_PARENT | number)
            if kind == LINEAGE_HEAD:
                under_heads.append(parent)
                continue
            self.linear = self.linear and parent == above
            above = number
            if is_pending(flags):
                self.pending[number] = None
                self.counts.touch(number)
            if not flags & LINEAGE_DELETED:
                self._changes.add(name_hash(self._fold, name), KIND_NAME | number)
                self._changes.add(epoch_hash(self._fold, epoch), KIND_EPOCH | number)
                self.counts.add(number, 1)
        self.linear = self.linear and under_heads == [above]

    def give_up(self, why: str, *, for_good: bool = False) -> None:
        """Goes on without the index. The next checkpoint frees its nodes, and writes a new one unless `for_good`."""
        logger.warning("volume %s: the index of snapshot names is given up: %s", self._volume, why)
        self.lost.append((self.durable_root, self.written))
        self.kept, self.written = False, []
        self._may_be_kept = not for_good
        self._begin(0)

    # -- finding ------------------------------------------------------------------------------------------------------
    def surely_lacks(self, name: str) -> bool:
        """Whether certainly no snapshot has this name; else `named` says more. Behind `prepare`."""
        hashed = name_hash(self._fold, name)
        self._last = name, hashed
        if not self.loaded or hashed in self._changes.first:
            return False
        return not self.kept or self._index.lacks(hashed)

    def named(self, name: str) -> set[int]:
        """Ids of snapshots of which one may have this name."""
        return self._find(self._hash(name), KIND_NAME)

    def _hash(self, name: str) -> int:
        last, hashed = self._last
        if name != last:
            hashed = name_hash(self._fold, name)
            self._last = name, hashed
        return hashed

    def in_epoch(self, epoch: int) -> set[int]:
        """Ids of snapshots of which one may have this epoch."""
        return self._find(epoch_hash(self._fold, epoch), KIND_EPOCH)

    def standing_on(self, parent: int) -> set[int]:
        """Ids of heads and snapshots, among them all that stand on this one."""
        return self._find(parent_hash(self._fold, parent), KIND_PARENT) | {0, parent + 1}

    def _find(self, hashed: int, kind: int) -> set[int]:
        on_disk: list[int] = []
        if self.kept:
            try:
                on_disk = self._index.find(hashed)
            except CorruptionError as problem:
                self.give_up(f"it is damaged: {problem}")
        if not self.kept and not self.loaded:
            self.load()
        places = self._changes.find(hashed, on_disk)
        return {place & ~KIND_MASK for place in places if place & KIND_MASK == kind} if places else places

    # -- changes, behind `prepare` ------------------------------------------------------------------------------------
    def add(self, record: LineageRecord) -> None:
        """A snapshot was taken."""
        if self.loaded:
            self._changes.add(self._hash(record.name), KIND_NAME | record.id)
            self._changes.add(epoch_hash(self._fold, record.epoch), KIND_EPOCH | record.id)
            self.counts.add(record.id, 1)
            self.move(record.id, NONE_ID, record.parent)

    def remove(self, record: LineageRecord) -> None:
        """A snapshot was deleted."""
        if self.loaded:
            self._changes.remove(self._hash(record.name), KIND_NAME | record.id)
            self._changes.remove(epoch_hash(self._fold, record.epoch), KIND_EPOCH | record.id)
            self.counts.add(record.id, -1)

    def move(self, number: int, old: int, new: int) -> None:
        """A head or snapshot stood on `old` and stands on `new`; NONE_ID: on nothing."""
        if self.loaded:
            if has_parent_entry(number, old):
                self._changes.remove(parent_hash(self._fold, old), KIND_PARENT | number)
            if has_parent_entry(number, new):
                self._changes.add(parent_hash(self._fold, new), KIND_PARENT | number)

    def wait(self, number: int) -> None:
        """A snapshot waits for its reclaim."""
        if self.loaded:
            self.pending[number] = None
            self.counts.touch(number)

    def settle(self, number: int) -> None:
        """Its reclaim is complete."""
        assert self.loaded, "who shares its data was asked for before, and is found in what is loaded"
        self.pending.pop(number, None)
        self.counts.touch(number)

    # -- checkpoint ---------------------------------------------------------------------------------------------------
    def merge(self) -> None:
        """Puts all changes into the table's pages; a volume that has become large enough gets an index."""
        if self.kept and self._lineage.next_id > NAMED_IDS_MAX:
            self.give_up("it is not made for so many ids", for_good=True)
        if self.kept and not self.loaded:
            return
        if not self.kept and not (KEPT_FROM < self._lineage.next_id <= NAMED_IDS_MAX and self._may_be_kept):
            return
        try:
            try:
                self._merge()
            except CorruptionError as problem:
                self.give_up(f"it is damaged: {problem}")
                self._merge()
        except BaseException:
            self.give_up("a change of it was interrupted")  # nobody knows how much of it was done
            raise

    def _merge(self) -> None:
        self.load()
        if not self.kept:
            self._index.expect(sum(1 for _ in self._changes.added()))
            self.counts.touch(0)  # an index of nothing has a leaf, too
        for hashed, place in self._changes.removed:
            self._index.remove(hashed, place)
        for hashed, place in self._changes.added():
            self._index.add(hashed, place)
        self.counts.write(self.table, self.pending)
        self._changes = Changes()
        self.kept = True

    def superblock_fields(self) -> dict[str, Any]:
        """The fields of the next superblock that are kept here."""
        if not self.kept:
            return {"name_root": hole(), "name_buckets": 0, "name_entries": 0, "linear": False}
        return {
            "name_root": Pointer.decode(self.table.pointer), "name_buckets": self._index.buckets,
            "name_entries": self._index.entries, "linear": self.linear,
        }  # fmt: skip

    def is_durable(self) -> None:
        """A superblock leads to what was written."""
        self.durable_root = Pointer.decode(self.table.pointer) if self.kept else hole()
        self.written = []
