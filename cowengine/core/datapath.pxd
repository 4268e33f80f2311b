"""Reads, writes and the fence of one volume."""

from libc.stdint cimport uint32_t, uint64_t

from cowengine.core.batch cimport Batch, delta_t
from cowengine.core.observed cimport observed_bint_t, observed_t
from cowengine.core.radix cimport run_t
from cowengine.core.readpath cimport ReadPath
from cowengine.core.roots cimport Head, Root
from cowengine.core.slotmap cimport SlotMap
from cowengine.core.unconfirmed cimport Unconfirmed

cdef enum:
    PIECES_MAX = 256
    RUNWAY_MAX = 8
    REGIONS_MAX = 8

ctypedef struct region_t:       # docs/format.md section 3
    uint64_t first_block
    uint64_t slot
    uint64_t block_count

ctypedef struct piece_t:        # a part of one write: blocks that lie consecutively
    uint64_t first
    uint64_t count
    uint64_t slot
    uint64_t old_slot           # of a partly written block that is placed: what the rest of it is; 0: zeros
    uint32_t old_seal           # of what lies there; 0: it is not sealed
    bint placed
    bint partial

ctypedef struct plan_t:         # of one write of at most PIECES_MAX blocks
    uint64_t first
    uint64_t end
    uint64_t skip               # bytes of the first block before the write begins
    uint64_t length             # bytes
    uint64_t epoch
    int flight
    int count
    size_t reserved             # bytes of the batch
    piece_t pieces[PIECES_MAX]


cdef class DataPath(ReadPath):
    cdef readonly SlotMap slots
    cdef public observed_bint_t read_only       # nothing may be changed from outside
    cdef readonly dict heads    # by number; the live one is among them
    cdef region_t regions[REGIONS_MAX]
    cdef int region_count
    cdef Batch batch            # the open one
    cdef readonly Unconfirmed unconfirmed
    cdef uint64_t chunk_blocks
    cdef readonly observed_t data_writes
    cdef readonly observed_t in_place_writes    # those of them that overwrote a block
    cdef readonly observed_t placed_again       # pieces that could have been in place, but for an unconfirmed record
    cdef run_t runway[RUNWAY_MAX]
    cdef int runway_count
    cdef object refill          # callable(slots_wanted): gives runs to add_runway
    cdef object commit          # callable(): commits the open batch
    cdef readonly observed_t bytes_written
    cdef readonly observed_t blocks_placed

    cdef void await_older(self)
    cdef void await_placed(self, const delta_t *deltas, size_t count)
    cdef tuple take(self, list keep)
    cdef Root kept_root(self, Head head)
    cdef int status_of(self, Head head) noexcept nogil
    cdef int begin(self, Head head, plan_t *plan) noexcept nogil
    cdef void register(self, Head head, plan_t *plan) noexcept nogil
    cdef void end(self, Head head, plan_t *plan) noexcept nogil
    cdef int place(self, Head head, plan_t *plan) noexcept nogil
    cdef int place_run(self, plan_t *plan, uint64_t block, uint64_t count, bint hole, uint64_t *slot,
                       uint64_t *got) noexcept nogil
    cdef uint64_t home_of(self, uint64_t block, uint64_t *count) noexcept nogil
    cdef void unplace(self, plan_t *plan) noexcept nogil
    cdef int transfer(self, plan_t *plan, const char *data) noexcept nogil
    cdef int write_partial(self, plan_t *plan, piece_t *piece, const char *data) noexcept nogil
    cdef int publish(self, Head head, plan_t *plan) noexcept nogil
    cdef int enter(self, Head head, piece_t *piece, uint64_t birth) noexcept nogil
    cdef int write_piecewise(self, Head head, const char *data, uint64_t length, uint64_t offset,
                             uint64_t *done) noexcept nogil
    cdef int discard_some(self, Head head, uint64_t first, uint64_t end, uint64_t size,
                          uint64_t *done) noexcept nogil
    cdef int use(self, uint64_t slot, uint64_t count) noexcept nogil
    cdef int resume_after(self, int status, uint64_t blocks) except -1
