"""Reads a batch of pieces of a snapshot, and looks at it: long zeros, checksums. Does not encode.

What is done for each extent is done in two calls of the kernels for a whole batch, without the GIL.

Threads   Any number; each has one buffer of its own, which stays in the caches.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cowengine.backup.pieces import BATCH_BYTES, Pieces, SnapshotLike
from cowengine.core.survey import survey
from cowengine.errors import BackupError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Zeros shorter than this are stored as data: zstd makes nothing of them, and each record costs 80 bytes.
ZERO_BYTES_MIN = 64 << 10
_PART = [("offset", "<u8"), ("length", "<u8"), ("at", "<u8"), ("checksum", "<u8")]

#: (buffer, rows of offset and length) -> bytes read
ReadMany = Callable[[Any, Any], int]
_per_thread = threading.local()


def reader_of(snapshot: SnapshotLike) -> ReadMany:
    """What reads many extents of a snapshot, in any thread."""
    many: ReadMany | None = getattr(snapshot, "pread_many", None)
    return many or _OneByOne(snapshot)


def read_batch(read_many: ReadMany, pieces: Pieces) -> tuple[NDArray[Any], memoryview]:
    """The parts of a batch, ascending, and the bytes that were read; they stay until this thread reads the next batch.

    Parts are rows of `offset`, `length`, `at` (where the bytes lie among those read; NOWHERE: the part is a hole, or
    long zeros) and `checksum` (of zeros that of no bytes). Raises BackupError if the snapshot gives too little.
    """
    import numpy

    extents, filled, length = pieces
    plain = _buffer()[:length]
    count = read_many(plain, extents if filled.all() else extents[filled])
    if count != length:
        raise BackupError(f"a snapshot gave {count} bytes instead of {length}")
    parts = survey(plain, extents, filled.view(numpy.uint8), ZERO_BYTES_MIN)
    return numpy.frombuffer(parts, dtype=_PART), plain


def _buffer() -> memoryview:
    """This thread's."""
    made: memoryview | None = getattr(_per_thread, "buffer", None)
    if made is None:
        made = _per_thread.buffer = memoryview(bytearray(BATCH_BYTES))
    return made


class _OneByOne:
    """Reads extents of a snapshot that has only `pread`, which is called by one thread at a time."""

    def __init__(self, snapshot: SnapshotLike) -> None:
        self._snapshot = snapshot
        self._lock = threading.Lock()

    def __call__(self, buffer: memoryview, extents: Any) -> int:
        at = 0
        with self._lock:
            for offset, length in extents.tolist():
                plain = self._snapshot.pread(length, offset)
                if len(plain) != length:
                    raise BackupError(f"a snapshot gave {len(plain)} bytes at {offset} instead of {length}")
                buffer[at : at + length] = plain
                at += length
        return at
