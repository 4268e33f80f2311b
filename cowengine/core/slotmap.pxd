"""Which slots of the file are used, and which may be given out."""

from libc.stdint cimport uint64_t

from cowengine.core.mutex cimport Mutex
from cowengine.core.observed cimport observed_t
from cowengine.core.radix cimport Tree

cdef enum:
    RUNS_AT_ONCE = 2048     # freed or released while the mutex is held


cdef class SlotMap:
    cdef readonly Tree used
    cdef list trees             # others whose nodes and blocks lie in these slots
    cdef Mutex mutex
    cdef readonly uint64_t end  # no slot at or above this one was ever given out
    cdef uint64_t **busy        # a leaf's 512 words, or NULL: as in `used`
    cdef uint64_t busy_leaves   # room in `busy`
    cdef readonly observed_t busy_count   # leaves of it in memory

    cdef void extend(self, uint64_t end) noexcept
    cdef int busy_leaf(self, uint64_t index, uint64_t **words) noexcept nogil
    cdef int is_busy(self, uint64_t slot, uint64_t count, bint *busy) noexcept nogil
    cdef int set_busy(self, uint64_t slot, uint64_t count, bint value) noexcept nogil
    cdef int set_used(self, uint64_t slot, uint64_t count, bint value) noexcept nogil
    cdef int set_runs(self, list runs, bint used, bint value) except -1
