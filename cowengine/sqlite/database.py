"""The files of one database in one volume: existence, lengths, bytes, and what makes them durable.

Everything a connection does to a file of the database ends here. It does not know SQL, connections or apsw.

On disk     docs/sqlite.md section 2; `layout.py` has the bytes.
Invariants
    D1  a byte is written before the length that exposes it; a length or existence is taken back before its bytes are
        discarded. So every snapshot, taken at any instant, holds a state these files went through.
    D2  the directory is only ever written to the copy that does not hold the last flushed one.
    D3  when `flush` returns, bytes, lengths and existence of all the files are durable.
    D4  what lies behind a file's end is, durably, zeros or the records of journals without their headers, before the
        file grows again. A crash may expose it, and SQLite would believe the header of an earlier journal or WAL.
Threads     every method may be called from any thread; the mutex orders changes of the directory and is held over a
            flush. Bytes are not protected against each other: SQLite's locks are there for that.
Durability  nothing is durable before `flush` (also called by `remove`).
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

from cowengine.errors import FormatError, NoSpaceError, NotFoundError
from cowengine.sqlite import layout
from cowengine.sqlite.locks import DatabaseLock

# A journal comes and goes with every transaction. One of this length at most stays allocated for the next, but for its
# header, which is zeroed: a block that has to be placed anew costs a barrier more than one that is there.
KEPT_BYTES = 1 << 20
JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
_HEADER_ZEROS = bytes(512)


class BlockStorage(Protocol):
    """What a database stands on: a Volume, or an overlay over a snapshot."""

    @property
    def size(self) -> int: ...
    @property
    def block_size(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    def pread(self, length: int, offset: int, /) -> bytes: ...
    def pwrite(self, data: Any, offset: int, /) -> int: ...
    def discard(self, offset: int, length: int, /) -> None: ...
    def write_zeroes(self, offset: int, length: int, /) -> None: ...
    def flush(self) -> None: ...
    def allocated_extents(self, start: int = 0, length: int | None = None) -> Any: ...


class Database:
    """The three files of a database. `read_only` refuses nothing by itself: the storage does."""

    def __init__(self, name: str, storage: BlockStorage, *, read_only: bool = False) -> None:
        """Read the directory. Raises FormatError if the volume holds something else than a database."""
        self.name = name
        self.storage = storage
        self.read_only = read_only
        self.lock = DatabaseLock()
        self.open_files = 0
        self._mutex = threading.Lock()
        self._sequence = -1
        self.reload()

    def reload(self) -> None:
        """Read the directory anew: the volume may have been rolled back while no file was open. Raises FormatError."""
        storage = self.storage
        if storage.size < layout.volume_bytes(1):
            raise FormatError(f"volume {self.name!r} is too small for a database: {storage.size} bytes")
        copies = storage.pread(layout.COPY_COUNT * layout.COPY_BYTES, 0)
        found = layout.decode_newest(copies, storage.size)
        if found is not None and found[0].sequence == self._sequence:
            return
        if found is None and len(storage.allocated_extents()):
            raise FormatError(f"volume {self.name!r} holds data that is no SQLite database; choose another name")
        directory, self._flushed_copy = found or (layout.new_directory(storage.size), 1)
        self.areas = directory.areas
        self._sequence = directory.sequence
        self._exists = list(directory.exists)
        self._lengths = list(directory.lengths)
        self._dirty = False
        # Bytes behind the end of a file were invalidated and no flush has made that durable (D4).
        self._unsettled = False
        # The journal's area may hold more headers than the one at its beginning.
        self._many_headers = self._exists[layout.JOURNAL]
        if found is not None and not self.read_only:
            self.trim()

    # What a file is now. Plain reads of a list: atomic, and SQLite's locks say when they may be relied on.

    def exists(self, file: int) -> bool:
        """True if the file exists."""
        return self._exists[file]

    def length(self, file: int) -> int:
        """Its exact length in bytes; 0 if it does not exist."""
        return self._lengths[file]

    # Changes.

    def create(self, file: int) -> None:
        """Make the file exist, empty, if it does not. Not durable before a flush."""
        with self._mutex:
            if not self._exists[file]:
                self._exists[file] = True
                self._write_directory()

    def read(self, file: int, length: int, offset: int) -> bytes:
        """At most `length` bytes from `offset`; fewer, or none, where the file ends."""
        length = min(length, self._lengths[file] - offset)
        return self.storage.pread(length, self.areas[file].offset + offset) if length > 0 else b""

    def write(self, file: int, data: Any, offset: int) -> None:
        """Write all of `data` at `offset`, growing the file if needed. Raises NoSpaceError at its capacity."""
        end = offset + len(data)
        if file == layout.JOURNAL and offset > 0 and data[:8] == JOURNAL_MAGIC:
            self._many_headers = True
        if end <= self._lengths[file]:
            self.storage.pwrite(data, self.areas[file].offset + offset)
            return
        with self._mutex:
            if not self._exists[file]:
                raise NotFoundError(f"database {self.name!r}: the file was deleted while it was open")
            self._prepare_growth(file, offset, end)
            self.storage.pwrite(data, self.areas[file].offset + offset)
            self._lengths[file] = max(end, self._lengths[file])
            self._write_directory()

    def truncate(self, file: int, length: int) -> None:
        """Set the exact length; what is added reads as zeros. Not durable before a flush."""
        with self._mutex:
            before = self._lengths[file]
            if length > before:
                self._prepare_growth(file, length, length)
            self._lengths[file] = length
            self._write_directory()
            self._invalidate(file, length, before)

    def remove(self, file: int) -> bool:
        """Delete the file, durably; False if there is none. Its space comes back, unless it was a short journal."""
        with self._mutex:
            if not self._exists[file]:
                return False
            before = self._lengths[file]
            self._exists[file] = False
            self._lengths[file] = 0
            self._write_directory()
            self._invalidate(file, 0, before)
            self._flush()
            return True

    def flush(self) -> None:
        """Bytes, lengths and existence of all files, as they are now, are durable when it returns."""
        with self._mutex:
            self._flush()

    def trim(self) -> None:
        """Give back all space that no file uses, durably: after a crash, and when nobody uses the database any more."""
        with self._mutex:
            for area, length in zip(self.areas, self._lengths, strict=True):
                behind = area.capacity - length
                if behind and len(self.storage.allocated_extents(area.offset + length, behind)):
                    self.storage.write_zeroes(area.offset + length, behind)
                    self._unsettled = True
            if self._unsettled:
                self._flush()

    # Under the mutex.

    def _prepare_growth(self, file: int, first: int, end: int) -> None:
        """D4; and zero what lies between the file's end and `first`, where a short journal may have left records."""
        capacity = self.areas[file].capacity
        if end > capacity:
            raise NoSpaceError(f"database {self.name!r}: a file may grow to {capacity} bytes, not {end}")
        if self._unsettled:
            self._flush()
        length = self._lengths[file]
        if first > length:
            self.storage.write_zeroes(self.areas[file].offset + length, first - length)

    def _write_directory(self) -> None:
        self._sequence += 1
        directory = layout.Directory(self._sequence, self.areas, tuple(self._exists), tuple(self._lengths))
        self.storage.pwrite(layout.encode(directory), (1 - self._flushed_copy) * layout.COPY_BYTES)
        self._dirty = True

    def _flush(self) -> None:
        self.storage.flush()
        self._unsettled = False
        if self._dirty:
            self._flushed_copy = 1 - self._flushed_copy
            self._dirty = False

    def _invalidate(self, file: int, length: int, before: int) -> None:
        """D4 for the bytes from `length` to `before`, durable with the next flush.

        A crash in that flush may leave the file as long as it was with some of this done. That must not look like a
        journal with a header and without its records: so only the header of a short journal is zeroed, or else all of
        it is discarded, which the volume does from its beginning on and in one commit if it can.
        """
        start = self.areas[file].offset
        if length >= before:
            return
        if file == layout.JOURNAL and length == 0 and before <= KEPT_BYTES and not self._many_headers:
            self.storage.pwrite(_HEADER_ZEROS, start)
        else:
            self.storage.write_zeroes(start + length, self._round_up(before) - length)
            if file == layout.JOURNAL and length == 0:
                self._many_headers = False
        self._unsettled = True

    def _round_up(self, length: int) -> int:
        block_size = self.storage.block_size
        return -(-length // block_size) * block_size


def split_name(path: str) -> tuple[str, int]:
    """The name of a database and which of its files `path` means: ("bank.db", JOURNAL) for bank.db-journal."""
    for file in (layout.JOURNAL, layout.WAL):
        if path.endswith(layout.SUFFIXES[file]):
            return path.removesuffix(layout.SUFFIXES[file]), file
    return path, layout.MAIN
