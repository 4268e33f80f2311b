"""The store log: the ring of pre-written space in which snapshot sets commit.

Knows records and their order, not what volumes did with them: whoever owns the log says which records are
outstanding. The format and the rules of the chain are in docs/store-format.md, sections 2 to 5.

Threads     Every method may be called from any thread. One lock covers a record's pwrite and its fdatasync, so that
            there is one record in flight and one fdatasync at a time.
Durability  `append` and `advance` are durable when they return. If either fails, what the disk holds is unknown: the
            log is poisoned, and only a new open tells.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from cowengine.core.iotable import IOTable
from cowengine.engine.files import open_regular
from cowengine.errors import (
    BusyError,
    ClosedError,
    CorruptionError,
    FormatError,
    NotFoundError,
    OutOfRangeError,
    PoisonedError,
    UnsupportedVersionError,
)
from cowengine.oserrors import typed
from cowengine.store import layout
from cowengine.store.layout import Frame, Header, Record


@dataclass(frozen=True, slots=True)
class Entry:
    """A record in the ring. `begin` and `end` are byte offsets in the ring, padding included."""

    sequence: int
    checksum: int
    begin: int
    end: int
    record: Record


def create_log(io: IOTable, path: str, store_uuid: bytes, ring_bytes: int) -> None:
    """Write a new log file, durably but for its name: `path` must not exist. Raises OutOfRangeError for an impossible
    size.
    """
    if not layout.RING_BYTES_MIN <= ring_bytes <= layout.RING_BYTES_MAX or ring_bytes % 4096:
        raise OutOfRangeError(f"a store log of {ring_bytes} bytes cannot be: 16 KiB to 64 MiB, a multiple of 4,096")
    header = layout.encode_header(
        Header(
            log_shift=layout.shift_for(ring_bytes),
            clean=1,
            store_uuid=store_uuid,
            generation=1,
            salt=secrets.randbits(64),
            created_ns=time.time_ns(),
            ring_bytes=ring_bytes,
            base_sequence=0,
            base_checksum=0,
            base_offset=0,
            tip_sequence=0,
            tip_checksum=0,
        )
    )
    fd = io.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        io.pwrite(fd, header + header + bytes(ring_bytes), 0)
        io.fdatasync(fd)
    finally:
        io.close(fd)


class StoreLog:
    """One open store log; the one who opened it for writing owns the store."""

    def __init__(self, io: IOTable, path: str, *, read_only: bool = False) -> None:
        """Open and recover. Raises NotFoundError, FormatError, BusyError (another owner), CorruptionError,
        StorageError.
        """
        self.path = path
        self.read_only = read_only
        self.entries: list[Entry] = []
        self.poison: BaseException | None = None
        self._io = io
        self._lock = threading.Lock()
        self._reserved: list[int] = []
        self._fd = _open_file(io, path, read_only)
        try:
            with typed(path):
                if not read_only:
                    self._take_ownership()
                self._read()
                if not read_only:
                    self._confirm()
        except BaseException:
            io.close(self._fd)
            self._fd = -1
            raise
        _logs.add(self)

    # ---- opening ----

    def _take_ownership(self) -> None:
        try:
            self._io.lock(self._fd, True)
        except BlockingIOError:
            raise BusyError("the store is owned by another process or handle: close it there", self.path) from None
        # What follows must be what the disk holds, not what a killed owner left in the page cache.
        self._io.fdatasync(self._fd)
        self._io.forget(self._fd)

    def _read(self) -> None:
        head = self._io.pread(self._fd, layout.RING_OFFSET, 0)
        slots = head[: layout.HEADER_BYTES], head[layout.HEADER_BYTES :]
        self.header, self._slot = layout.choose_header(slots, self.path)
        if self.header.features_read_only_compatible and not self.read_only:
            raise UnsupportedVersionError(
                f"{self.path} was written by a newer cowengine: open it read-only, or upgrade"
            )
        ring = self._io.pread(self._fd, self.header.ring_bytes, layout.RING_OFFSET)
        if len(ring) < self.header.ring_bytes:
            raise CorruptionError("the store log is truncated", self.path)
        self.entries = list(_chain(ring, self.header))
        last = self.entries[-1] if self.entries else None
        self.tip_sequence = last.sequence if last else self.header.base_sequence
        self.tip_checksum = last.checksum if last else self.header.base_checksum
        self.position = last.end if last else self.header.base_offset
        self._check_tip(ring)

    def _check_tip(self, ring: bytes) -> None:
        """Nothing that was acknowledged may be missing from the chain."""
        header = self.header
        if self.tip_sequence < header.tip_sequence:
            lost = f"record {self.tip_sequence + 1} is unreadable, {header.tip_sequence} were confirmed"
            raise CorruptionError(f"the store log is damaged: {lost}", self.path)
        confirmed = {entry.sequence: entry.checksum for entry in self.entries}
        confirmed[header.base_sequence] = header.base_checksum
        if confirmed[header.tip_sequence] != header.tip_checksum:
            raise CorruptionError("the store log is damaged: the confirmed record is another one", self.path)
        known = {entry.begin for entry in self.entries}
        length_max = layout.record_bytes_max(header.ring_bytes)
        for offset in range(0, header.ring_bytes, 1 << header.log_shift):
            found = None if offset in known else layout.peek_record(ring, offset, length_max, header.store_uuid)
            if found is None:
                continue
            frame = found[0]
            # Each record is durable before the next is written, so one beyond a gap says that the gap is damage.
            beyond = frame.salt == header.salt and frame.sequence > self.tip_sequence
            if beyond or frame.generation > header.generation:
                raise CorruptionError(
                    f"the store log is damaged: record {frame.sequence} is there, what leads to it is not", self.path
                )

    def _confirm(self) -> None:
        self._write_header(
            replace(
                self.header,
                clean=0,
                salt=secrets.randbits(64),
                tip_sequence=self.tip_sequence,
                tip_checksum=self.tip_checksum,
            )
        )

    # ---- writing ----

    def _write_header(self, header: Header) -> None:
        header = replace(header, generation=self.header.generation + 1)
        raw = layout.encode_header(header)
        try:
            with typed(self.path):
                for slot in (1 - self._slot, self._slot):
                    self._io.pwrite(self._fd, raw, slot * layout.HEADER_BYTES)
                    self._io.fdatasync(self._fd)
        except BaseException as error:
            self.poison = error
            raise
        self.header, self._slot = header, 0

    def check_usable(self) -> None:
        """Raises ClosedError or PoisonedError."""
        if self._fd < 0:
            raise ClosedError("the store is closed")
        if self.poison is not None:
            raise PoisonedError(
                f"a write of the store log failed ({self.poison}): close the store and open it again", self.path
            )

    def record_bytes_max(self) -> int:
        """The longest record that this log takes."""
        return layout.record_bytes_max(self.header.ring_bytes)

    def reserve(self, length: int) -> bool:
        """Keep room for a record of `length` bytes, whatever else is appended before it; False if there is none."""
        padded = self._padded(length)
        with self._lock:
            self.check_usable()
            start = self.entries[0].begin if self.entries else self.position
            wrapped = bool(self.entries) and self.position <= start
            room = start - self.position if wrapped else self.header.ring_bytes - self.position + start
            # The record that does not fit before the end of the ring leaves less than its own length there.
            waste = 0 if wrapped else max([*self._reserved, padded])
            if sum(self._reserved) + padded + waste > room:
                return False
            self._reserved.append(padded)
            return True

    def release(self, length: int) -> None:
        """Give back what `reserve` kept."""
        with self._lock:
            self._reserved.remove(self._padded(length))

    def append(self, record: Record, meanwhile: Callable[[int], object] | None = None) -> Entry:
        """Commit a record, into room that was reserved; durable when it returns. Poisons the log if it fails.

        `meanwhile(sequence)` does what follows from the record in memory while the disk writes it: if that fails, so
        does this.
        """
        with self._lock:
            self.check_usable()
            frame = Frame(
                salt=self.header.salt,
                sequence=self.tip_sequence + 1,
                generation=self.header.generation,
                previous=self.tip_checksum,
            )
            raw, checksum = layout.encode_record(record, frame, self.header.store_uuid)
            padded = self._padded(len(raw))
            begin = self._place(padded)
            try:
                with typed(self.path):
                    self._io.pwrite(self._fd, raw.ljust(padded, b"\0"), layout.RING_OFFSET + begin)
                    self._io.begin_write(self._fd, layout.RING_OFFSET + begin, padded)
                    if meanwhile is not None:
                        meanwhile(frame.sequence)
                    self._io.fdatasync(self._fd)
            except BaseException as error:
                self.poison = error
                raise
            entry = Entry(frame.sequence, checksum, begin, begin + padded, record)
            self.entries.append(entry)
            self.tip_sequence, self.tip_checksum, self.position = entry.sequence, checksum, entry.end
            return entry

    def _padded(self, length: int) -> int:
        unit = 1 << self.header.log_shift
        return -(-length // unit) * unit

    def _place(self, padded: int) -> int:
        start = self.entries[0].begin if self.entries else self.header.ring_bytes
        if self.entries and self.position <= start:
            assert self.position + padded <= start, "the room was reserved"
            return self.position
        if self.position + padded <= self.header.ring_bytes:
            return self.position
        assert padded <= start, "the room was reserved"
        return 0

    def advance(self, base_sequence: int, *, clean: bool = False) -> None:
        """Give up all records up to `base_sequence`, so that their room can be used; durable when it returns."""
        with self._lock:
            self.check_usable()
            gone = [entry for entry in self.entries if entry.sequence <= base_sequence]
            header = replace(
                self.header, clean=int(clean), tip_sequence=self.tip_sequence, tip_checksum=self.tip_checksum
            )
            if gone:
                last = gone[-1]
                header = replace(header, base_sequence=last.sequence, base_checksum=last.checksum, base_offset=last.end)
            self._write_header(header)
            self.entries = self.entries[len(gone) :]

    def snapshot_entries(self) -> list[Entry]:
        """The records in the ring, oldest first: a copy."""
        with self._lock:
            return list(self.entries)

    def close(self) -> None:
        """Give up the ownership. Writes nothing."""
        with self._lock:
            if self._fd >= 0 and not self.read_only:
                # A child that was forked just now has the file open until it gets to run, and the lock is the file's.
                with suppress(OSError):
                    self._io.unlock(self._fd)
            self.abandon()

    def abandon(self) -> None:
        """As `close`, without waiting for anybody: for the child of a fork, in which no other thread lives."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._io.close(fd)


_logs: weakref.WeakSet[StoreLog] = weakref.WeakSet()


def _abandon_in_child() -> None:
    # The lock belongs to the open file, which a child would keep open beyond its parent's close.
    for log in list(_logs):
        with suppress(OSError):
            log.abandon()


os.register_at_fork(after_in_child=_abandon_in_child)


def _open_file(io: IOTable, path: str, read_only: bool) -> int:
    try:
        return open_regular(io, path, read_only=read_only)
    except NotFoundError:
        folder = os.path.dirname(path)
        try:
            io.names(folder)
        except FileNotFoundError:
            raise NotFoundError("there is no such store", folder) from None
        except NotADirectoryError:
            raise FormatError(f"{folder} is not a store but a file: is it a volume?") from None
        raise FormatError(f"{folder} is not a store: it has no store.log") from None


def _chain(ring: bytes, header: Header) -> Iterator[Entry]:
    """The records that follow one another from the header's base on."""
    position, sequence, previous = header.base_offset, header.base_sequence + 1, header.base_checksum
    unit = 1 << header.log_shift
    length_max = layout.record_bytes_max(header.ring_bytes)
    while True:
        for begin in (position, 0):
            found = layout.peek_record(ring, begin, length_max, header.store_uuid)
            if found is None:
                continue
            frame, raw, checksum = found
            trusted = frame.salt == header.salt or sequence <= header.tip_sequence
            if frame.sequence == sequence and frame.previous == previous and trusted:
                break
        else:
            return
        end = begin + -(-len(raw) // unit) * unit
        yield Entry(sequence, checksum, begin, end, layout.decode_record(raw))
        position, sequence, previous = end, sequence + 1, checksum
