"""The heads and snapshots of a volume: who stands on whom, and what the free rule goes by.

Holds the lineage records in memory, read leaf by leaf when they are asked for; knows which changed since the last
checkpoint. Takes no decision about commits and writes nothing but the table's pages at a checkpoint.

Threads   The engine's commit lock guards all changes; reads of single records are safe under the GIL.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from weakref import WeakValueDictionary

from cowengine.core.datapath import DataPath
from cowengine.core.pagedtable import PagedTable
from cowengine.core.roots import Root
from cowengine.engine.idset import IdSet
from cowengine.engine.names import Names, is_pending
from cowengine.engine.shortcuts import Shortcuts
from cowengine.errors import CorruptionError, NotFoundError
from cowengine.format import (
    HOLE,
    LINEAGE_ANCHOR,
    LINEAGE_AUTOMATIC,
    LINEAGE_BYTES,
    LINEAGE_DELETED,
    LINEAGE_EMPTY,
    LINEAGE_HEAD,
    LINEAGE_HELD,
    LINEAGE_SEALED,
    LINEAGE_SNAPSHOT,
    NO_CURSOR,
    NONE_ID,
    POINTER_RUN,
    RECORDS_PER_LEAF,
    SLOT_BYTES,
    TREE_MAP,
    CloneEvent,
    DeleteHeadEvent,
    LineageRecord,
    Pointer,
    RollbackEvent,
    SnapshotEvent,
    Superblock,
    decode_lineage,
    encode_lineage,
    hole,
    iter_essentials,
    level_for,
    span,
)
from cowengine.format.layout import IDS_PER_COUNT

HEAD_ID = 0
LEAVES_A_SCAN = 1024  # nodes that a scan of all records leaves in memory, at most
LIVE_NAME = "live"
_EMPTY_LEAF = bytes(RECORDS_PER_LEAF * LINEAGE_BYTES)


def is_readable(flags: int) -> bool:
    """Whether the bytes of a snapshot with these flags can be read."""
    return not flags & (LINEAGE_DELETED | LINEAGE_ANCHOR)


class Lineage:
    """Records by id; `names` finds them."""

    def __init__(self, path: DataPath, table: PagedTable, fold: int, superblock: Superblock) -> None:
        self._path = path
        self._table = table
        self._block_slots = path.block_bytes // SLOT_BYTES
        self.next_id = superblock.next_id
        self.names = Names(self, path, fold, superblock)
        self._leaves: dict[int, dict[int, LineageRecord]] = {}  # records by leaf and id: as they are now
        self._loading = threading.Lock()  # a record is read from the table, or dropped, by one thread
        self.head_ids: dict[int, int] = {}  # of heads, by number
        self.sealed_below = superblock.sealed_below
        self._unsealed: IdSet | None = None  # readable, not sealed; None: not looked for yet
        # One Root for each snapshot, as long as anybody reads it: a delete must reach them all. Those of this
        # process's own come here when they leave `loaded_roots`.
        self._roots: WeakValueDictionary[int, Root] = WeakValueDictionary()
        self._rooting = threading.Lock()  # readers ask for roots with no other lock, and two of a kind must not be made
        self.loaded_roots: dict[int, Root] = {}  # of snapshots; these until their space is given back
        self._past_above = Shortcuts(self._empty_above)
        self._past_below = Shortcuts(self._empty_below)
        self.fresh: dict[int, None] = {}  # snapshots whose roots no checkpoint has written yet
        self.metadata: dict[int, bytes] = {}  # of fresh snapshots
        self._changed: set[int] = set()
        self.dropped_slots: list[tuple[int, int]] = []  # metadata blobs that the next checkpoint no longer needs

    # -- looking up ---------------------------------------------------------------------------------------------------
    def get(self, number: int) -> LineageRecord | None:
        """The record of a head or snapshot, or None."""
        if number >= self.next_id:
            return None
        records = self._leaves.get(number // RECORDS_PER_LEAF)
        return self._leaf(number).get(number) if records is None else records.get(number)

    def prepare(self) -> None:
        """Before a commit that takes a snapshot: reads what that will need, so that damage is found while it can be."""
        if not self.names.loaded:
            self.names.prepare()
        if self.next_id // RECORDS_PER_LEAF not in self._leaves:
            self._leaf(self.next_id)

    @property
    def live(self) -> LineageRecord:
        """The live head."""
        record = self.get(HEAD_ID)
        if record is None:
            raise CorruptionError("the lineage table has no live head")
        return record

    def load_heads(self) -> None:
        """Reads the records of all heads, along their chain. Raises CorruptionError."""
        record, number = self.live, -1
        names: set[str] = set()
        while True:
            if record.kind != LINEAGE_HEAD or record.number <= number or record.name in names:
                raise CorruptionError(f"the chain of heads leads to {record.id}, which is none, or is one twice")
            number = record.number
            names.add(record.name)
            self.head_ids[number] = record.id
            if not record.next_head:
                return
            following = self.get(record.next_head)
            if following is None:
                raise CorruptionError(f"the chain of heads leads to {record.next_head}, which does not exist")
            record = following

    def find_head(self, name: str) -> LineageRecord | None:
        """The head of that name, or None."""
        return next((record for record in self.heads.values() if record.name == name), None)

    def clone_on(self, number: int) -> LineageRecord | None:
        """A clone whose origin is this snapshot, or None (I38)."""
        if len(self.head_ids) == 1:
            return None
        return next((record for record in self.heads.values() if record.origin == number), None)

    @property
    def heads(self) -> dict[int, LineageRecord]:
        """The records of all heads, by number."""
        found = ((number, self.get(head)) for number, head in list(self.head_ids.items()))
        return {number: record for number, record in found if record is not None}

    def _head(self, number: int) -> LineageRecord:
        record = self.get(self.head_ids[number])
        assert record is not None, "a head has a record as long as it is one"
        return record

    def _leaf(self, number: int) -> dict[int, LineageRecord]:
        """The records of the leaf that holds an id; whoever has it may read it although it is dropped meanwhile."""
        leaf = number // RECORDS_PER_LEAF
        records = self._leaves.get(leaf)
        if records is None:
            with self._loading:
                records = self._leaves.get(leaf)
                if records is None:
                    records = self._leaves[leaf] = self._read_leaf(leaf)
        return records

    def _read_leaf(self, leaf: int) -> dict[int, LineageRecord]:
        records: dict[int, LineageRecord] = {}
        page = self._table.read(leaf * RECORDS_PER_LEAF) or _EMPTY_LEAF
        for position in range(RECORDS_PER_LEAF):
            number = leaf * RECORDS_PER_LEAF + position
            record = decode_lineage(page[position * LINEAGE_BYTES : (position + 1) * LINEAGE_BYTES])
            if record is not None:
                if record.id != number:
                    raise CorruptionError(f"lineage record {number} says that it is {record.id}")
                self._require_given_out(number)
                records[number] = record
        return records

    def unload_records(self, leaves_max: int) -> None:
        """Drops the records that the table has as well, if there are those of more leaves. The commit lock is held."""
        if len(self._leaves) <= leaves_max:
            return
        kept = {number // RECORDS_PER_LEAF for number in (*self._changed, *self.fresh)}
        with self._loading:
            self._leaves = {leaf: records for leaf, records in self._leaves.items() if leaf in kept}

    def loaded_leaves(self) -> int:
        """Of how many leaves the records are in memory."""
        return len(self._leaves)

    def essentials(self, start: int = 0) -> Iterator[tuple[int, tuple[int, int, int, int, str]]]:
        """Kind, flags, parent, epoch and name of every record, by id, from the leaf of id `start` on.

        Full decoding would take ten times as long. The commit lock is held.
        """
        for position, leaf in enumerate(self._all_leaves(start // RECORDS_PER_LEAF), 1):
            if position % LEAVES_A_SCAN == 0:
                self._table.unload()
            known = self._leaves.get(leaf)
            if known is not None:
                for number, r in sorted(known.items()):
                    yield number, (r.kind, r.flags, r.parent, r.epoch, r.name)
                continue
            page = self._table.read(leaf * RECORDS_PER_LEAF) or _EMPTY_LEAF
            for number, essentials in enumerate(iter_essentials(page), leaf * RECORDS_PER_LEAF):
                if essentials[0]:
                    self._require_given_out(number)
                    yield number, essentials

    def _require_given_out(self, number: int) -> None:
        """Of a record of the table: `get` knows of none that is not."""
        if number >= self.next_id:
            raise CorruptionError(f"lineage record {number} is there, and {self.next_id} is the next to be given out")

    def _all_leaves(self, start: int = 0) -> list[int]:
        """Numbers of the leaves from `start` on that hold a record, ascending. Ids may be far apart."""
        leaves = {leaf for leaf in list(self._leaves) if leaf >= start}
        key = self._table.next(start * RECORDS_PER_LEAF)
        while key is not None and key < self.next_id:
            leaves.add(key // RECORDS_PER_LEAF)
            key = self._table.next(key + RECORDS_PER_LEAF)
        return sorted(leaves)

    def _visible(self, numbers: Iterable[int]) -> Iterator[LineageRecord]:
        """The snapshots among these that are not deleted."""
        for number in numbers:
            record = self.get(number)
            if record is not None and record.kind == LINEAGE_SNAPSHOT and not record.flags & LINEAGE_DELETED:
                yield record

    def find_name(self, name: str) -> LineageRecord | None:
        """The snapshot of that name that is not deleted, or None."""
        places = self.names.named(name)
        return next((record for record in self._visible(places) if record.name == name), None) if places else None

    def find_epoch(self, epoch: int) -> LineageRecord | None:
        """The snapshot of that epoch that is not deleted, or None."""
        return next((record for record in self._visible(self.names.in_epoch(epoch)) if record.epoch == epoch), None)

    def stands_on(self, number: int, base: LineageRecord) -> bool:
        """Whether `base` is this head or snapshot or an ancestor of it."""
        if not self.names.kept:
            self.names.load()
        if self.names.linear:
            return number == HEAD_ID or base.id <= number
        for record in self.ancestors(number):
            if record.id == base.id:
                return True
            if record.kind == LINEAGE_SNAPSHOT and record.epoch <= base.epoch:
                return False
        return False

    def snapshots(self, start: int = 0, stop: int | None = None) -> list[LineageRecord]:
        """The snapshots that are not deleted, oldest first, from position `start` to before `stop`."""
        self.names.load()
        found: list[LineageRecord] = []
        position = 0
        for first, count in self.names.counts.groups():
            if stop is not None and position >= stop:
                break
            if position + count > start:
                part = slice(max(0, start - position), None if stop is None else stop - position)
                ids = range(first, first + IDS_PER_COUNT)
                all_there = count == IDS_PER_COUNT
                here = list(self._visible(ids[part] if all_there else ids))
                if len(here) != (len(ids[part]) if all_there else count):
                    self.names.give_up(f"it counts {count} snapshots from id {first} on, and they are not there")
                    return self.snapshots(start, stop)
                found += here if all_there else here[part]
            position += count
        return found

    def count(self) -> int:
        """How many snapshots there are that are not deleted."""
        self.names.load()
        return self.names.counts.total

    def pending(self) -> list[LineageRecord]:
        """Deleted snapshots and anchors whose space is not given back yet, in the order of the requests."""
        self.names.load()
        return [self._known(number) for number in self.names.pending]

    def children(self, number: int) -> set[int]:
        """Ids of the heads and snapshots that stand on a snapshot."""
        found = set()
        for child in self.names.standing_on(number):
            record = self.get(child)
            if record is not None and record.parent == number:
                found.add(child)
        return found

    def sharers(self, number: int) -> list[int]:
        """The nearest heads and snapshots that stand on a snapshot and hold data: empty anchors are seen through."""
        found: list[int] = []
        queue = [(number, 0)]
        while queue:
            above, epoch = queue.pop()
            for child in self.children(above):
                record = self.get(child)
                # Epochs rise, or the lineage would be a ring.
                if record is None or (record.kind == LINEAGE_SNAPSHOT and record.epoch <= epoch):
                    raise CorruptionError(f"the lineage is broken at snapshot {child}")
                if record.flags & LINEAGE_EMPTY:
                    queue.append((self._past_below.end(child), record.epoch))
                else:
                    found.append(child)
        return found

    def ancestors(self, number: int) -> Iterator[LineageRecord]:
        """A snapshot or head, then what it stands on, and so on; epochs fall."""
        record = self.get(number)
        while record is not None:
            yield record
            record = self._above(record)

    def _above(self, record: LineageRecord) -> LineageRecord | None:
        """What a snapshot or head stands on."""
        if record.parent == NONE_ID:
            return None
        above = self.get(record.parent)
        # The head's own epoch is the data path's; its record has it as of the last checkpoint.
        falls = record.kind != LINEAGE_SNAPSHOT or (above is not None and above.epoch < record.epoch)
        if above is None or above.kind != LINEAGE_SNAPSHOT or not falls:  # a head on a head would never end
            raise CorruptionError(f"the lineage is broken at snapshot {record.parent}")
        return above

    def _is_empty(self, number: int) -> bool:
        record = self.get(number)
        return record is not None and bool(record.flags & LINEAGE_EMPTY)

    def _empty_above(self, number: int) -> int | None:
        """The empty anchor that another one stands on, if it does."""
        record = self.get(number)
        above = None if record is None else self._above(record)
        return above.id if above is not None and above.flags & LINEAGE_EMPTY else None

    def _empty_below(self, number: int) -> int | None:
        """The empty anchor that stands on another one, alone."""
        children = self.children(number)
        child = self.get(next(iter(children))) if len(children) == 1 else None
        if child is None or not child.flags & LINEAGE_EMPTY:
            return None
        self._above(child)  # raises if the run would never end
        return child.id

    # -- roots --------------------------------------------------------------------------------------------------------
    def root(self, number: int) -> Root:
        """The map's root of a snapshot; of a head, itself."""
        root: Root | None
        record = self.get(number) if number == HEAD_ID or len(self.head_ids) > 1 else None
        if record is not None and record.kind == LINEAGE_HEAD:
            return self._path.heads[record.number]
        root = self.loaded_roots.get(number) or self._roots.get(number)
        if root is None:
            record = self.get(number)
            if record is None:
                raise NotFoundError("the snapshot was deleted")
            self.require_fit(record)
            made = self._path.root_at(record.root.encode())
            with self._rooting:
                root = self._roots.setdefault(number, made)
            # Without the lock: the record may have left memory, and another object that was read since be deleted.
            record = self.get(number)
            if record is None or not is_readable(record.flags):
                root.retire()
        self.loaded_roots[number] = root
        return root

    def require_fit(self, record: LineageRecord) -> None:
        """Raises CorruptionError unless the map's root of a head or snapshot spans its size and what it names lies in
        the file.
        """
        blocks, root, slots = -(-record.size // self._path.block_bytes), record.root, self._path.slots.end
        problem = None
        if root.level < level_for(TREE_MAP, blocks):
            problem = f"has level {root.level}, which does not span {blocks} blocks"
        elif root.kind == POINTER_RUN and root.slot + span(TREE_MAP, root.level) * self._block_slots > slots:
            problem = f"is a run that ends behind slot {slots}, the end of the file"
        elif record.metadata_slot >= slots:
            problem = f"has metadata in slot {record.metadata_slot}, behind the end of the file"
        if problem:
            raise CorruptionError(
                f"the map of {record.name!r} {problem}",
                snapshot=record.name if record.kind == LINEAGE_SNAPSHOT else None,
            )

    def unload_roots(self) -> None:
        """Drops the nodes of snapshots that nobody has read since the last time."""
        for number, root in list(self.loaded_roots.items()):
            if root.used:
                root.used = False
            elif number not in self.fresh:
                root.unload()
                self._roots[number] = root  # first: who looks there in between must find it
                del self.loaded_roots[number]

    # -- changes: the same for a commit and for replay ----------------------------------------------------------------
    def take(self, event: SnapshotEvent, root: Root, size: int, blob: tuple[int, int] = (0, 0)) -> LineageRecord:
        """Adds the snapshot of an event; the head that it was taken of stands on it from now on."""
        if not self.names.loaded:
            self.names.prepare()
        head = self._head(event.head)
        record = LineageRecord(
            LINEAGE_SNAPSHOT, event.id, event.name, event.epoch, size, event.flags & LINEAGE_AUTOMATIC, head.parent,
            0, event.created_ns, event.tag, HOLE, NO_CURSOR, event.set_id,
        )  # fmt: skip
        self._leaf(event.id)[event.id] = record
        self.loaded_roots[event.id] = root
        self.fresh[event.id] = None
        if event.metadata:
            self.metadata[event.id] = event.metadata
        self._changed.add(event.id)
        self.next_id = max(self.next_id, event.id + 1)
        self.names.add(record)
        if self._unsealed is not None:
            self._unsealed.add(event.id)
        self._stand(head, event.head, event.id)
        return record

    def stand(self, head_number: int, number: int) -> None:
        """Makes a head stand on a snapshot."""
        self.names.prepare()
        self._stand(self._head(head_number), head_number, number)

    def _stand(self, head: LineageRecord, head_number: int, number: int) -> None:
        if head_number or number != self.next_id - 1:
            self.names.linear = False
        self.names.move(head.id, head.parent, number)
        head.parent = number
        self._changed.add(head.id)

    def turn_back(self, event: RollbackEvent) -> None:
        """A head has the size of a snapshot and stands on it; of a clone it becomes the origin."""
        self.stand(event.head, event.to)
        self._head(event.head).size = event.size
        if event.head:
            self._head(event.head).origin = event.to

    def resize_head(self, head_number: int, size: int) -> None:
        """A head has `size` bytes from now on."""
        head = self._head(head_number)
        head.size = size
        self._changed.add(head.id)

    def clone(self, event: CloneEvent) -> None:
        """Adds the head of an event; it stands on the snapshot that it is a clone of."""
        self.names.prepare()
        origin = self._known(event.snapshot)
        record = LineageRecord(
            kind=LINEAGE_HEAD, id=event.id, name=event.name, epoch=event.epoch, size=origin.size, parent=origin.id,
            frozen=event.epoch - 1, created_ns=event.created_ns, number=event.number, origin=origin.id,
        )  # fmt: skip
        self.next_id = max(self.next_id, event.id + 1)
        self._leaf(event.id)[event.id] = record
        self.head_ids[event.number] = event.id
        self._changed.add(event.id)
        self.names.linear = False
        self.names.move(event.id, NONE_ID, record.parent)

    def delete_head(self, event: DeleteHeadEvent, root: Root) -> None:
        """Makes a head a snapshot that is deleted; its map is `root`."""
        self.names.prepare()
        record = self._head(event.number)
        del self.head_ids[event.number]
        record.kind, record.flags, record.epoch = LINEAGE_SNAPSHOT, LINEAGE_DELETED | LINEAGE_AUTOMATIC, event.epoch
        record.frozen = record.number = record.next_head = record.origin = 0
        self.loaded_roots[record.id] = self._roots[record.id] = root
        self.fresh[record.id] = None
        self._give_up(record.id)

    def delete(self, number: int) -> None:
        """Marks a snapshot as deleted; it stays a member of the lineage until its space is given back."""
        self.names.prepare()
        record = self._known(number)
        self._end_reading(record)  # first: it may load the names, as they are without this change
        assert not record.flags & LINEAGE_DELETED, "whoever asks sees no deleted one, and replay refuses it"
        self.names.remove(record)
        record.flags |= LINEAGE_DELETED
        self._give_up(number)

    def anchor(self, number: int) -> None:
        """Marks a snapshot as an anchor; it holds its data until that is given back."""
        self.names.prepare()
        record = self._known(number)
        self._end_reading(record)
        record.flags |= LINEAGE_ANCHOR
        self._give_up(number)

    # -- seals --------------------------------------------------------------------------------------------------------
    def unsealed(self) -> IdSet:
        """The readable snapshots that are not sealed; from the first call after an open on, kept in memory."""
        if self._unsealed is None:
            self._unsealed = IdSet(
                number
                for number, (kind, flags, *_) in self.essentials(self.sealed_below)
                if kind == LINEAGE_SNAPSHOT and is_readable(flags) and not flags & LINEAGE_SEALED
            )
        return self._unsealed

    def sealed_before(self) -> int:
        """All readable snapshots with a smaller id are sealed: for the superblock."""
        if self._unsealed is not None:
            self.sealed_below = next(iter(self._unsealed), self.next_id)
        return self.sealed_below

    def seal(self, number: int) -> None:
        """All that a readable snapshot has and its nearest readable ancestor has not is sealed."""
        record = self._known(number)
        assert is_readable(record.flags), "SE1: only what can be read is sealed"
        record.flags |= LINEAGE_SEALED
        self.unsealed().discard(number)
        self._changed.add(number)

    def unseal(self, record: LineageRecord) -> None:
        """Not all is sealed that a readable snapshot has and its nearest readable ancestor has not."""
        record.flags &= ~LINEAGE_SEALED
        self.sealed_below = min(self.sealed_below, record.id)
        if self._unsealed is not None:
            self._unsealed.add(record.id)
        self._changed.add(record.id)

    def _end_reading(self, record: LineageRecord) -> None:
        """A snapshot is readable no longer: what it had not sealed is what others have not sealed now (I41)."""
        if self._unsealed is not None:
            self._unsealed.discard(record.id)
        if not is_readable(record.flags) or record.flags & LINEAGE_SEALED:
            return
        queue = list(self.children(record.id))
        while queue:
            above = self.get(queue.pop())
            assert above is not None
            if above.flags & LINEAGE_EMPTY:
                queue += self.children(self._past_below.end(above.id))
            elif above.kind == LINEAGE_SNAPSHOT and not is_readable(above.flags):
                queue += self.children(above.id)
            elif above.flags & LINEAGE_SEALED:
                self.unseal(above)

    def _give_up(self, number: int) -> None:
        """Nobody reads this snapshot from now on, and its space is to be given back."""
        self.names.wait(number)
        root = self.loaded_roots.get(number) or self._roots.get(number)
        if root is not None:
            root.retire()
        self._changed.add(number)

    def hold(self, number: int, reason: str) -> None:
        """Holds a snapshot for a reason, or releases it with an empty one."""
        record = self._known(number)
        record.flags = record.flags | LINEAGE_HELD if reason else record.flags & ~LINEAGE_HELD
        record.hold_reason = reason
        self._changed.add(number)

    def retain(self, number: int, until_ns: int) -> None:
        """Nobody gives a snapshot back before that time."""
        self._known(number).retain_until_ns = until_ns
        self._changed.add(number)

    def move_cursor(self, number: int, cursor: int) -> None:
        """How far the reclaim of a deleted snapshot came."""
        self._known(number).cursor = cursor
        self._changed.add(number)

    def reclaimed(self, number: int) -> None:
        """The reclaim of a snapshot is complete: an anchor stays and is empty, anything else goes."""
        self.names.prepare()
        record = self._known(number)
        if record.flags & LINEAGE_DELETED:
            self._drop(record)
        else:
            record.flags |= LINEAGE_EMPTY
            record.root, record.cursor = hole(level_for(TREE_MAP, -(-record.size // self._path.block_bytes))), NO_CURSOR
        self._roots.pop(number, None)  # who walks it still has it; nobody else may
        self.loaded_roots.pop(number, None)
        self.fresh.pop(number, None)
        self.names.settle(number)
        self._changed.add(number)

    def _drop(self, record: LineageRecord) -> None:
        """Removes a snapshot that holds nothing any more; its children take its parent."""
        number = record.id
        if record.flags & LINEAGE_EMPTY:
            self._past_above.drop(number, [child for child in self.children(number) if self._is_empty(child)])
            leads_here = self._is_empty(record.parent) and self._empty_below(record.parent) == number
            self._past_below.drop(number, [record.parent] if leads_here else [])
        for child in list(self.children(number)):
            below = self.get(child)
            assert below is not None, "what is no record is no child"
            self.names.move(child, number, record.parent)
            below.parent = record.parent
            self._changed.add(child)
        self.names.move(number, record.parent, NONE_ID)
        if record.metadata_slot:
            self.dropped_slots.append((record.metadata_slot, 1))
        del self._leaf(number)[number]
        self.metadata.pop(number, None)

    def _known(self, number: int) -> LineageRecord:
        record = self.get(number)
        assert record is not None and record.kind == LINEAGE_SNAPSHOT, "replay refuses events of what is no snapshot"
        return record

    # -- the free rule ------------------------------------------------------------------------------------------------
    def holder(self, number: int) -> LineageRecord | None:
        """The nearest ancestor of a head or snapshot that holds data (I26)."""
        record = self.get(number)
        above = None if record is None else self._above(record)
        if above is not None and above.flags & LINEAGE_EMPTY:
            last = self.get(self._past_above.end(above.id))
            above = None if last is None else self._above(last)
        return above

    def epoch_before(self, number: int) -> int:
        """The epoch of the nearest ancestor that holds data; 0 if there is none."""
        record = self.holder(number)
        return 0 if record is None else record.epoch

    def readable_before(self, number: int) -> int:
        """The epoch of the nearest ancestor of a snapshot that can be read; 0 if there is none."""
        record = self.holder(number)
        while record is not None and not is_readable(record.flags):
            record = self.holder(record.id)
        return 0 if record is None else record.epoch

    def hidden_before(self, number: int) -> list[int]:
        """What holds data between a snapshot and its nearest ancestor that can be read: the nearest first."""
        hidden: list[int] = []
        record = self.holder(number)
        while record is not None and not is_readable(record.flags):
            hidden.append(record.id)
            record = self.holder(record.id)
        return hidden

    def set_holders(self) -> None:
        """Tells the data path what holds the blocks of every head."""
        for number in self.head_ids:
            self.set_holder(number)

    def set_holder(self, head_number: int) -> None:
        """Tells the data path what holds a head's blocks.

        What comes before the holder counts only once that is being reclaimed, so a snapshot need not look for it.
        """
        head, record = self._path.heads[head_number], self.holder(self._head(head_number).id)
        if record is None:
            head.set_holder(0, 0, 0)
            return
        cursor = 0 if record.cursor == NO_CURSOR else record.cursor
        before = self.epoch_before(record.id) if is_pending(record.flags) else 0
        head.set_holder(record.epoch, before, cursor)

    # -- checkpoint ---------------------------------------------------------------------------------------------------
    def add_head(self, size: int) -> None:
        """The live head of a new volume."""
        self._leaf(HEAD_ID)[HEAD_ID] = LineageRecord(kind=LINEAGE_HEAD, id=HEAD_ID, name=LIVE_NAME, epoch=1, size=size)
        self.head_ids[0] = HEAD_ID
        self._changed.add(HEAD_ID)

    def write_table(self, head_roots: dict[int, Root]) -> None:
        """Puts all changed records into the table's pages; the roots, of heads by their numbers, have their places by
        now.
        """
        following = 0
        for number in sorted(self.head_ids, reverse=True):
            record, head = self._head(number), self._path.heads[number]
            record.root = Pointer.decode(head_roots[number].pointer)
            record.epoch, record.frozen, record.next_head = head.epoch, head.frozen, following
            following = record.id
            self._changed.add(record.id)
        for number in self.fresh:
            record = self._leaf(number)[number]
            record.root = Pointer.decode(self.loaded_roots[number].pointer)
        for number in sorted(self._changed):
            offset = number % RECORDS_PER_LEAF * LINEAGE_BYTES
            self._table.write(number, offset, encode_lineage(self.get(number)))

    def written(self) -> None:
        """The table's pages hold everything now."""
        self._changed.clear()
        self.fresh.clear()
        self.metadata.clear()
