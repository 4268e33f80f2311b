"""The seals of blocks, by the slot in which a block begins."""

from libc.stdint cimport uint32_t, uint64_t

from cowengine.core.radix cimport Tree, node_t


cdef class SealTable:
    cdef readonly Tree tree

    cdef bint is_empty(self) noexcept nogil
    cdef int leaf_from(self, uint64_t *slot, uint64_t end, node_t **leaf) noexcept nogil
    cdef int find(self, uint64_t slot, uint64_t count, uint64_t stride, uint32_t *seals) noexcept nogil
    cdef int enter(self, uint64_t slot, uint32_t seal) noexcept nogil
    cdef int clear(self, uint64_t slot, uint64_t count) noexcept nogil
