"""The checksum of every structure on disk: XXH64."""

from libc.stdint cimport uint64_t


cdef extern from "checksum_impl.h" nogil:
    uint64_t ce_xxh64(const void *data, size_t length, uint64_t seed) noexcept
