"""What of a snapshot goes into a backup: its extents, page by page, and the pieces of bytes and holes in them.

Reads the snapshot only, never the live volume. Does not encode anything.
Threads: plain generators of one caller. Memory: one page of extents and one piece of `PIECE_BYTES`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from cowengine.errors import BackupError

PIECE_BYTES = 1 << 20
PAGE_EXTENTS = 4096
ROWS_AT_ONCE = 64  # of what is allocated near a changed extent
# Zeros shorter than this are stored as data: zstd makes nothing of them, and each record costs 80 bytes.
ZERO_BYTES_MIN = 64 << 10
_ZEROS = bytes(ZERO_BYTES_MIN)

#: (start, length, most rows) -> an array of (offset, length)
Lister = Callable[[int, int, int], Any]


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

    def list_changed(start: int, length: int, max_results: int) -> Any:
        return snapshot.changed_extents(base_id, start, length, max_results)

    return _paged(list_changed, 0, snapshot.size)


def _paged(list_extents: Lister, start: int, end: int) -> Iterator[tuple[int, int]]:
    while start < end:
        rows, start = _page(list_extents, start, end, PAGE_EXTENTS)
        yield from ((first, last - first) for first, last in rows)


def _page(list_extents: Lister, start: int, end: int, rows_max: int) -> tuple[list[tuple[int, int]], int]:
    """The next extents as (begin, end), cut at both ends of the range, and where to go on."""
    rows = list_extents(start, end - start, rows_max).tolist()
    if not rows:
        return [], end
    after = sum(rows[-1])
    if after <= start:
        raise BackupError(f"the extents of a snapshot do not ascend at {start}: nothing was backed up")
    cut = [(max(offset, start), min(offset + length, end)) for offset, length in rows]
    return [(first, last) for first, last in cut if first < last], after


def pieces(snapshot: SnapshotLike, base_id: str | None) -> Iterator[tuple[int, int, bytes | memoryview | None]]:
    """All of a backup of one volume as (offset, length, bytes or None for zeros), ascending.

    Without a base: what is allocated. With one: each changed extent, its holes included.
    """
    if base_id is None:
        for offset, length in allocated(snapshot):
            yield from _data(snapshot, offset, length)
        return
    mapped = _Mapped(snapshot)
    for first, length in changed(snapshot, base_id):
        position, end = first, first + length
        while position < end:
            offset, stop = mapped.next(position)
            offset, stop = min(offset, end), min(stop, end)
            if position < offset:
                yield position, offset - position, None
            if offset < stop:
                yield from _data(snapshot, offset, stop - offset)
            position = max(offset, stop)


class _Mapped:
    """What is allocated in a snapshot, asked for by ascending positions; what lies between far ones is not listed."""

    def __init__(self, snapshot: SnapshotLike) -> None:
        self._snapshot = snapshot
        self._rows: deque[tuple[int, int]] = deque()  # begin and end of extents, ascending
        self._listed = 0  # what is allocated before is in the rows, or was passed

    def next(self, position: int) -> tuple[int, int]:
        """The first allocated (begin, end) from a position on, cut there; behind the last one both are the size."""
        size = self._snapshot.size
        while True:
            while self._rows and self._rows[0][1] <= position:
                self._rows.popleft()
            if self._rows:
                begin, end = self._rows[0]
                return max(begin, position), end
            start = max(position, self._listed)
            if start >= size:
                return size, size
            rows, self._listed = _page(self._snapshot.allocated_extents, start, size, ROWS_AT_ONCE)
            self._rows.extend(rows)


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
    end, begun, filled = len(plain), 0, not _is_zero(plain, 0)
    for at in range(ZERO_BYTES_MIN, end, ZERO_BYTES_MIN):
        if filled == _is_zero(plain, at):
            yield offset + begun, at - begun, memoryview(plain)[begun:at] if filled else None
            begun, filled = at, not filled
    whole = plain if begun == 0 else memoryview(plain)[begun:]
    yield offset + begun, end - begun, whole if filled else None


def _is_zero(plain: bytes, at: int) -> bool:
    """Whether the part that begins there, of ZERO_BYTES_MIN bytes or to the end, is all zeros; stops at the first other
    byte.
    """
    rest = len(plain) - at
    return plain.startswith(_ZEROS if rest >= ZERO_BYTES_MIN else _ZEROS[:rest], at)
