"""Lists of extents as NumPy arrays: what the walks of the core found, in bytes.

Rows are (offset, length), whole blocks (the last one cut at the volume's size), ascending, disjoint, as few as
possible.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cowengine.errors import OutOfRangeError
from cowengine.ranges import check_range, whole_number

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    ExtentArray = NDArray[numpy.uint64]

ROWS_MAX = sys.maxsize // 2

#: (first block, end block, most rows) -> raw pairs (first, count)
Walk = Callable[[int, int, int], bytearray]


def collect(
    walks: list[Walk], size: int, block_bytes: int, start: int, length: int | None, max_results: int | None
) -> ExtentArray:
    """What any of the walks finds in a range, at most `max_results` rows; go on at the end of the last row.

    Fewer rows than that are the last ones: where rows of several walks join, all are asked for more. The range takes in
    every block that it touches. Raises OutOfRangeError if it does not lie in the volume.
    """
    import numpy

    start, _ = check_range(start, 0, size, "list of extents")
    start, length = check_range(start, size - start if length is None else length, size, "list of extents")
    rows_max = ROWS_MAX if max_results is None else min(whole_number(max_results, "max_results"), ROWS_MAX)
    if rows_max < 1:
        raise OutOfRangeError(f"max_results {max_results}: at least 1 is needed")
    first, end = start // block_bytes, -(-(start + length) // block_bytes) if length else 0
    rows: ExtentArray = numpy.empty((0, 2), dtype=numpy.uint64)
    while first < end and len(rows) < rows_max:
        found = [_pairs(numpy, walk(first, end, rows_max)) for walk in walks]
        first = min([int(part[-1].sum()) for part in found if len(part) >= rows_max], default=end)
        rows = found[0] if len(found) == 1 else _united(numpy, [rows, *found], first)
    rows = rows[:rows_max]
    rows = rows * numpy.uint64(block_bytes)
    if len(rows) and int(rows[-1, 0] + rows[-1, 1]) > size:
        rows[-1, 1] = size - int(rows[-1, 0])
    return rows


def _pairs(numpy: Any, raw: bytearray) -> ExtentArray:
    pairs: ExtentArray = numpy.frombuffer(raw, dtype=numpy.uint64).reshape(-1, 2)
    return pairs


def _united(numpy: Any, found: list[ExtentArray], reach: int) -> ExtentArray:
    """The union of several answers up to a block: as far as all of them reach."""
    rows = numpy.concatenate(found).astype(numpy.int64)
    rows = rows[numpy.argsort(rows[:, 0], kind="stable")]
    if len(rows) == 0:
        empty: ExtentArray = rows.astype(numpy.uint64)
        return empty
    starts, ends = rows[:, 0], numpy.maximum.accumulate(rows[:, 0] + rows[:, 1])
    new = numpy.concatenate(([True], starts[1:] > ends[:-1]))
    begin = starts[new]
    stop = ends[numpy.concatenate((new[1:], [True]))]
    keep = begin < reach
    united: ExtentArray = numpy.column_stack((begin, numpy.minimum(stop, reach) - begin))[keep].astype(numpy.uint64)
    return united
