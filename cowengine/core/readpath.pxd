"""Reads of one volume."""

from libc.stdint cimport uint32_t, uint64_t

from cowengine.core.blockmap cimport BlockMap
from cowengine.core.iotable cimport IOTable
from cowengine.core.mutex cimport Mutex
from cowengine.core.observed cimport observed_int_t, observed_t
from cowengine.core.radix cimport link_t
from cowengine.core.roots cimport Head, Root
from cowengine.core.sealtable cimport SealTable

cdef enum:
    EXTENTS_MAX = 64
    SEALS_MAX = 1024            # blocks that one look at the map resolves where anything is sealed

ctypedef struct extent_read_t:
    uint64_t slot               # 0: zeros
    uint64_t skip               # bytes
    uint64_t length             # bytes
    uint64_t offset             # of its first byte in the volume
    bint there                  # its bytes are in the buffer

ctypedef struct look_t:         # where the beginning of a range lies
    extent_read_t extents[EXTENTS_MAX]
    uint32_t seals[SEALS_MAX]
    uint64_t covered            # bytes
    uint64_t era
    int count
    bint sealed

ctypedef struct birth_t:
    uint64_t first              # block
    uint64_t count
    uint64_t birth              # 0: holes


cdef class ReadPath:
    cdef readonly IOTable io
    cdef readonly int fd
    cdef Mutex mutex
    cdef readonly BlockMap map
    cdef readonly Head live
    cdef readonly SealTable seals
    cdef observed_int_t state              # 0, or the status that every call returns
    cdef readonly uint64_t block_bytes
    cdef int block_shift
    cdef uint64_t slots_per_block
    cdef uint64_t era
    cdef observed_t readers[2]     # under way, by era
    cdef readonly observed_t bytes_read
    cdef public observed_t node_limit       # `trim` is called when there are more nodes of the map in memory
    cdef public observed_t seal_limit       # the same for the table of seals
    cdef object trim

    cdef bint is_crowded(self) noexcept nogil
    cdef int look(self, Root root, uint64_t length, uint64_t offset, look_t *found) noexcept nogil
    cdef int read(self, Root root, char *data, uint64_t length, uint64_t offset) noexcept nogil
    cdef int read_cached(self, Root root, char *data, uint64_t length, uint64_t offset) noexcept nogil
    cdef int check_sealed(self, const extent_read_t *extent, const uint32_t *seals, char *data) noexcept nogil
    cdef int resolve(self, link_t *link, uint64_t offset, uint64_t length, extent_read_t *extents, int *count,
                     uint64_t *covered) noexcept nogil
    cdef int find_seals(self, uint64_t slot, uint64_t count, uint32_t *seals) noexcept nogil
    cdef int expect(self, const extent_read_t *extents, int count, uint32_t *seals, bint *sealed) noexcept nogil
    cdef uint64_t blocks_in(self, const extent_read_t *extent) noexcept nogil
    cdef int read_sealed(self, const extent_read_t *extent, const uint32_t *seals, char *data) noexcept nogil
    cdef int read_part(self, uint64_t slot, uint32_t seal, uint64_t offset, char *data, uint64_t skip,
                       uint64_t length) noexcept nogil
    cdef int read_blocks(self, uint64_t slot, uint64_t count, const uint32_t *seals, uint64_t offset,
                         char *data) noexcept nogil
    cdef int read_block(self, uint64_t slot, uint32_t seal, uint64_t offset, char *whole) noexcept nogil
    cdef int some_births(self, Root root, uint64_t *first, uint64_t end, birth_t *births, int room, int *count,
                         int *found) noexcept nogil


cdef int fetch(ReadPath path, extent_read_t *extents, int count, const uint32_t *seals, char *data,
               bint cached) noexcept nogil
