"""The engine of one volume: the order in which its changes become durable.

Everything that ends in a barrier goes through `Engine.commit`, one at a time under `lock`. It is one barrier where no
data was written, or little: then the record has checks of the blocks that it places (I47), and the barrier is for both.
Else it is two: the data, then the record. Which it is, vouching.py says.

Invariants   docs/invariants.md; the numbers stand at the assertions and steps.
Threads      Any thread may call anything. Writers take `lock` only when their batch is full.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import TracebackType
from typing import NoReturn

from cowengine.core.checksum import xxh64
from cowengine.core.datapath import DataPath
from cowengine.core.iotable import IOTable
from cowengine.core.pagedtable import PagedTable, lineage_table
from cowengine.core.records import pack_record, pack_snapshot
from cowengine.core.roots import Head, Root
from cowengine.engine import checkpoint, memory, reclaim, resize
from cowengine.engine.allocator import Allocator, Run, runs_of
from cowengine.engine.commitlock import CommitLock
from cowengine.engine.compaction import CompactionJob
from cowengine.engine.files import Whereabouts
from cowengine.engine.holds import ExportCounts, claim, require_deletable
from cowengine.engine.latency import Histogram
from cowengine.engine.lineage import Lineage
from cowengine.engine.locks import FileLocks
from cowengine.engine.log import CommitLog
from cowengine.engine.retention import RetentionClock
from cowengine.engine.sealing import Sealer
from cowengine.engine.space import Space
from cowengine.engine.usage import Amount
from cowengine.engine.vouching import Vouching, vouched_blocks
from cowengine.errors import (
    AnchorError,
    ClosedError,
    CorruptionError,
    ExistsError,
    NoSpaceError,
    NotFoundError,
    PoisonedError,
    ReadOnlyError,
)
from cowengine.format import (
    FEATURE_HEADS,
    LINEAGE_ANCHOR,
    LINEAGE_AUTOMATIC,
    LINEAGE_DELETED,
    LINEAGE_SNAPSHOT,
    NO_UUID,
    PAIR_BYTES,
    RECORD_HEADER_BYTES,
    RECORD_ONE_BARRIER,
    SLOT_BYTES,
    AnchorEvent,
    DeleteEvent,
    Event,
    GiveUpEvent,
    LineageRecord,
    ResizeEvent,
    RollbackEvent,
    SnapshotEvent,
    Superblock,
    blob_seed,
    decode_superblock,
    encode_event,
    encode_superblock,
    fold_of,
)
from cowengine.oserrors import typed

logger = logging.getLogger("cowengine.engine")

EVENT_BYTES_FIXED = 80  # of a snapshot event, without name and metadata
SMALL_EVENTS_BYTES = 100
DIRTY_NODES_MAX = 4096
REPLAY_BYTES_MAX = 5 << 18  # of log between two checkpoints: after a crash all of it is replayed
# Three checkpoints' worth of nodes for a delete, because two are kept.
RESERVE_SLOTS, RESERVE_SLOTS_SMALL = 64, 24
TAGS_AT_ONCE = 32  # random numbers for snapshots to come: each is used once
_TAGS = struct.Struct(f"<{TAGS_AT_ONCE}Q")

#: What `DataPath.take_batch` returns.
Batch = tuple[bytes, bytes, bytes, int, list[Run], list[Root]]
Meanwhile = Callable[[list[Root]], object]

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


class Undivided:
    """What `Engine.undivided` gives, for one engine or several. A second Ctrl-C may keep `__exit__` from running, or
    from coming to its end: an engine's `_undone` then says so to whoever takes the lock next.
    """

    __slots__ = ("_engines", "_outer", "_passing")

    def __init__(self, engines: Sequence[Engine], passing: tuple[type[Exception], ...] = ()) -> None:
        self._engines, self._passing = engines, passing

    def __enter__(self) -> None:
        self._outer = [engine._undone for engine in self._engines]
        for engine in self._engines:
            engine._undone += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, self._passing):
            poisoned = [engine.poison(error) for engine in self._engines]
            if not isinstance(error, PoisonedError):
                raise poisoned[0] from error
        else:
            for engine, outer in zip(self._engines, self._outer, strict=True):
                engine._undone = outer


class Engine:
    """One open volume file. Made by `create_engine` and `open_engine`."""

    def __init__(
        self, io: IOTable, fd: int, name: str, superblock: Superblock, *, read_only: bool, file_slots: int
    ) -> None:
        sb = superblock
        self.io = io
        self.fd = fd
        self.name = name
        self.locks, self.exports = FileLocks(io, fd, name), ExportCounts()
        self.whereabouts = Whereabouts(io, fd, name)
        self.superblock = sb
        self.newest_slot = 0
        self.uuid = sb.volume_uuid
        self.uuid_text = str(uuid.UUID(bytes=sb.volume_uuid))
        self.fold = fold_of(sb.volume_uuid)
        self.lock = CommitLock(name)
        self.closed = False
        self.failure: BaseException | None = None
        self.log = CommitLog(io, fd, sb.log_first, sb.log_slots, sb.log_shift)
        self.metadata_max = min(4096, max(128, self.log.size // 128))
        event = EVENT_BYTES_FIXED + 256 + self.metadata_max
        self._pending_max = max(event, self.log.record_max // 4)
        events = event + self._pending_max + SMALL_EVENTS_BYTES
        vouched = vouched_blocks(self.log.record_max, sb.block_shift)
        others = RECORD_HEADER_BYTES + events + vouched * PAIR_BYTES
        self.path = DataPath(
            io, fd, self.fold, sb.block_shift, self.log.record_max - others, self._refill, self._commit_full_batch,
        )  # fmt: skip
        self.path.read_only = read_only
        self.regions = sb.regions  # as of the last record
        self.path.set_regions([tuple(region) for region in sb.regions])
        self.flush_scheduled = False
        self.left_store = False  # it may have been written to without its store since that store's last set
        self.background = True  # timers and worker threads may be used
        self.free_map = PagedTable(self.path, self.path.slots.used)
        self.seals = PagedTable(self.path, self.path.seals.tree)
        self.table = lineage_table(self.path, self.fold)
        self.lineage = Lineage(self.path, self.table, self.fold, sb)
        self.bound(file_slots)
        reserve = RESERVE_SLOTS if self.log.size >= 1 << 20 else RESERVE_SLOTS_SMALL
        self.allocator = Allocator(self.path, sb.regions, file_slots, reserve)
        self.vouching = Vouching(self.path, self.allocator, vouched)
        self.pending_events: list[Event] = []  # of snapshot sets; they lead the next record
        self._pending_bytes = 0
        self.durable_store_sequence = sb.store_sequence
        self.superseded: list[Run] = []  # nodes and blobs that the next checkpoint no longer needs
        self.retired: list[Run] = []  # no longer used; needed by the older of two checkpoints
        self.retired_before: list[Run] = []
        self.bases = (0, 0)  # log positions of the two superblocks' checkpoints, older first
        self.reclaiming: int | None = None
        self._undone = 0  # how many `undivided` have begun and not ended
        self._tags: list[int] = []
        self._synced_writes = 0
        self._takes = self._takes_done = 0
        self.space = Space(self, sb)
        self.retention = RetentionClock(sb)
        self.counters = dict.fromkeys(
            ("commits", "one_barrier_commits", "barriers", "checkpoints", "snapshots_taken", "rollbacks"), 0
        )  # fmt: skip
        self.latencies = {name: Histogram() for name in ("barrier", "flush", "snapshot", "delete")}
        self.recovered: dict[str, object] = {}
        self.unsealable: set[int] = set()  # snapshots that could not be read when they were to be sealed
        self.sealer = Sealer(self)
        self.compaction: CompactionJob | None = None  # in the background, the last one begun
        self.cache_nodes = 0
        memory.bound(self, memory.CACHE_BYTES)
        # Clones whose handles the garbage collector found open. It may do so in the middle of a commit, with a mutex
        # held, so they are closed by who opens or deletes a clone next.
        self.dropped_heads: deque[Head] = deque()
        self.amounts: dict[tuple[object, ...], Amount] = {}  # of space, found by walks: see usage.py
        _engines.add(self)

    def bound(self, file_slots: int) -> None:
        """The file has so many slots: what it says of others is not believed."""
        self.path.slots.bound(file_slots, [self.path.map, self.table.tree, self.path.seals.tree])

    # -- callbacks of the data path, called with no lock held ---------------------------------------------------------
    def _refill(self, slots: int) -> None:
        self.space.on_growth()
        self.allocator.runway(slots)

    def _commit_full_batch(self) -> None:
        """A writer found the open batch full: commit it, unless somebody just did."""
        with self.lock:
            fill, limit = self.path.batch_fill()
            if fill > limit // 4:
                self.commit()

    # -- state --------------------------------------------------------------------------------------------------------
    @property
    def read_only(self) -> bool:
        """Whether nothing of the volume may be changed: it was opened so, or is about to be something else."""
        return self.path.read_only

    def require_writable(self) -> None:
        """Raises unless this handle may change the volume now."""
        self.path.check_state()
        if self.read_only:
            raise ReadOnlyError("the volume was opened read-only", self.name)

    def require_head(self, head: Head) -> None:
        """Raises ClosedError unless this head exists and is open: it may have gone while a call waited for the lock.

        The lock is held.
        """
        if self.path.heads.get(head.number) is not head or not head.is_open:
            raise ClosedError("the volume is closed", self.name)

    def poison(self, cause: BaseException) -> PoisonedError:
        """I10: after a failed sync or commit no call succeeds. Returns what to raise."""
        self.failure = self.failure or cause
        self.path.poison()
        return PoisonedError(f"a sync or commit failed ({cause}); close the volume and open it again", self.name)

    def undivided(self, *passing: type[Exception]) -> Undivided:
        """Around steps that must all happen: whatever interrupts them, Ctrl-C included, poisons the volume (I10).

        Except errors of the classes `passing`, before which the steps have put all right.
        """
        return Undivided((self,), passing)

    def _divided(self, error: BaseException) -> NoReturn:
        """Something kept steps from being done that must all happen (I10)."""
        poisoned = self.poison(error)
        if isinstance(error, PoisonedError):
            raise error
        raise poisoned from error

    def is_between_steps(self) -> bool:
        """Whether nobody, this thread included, is in the middle of a commit or checkpoint. The lock is held."""
        return not self._undone and not self.closed

    def _poison_if_interrupted(self) -> None:
        """I10, at the start of what begins with all steps done: are they? The lock is held."""
        if self._undone and self.failure is None:
            self.poison(KeyboardInterrupt("interrupted"))

    def barrier(self) -> None:
        """One fdatasync; a failure poisons (I10). Only one runs at a time: the commit lock is held (I8)."""
        began = time.perf_counter()
        try:
            self.io.fdatasync(self.fd)
        except OSError as error:
            raise self.poison(error) from error
        self.counters["barriers"] += 1
        self.latencies["barrier"].add(time.perf_counter() - began)

    def count_barrier(self, seconds: float) -> None:
        """A barrier has returned 0."""
        self.counters["barriers"] += 1
        self.latencies["barrier"].add(seconds)

    # -- commit -------------------------------------------------------------------------------------------------------
    def make_room(self, *, for_delete: bool = False) -> None:
        """Makes sure that the next record fits: checkpoints if that is due. NoSpaceError if it cannot be.

        The last part of the log is kept for deletes, so they work when the file system is full (P8).
        """
        if self._undone:
            self._poison_if_interrupted()
        path, log = self.path, self.log
        path.check_state()
        lost = self.whereabouts.lost()
        if lost:
            raise self.whereabouts.error(lost)
        due = log.position - self.bases[1] > min(log.interval, REPLAY_BYTES_MAX)
        needed = log.record_max if for_delete else 2 * log.record_max
        if not due and path.dirty_nodes() + self.seals.dirty_nodes() <= DIRTY_NODES_MAX and log.fits(needed):
            return
        try:
            # The tail is the older superblock's base, so it may take two checkpoints to move it.
            for _ in range(2):
                if log.fits(log.record_max):
                    checkpoint.checkpoint(self)
                if log.fits(needed):
                    return
        except NoSpaceError:
            if log.fits(needed):
                return
            raise
        raise NoSpaceError("the commit log is full", self.name)

    def commit(
        self, events: Sequence[Event] = (), *, keep: Sequence[Head] = (), batch: Batch | None = None, epoch: int = 0,
        fenced: Head | None = None, room_made: bool = False, meanwhile: Meanwhile | None = None,
    ) -> list[Root]:  # fmt: skip
        """Makes everything published so far durable, and the events with it. Returns the roots of the heads to keep.

        The lock is held. The epoch of `fenced` ends as the batch is taken. `room_made` says that `make_room` was
        called; it must be before a fence. `batch` is what a reclaim has taken already; what it freed is to be punched
        to the last slot, later. `meanwhile(roots)` does what follows from the events in memory while the disk writes
        their record: if that fails, nothing of this handle counts any more (I10).
        """
        if not room_made:
            self.make_room()
        roots: list[Root] = []
        outer = self._undone
        self._undone = outer + 1
        try:  # as `undivided`, without the objects
            for _ in self.commit_steps(roots, events, keep, batch, epoch, fenced, meanwhile):
                self.barrier()
        except BaseException as error:
            self._divided(error)
        self._undone = outer
        return roots

    def commit_steps(
        self, roots: list[Root], events: Sequence[Event] = (), keep: Sequence[Head] = (), batch: Batch | None = None,
        epoch: int = 0, fenced: Head | None = None, meanwhile: Meanwhile | None = None, *,
        events_can_wait: bool = False,
    ) -> Iterator[bool]:  # fmt: skip
        """A commit in steps: wherever it stops, a barrier is due before it goes on. The roots are added to `roots`.

        So several volumes can have theirs side by side. Room was made, and all of it is undivided. With
        `events_can_wait` those of earlier sets are no reason for a record.
        """
        path, vouching = self.path, self.vouching
        punch_all = batch is not None
        if batch is None:
            self.begin_take()
            batch = path.take_batch(list(keep), vouching.blocks_for(events), fenced)
        deltas, freed, freed_nodes, writes, superseded, kept = batch
        roots += kept
        self.superseded += superseded
        in_place = path.in_place_writes  # before a barrier begins: what is counted now is covered by it
        checks = [] if punch_all else vouching.checks(freed, events, in_place)
        if writes != self._synced_writes and not checks:
            yield True  # I3: what the record places is durable before the record
            vouching.synced(in_place)
        self._synced_writes = writes
        has_events = events or (self.pending_events and not events_can_wait)
        if deltas or freed or freed_nodes or has_events or vouching.must_confirm:
            all_events = [*self.pending_events, *events] if self.pending_events else events
            self._write_record(deltas, freed, freed_nodes, all_events, epoch or path.map.epoch, checks)
            if meanwhile is not None:
                meanwhile(kept)
            yield True  # I4: acknowledged only when the record is durable, and what it vouches for
            self._acknowledge(deltas, freed, freed_nodes, punch_all, bool(checks))
            vouching.synced(in_place)
        self._takes_done = self._takes

    def begin_take(self) -> None:
        """To be called before a batch is taken: a flush that was asked for later must not count on that batch."""
        self._takes += 1

    def _write_record(
        self, deltas: bytes, freed: bytes, freed_nodes: bytes, events: Sequence[Event], epoch: int,
        checks: list[tuple[int, int]],
    ) -> None:  # fmt: skip
        log, sb, size = self.log, self.superblock, self.path.live.size
        encoded = b""
        for event in events:
            encoded += encode_event(event)
            if isinstance(event, (ResizeEvent, RollbackEvent)) and not event.head:
                size = event.size
        log.append(*pack_record(
            self.fold, sb.salt, log.sequence + 1, sb.generation, log.checksum, epoch, time.time_ns(), size,
            RECORD_ONE_BARRIER if checks else 0, deltas, freed, freed_nodes, checks, encoded, log.unit,
        ))  # fmt: skip

    def _acknowledge(
        self, deltas: bytes, freed: bytes, freed_nodes: bytes, punch_all: bool, vouches: bool
    ) -> None:  # fmt: skip
        """I7: only now is the space that the record freed on its way back, or later (I49)."""
        self.locks.publish(self.log.sequence)  # I35
        counters, allocator = self.counters, self.allocator
        counters["commits"] += 1
        counters["one_barrier_commits"] += vouches
        if self.pending_events:
            for event in self.pending_events:
                self.durable_store_sequence = getattr(event, "store_sequence", self.durable_store_sequence)
            self.pending_events, self._pending_bytes = [], 0
        if deltas or freed or freed_nodes:
            self.path.account(deltas, freed)
            self.superseded += runs_of(freed_nodes)
        allocator.committed()
        free = self.vouching.acknowledged(freed, vouches=vouches)
        if free or allocator.waiting:
            allocator.retire(free, punch_all=punch_all)

    def flush(self) -> None:
        """Everything written before the call is durable when it returns."""
        wanted = self._takes + 1
        with self.lock:
            self.require_writable()
            if self._takes_done >= wanted:
                return  # a commit that began after this call has done it
            self.commit()

    # -- snapshots ----------------------------------------------------------------------------------------------------
    def require_name_free(self, name: str) -> None:
        """Raises ExistsError if a snapshot of that name exists."""
        lineage = self.lineage
        lineage.prepare()
        if not lineage.names.surely_lacks(name) and lineage.find_name(name) is not None:
            raise ExistsError(f"a snapshot named {name!r} exists", self.name)

    def has_name(self, name: str) -> bool:
        """Whether a snapshot of that name exists."""
        with self.lock:
            self.path.check_state()
            found = self.lineage.find_name(name) is not None
            memory.trim_records(self)
        return found

    def new_event(
        self, name: str, metadata: bytes, *, epoch: int, flags: int = 0, head: Head | None = None
    ) -> SnapshotEvent:
        """The event of a snapshot to be taken of a head, by default the live one, with a fresh tag."""
        return SnapshotEvent(
            id=self.lineage.next_id, epoch=epoch, tag=self._new_tag(), created_ns=time.time_ns(), name=name,
            flags=flags, metadata=metadata, head=head.number if head else 0,
        )  # fmt: skip

    def _new_tag(self) -> int:
        if not self._tags:
            self._tags += _TAGS.unpack(os.urandom(_TAGS.size))
        return self._tags.pop()

    def snapshot(self, name: str, metadata: bytes, head: Head) -> LineageRecord:
        """Takes a snapshot of a head; durable when it returns."""
        if self.space.policy.snapshot_bytes_max:
            self.space.keep_limit()
        with self.lock:
            if not self.path.may_change(head):
                self.require_writable()
                self.require_head(head)
            self.require_name_free(name)
            self.make_room()
            record = self._quiet_snapshot(name, metadata, head)
            if record is not None:
                return record
            event = self.new_event(name, metadata, epoch=head.epoch, head=head)
            records: list[LineageRecord] = []
            self.commit(
                (event,), keep=(head,), fenced=head, room_made=True,
                meanwhile=lambda roots: records.append(self.taken(event, *roots)),
            )  # fmt: skip
            return records[0]

    def _quiet_snapshot(self, name: str, metadata: bytes, head: Head) -> LineageRecord | None:
        """A snapshot of a head when nothing has to be made durable before its record: what `commit` does then.

        None, and nothing was done, if it takes more. The lock is held, and room was made.
        """
        if self.pending_events or self.vouching.must_confirm:
            return None
        path, log, sb, record = self.path, self.log, self.superblock, None
        number, epoch, tag, now_ns = self.lineage.next_id, head.epoch, self._new_tag(), time.time_ns()
        encoded = pack_snapshot(number, epoch, tag, now_ns, name, NO_UUID, 0, metadata, False, head.number)
        outer = self._undone
        self._undone = outer + 1
        try:  # as `undivided`
            taken = path.take_quiet(head, self._synced_writes, False)  # I3, I6
            if taken is not None:
                in_place = path.in_place_writes
                log.append(*pack_record(
                    self.fold, sb.salt, log.sequence + 1, sb.generation, log.checksum, path.map.epoch, now_ns,
                    path.live.size, 0, b"", b"", b"", b"", encoded, log.unit,
                ))  # fmt: skip
                root, superseded = taken  # from here to the barrier the disk writes
                self.superseded += superseded
                event = SnapshotEvent(number, epoch, tag, now_ns, name, NO_UUID, 0, metadata, False, head.number)
                record = self.taken(event, root)
                self.barrier()  # I4
                self._acknowledge(b"", b"", b"", False, False)
                self.vouching.synced(in_place)
        except BaseException as error:
            self._divided(error)
        self._undone = outer
        if record is None:
            self._tags.append(tag)
        return record

    def taken(self, event: SnapshotEvent, root: Root, *, seal_later: bool = False) -> LineageRecord:
        """Adds a snapshot to the lineage: one that is acknowledged, or will be before the lock is given back.

        With `seal_later` somebody else wakes the sealer.
        """
        head = self.path.heads[event.head]
        record = self.lineage.take(event, root, head.size)
        head.set_holder(event.epoch, 0, 0)  # it is its head's nearest, and nobody gives it back yet
        self.counters["snapshots_taken"] += 1
        if self.background and not seal_later:
            self.sealer.wake()
        return record

    def live_snapshot(self, number: int) -> LineageRecord:
        """The record of a snapshot that is not deleted, or NotFoundError."""
        record = self.lineage.get(number)
        if record is None or record.kind != LINEAGE_SNAPSHOT or record.flags & LINEAGE_DELETED:
            raise NotFoundError(f"there is no snapshot with id {number}", self.name)
        return record

    def readable_snapshot(self, number: int) -> LineageRecord:
        """The record of a snapshot that has its data, or NotFoundError (AnchorError if it was given up)."""
        record = self.live_snapshot(number)
        if record.flags & LINEAGE_ANCHOR:
            raise AnchorError(f"snapshot {record.name!r} is an anchor: its data was given up", self.name)
        return record

    def delete(self, number: int, *, give_up: bool = False) -> None:
        """Deletes a snapshot: gone when it returns, even after a crash. Its space comes back by `reclaim`.

        With `give_up` the loss is noted in the volume.
        """
        with self.lock:
            self.require_writable()
            require_deletable(self, self.live_snapshot(number))
            if give_up:
                event = GiveUpEvent(number, time.time_ns())
                self._release(number, event, lambda _: self.space.lose(event))
            else:
                self._release(number, DeleteEvent(number), self.lineage.delete)

    def to_anchor(self, number: int) -> None:
        """Gives up a snapshot's data, not its epoch; durable when it returns. Its space comes back by `reclaim`."""
        with self.lock:
            self.require_writable()
            record = self.live_snapshot(number)
            if not record.flags & LINEAGE_ANCHOR:
                require_deletable(self, record)
                self._release(number, AnchorEvent(number), self.lineage.anchor)

    def _release(self, number: int, event: Event, mark: Callable[[int], None]) -> None:
        """Makes a snapshot's data unreadable, as `event` says and `mark` notes in the lineage."""
        self.make_room(for_delete=True)
        self.lineage.names.load()
        self.lineage.root(number)  # if it is damaged, this says so before anything is done
        claim(self, self.live_snapshot(number))

        def released(_: object) -> None:
            mark(number)
            self.lineage.set_holders()

        with self.undivided():
            self.commit([event], room_made=True, meanwhile=released)

    def reclaim(self) -> None:
        """Gives back what deleted snapshots and anchors alone hold, step by step, to the end."""
        while reclaim.reclaim_step(self):
            reclaim.punch(self, reclaim.UNPUNCHED_MAX)
        reclaim.punch(self)

    def resize(self, size: int, head: Head) -> None:
        """Makes a head `size` bytes long. Durable on return; then what was cut off is given back."""
        resize.resize(self, size, head)
        self.reclaim()

    @contextmanager
    def paused(self, *heads: Head) -> Iterator[None]:
        """No write to these heads begins meanwhile; none is under way."""
        try:
            self.path.pause(heads)  # Ctrl-C while it waits is raised here
            yield
        finally:
            self.path.resume(heads)

    def rollback(self, number: int, automatic_name: str, head: Head) -> LineageRecord:
        """Makes a head what a snapshot is; returns the snapshot of what it replaces. Durable on return."""
        with self.lock:
            self.require_writable()
            self.require_head(head)
            self.readable_snapshot(number)
            self.require_name_free(automatic_name)
            self.make_room()
            with self.paused(head), self.undivided():
                return self._roll_back(number, automatic_name, head)

    def _roll_back(self, number: int, automatic_name: str, head: Head) -> LineageRecord:
        kept = self.path.fence(head)
        event = self.new_event(automatic_name, b"", epoch=kept, flags=LINEAGE_AUTOMATIC, head=head)
        epoch, size = self.path.map.epoch + 1, self.live_snapshot(number).size
        back = RollbackEvent(head=head.number, to=number, epoch=epoch, size=size)
        (root,) = self.commit([event, back], keep=[head], epoch=epoch, room_made=True)
        record = self.taken(event, root)
        self.turn_back(back)
        return record

    def turn_back(self, event: RollbackEvent) -> None:
        """A head takes the map and the size of a snapshot and goes on in the event's epoch."""
        head = self.path.heads[event.head]
        head.replace_root(self.lineage.root(event.to))
        head.set_size(event.size)
        head.set_epochs(event.epoch, event.epoch - 1)
        self.lineage.turn_back(event)
        self.counters["rollbacks"] += 1
        self.lineage.set_holder(event.head)

    # -- snapshot sets ----------------------------------------------------------------------------------------------
    def is_dirty(self) -> bool:
        """Whether a commit now would mean a barrier; events of sets alone would not, they can wait."""
        return bool(self.path.data_writes != self._synced_writes or self.path.batch_fill()[0])

    def take_quiet(self) -> Root | None:
        """The root of the live head, behind a fence, if nothing has to be made durable before it may be kept.

        Else None, and nothing was done: that takes a commit.
        """
        if self.vouching.must_confirm:
            return None
        taken = self.path.take_quiet(self.path.live, self._synced_writes)
        if taken is None:
            return None
        root, superseded = taken
        self.superseded += superseded
        return root

    def lead_with(self, events: Sequence[Event], length: int) -> None:
        """These events lead the next record, in this order; `length` is that of their encodings."""
        self.pending_events += events
        self._pending_bytes += length

    def has_room_for_event(self) -> bool:
        """Whether the outstanding events of sets and one more fit at the head of the next record."""
        room = self._pending_max - EVENT_BYTES_FIXED - 256 - self.metadata_max - SMALL_EVENTS_BYTES
        return self._pending_bytes == 0 or self._pending_bytes <= room

    # -- metadata of snapshots ----------------------------------------------------------------------------------------
    def metadata(self, record: LineageRecord) -> bytes:
        """The metadata of a snapshot, as stored."""
        if record.id in self.lineage.metadata:
            return self.lineage.metadata[record.id]
        if not record.metadata_slot:
            return b""
        with typed(self.name):
            data = self.io.pread(self.fd, record.metadata_bytes, record.metadata_slot * SLOT_BYTES)
        if xxh64(data, blob_seed(self.fold, record.id)) != record.metadata_checksum:
            raise CorruptionError("the snapshot's metadata is damaged", self.name, snapshot=record.name,
                                  file_offset=record.metadata_slot * SLOT_BYTES)  # fmt: skip
        return data

    # -- checkpoint, superblock, close ---------------------------------------------------------------------------------
    def checkpoint(self) -> None:
        """Commits and brings the trees on disk up to date, so that the log is short. Durable when it returns."""
        with self.lock:
            self.require_writable()
            self.make_room()
            checkpoint.checkpoint(self)

    def write_superblock(self, superblock: Superblock) -> None:
        """Writes the next superblock to the older slot; durable when it returns (I11)."""
        features = superblock.features_incompatible | (FEATURE_HEADS if len(self.path.heads) > 1 else 0)
        new = replace(superblock, generation=self.superblock.generation + 1, features_incompatible=features)
        slot = 1 - self.newest_slot
        encoded = encode_superblock(new)
        decode_superblock(encoded)  # what no open would take must not replace what one takes
        try:
            self.io.pwrite(self.fd, encoded, slot * SLOT_BYTES)
        except OSError as error:
            raise self.poison(error) from error
        self.barrier()
        self.superblock, self.newest_slot = new, slot

    def close(self) -> None:
        """Commits what is open and marks the file as cleanly closed; the descriptor is closed in any case."""
        self.sealer.stop()
        if self.compaction is not None:
            self.compaction.end()
        with self.lock.to_close():
            if self.closed:
                return
            try:
                self._poison_if_interrupted()
                if not self.read_only and self.failure is None:
                    self._close_cleanly()
            finally:
                self.closed = True
                try:
                    self.path.shut()
                    self.locks.release_all()
                finally:
                    _engines.discard(self)  # first: a number that was closed may be another file's in the next child
                    self.io.close(self.fd)

    def close_dropped(self) -> None:
        """Closes for the garbage collector, which may come in the middle of what this very thread does here."""
        if self.lock.is_mine():
            threading.Thread(target=self.close, name="cowengine-close").start()
        else:
            self.close()

    def _close_cleanly(self) -> None:
        lost = self.whereabouts.lost()
        if lost and not self.is_dirty():  # whoever removed it knows, or finds out at the next open
            logger.warning("%s: closed without a commit: %s", self.name, lost)
            return
        try:
            self.make_room(for_delete=True)
            checkpoint.checkpoint(self, clean=True)
        except NoSpaceError as error:
            if self.is_dirty():
                raise
            # Everything is in the log; only the mark of a clean close is missing.
            logger.warning("%s: closed without a checkpoint: %s", self.name, error)

    def abandon(self) -> None:
        """In the child of a fork: the volume is the parent's; its descriptor is closed here, nothing else."""
        self.closed = True
        self.sealer.abandon()
        self.compaction = None  # its thread is the parent's
        self.lock = CommitLock(self.name)  # a thread of the parent may have held the old one
        with suppress(OSError):
            self.io.close(self.fd)  # by the table whose number it is


def close_unopened(io: IOTable, fd: int) -> None:
    """Closes the descriptor of a volume whose opening failed.

    Engines that were made of it may live until the garbage collector comes, and must not close its number, which is
    another file's by then, in the child of a fork.
    """
    for engine in list(_engines):
        if engine.io is io and engine.fd == fd:
            _engines.discard(engine)
    io.close(fd)


def _after_fork_in_child() -> None:
    for engine in list(_engines):
        engine.path.disown()
        engine.abandon()
    _engines.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
