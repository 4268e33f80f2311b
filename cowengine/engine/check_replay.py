"""The log replayed logically, for the checker: which heads and snapshots exist, and which blocks each of them reaches.

Nothing is written and no tree is changed. A *line* is one stretch of a head's history: the map it began with, and the
deltas since. A snapshot is a moment on a line; rollback and clone begin a new line with the state of such a moment.
From the moments that still exist follows which part of each line's past is reachable, in time linear in the deltas.

Threads   an object belongs to one thread.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

from cowengine.engine.check_standing import Standing
from cowengine.engine.check_trees import Extent, Problems, Trees
from cowengine.engine.intervals import Intervals, Run
from cowengine.format import (
    ENTRY_MAPPED,
    ID_MAX,
    LINEAGE_ANCHOR,
    LINEAGE_DELETED,
    LINEAGE_EMPTY,
    LINEAGE_HEAD,
    LINEAGE_HELD,
    LINEAGE_SNAPSHOT,
    NO_CURSOR,
    NONE_ID,
    SLOT_BYTES,
    SLOTS_MAX,
    AnchorEvent,
    CloneEvent,
    DeleteEvent,
    DeleteHeadEvent,
    Event,
    EventOfSnapshot,
    GiveUpEvent,
    HoldEvent,
    LineageRecord,
    Pointer,
    ReclaimEvent,
    Record,
    ResizeEvent,
    RetainEvent,
    RollbackEvent,
    SnapshotEvent,
    hole,
    iter_deltas,
)

_TREE = (0, 0, 0)
"""The value of blocks that no delta has touched: as in the tree."""
_HOLE_SHIFT = -(2**100)


@dataclass(slots=True)
class Line:
    """A stretch of a head's history. Values are (slot - block * block_slots, birth, deltas before it)."""

    root: Pointer
    begin: Intervals
    deltas: list[tuple[int, int, int, int]] = field(default_factory=list)

    @property
    def pristine(self) -> bool:
        """Whether it shows the tree as it is."""
        return not self.deltas and len(self.begin.values) == 1

    def state(self, time: int) -> Intervals:
        """The line after its first `time` deltas, as a new line begins with it."""
        overlay = self.begin.copy()
        for begin, end, shift, birth in self.deltas[:time]:
            overlay.assign(begin, end, (shift, birth, 0))
        return overlay

    def pieces(self, time: int, runs: list[Run], block_slots: int) -> Iterator[tuple[int, int, int | None]]:
        """(first block, end, slot) of runs of blocks after `time` deltas; slot 0 in holes, None: as in the tree."""
        state = self.state(time)
        for first, last in runs:
            for piece in range(*state.overlap(first, last)):
                begin, end = max(first, state.starts[piece]), min(last, state.ends[piece])
                shift, birth, _ = state.values[piece]
                if shift == _HOLE_SHIFT:
                    yield begin, end, 0
                else:
                    yield begin, end, begin * block_slots + shift if birth else None


@dataclass(slots=True)
class Member:
    """A head or snapshot: its lineage record, and the moment of the line that it shows (a head: always the last)."""

    record: LineageRecord
    line: Line
    time: int


def new_line(root: Pointer) -> Line:
    """A line that begins with what the tree below `root` holds."""
    return Line(root, Intervals([(0, SLOTS_MAX)], _TREE))


def is_given_up(record: LineageRecord) -> bool:
    """Whether a snapshot is deleted or an anchor."""
    return bool(record.flags & (LINEAGE_DELETED | LINEAGE_ANCHOR))


class Replay:
    """Heads and snapshots, from the checkpoint on through the records applied."""

    def __init__(
        self, lineage: dict[int, LineageRecord], next_id: int, block_slots: int, home_shifts: set[int],
        problems: Problems,
    ) -> None:  # fmt: skip
        self.problems = problems
        self.home_shifts = home_shifts
        self.block_slots = block_slots
        self.next_id = next_id
        self.members = {i: Member(replace(r), new_line(r.root), 0) for i, r in lineage.items()}
        self.heads = {r.number: i for i, r in lineage.items() if r.kind == LINEAGE_HEAD}
        self.epoch = max((r.epoch for r in lineage.values()), default=0)
        self.where = "checkpoint"
        self.dropped: dict[int, int] = {}
        self.pristine_nodes: set[int] = set()
        self.resized: list[Run] = []  # ranges of blocks gained or lost
        self._standing: Standing | None = None  # from the first reclaim on

    def problem(self, text: str) -> None:
        """Note what a record says and cannot be."""
        self.problems.add(f"{self.where}: {text}")

    def apply(self, record: Record) -> None:
        """One record: events marked before, deltas, the other events."""
        self.where = f"record {record.sequence}"
        for event in record.events:
            if event.before:
                self._event(event)
        for block, count, kind, slot, birth, number in iter_deltas(record.deltas):
            head = self._head(number)
            if head is None:
                continue
            shift = slot - block * self.block_slots if kind == ENTRY_MAPPED else _HOLE_SHIFT
            if birth <= head.record.frozen and shift not in self.home_shifts:  # a move home keeps the birth
                self.problem(f"delta of block {block} has birth {birth}, but epoch {head.record.frozen} is frozen")
            head.line.deltas.append((block, block + count, shift, birth))
            head.time = len(head.line.deltas)
        for event in record.events:
            if not event.before:
                self._event(event)
        if record.epoch < self.epoch:
            self.problem(f"epoch {record.epoch} after epoch {self.epoch}")
        self.epoch = max(record.epoch, self.epoch)
        self.members[0].record.size = record.size

    def _head(self, number: int) -> Member | None:
        if number not in self.heads:
            self.problem(f"it speaks of head {number}, which does not exist")
            return None
        return self.members[self.heads[number]]

    def _event(self, event: Event) -> None:
        if isinstance(event, SnapshotEvent):
            self._snapshot(event)
        elif isinstance(event, RollbackEvent):
            self._rollback(event)
        elif isinstance(event, ResizeEvent):
            self._resize(event)
        elif isinstance(event, CloneEvent):
            self._clone(event)
        elif isinstance(event, DeleteHeadEvent):
            self._delete_head(event)
        elif isinstance(event, EventOfSnapshot):
            member = self.members.get(event.id)
            if member is None or member.record.kind != LINEAGE_SNAPSHOT:
                self.problem(f"{type(event).__name__} of snapshot {event.id}, which does not exist")
            elif isinstance(event, DeleteEvent | GiveUpEvent):
                if member.record.flags & LINEAGE_DELETED:
                    self.problem(f"snapshot {event.id} is deleted twice")
                if member.record.flags & LINEAGE_HELD:
                    self.problem(f"snapshot {event.id} is deleted and was held")
                self._require_no_origin(event.id)
                member.record.flags |= LINEAGE_DELETED
            elif isinstance(event, HoldEvent):
                self._hold(member.record, event.reason)
            elif isinstance(event, RetainEvent):
                self._retain(member.record, event.retain_until_ns)
            elif isinstance(event, AnchorEvent):
                if member.record.flags & (LINEAGE_ANCHOR | LINEAGE_DELETED | LINEAGE_HELD):
                    self.problem(f"snapshot {event.id} becomes an anchor, and is one, is deleted or held")
                self._require_no_origin(event.id)
                member.record.flags |= LINEAGE_ANCHOR
            elif isinstance(event, ReclaimEvent):
                self._reclaim(member, event.cursor)
            else:
                self._reclaimed(member)

    def _require_no_origin(self, number: int) -> None:
        """I38."""
        if any(self.members[head].record.origin == number for head in self.heads.values()):
            self.problem(f"the data of snapshot {number} is given up, and a clone stands on it")

    def _snapshot(self, event: SnapshotEvent) -> None:
        head = self._head(event.head)
        if head is None:
            return
        if event.id in self.members or not self.next_id <= event.id <= ID_MAX:
            self.problem(f"snapshot takes id {event.id} where {self.next_id} is next")
        if event.epoch < head.record.epoch:
            self.problem(f"snapshot {event.id} takes epoch {event.epoch}, the head is in {head.record.epoch}")
        record = LineageRecord(
            LINEAGE_SNAPSHOT, event.id, event.name, event.epoch, head.record.size, event.flags, head.record.parent,
            root=head.line.root, created_ns=event.created_ns, tag=event.tag, set_id=event.set_id,
        )  # fmt: skip
        self.members[event.id] = Member(record, head.line, head.time)
        self.next_id = max(self.next_id, event.id + 1)
        self._stands(record, NONE_ID, record.parent)
        self._stands(head.record, head.record.parent, event.id)
        head.record.frozen = max(head.record.frozen, event.epoch)
        head.record.epoch = max(head.record.epoch, event.epoch + 1)

    def _rollback(self, event: RollbackEvent) -> None:
        target = self.members.get(event.to)
        head = self._head(event.head)
        if head is None or target is None or target.record.kind != LINEAGE_SNAPSHOT:
            self.problem(f"rollback of head {event.head} to {event.to}, which is no snapshot")
            return
        if target.record.flags & (LINEAGE_ANCHOR | LINEAGE_DELETED):
            self.problem(f"rollback to {event.to}, whose data was given up")
        if event.epoch <= head.record.frozen or event.size != target.record.size:
            self.problem(f"rollback to {event.to} with epoch {event.epoch} and size {event.size}")
        head.line = Line(target.line.root, target.line.state(target.time))
        head.time = 0
        self._stands(head.record, head.record.parent, event.to)
        head.record.frozen = max(head.record.frozen, target.record.epoch)
        head.record.epoch = max(head.record.epoch, event.epoch)
        head.record.size = event.size
        head.record.origin = event.to if event.head else 0

    def _clone(self, event: CloneEvent) -> None:
        target = self.members.get(event.snapshot)
        if target is None or target.record.kind != LINEAGE_SNAPSHOT or is_given_up(target.record):
            self.problem(f"clone of {event.snapshot}, which is no snapshot with data")
            return
        if event.number in self.heads or event.id in self.members or not self.next_id <= event.id <= ID_MAX:
            self.problem(f"clone takes number {event.number} and id {event.id}, which are not free")
        if event.epoch <= self.epoch:
            self.problem(f"clone {event.id} takes epoch {event.epoch}, and {self.epoch} was given out")
        record = LineageRecord(
            LINEAGE_HEAD, event.id, event.name, event.epoch, target.record.size, parent=event.snapshot,
            frozen=event.epoch - 1, root=target.line.root, number=event.number, origin=event.snapshot,
        )  # fmt: skip
        self.members[event.id] = Member(record, Line(target.line.root, target.line.state(target.time)), 0)
        self.heads[event.number] = event.id
        self._stands(record, NONE_ID, event.snapshot)
        self.next_id = max(self.next_id, event.id + 1)

    def _delete_head(self, event: DeleteHeadEvent) -> None:
        head = self._head(event.number)
        if head is None or event.epoch <= head.record.frozen:
            self.problem(f"head {event.number} is deleted in epoch {event.epoch}, in which it cannot be")
            return
        record = head.record
        record.kind, record.flags, record.epoch = LINEAGE_SNAPSHOT, LINEAGE_DELETED, event.epoch
        record.frozen = record.number = record.next_head = record.origin = 0
        del self.heads[event.number]

    def _stands(self, record: LineageRecord, before: int, now: int) -> None:
        record.parent = now
        if self._standing is not None:
            self._standing.move(record.id, before, now)

    def _require_no_branch_point(self, number: int) -> None:
        """I13: of those that stand on it one is compared, and what the others have would count as free."""
        if self._who_stands().is_branch_point(number, self._is_empty):
            self.problem(f"snapshot {number} is being reclaimed, and more than one shares data with it")

    def _who_stands(self) -> Standing:
        if self._standing is None:
            self._standing = Standing((member.record.id, member.record.parent) for member in self.members.values())
        return self._standing

    def _is_empty(self, number: int) -> bool:
        return bool(self.members[number].record.flags & LINEAGE_EMPTY)

    def _hold(self, record: LineageRecord, reason: str) -> None:
        if record.flags & LINEAGE_DELETED:
            self.problem(f"snapshot {record.id} is held or released, and was deleted")
        record.flags = record.flags | LINEAGE_HELD if reason else record.flags & ~LINEAGE_HELD
        record.hold_reason = reason

    def _retain(self, record: LineageRecord, until_ns: int) -> None:
        if record.flags & LINEAGE_DELETED or until_ns < record.retain_until_ns:
            self.problem(f"snapshot {record.id} is retained until {until_ns}, and was deleted or is so for longer")
        record.retain_until_ns = until_ns

    def _resize(self, event: ResizeEvent) -> None:
        head = self._head(event.head)
        if head is None or event.epoch <= head.record.frozen:
            self.problem(f"resize of head {event.head} in epoch {event.epoch}, which is frozen")
            return
        first, end = sorted(-(-size // (self.block_slots * SLOT_BYTES)) for size in (event.size, head.record.size))
        if first < end:
            head.line.deltas.append((first, end, _HOLE_SHIFT, event.epoch))
            self.resized.append((first, end))
        head.time = len(head.line.deltas)
        head.record.size = event.size

    def _reclaim(self, member: Member, cursor: int) -> None:
        record = member.record
        self._require_no_branch_point(record.id)
        begun = record.cursor != NO_CURSOR
        if not is_given_up(record) or (begun and cursor < record.cursor):
            self.problem(f"reclaim of snapshot {record.id} moves to {cursor}, and it is not deleted or was further")
        record.cursor = cursor

    def _reclaimed(self, member: Member) -> None:
        record = member.record
        self._require_no_branch_point(record.id)
        if not is_given_up(record):
            self.problem(f"snapshot {record.id} is reclaimed and was not deleted")
        if record.flags & (LINEAGE_ANCHOR | LINEAGE_DELETED) == LINEAGE_ANCHOR:
            record.flags |= LINEAGE_EMPTY
            record.root, record.cursor = hole(record.root.level), NO_CURSOR
            member.line, member.time = new_line(record.root), 0
            return
        del self.members[record.id]
        self.dropped[record.id] = record.parent
        self._who_stands().drop(record.id, record.parent)

    @property
    def frozen(self) -> int:
        """The last epoch that was ever frozen: on a head that is there, or by a snapshot of one that is not."""
        records = (member.record for member in self.members.values())
        return max(r.frozen if r.kind == LINEAGE_HEAD else r.epoch for r in records)

    def settle_parents(self) -> None:
        """Gives children of dropped snapshots their parents: once at the end, as there may be many of both."""
        for member in self.members.values():
            passed = []
            while member.record.parent in self.dropped:
                passed.append(member.record.parent)
                member.record.parent = self.dropped.pop(member.record.parent)
            self.dropped.update(dict.fromkeys(passed, member.record.parent))

    def reach(self, trees: Trees) -> set[Extent]:
        """All extents that a head or snapshot reaches; each node of the map that holds one is read and verified."""
        out: set[Extent] = set()
        trees.whole = set()
        pristine = 0
        lines: dict[int, tuple[Line, list[tuple[int, int]]]] = {}
        for member in self.members.values():
            cursor = member.record.cursor
            lowest = 0 if cursor == NO_CURSOR else cursor
            lines.setdefault(id(member.line), (member.line, []))[1].append((member.time, lowest))
        for line, moments in sorted(lines.values(), key=lambda pair: not pair[0].pristine):
            trees.collect(line.root, self._reach_line(line, moments, out), out)
            if line.pristine:
                pristine = len(trees.nodes)
        self.pristine_nodes = set(islice(trees.nodes, pristine))
        return out

    def _reach_line(self, line: Line, moments: list[tuple[int, int]], out: set[Extent]) -> Intervals:
        """Adds what deltas of `line` placed and a moment (time, first block) shows; returns what the tree shows."""
        whole = sorted(time for time, lowest in moments if not lowest)
        partial = [(time, lowest) for time, lowest in moments if lowest]
        visible = Intervals()

        def emit(begin: int, end: int, value: tuple[int, int, int], until: int) -> None:
            shift, birth, since = value
            number = bisect_left(whole, since)
            if number == len(whole) or whole[number] > until:
                begin = max(begin, min((low for time, low in partial if since <= time <= until), default=end))
            if begin < end and not birth and shift != _HOLE_SHIFT:
                visible.assign(begin, end, True)
            elif begin < end and shift != _HOLE_SHIFT:
                out.add((begin * self.block_slots + shift, begin, end - begin, birth))

        overlay = line.begin.copy() if line.deltas else line.begin
        for number, (begin, end, shift, birth) in enumerate(line.deltas):
            for piece_begin, piece_end, value in overlay.assign(begin, end, (shift, birth, number + 1)):
                emit(piece_begin, piece_end, value, number)
        for begin, end, value in overlay:
            emit(begin, end, value, len(line.deltas))
        return visible
