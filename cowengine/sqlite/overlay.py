"""A throw-away overlay: the blocks of a snapshot (or of a raw file), with writes kept aside.

SQLite recovers a snapshot that holds a hot journal or a WAL by writing; here is where those writes go. The snapshot is
only ever read. Knows nothing of files or SQL.

Invariants
    V1  a block is read from the overlay if and only if it is in `_written`; it is whole there.
Threads     one at a time (the mutex).
Durability  none, on purpose: an anonymous temporary file, gone with `close` or with the process.
"""

from __future__ import annotations

import os
import tempfile
import threading
from typing import TYPE_CHECKING, Any

from cowengine.errors import OutOfRangeError

if TYPE_CHECKING:
    from cowengine.snapshot import Snapshot
    from cowengine.sqlite.raw import RawVolume

BLOCK_BYTES = 4096


class Overlay:
    """What `Database` needs of a volume, over a snapshot."""

    def __init__(self, snapshot: Snapshot | RawVolume) -> None:
        self._snapshot = snapshot
        self.size = snapshot.size
        self.block_size = BLOCK_BYTES
        self.closed = False
        self._mutex = threading.Lock()
        self._written: set[int] = set()
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by close()

    def pread(self, length: int, offset: int, /) -> bytes:
        """Exactly `length` bytes."""
        self._check(offset, length)
        with self._mutex:
            return b"".join(self._read_block(*piece) for piece in self._pieces(offset, length))

    def pwrite(self, data: Any, offset: int, /) -> int:
        """Keep `data` aside; the blocks it touches come from the overlay from now on."""
        view = memoryview(data).cast("B")
        self._check(offset, len(view))
        done = 0
        with self._mutex:
            for block, first, length in self._pieces(offset, len(view)):
                self._write_block(block, first, view[done : done + length])
                done += length
        return done

    def write_zeroes(self, offset: int, length: int, /) -> None:
        """These bytes read as zeros."""
        self._check(offset, length)
        with self._mutex:
            for block, first, count in self._pieces(offset, length):
                if block in self._written or count < BLOCK_BYTES:
                    self._write_block(block, first, memoryview(bytes(count)))
                else:
                    self._written.add(block)  # a hole of the temporary file: zeros

    def discard(self, offset: int, length: int, /) -> None:
        """Nothing: space in a throw-away file is not worth giving back, and nobody reads past a file's length."""

    def flush(self) -> None:
        """Nothing: an overlay is never durable."""

    def allocated_extents(self, start: int = 0, length: int | None = None) -> Any:
        """None: there is no space to give back."""
        return ()

    def close(self) -> None:
        """Throw everything away. Idempotent."""
        self.closed = True
        self._file.close()

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or length > self.size - offset:
            raise OutOfRangeError(f"{length} bytes at {offset} lie outside the snapshot's {self.size} bytes")

    def _pieces(self, offset: int, length: int) -> list[tuple[int, int, int]]:
        """The range as (block, first byte in it, bytes)."""
        pieces = []
        end = offset + length
        while offset < end:
            block, first = divmod(offset, BLOCK_BYTES)
            count = min(BLOCK_BYTES - first, end - offset)
            pieces.append((block, first, count))
            offset += count
        return pieces

    def _read_block(self, block: int, first: int, length: int) -> bytes:
        offset = block * BLOCK_BYTES + first
        if block not in self._written:
            below: bytes = self._snapshot.pread(length, offset)
            return below
        return os.pread(self._file.fileno(), length, offset).ljust(length, b"\0")

    def _write_block(self, block: int, first: int, piece: memoryview) -> None:
        start = block * BLOCK_BYTES
        if block not in self._written and len(piece) < BLOCK_BYTES:
            below = self._snapshot.pread(min(BLOCK_BYTES, self.size - start), start)
            self._file.seek(start)
            self._file.write(below.ljust(BLOCK_BYTES, b"\0"))
        self._file.seek(start + first)
        self._file.write(piece)
        self._written.add(block)
