"""Reads of one volume."""

from libc.stdint cimport uint64_t

from cowengine.core.blockmap cimport BlockMap
from cowengine.core.iotable cimport IOTable
from cowengine.core.mutex cimport Mutex
from cowengine.core.radix cimport link_t
from cowengine.core.roots cimport Head, Root

cdef enum:
    EXTENTS_MAX = 64

ctypedef struct extent_read_t:
    uint64_t slot               # 0: zeros
    uint64_t skip               # bytes
    uint64_t length             # bytes


cdef class ReadPath:
    cdef readonly IOTable io
    cdef readonly int fd
    cdef Mutex mutex
    cdef readonly BlockMap map
    cdef readonly Head live
    cdef int state              # 0, or the status that every call returns
    cdef readonly uint64_t block_bytes
    cdef int block_shift
    cdef uint64_t slots_per_block
    cdef uint64_t era
    cdef uint64_t readers[2]
    cdef readonly uint64_t bytes_read
    cdef public size_t node_limit       # `trim` is called when there are more nodes of the map in memory
    cdef object trim

    cdef int read(self, Root root, char *data, uint64_t length, uint64_t offset) noexcept nogil
    cdef int resolve(self, link_t *link, uint64_t offset, uint64_t length, extent_read_t *extents, int *count,
                     uint64_t *covered) noexcept nogil
