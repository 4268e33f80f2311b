"""The checksums on disk: XXH64 of every structure, and the seals of blocks."""

from libc.stdint cimport uint32_t, uint64_t


cdef extern from "checksum_impl.h" nogil:
    ctypedef struct ce_sum_t:
        const void *data
        size_t length
        uint64_t checksum

    uint64_t ce_xxh64(const void *data, size_t length, uint64_t seed) noexcept
    void ce_xxh64_many(ce_sum_t *sums, size_t count, int portable) noexcept


cdef extern from "seal_impl.h" nogil:
    enum:
        CE_FASTEST
        CE_PORTABLE
        CE_BY_INSTRUCTION

    uint32_t ce_seal(const void *block, size_t bytes, uint64_t slot, int kernel) noexcept
