"""What of a snapshot goes into a backup: its extents, page by page, and the pieces of bytes and holes in them.

Reads the snapshot only, never the live volume. Does not encode anything.
Threads: plain generators of one caller. Memory: one page of extents and one piece of `PIECE_BYTES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from cowengine.errors import BackupError

PIECE_BYTES = 1 << 20
PAGE_EXTENTS = 4096
# Zeros shorter than this are stored as data: zstd makes nothing of them, and each record costs 80 bytes.
ZERO_BYTES_MIN = 64 << 10
_ZEROS = bytes(ZERO_BYTES_MIN)


class SnapshotLike(Protocol):
    """What a backup needs of a snapshot. Offsets and lengths in bytes."""

    @property
    def size(self) -> int: ...
    @property
    def change_id(self) -> str: ...
    @property
    def block_size(self) -> int: ...
    def pread(self, length: int, offset: int) -> bytes: ...
    def allocated_extents(self, start: int = 0, length: int | None = None, max_results: int | None = None) -> Any: ...
    def changed_extents(
        self, base: Any, start: int = 0, length: int | None = None, max_results: int | None = None
    ) -> Any: ...


def allocated(snapshot: SnapshotLike, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
    """The allocated extents (offset, length) of `start` to `end`, ascending, none beyond the snapshot's size."""
    return _paged(snapshot.allocated_extents, start, snapshot.size if end is None else end)


def changed(snapshot: SnapshotLike, base_id: str) -> Iterator[tuple[int, int]]:
    """The extents (offset, length) that differ from the snapshot with change id `base_id`, ascending."""

    def page(start: int, length: int, max_results: int) -> Any:
        return snapshot.changed_extents(base_id, start, length, max_results)

    return _paged(page, 0, snapshot.size)


def _paged(page: Callable[[int, int, int], Any], start: int, end: int) -> Iterator[tuple[int, int]]:
    while start < end:
        rows = page(start, end - start, PAGE_EXTENTS)
        if len(rows) == 0:
            return
        for offset, length in rows.tolist():
            first, last = max(offset, start), min(offset + length, end)
            if first < last:
                yield first, last - first
        after = int(rows[-1][0]) + int(rows[-1][1])
        if after <= start:
            raise BackupError(f"the extents of a snapshot do not ascend at {start}: nothing was backed up")
        start = after


def pieces(snapshot: SnapshotLike, base_id: str | None) -> Iterator[tuple[int, int, bytes | memoryview | None]]:
    """All of a backup of one volume as (offset, length, bytes or None for zeros), ascending.

    Without a base: what is allocated. With one: each changed extent, its holes included.
    """
    if base_id is None:
        for offset, length in allocated(snapshot):
            yield from _data(snapshot, offset, length)
        return
    for first, length in changed(snapshot, base_id):
        position, end = first, first + length
        for offset, data_length in allocated(snapshot, first, end):
            if position < offset:
                yield position, offset - position, None
            yield from _data(snapshot, offset, data_length)
            position = offset + data_length
        if position < end:
            yield position, end - position, None


def _data(snapshot: SnapshotLike, offset: int, length: int) -> Iterator[tuple[int, int, bytes | memoryview | None]]:
    end = offset + length
    while offset < end:
        # Pieces end at multiples of their size, so that zeros are found alike wherever an extent begins.
        count = min(PIECE_BYTES - offset % PIECE_BYTES, end - offset)
        plain = snapshot.pread(count, offset)
        if len(plain) != count:
            raise BackupError(f"a snapshot gave {len(plain)} bytes at {offset} instead of {count}")
        yield from _without_zeros(plain, offset)
        offset += count


def _without_zeros(plain: bytes, offset: int) -> Iterator[tuple[int, int, bytes | memoryview | None]]:
    """Splits a piece at long runs of zeros."""
    if len(plain) <= ZERO_BYTES_MIN:
        yield offset, len(plain), None if _ZEROS.startswith(plain) else plain
        return
    import numpy as np

    whole = len(plain) - len(plain) % ZERO_BYTES_MIN
    words = np.frombuffer(plain, dtype=np.uint64)
    filled: list[bool] = np.any(words[: whole // 8].reshape(-1, ZERO_BYTES_MIN // 8), axis=1).tolist()
    if whole < len(plain):
        filled.append(bool(words[whole // 8 :].any()))
    view = memoryview(plain)
    first = 0
    for index in range(1, len(filled) + 1):
        if index < len(filled) and filled[index] == filled[first]:
            continue
        begin, end = first * ZERO_BYTES_MIN, min(index * ZERO_BYTES_MIN, len(plain))
        yield offset + begin, end - begin, view[begin:end] if filled[first] else None
        first = index
