"""Roots of the block map: what snapshots hold, and the heads, which change."""

from libc.stdint cimport uint64_t

from cowengine.core.blockmap cimport BlockMap
from cowengine.core.mutex cimport Mutex
from cowengine.core.observed cimport observed_bint_t, observed_int_t, observed_t
from cowengine.core.radix cimport holder_t, link_t

cdef enum:
    FLIGHTS_MAX = 64

ctypedef struct flight_t:       # a write that has begun and not ended: blocks [first, end); end 0: free
    uint64_t first
    uint64_t end
    uint64_t epoch
    uint64_t batch              # number of the one that was open when it began


cdef class Root:
    cdef BlockMap map
    cdef Mutex mutex
    cdef link_t link
    cdef observed_int_t state              # 0, or the status of every read of it
    cdef readonly observed_t size     # bytes that can be read; of a snapshot whoever reads it knows
    cdef public observed_bint_t used
    cdef object __weakref__


cdef class Head(Root):
    cdef readonly int number    # 0 to 255; 0 is the live volume
    cdef int block_shift
    cdef uint64_t block_count
    cdef readonly uint64_t epoch
    cdef readonly uint64_t frozen   # the last epoch ever frozen here
    cdef holder_t holder        # what the free rule goes by
    cdef bint fencing           # a snapshot waits for older writes; newer ones may not publish
    cdef bint paused            # no write may begin
    cdef flight_t flights[FLIGHTS_MAX]
    cdef int flight_count
    cdef uint64_t hand          # where the sweep over its nodes goes on

    cdef bint overlaps(self, uint64_t first, uint64_t end) noexcept nogil
    cdef int begin_flight(self, uint64_t first, uint64_t end, uint64_t batch) noexcept nogil
    cdef void end_flight(self, int flight) noexcept nogil
    cdef bint has_older(self) noexcept nogil
    cdef bint has_earlier(self, uint64_t batch, uint64_t first, uint64_t end) noexcept nogil
    cdef void fence(self) noexcept nogil
    cdef uint64_t blocks_of(self, uint64_t size) noexcept nogil
    cdef void stand_on_snapshot(self) noexcept nogil
    cdef void was_written(self) noexcept nogil
