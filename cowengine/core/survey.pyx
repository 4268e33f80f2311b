"""What a backup looks at in the bytes that it read: long zeros, and the checksum of everything else.

One pass over many pieces that lie one behind the other in a buffer, with the GIL given up. Reads no files.

Threads   Any number; no state.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize, PyByteArray_Resize
from libc.stdint cimport uint64_t
from libc.string cimport memcmp

from cowengine.core.checksum cimport ce_sum_t, ce_xxh64_many

cdef enum:
    PART_BYTES = 32
    SUMS_AT_ONCE = 128

ctypedef struct part_t:
    uint64_t offset             # of the volume
    uint64_t length
    uint64_t at                 # in the buffer; NOWHERE: zeros
    uint64_t checksum           # XXH64; of zeros that of no bytes

cdef uint64_t _NOWHERE = <uint64_t>-1

#: `at` of a part that reads as zeros.
NOWHERE = _NOWHERE


cdef bint is_zero(const unsigned char *data, uint64_t length) noexcept nogil:
    """Whether all bytes are zero; stops at the first other one. There is at least one byte."""
    return data[0] == 0 and memcmp(data, data + 1, length - 1) == 0


cdef part_t *add_part(part_t *part, uint64_t at, uint64_t offset, uint64_t length, bint filled) noexcept nogil:
    """Enters a part; returns the place behind it."""
    part.offset, part.length = offset, length
    part.at = at if filled else _NOWHERE
    return part + 1


cdef part_t *split(part_t *part, const unsigned char *data, uint64_t at, uint64_t offset, uint64_t length,
                   uint64_t zeros_min) noexcept nogil:
    """Enters the parts of a piece: zeros in whole units of `zeros_min` bytes from where it begins, and what is between.

    The last unit is what is left.
    """
    cdef uint64_t begun = 0, unit = zeros_min
    cdef bint filled = not is_zero(data + at, min(zeros_min, length))
    while unit < length:
        if filled == is_zero(data + at + unit, min(zeros_min, length - unit)):
            part = add_part(part, at + begun, offset + begun, unit - begun, filled)
            begun, filled = unit, not filled
        unit += zeros_min
    return add_part(part, at + begun, offset + begun, length - begun, filled)


cdef void add_checksums(part_t *part, part_t *end, const unsigned char *data, bint portable) noexcept nogil:
    """Enters the checksums of parts."""
    cdef ce_sum_t sums[SUMS_AT_ONCE]
    cdef Py_ssize_t i, count
    while part < end:
        count = min(<Py_ssize_t>SUMS_AT_ONCE, end - part)
        for i in range(count):
            sums[i].data = data + (part[i].at if part[i].at != _NOWHERE else 0)
            sums[i].length = part[i].length if part[i].at != _NOWHERE else 0
        ce_xxh64_many(sums, count, portable)
        for i in range(count):
            part[i].checksum = sums[i].checksum
        part += count


def survey(const unsigned char[::1] data not None, const uint64_t[:, ::1] extents not None,
           const unsigned char[::1] filled not None, uint64_t zeros_min, bint portable=False):
    """The parts of extents (offset, length), of which those that are `filled` lie one behind the other in `data`.

    Returns rows of four uint64: offset, length, where the bytes lie in `data` (NOWHERE: they are zeros), XXH64. An
    extent that is not filled is one part of zeros. Raises ValueError for what does not fit together. `portable` does
    without what only some processors have; the result is the same.
    """
    cdef uint64_t at = 0, room = data.shape[0]
    cdef Py_ssize_t i, count = extents.shape[0], parts_max = 0
    cdef const unsigned char *bytes = &data[0] if room > 0 else NULL
    cdef bytearray result
    cdef part_t *first
    cdef part_t *part
    if extents.shape[1] != 2 or filled.shape[0] != count or zeros_min == 0:
        raise ValueError("an extent is an offset and a length, and filled or not")
    for i in range(count):
        parts_max += 1
        if filled[i]:
            if not 0 < extents[i, 1] <= room:
                raise ValueError("the extents have more bytes than the buffer, or one has none")
            room -= extents[i, 1]
            parts_max += (extents[i, 1] - 1) // zeros_min
    result = PyByteArray_FromStringAndSize(NULL, parts_max * PART_BYTES)
    first = part = <part_t *>PyByteArray_AS_STRING(result)
    with nogil:
        for i in range(count):
            if filled[i]:
                part = split(part, bytes, at, extents[i, 0], extents[i, 1], zeros_min)
                at += extents[i, 1]
            else:
                part = add_part(part, at, extents[i, 0], extents[i, 1], False)
        add_checksums(first, part, bytes, portable)
    PyByteArray_Resize(result, (part - first) * PART_BYTES)
    return result
