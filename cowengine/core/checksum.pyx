"""XXH64 for Python code: one function over any buffer.

The loop is C (checksum_impl.c); other kernels call it through checksum.pxd. Thread-safe; keeps no state.
"""

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
