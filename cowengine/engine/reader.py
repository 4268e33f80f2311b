"""Reads the committed state of a volume file while another process owns it: snapshots only, never the live volume.

A *look* is what an open for reading does, from one superblock that stood still meanwhile: its checkpoint and the
records behind it that are durable (I35). It is made again when the superblocks or the owner's announcement have moved.
The data of a snapshot stays where it is as long as the reader has it pinned (I36). Nodes and log do not: the owner
recycles them, and a checksum that does not hold means a newer look first, and damage only if the superblocks stand as
they stood. Writes nothing, and the owner waits for nobody here.

Threads   Any thread may call anything.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from cowengine.core.iotable import IOTable
from cowengine.engine import memory
from cowengine.engine.commitlock import CommitLock
from cowengine.engine.engine import Engine
from cowengine.engine.locks import FileLocks
from cowengine.engine.recovery import choose_superblock, load, replay, whole_slots
from cowengine.errors import BusyError, ClosedError, CorruptionError, FormatError, NotFoundError, StorageError
from cowengine.format import SLOT_BYTES, LineageRecord, Superblock
from cowengine.oserrors import typed

T = TypeVar("T")

# An owner with the smallest log may recycle nodes faster than a long list is read; then the next try finds more of it.
TRIES_MAX = 1000


class Look(Engine):
    """The committed state at one moment. The descriptor belongs to its reader, which lives as long."""

    def __init__(self, reader: Reader, io: IOTable, fd: int, name: str, superblock: Superblock) -> None:
        self.reader = reader
        super().__init__(io, fd, name, superblock, read_only=True, file_slots=whole_slots(io, fd, name, superblock))

    def close(self) -> None:
        """Closes the reader, and all looks with it."""
        self.reader.close()

    def abandon(self) -> None:
        """In the child of a fork."""
        self.closed = True
        self.lock = CommitLock(self.name)
        self.reader.abandon()


class Reader:
    """Readers of one open file: the newest look and which snapshots are pinned."""

    def __init__(self, io: IOTable, fd: int, name: str) -> None:
        self._io = io
        self._fd = fd
        self._name = name
        self.lock = threading.RLock()
        self.closed = False
        self._locks = FileLocks(io, fd, name)
        self._durable = 0  # the last record that an owner ever announced
        self._seen: tuple[bytes, int | None] | None = None
        self._look: Look | None = None
        self._looks: weakref.WeakSet[Look] = weakref.WeakSet()
        self.cache_bytes = memory.CACHE_BYTES
        self._pins: dict[int, int] = {}
        self._pins_lock = threading.Lock()
        self._dropped: deque[int] = deque()

    # -- looks --------------------------------------------------------------------------------------------------------
    def newest(self) -> Look:
        """The committed state now. Raises CorruptionError, FormatError, ClosedError."""
        with self.lock:
            problem: Exception = BusyError("the file changes faster than it can be read", self._name)
            for _ in range(TRIES_MAX):
                if self.closed:
                    raise ClosedError("the volume is closed", self._name)
                seen = self._signs()
                if self._look is not None and seen == self._seen:
                    return self._look
                try:
                    with typed(self._name):
                        look = self._new_look(seen[1])
                except (CorruptionError, FormatError) as error:
                    if self._signs()[0] == seen[0]:
                        raise
                    problem = error
                    continue
                if look is not None:
                    self._look, self._seen = look, seen
            raise problem

    def _signs(self) -> tuple[bytes, int | None]:
        """What moves with every commit and checkpoint of an owner: both superblocks, and the last durable record."""
        durable = self._locks.published()
        with typed(self._name):
            return self._io.pread(self._fd, 2 * SLOT_BYTES, 0), durable

    def _new_look(self, durable: int | None) -> Look | None:
        """Loads and replays; None if a superblock was written meanwhile: then parts of the log may be, too."""
        before = self._io.pread(self._fd, 2 * SLOT_BYTES, 0)
        superblock, _, _ = choose_superblock(self._io, self._fd, self._name)
        if self._look is not None and superblock.volume_uuid != self._look.uuid:
            raise CorruptionError("the file holds another volume now", self._name)
        look = Look(self, self._io, self._fd, self._name, superblock)
        memory.bound(look, self.cache_bytes)
        log = look.log.read_all()
        # What these records speak of is there; the file may have grown since the look was made.
        look.bound(whole_slots(self._io, self._fd, self._name, superblock))
        if self._io.pread(self._fd, 2 * SLOT_BYTES, 0) != before:
            return None
        self._durable = max(self._durable, durable or 0)
        load(look)
        replay(look, log, self._durable)
        look.path.behead()
        self._looks.add(look)
        return look

    def restarting(self, work: Callable[[Look], T], look: Look | None = None) -> T:
        """What `work` says of a look, by default the newest; of a newer one, if metadata was recycled meanwhile."""
        for _ in range(TRIES_MAX):
            if look is None:
                look = self.newest()
            try:
                return work(look)
            except CorruptionError as error:
                problem = error
                with self.lock:
                    if look is self._look and self._seen is not None and self._signs()[0] == self._seen[0]:
                        raise
            look = None
        raise problem

    # -- pins ---------------------------------------------------------------------------------------------------------
    def pin(self, record: LineageRecord) -> None:
        """Keeps the data of a snapshot where it is until `unpin` (I36).

        Raises NotFoundError if the snapshot is gone (AnchorError: its data), BusyError if its owner is about to give
        it back.
        """
        with self._pins_lock:
            if self.closed:
                raise ClosedError("the volume is closed", self._name)
            if not self._locks.pin(record.id):
                raise BusyError(f"snapshot {record.name!r} is being given back by its owner", self._name)
            self._pins[record.id] = self._pins.get(record.id, 0) + 1
        self._drop_pins()
        try:
            # Only what is there *behind* the lock is safe: before it, the owner may have begun to give it back.
            self.restarting(lambda look: look.readable_snapshot(require_same(look, record).id))
        except BaseException:
            self.unpin(record.id)
            raise

    def unpin(self, number: int) -> None:
        """Ends a `pin`. May be called at any point of any thread: by the garbage collector."""
        self._dropped.append(number)
        self._drop_pins()

    def _drop_pins(self) -> None:
        """Whoever has the lock, or frees it, does it for all: the garbage collector must not wait for it."""
        while self._dropped and self._pins_lock.acquire(blocking=False):
            try:
                while self._dropped:
                    self._drop_pin(self._dropped.popleft())
            finally:
                self._pins_lock.release()

    def _drop_pin(self, number: int) -> None:
        self._pins[number] -= 1
        if not self._pins[number]:
            del self._pins[number]
            if not self.closed:
                with suppress(StorageError):  # then it ends with the descriptor
                    self._locks.release(number)

    # -- end ----------------------------------------------------------------------------------------------------------
    def close(self) -> None:
        """Closes all looks and the descriptor, and with it ends all pins."""
        with self.lock, self._pins_lock:
            if self.closed:
                return
            self.closed = True
            for look in list(self._looks):
                look.closed = True
                look.path.shut()
            self._locks.release_all()
            self._io.close(self._fd)

    def abandon(self) -> None:
        """In the child of a fork: closes the descriptor once. The locks are the parent's and stay."""
        if not self.closed:
            self.closed = True
            self.lock, self._pins_lock = threading.RLock(), threading.Lock()
            with suppress(OSError):
                self._io.close(self._fd)


def require_same(look: Look, record: LineageRecord) -> LineageRecord:
    """The record of the same snapshot in another look; NotFoundError if it was deleted."""
    with look.lock:
        found = look.live_snapshot(record.id)
    if found.tag != record.tag:
        raise NotFoundError(f"snapshot {record.name!r} was deleted", look.name)
    return found
