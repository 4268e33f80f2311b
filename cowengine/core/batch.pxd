"""The open batch: what the next record will say."""

from libc.stdint cimport uint64_t

from cowengine.core.radix cimport runs_t

cdef enum:
    BYTES_A_PIECE = 48          # a delta and a freed run

ctypedef struct delta_t:        # docs/format.md section 6
    uint64_t block
    uint64_t count
    uint64_t target
    uint64_t birth


cdef class Batch:
    cdef delta_t *deltas
    cdef size_t delta_count
    cdef size_t delta_room
    cdef runs_t freed
    cdef runs_t freed_nodes
    cdef size_t reserved        # bytes, for writes in flight
    cdef size_t bytes_max
    cdef uint64_t number        # how many were taken before it
    cdef uint64_t slots_per_block

    cdef int add_delta(self, uint64_t block, uint64_t count, uint64_t target, uint64_t birth) noexcept nogil
    cdef size_t bytes(self) noexcept nogil
    cdef size_t runs_max(self, size_t kept) noexcept nogil
    cdef tuple take(self)
