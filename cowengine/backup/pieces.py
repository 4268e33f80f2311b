"""What of a snapshot goes into a backup: its extents, page by page, and batches of pieces of them.

Lists only; `batch.py` reads the bytes. Never looks at the live volume. Works on arrays, page by page, because there may
be millions of extents.

Threads: plain generators of one caller. Memory: a page of extents, and as many pieces of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from cowengine.errors import BackupError

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    from cowengine.extents import ExtentArray

    Numbers = NDArray[numpy.int64]
    Flags = NDArray[numpy.bool_]

PIECE_BYTES = 1 << 20
PAGE_EXTENTS = 4096
ROWS_AT_ONCE = 64  # of what is allocated near a changed extent, at first
BATCH_BYTES = 4 << 20
BATCH_PIECES = 1024

#: (start, length, most rows) -> an array of (offset, length)
Lister = Callable[[int, int, int], Any]


class SnapshotLike(Protocol):
    """What a backup needs of a snapshot. Offsets and lengths in bytes.

    If it has `pread_many` as a Snapshot has it, that is called instead of `pread`, by several threads at once.
    """

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


class Spans(NamedTuple):
    """Extents by begin and end, ascending and disjoint."""

    begin: Numbers
    end: Numbers


class Pieces(NamedTuple):
    """Consecutive pieces of a backup: extents of at most PIECE_BYTES that hold data, and holes of any length."""

    extents: ExtentArray
    """Rows of offset and length."""
    filled: Flags
    """Which hold data."""
    data_bytes: int
    """Of those."""


def allocated(snapshot: SnapshotLike) -> Iterator[Spans]:
    """The allocated extents, by pages."""
    return _paged(snapshot.allocated_extents, snapshot.size)


def changed(snapshot: SnapshotLike, base_id: str) -> Iterator[Spans]:
    """The extents that differ from the snapshot with change id `base_id`, by pages."""

    def list_changed(start: int, length: int, max_results: int) -> Any:
        return snapshot.changed_extents(base_id, start, length, max_results)

    return _paged(list_changed, snapshot.size)


def _paged(list_extents: Lister, size: int) -> Iterator[Spans]:
    start = 0
    while start < size:
        page, start = _page(list_extents, start, size, PAGE_EXTENTS)
        if len(page.begin):
            yield page


def _page(list_extents: Lister, start: int, end: int, rows_max: int) -> tuple[Spans, int]:
    """The next extents, cut at both ends of the range, and where to go on."""
    import numpy

    rows = numpy.asarray(list_extents(start, end - start, rows_max)).reshape(-1, 2).astype(numpy.int64)
    begins, ends = rows[:, 0], rows[:, 0] + rows[:, 1]
    if len(rows) == 0:
        return Spans(begins, ends), end
    after = int(ends[-1])
    if after <= start or (begins[1:] < ends[:-1]).any():
        raise BackupError(f"the extents of a snapshot do not ascend at {start}: nothing was backed up")
    begins, ends = numpy.maximum(begins, start), numpy.minimum(ends, end)
    some = begins < ends
    return Spans(begins[some], ends[some]), after


def batches(snapshot: SnapshotLike, base_id: str | None) -> Iterator[Pieces]:
    """All of a backup of one volume, ascending; the data of a batch has at most BATCH_BYTES.

    Without a base: what is allocated. With one: each changed extent, its holes included.
    """
    for spans, filled in _filled(snapshot) if base_id is None else _with_holes(snapshot, base_id):
        for pieces in _cut(spans, filled):
            yield from _batched(pieces)


def _filled(snapshot: SnapshotLike) -> Iterator[tuple[Spans, Flags]]:
    import numpy

    for page in allocated(snapshot):
        yield page, numpy.ones(len(page.begin), bool)


def _with_holes(snapshot: SnapshotLike, base_id: str) -> Iterator[tuple[Spans, Flags]]:
    """The changed extents, cut into what is allocated and what is not; what lies between far ones is not listed."""
    import numpy

    rows_max = ROWS_AT_ONCE
    for page in changed(snapshot, base_id):
        begin, end = page
        while len(begin):
            there, after = _page(snapshot.allocated_extents, int(begin[0]), int(end[-1]), rows_max)
            count = int(numpy.searchsorted(begin, after))
            yield _cut_at(Spans(begin[:count], numpy.minimum(end[:count], after)), there)
            if end[count - 1] > after:  # what is left of it goes with the next ones
                count -= 1
                begin[count] = after
            begin, end = begin[count:], end[count:]
            rows_max = min(max(ROWS_AT_ONCE, 4 * count), PAGE_EXTENTS)


def _cut_at(spans: Spans, there: Spans) -> tuple[Spans, Flags]:
    """Spans, cut where others begin and end, and whether each part lies in one of those."""
    import numpy

    begin, end = spans
    low, high = numpy.searchsorted(there.end, begin, "right"), numpy.searchsorted(there.begin, end)
    which, nth = _spread(high - low)
    other = low[which] + nth
    inside = Spans(numpy.maximum(begin[which], there.begin[other]), numpy.minimum(end[which], there.end[other]))
    reached = begin.copy()  # what of each span is behind its last part
    reached[which] = inside.end  # the last one counts
    before = numpy.where(nth == 0, begin[which], numpy.roll(inside.end, 1))
    begins = numpy.concatenate((inside.begin, before, reached))
    ends = numpy.concatenate((inside.end, inside.begin, end))
    filled = numpy.arange(len(begins)) < len(which)
    order = numpy.argsort(begins, kind="stable")
    order = order[begins[order] < ends[order]]
    return Spans(begins[order], ends[order]), filled[order]


def _spread(counts: Numbers) -> tuple[Numbers, Numbers]:
    """For each i counts[i] rows of (i, 0), (i, 1) and so on."""
    import numpy

    which = numpy.repeat(numpy.arange(len(counts)), counts)
    return which, numpy.arange(len(which)) - (numpy.cumsum(counts) - counts)[which]


def _cut(spans: Spans, filled: Flags) -> Iterator[Pieces]:
    """The pieces of spans, at most PAGE_EXTENTS at a time.

    They end at multiples of PIECE_BYTES, so that zeros are found alike wherever an extent begins.
    """
    import numpy

    begin, end = spans
    while len(begin):
        first = begin // PIECE_BYTES
        counts = numpy.where(filled, (end - 1) // PIECE_BYTES - first + 1, 1)
        rows = int(numpy.searchsorted(numpy.cumsum(counts), PAGE_EXTENTS, "right"))
        if rows == 0:  # the first one alone has more
            rows, counts[0] = 1, PAGE_EXTENTS
        which, nth = _spread(counts[:rows])
        offset = numpy.maximum(begin[which], (first[which] + nth) * PIECE_BYTES)
        stop = numpy.where(filled[which], numpy.minimum(end[which], (first[which] + nth + 1) * PIECE_BYTES), end[which])
        extents, holds = numpy.column_stack((offset, stop - offset)).astype(numpy.uint64), filled[which]
        yield Pieces(extents, holds, int(extents[holds, 1].sum()))
        if stop[-1] < end[rows - 1]:
            rows -= 1
            begin[rows] = stop[-1]
        begin, end, filled = begin[rows:], end[rows:], filled[rows:]


def _batched(pieces: Pieces) -> Iterator[Pieces]:
    import numpy

    bytes_up_to = numpy.cumsum(pieces.extents[:, 1].astype(numpy.int64) * pieces.filled)
    first = passed = 0
    while first < len(bytes_up_to):
        end = int(numpy.searchsorted(bytes_up_to, passed + BATCH_BYTES, "right"))
        end = min(end, first + BATCH_PIECES)
        before, passed = passed, int(bytes_up_to[end - 1])
        yield Pieces(pieces.extents[first:end], pieces.filled[first:end], passed - before)
        first = end
