"""The checksums on disk for Python code: XXH64 over any buffer, and the seal of a block.

The loops are C (checksum_impl.c, seal_impl.c); other kernels call them through checksum.pxd. Thread-safe; no state.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #ifdef COWENGINE_DEBUG
    #define CE_DEBUG_BUILD 1
    #else
    #define CE_DEBUG_BUILD 0
    #endif
    """
    const int CE_DEBUG_BUILD

#: True in a build with bounds checks and assertions.
DEBUG = bool(CE_DEBUG_BUILD)

cdef Py_ssize_t RELEASE_GIL_ABOVE = 4096


def xxh64(const unsigned char[::1] data not None, uint64_t seed=0):
    """The XXH64 of a buffer as an int in 0 .. 2**64 - 1; the GIL is released above 4 KiB."""
    cdef Py_ssize_t length = data.shape[0]
    cdef const unsigned char *start = &data[0] if length > 0 else NULL
    cdef uint64_t result
    if length > RELEASE_GIL_ABOVE:
        with nogil:
            result = ce_xxh64(start, <size_t>length, seed)
    else:
        result = ce_xxh64(start, <size_t>length, seed)
    return result


def xxh64_rows(const unsigned char[::1] rows not None, Py_ssize_t row_bytes, Py_ssize_t length):
    """The XXH64 of the first `length` bytes of each row of a buffer, as raw uint64; the GIL is released."""
    cdef Py_ssize_t i, count = rows.shape[0] // row_bytes
    cdef const unsigned char *start = &rows[0] if count > 0 else NULL
    cdef bytearray result = PyByteArray_FromStringAndSize(NULL, count * sizeof(uint64_t))
    cdef uint64_t *checksums = <uint64_t *>PyByteArray_AS_STRING(result)
    assert 0 < length <= row_bytes
    with nogil:
        for i in range(count):
            checksums[i] = ce_xxh64(start + i * row_bytes, <size_t>length, 0)
    return result


#: Kernels of `seal_of`; without any of the processor's instructions, and with that for CRC32C alone.
PORTABLE, BY_INSTRUCTION = CE_PORTABLE, CE_BY_INSTRUCTION


def seal_of(const unsigned char[::1] block not None, uint64_t slot, int kernel=CE_FASTEST):
    """The seal of a block that begins at `slot`: 1 .. 2**32 - 1. The length must be a multiple of 32.

    `kernel` chooses another than the fastest; the result is the same. The GIL is released.
    """
    cdef Py_ssize_t length = block.shape[0]
    cdef const unsigned char *start = &block[0] if length > 0 else NULL
    cdef uint64_t result
    if length % 32 != 0:
        raise ValueError("the length of a block is a multiple of 32")
    with nogil:
        result = ce_seal(start, <size_t>length, slot, kernel)
    return result
