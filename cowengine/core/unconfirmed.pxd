"""What records of one barrier have placed and no later record has confirmed."""

from libc.stdint cimport uint64_t

from cowengine.core.batch cimport Batch
from cowengine.core.iotable cimport IOTable
from cowengine.core.mutex cimport Mutex
from cowengine.core.radix cimport runs_t


cdef class Unconfirmed:
    cdef IOTable io
    cdef int fd
    cdef uint64_t fold
    cdef uint64_t block_bytes
    cdef uint64_t slots_per_block
    cdef Mutex mutex
    cdef runs_t fenced          # of the batch that was taken last
    cdef runs_t acknowledged    # of the last record, if it vouches for them

    cdef bint fence(self, Batch batch, uint64_t blocks_max) noexcept nogil
    cdef bint has(self, uint64_t slot, uint64_t *count) noexcept nogil
    cdef int read_checks(self, char *buffer, uint64_t piece, uint64_t *checks) noexcept nogil
