"""Snapshots of several volumes as one point in time.

`prepare` takes all members' commit locks in a fixed order, ends their epochs in one instant, and makes durable what
they had unflushed. What happens then is the store's: its log record is the commit point. `finish` adds the snapshots;
their events lead each member's next record, so a member whose own log does not have them yet gets them from the store
log at the next open (`apply_set_events`). A member's next record waits for the outcome, because the locks are held
until then; so `finish` may come while the store log's record is on its way to the disk, and nobody sees what it added
before that is durable.

A set that is given up leaves each member an epoch without a snapshot: it is taken and deleted at once, so that its
space comes back (I20).
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from cowengine.core.roots import Root, fence_all
from cowengine.engine.engine import Undivided
from cowengine.engine.setflush import flush_events, flusher
from cowengine.errors import CorruptionError
from cowengine.format import NO_UUID, Event, SnapshotEvent, StoreEvent, encode_event

if TYPE_CHECKING:
    from cowengine.engine.commitlock import CommitLock
    from cowengine.engine.engine import Engine


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


class Member(NamedTuple):
    """What the store log's record says of one volume."""

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
        self._locked: list[CommitLock] = []
        self._roots: list[Root] = []
        self._open = False
        self._undivided = ExitStack()  # from the fence until the outcome is known
        self.members: list[Member] = []  # in the order of their UUIDs

    def __enter__(self) -> Prepared:
        try:
            for engine in self._engines:
                engine.lock.acquire()
                self._locked.append(engine.lock)
            self._fence()
        except BaseException:
            self._unlock()
            raise
        return self

    def _unlock(self) -> None:
        while self._locked:
            self._locked.pop().release()

    def _fence(self) -> None:
        for engine in self._engines:
            engine.require_writable()
            engine.require_name_free(self._name)
            if not engine.has_room_for_event():
                engine.commit()
            engine.make_room()
        count = len(self._engines)
        tags = struct.unpack(f"<{count}Q", os.urandom(8 * count))
        with ExitStack() as undivided:
            # Behind the fence there is no way back: writers of the new epoch wait for roots that may never be kept.
            undivided.enter_context(Undivided(self._engines))
            epochs = fence_all([engine.path.live for engine in self._engines])
            self._roots = _make_durable(self._engines)
            self.members = [
                Member(engine.uuid, engine.lineage.next_id, epoch, engine.log.sequence, tag)
                for engine, epoch, tag in zip(self._engines, epochs, tags, strict=True)
            ]
            self._undivided = undivided.pop_all()
        self._open = True

    def commit_point(self) -> None:
        """From here on nobody knows whether there is a set, until `finish` or `poison`; no way leads back."""
        self._open = False

    def finish(
        self, set_id: bytes, name: str, created_ns: int, store_sequence: int, metadata: bytes = b""
    ) -> list[int]:  # fmt: skip
        """The store log has the set, or will before the locks are given back: the snapshots exist.

        Returns their ids, in the order of `members`.
        """
        assert not self._open, "finished before its commit point"
        self._take(name, created_ns, set_id, metadata, StoreEvent(store_sequence, before=True))
        flusher.schedule(self._engines)
        return [member.snapshot_id for member in self.members]

    def _take(self, name: str, created_ns: int, set_id: bytes, metadata: bytes, *more: Event) -> None:
        """Adds the snapshots; their events, and then `more`, lead the members' next records."""
        length = 0
        for engine, member, root in zip(self._engines, self.members, self._roots, strict=True):
            event = SnapshotEvent(
                member.snapshot_id, member.epoch, member.tag, created_ns, name, set_id, 0, metadata, True
            )
            events = (event, *more)
            length = length or _encoded_bytes(events)  # the same for all
            engine.lead_with(events, length)
            engine.taken(event, root, seal_later=True)

    def abandon(self) -> None:
        """The set is not to be: each member's snapshot is taken under a name of its own and deleted."""
        self._open = False
        with self._undivided:
            self._take(f"abandoned-{self.members[0].tag:x}", time.time_ns(), NO_UUID, b"")
        for engine, member in zip(self._engines, self.members, strict=True):
            engine.delete(member.snapshot_id)

    def poison(self, cause: BaseException) -> None:
        """Nobody knows whether the store log has the set: no member may go on."""
        for engine in self._engines:
            engine.poison(cause)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._open:
                self.abandon()
            elif kind is None:
                self._undivided.close()
        finally:
            self._unlock()


def prepare(engines: Sequence[Engine], name: str) -> Prepared:
    """Brings volumes to one instant; see `Prepared`.

    `name` is what the snapshots will be called (ExistsError if one has it).
    """
    return Prepared(engines, name)


def _make_durable(engines: Sequence[Engine]) -> list[Root]:
    """Each member's unflushed data; the roots of their live heads as of the fence.

    The members' commits go on step by step: first all that comes before their barriers, then the barriers side by side.
    A record, if one is needed, ends before the snapshot: that comes with the next.
    """
    kept: list[list[Root]] = []
    waiting: list[tuple[Engine, Iterator[bool]]] = []
    for engine in engines:
        root = engine.take_quiet()
        kept.append([] if root is None else [root])
        if root is None:
            steps = engine.commit_steps(kept[-1], keep=[engine.path.live], events_can_wait=True)
            waiting.append((engine, steps))
    while waiting := [(engine, steps) for engine, steps in waiting if next(steps, False)]:
        _barriers([engine for engine, _ in waiting])
    return [root for (root,) in kept]


def _barriers(engines: Sequence[Engine]) -> None:
    """A barrier of each. Different files sync at the same time, unless no threads may be used."""
    io = engines[0].io
    if len(engines) == 1 or not all(engine.background and engine.io is io for engine in engines):
        for engine in engines:
            engine.barrier()
        return
    began = time.perf_counter()
    outcome = io.fdatasync_all([engine.fd for engine in engines])
    seconds = time.perf_counter() - began
    for engine, number in zip(engines, outcome, strict=True):
        if number:
            error = OSError(number, os.strerror(number))
            raise engine.poison(error) from error
        engine.count_barrier(seconds)


def _encoded_bytes(events: Sequence[Event]) -> int:
    return sum(len(encode_event(event)) for event in events)


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
            _lead_with(engine, StoreEvent(waiting[-1].store_sequence, before=True))
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
    _lead_with(engine, snapshot, StoreEvent(event.store_sequence, before=True))


def _lead_with(engine: Engine, *events: Event) -> None:
    engine.lead_with(events, _encoded_bytes(events))
