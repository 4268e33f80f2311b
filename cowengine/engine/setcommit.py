"""Snapshots of several volumes as one point in time.

`prepare` takes all members' commit locks in a fixed order, ends their epochs in one instant, and makes durable what
they had unflushed. What happens then is the store's: its log record is the commit point. `finish` adds the snapshots;
their events lead each member's next record, so a member whose own log does not have them yet gets them from the store
log at the next open (`apply_set_events`). A member's next record waits for the outcome, because the locks are held
until then.

A set that is given up leaves each member an epoch without a snapshot: it is taken and deleted at once, so that its
space comes back (I20).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from cowengine.core.datapath import fence_all
from cowengine.core.roots import Root
from cowengine.errors import CorruptionError, PoisonedError
from cowengine.format import NO_UUID, SnapshotEvent, StoreEvent

if TYPE_CHECKING:
    from cowengine.engine.engine import Engine

FLUSH_EVENTS_AFTER = 1.0  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class SetEvent:
    """A set's snapshot of one member, as the store log has it."""

    store_sequence: int
    set_id: bytes
    name: str
    created_ns: int
    snapshot_id: int
    epoch: int
    sequence: int
    tag: int
    metadata: bytes = b""


@dataclass(frozen=True, slots=True)
class Member:
    """What the store log's record says of one volume."""

    engine: Engine
    volume_uuid: bytes
    snapshot_id: int
    epoch: int
    sequence: int
    tag: int


class Prepared:
    """Members that stand at one instant, with their commit locks held.

    A context manager; leaving it without `finish` gives the set up.
    """

    def __init__(self, engines: Sequence[Engine], name: str) -> None:
        self._engines = sorted(engines, key=lambda engine: engine.uuid)
        self._name = name
        self._locks = ExitStack()
        self._events: list[SnapshotEvent] = []
        self._roots: list[Root] = []
        self._open = False
        self._undivided = ExitStack()  # from the fence until the snapshots are in the lineage
        self.members: list[Member] = []

    def __enter__(self) -> Prepared:
        try:
            for engine in self._engines:
                self._locks.enter_context(engine.lock)
            self._fence()
        except BaseException:
            self._locks.close()
            raise
        return self

    def _fence(self) -> None:
        for engine in self._engines:
            engine.require_writable()
            engine.require_name_free(self._name)
            if not engine.has_room_for_event():
                engine.commit()
            engine.make_room()
        with ExitStack() as undivided:
            # Behind the fence there is no way back: writers of the new epoch wait for roots that may never be kept.
            for engine in self._engines:
                undivided.enter_context(engine.undivided())
            epochs = fence_all([engine.path.live for engine in self._engines])
            self._events = [
                engine.new_event(self._name, b"", epoch=epoch)
                for engine, epoch in zip(self._engines, epochs, strict=True)
            ]
            self._roots = self._make_durable()
            self._undivided = undivided.pop_all()
        self._open = True
        self.members = [
            Member(engine, engine.uuid, event.id, event.epoch, engine.log.sequence, event.tag)
            for engine, event in zip(self._engines, self._events, strict=True)
        ]

    def _make_durable(self) -> list[Root]:
        """Each member's unflushed data, side by side where that means a barrier: different files sync at the same
        time.
        """
        dirty = [engine for engine in self._engines if engine.is_dirty() and engine.background]
        if len(dirty) < 2:
            return [_commit_member(engine) for engine in self._engines]
        with ThreadPoolExecutor(min(8, len(dirty)), thread_name_prefix="cowengine-set") as pool:
            waiting = {engine.uuid: pool.submit(_commit_member, engine) for engine in dirty}
            quiet = {engine.uuid: _commit_member(engine) for engine in self._engines if engine.uuid not in waiting}
            return [quiet.get(engine.uuid) or waiting[engine.uuid].result() for engine in self._engines]

    def commit_point(self) -> None:
        """From here on nobody knows whether there is a set, until `finish` or `poison`; no way leads back."""
        self._open = False

    def finish(
        self, set_id: bytes, name: str, created_ns: int, store_sequence: int, metadata: bytes = b""
    ) -> list[int]:  # fmt: skip
        """The store log has the set: the snapshots exist. Returns their ids, in the order of `members`."""
        assert not self._open, "finished before its commit point"
        with self._undivided:
            for engine, event, root in zip(self._engines, self._events, self._roots, strict=True):
                event.set_id, event.name, event.created_ns, event.metadata = set_id, name, created_ns, metadata
                event.before = True
                engine.lead_with(event, StoreEvent(store_sequence, before=True))
                engine.taken(event, root)
        for engine in self._engines:
            schedule_flush(engine)
        return [event.id for event in self._events]

    def abandon(self) -> None:
        """The set is not to be: each member's snapshot is taken under a name of its own and deleted."""
        if not self._open:
            return
        self._open = False
        with self._undivided:
            for engine, event, root in zip(self._engines, self._events, self._roots, strict=True):
                event.name, event.created_ns = f"abandoned-{event.id}", time.time_ns()
                event.before = True
                engine.lead_with(event)
                engine.taken(event, root)
        for engine, event in zip(self._engines, self._events, strict=True):
            engine.delete(event.id)

    def poison(self, cause: BaseException) -> None:
        """Nobody knows whether the store log has the set: no member may go on."""
        for engine in self._engines:
            engine.poison(cause)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.abandon()
        finally:
            self._locks.close()


def prepare(engines: Sequence[Engine], name: str) -> Prepared:
    """Brings volumes to one instant; see `Prepared`.

    `name` is what the snapshots will be called (ExistsError if one has it).
    """
    return Prepared(engines, name)


def _commit_member(engine: Engine) -> Root:
    # The commit lock is the preparing thread's, which waits for this one.
    # Its record, if it needs one, ends before the snapshot: that comes with the next.
    (root,) = engine.commit(keep=[engine.path.live], room_made=True, events_can_wait=True)
    return root


def schedule_flush(engine: Engine) -> None:
    """A member's own log gets the event within a second, if nothing else commits before."""
    if not engine.background or engine.flush_scheduled:
        return
    engine.flush_scheduled = True

    def flush() -> None:
        engine.flush_scheduled = False
        try:
            flush_events(engine)
        except (OSError, PoisonedError):
            pass  # the event is in the store log; whoever uses the volume next is told

    timer = threading.Timer(FLUSH_EVENTS_AFTER, flush)
    timer.daemon = True
    timer.start()


def flush_events(engine: Engine) -> None:
    """Writes outstanding events of snapshot sets into the volume's own log. Durable when it returns."""
    with engine.lock:
        if engine.closed or engine.failure is not None or not engine.pending_events:
            return
        engine.make_room(for_delete=True)
        engine.commit(room_made=True)


def apply_set_events(engine: Engine, events: Sequence[SetEvent]) -> list[SetEvent]:
    """Adds what the store log has and the volume's own log has not; for the time between open and first use.

    Returns the events that were added. One whose moment has passed, because the volume was written to without its
    store, is left out.
    """
    applied: list[SetEvent] = []
    with engine.lock:
        waiting = sorted(events, key=lambda event: event.store_sequence)
        waiting = [event for event in waiting if event.store_sequence > engine.durable_store_sequence]
        for event in waiting:
            if (
                engine.left_store
                or event.sequence != engine.log.sequence
                or event.snapshot_id != engine.lineage.next_id
            ):
                continue
            live = engine.path.live
            fits = live.frozen < event.epoch < live.epoch and len(event.metadata) <= engine.metadata_max
            if not fits or engine.lineage.find_name(event.name) is not None:
                raise CorruptionError(f"the store log's set {event.name!r} does not fit the volume", engine.name)
            _apply(engine, event)
            applied.append(event)
        if waiting and not engine.read_only:
            # Also what was left out is settled now: the store log need not keep it.
            engine.lead_with(StoreEvent(waiting[-1].store_sequence, before=True))
            flush_events(engine)
    return applied


def _apply(engine: Engine, event: SetEvent) -> None:
    snapshot = SnapshotEvent(
        id=event.snapshot_id, epoch=event.epoch, tag=event.tag, created_ns=event.created_ns, name=event.name,
        set_id=event.set_id or NO_UUID, metadata=event.metadata, before=True,
    )  # fmt: skip
    _, _, _, _, superseded, roots = engine.path.take_batch([engine.path.live])
    engine.superseded += superseded
    engine.taken(snapshot, roots[0])
    engine.path.live.set_epochs(engine.path.live.epoch, event.epoch)
    engine.lead_with(snapshot, StoreEvent(event.store_sequence, before=True))
