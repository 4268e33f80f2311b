"""What callers pass to name bytes: numbers, ranges and buffers. Refuses what cannot be, before anything is done.

The calls of the data path look for themselves first and come here only with what is wrong or no plain int.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from cowengine.errors import OutOfRangeError

if TYPE_CHECKING:
    from cowengine.extents import ExtentArray


def whole_number(value: Any, what: str) -> int:
    """An int, or what counts as one (such as a number of a NumPy array). Raises OutOfRangeError for anything else."""
    try:
        return operator.index(value)
    except TypeError:
        raise OutOfRangeError(f"{what} must be an int, not {type(value).__name__}") from None


def check_range(offset: Any, length: Any, size: int, what: str, whole: str = "volume") -> tuple[int, int]:
    """Offset and length as ints. Raises OutOfRangeError unless they lie in the `size` bytes of the `whole`."""
    offset, length = whole_number(offset, f"{what}: the offset"), whole_number(length, f"{what}: the length")
    if offset < 0 or length < 0 or offset + length > size:
        raise OutOfRangeError(f"{what} of {length} bytes at {offset}: the {whole} has {size} bytes")
    return offset, length


def check_buffer(buffer: Any, *, writable: bool = False) -> None:
    """Raises OutOfRangeError if a buffer is the reason why a call could not be."""
    try:
        view = memoryview(buffer)
    except (TypeError, BufferError, ValueError):
        raise OutOfRangeError(f"bytes or another buffer is needed, not {type(buffer).__name__}") from None
    if not view.c_contiguous:
        raise OutOfRangeError("the buffer's bytes do not lie one after the other; pass a contiguous copy")
    if writable and view.readonly:
        raise OutOfRangeError(f"a writable buffer is needed; this {type(buffer).__name__} is read-only")


def check_extents(extents: Any) -> ExtentArray:
    """Rows (offset, length) as an array of the kernels: from such an array, or from pairs of ints.

    Raises OutOfRangeError for anything else.
    """
    import numpy

    try:
        rows = numpy.asarray(extents)
    except (TypeError, ValueError, OverflowError) as error:
        raise OutOfRangeError(f"extents are rows of an offset and a length: {error}") from None
    if rows.shape == (0,):
        rows = numpy.empty((0, 2), numpy.uint64)
    if rows.ndim != 2 or rows.shape[1] != 2 or rows.dtype.kind not in "iu":
        raise OutOfRangeError(
            f"extents are rows of an offset and a length, both ints, not {rows.dtype} of shape {rows.shape}"
        )
    if rows.dtype.kind == "i" and (rows < 0).any():
        raise OutOfRangeError("an extent begins or ends before byte 0")
    return numpy.require(rows, numpy.uint64, ["C", "ALIGNED"])


def check_rate(rate: int | None) -> int | None:
    """A speed in bytes a second, at least 1; None is no limit. Raises OutOfRangeError."""
    if rate is not None and whole_number(rate, "rate") < 1:
        raise OutOfRangeError(f"a rate of {rate} bytes a second")
    return rate


def check_barriers(barriers: Any) -> int:
    """How many barriers a commit of data takes at least: 1 or 2. Raises OutOfRangeError."""
    number = whole_number(barriers, "barriers")
    if number not in (1, 2):
        raise OutOfRangeError(f"barriers is 1 or 2, not {number}")
    return number
