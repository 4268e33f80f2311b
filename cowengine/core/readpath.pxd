"""Reads of one volume."""

from libc.stdint cimport uint64_t

from cowengine.core.blockmap cimport BlockMap
from cowengine.core.iotable cimport IOTable
from cowengine.core.mutex cimport Mutex
from cowengine.core.radix cimport link_t, node_t

cdef enum:
    EXTENTS_MAX = 64

ctypedef struct extent_read_t:
    uint64_t slot               # 0: zeros
    uint64_t skip               # bytes
    uint64_t length             # bytes


cdef class Root:
    cdef ReadPath path
    cdef link_t link
    cdef bint gone
    cdef public bint used
    cdef object __weakref__


cdef class ReadPath:
    cdef readonly IOTable io
    cdef readonly int fd
    cdef Mutex mutex
    cdef readonly BlockMap map
    cdef readonly bint headless  # another process owns the live head: only roots can be read
    cdef int state              # 0, or the status that every call returns
    cdef readonly uint64_t size
    cdef readonly uint64_t block_bytes
    cdef int block_shift
    cdef uint64_t slots_per_block
    cdef uint64_t block_count
    cdef uint64_t era
    cdef uint64_t readers[2]
    cdef node_t **orphans
    cdef size_t orphan_count
    cdef readonly uint64_t bytes_read
    cdef uint64_t hand          # where the sweep over the live map goes on
    cdef public size_t node_limit       # `trim` is called when there are more nodes of the map in memory
    cdef object trim

    cdef void add_orphan(self, node_t *node) noexcept
    cdef void drop_orphans(self) noexcept
    cdef int read(self, Root root, char *data, uint64_t length, uint64_t offset) noexcept nogil
    cdef int resolve(self, link_t *link, uint64_t offset, uint64_t length, extent_read_t *extents, int *count,
                     uint64_t *covered) noexcept nogil
