"""Blocks that a record of one barrier vouches for: their checks, and that nobody overwrites them until it is confirmed.

Recovery drops a last record whose blocks are not what its checks say. So from the moment in which a batch is taken what
it places is not written in place (I48), and its checks are taken when all writes to it have ended (I47): over what the
file then holds, which stays so until the next record is durable. Decides nothing: which records vouch is the engine's.

On disk   docs/format.md sections 6 and 8.
Threads   The mutex is held where a method is `cdef`; the others need the engine's commit lock, and take it.
"""

from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc

from cowengine.core.batch cimport Batch, delta_t
from cowengine.core.checksum cimport ce_xxh64
from cowengine.core.iotable cimport IOTable
from cowengine.core.mutex cimport Mutex
from cowengine.core.radix cimport KIND_RUN, NODE_BYTES, kind_of, run_t, runs_append, runs_clear, runs_t, slot_of

cdef enum:
    PIECE_BYTES = 1 << 16       # read at a call, or one block: what is summed is still in the cache


cdef class Unconfirmed:
    """Of one volume: the blocks of the last record, and those of the one on its way."""

    def __cinit__(self, IOTable io not None, int fd, uint64_t fold, int block_shift, Mutex mutex not None):
        self.io, self.fd, self.fold, self.mutex = io, fd, fold, mutex
        self.block_bytes = <uint64_t>1 << block_shift
        self.slots_per_block = self.block_bytes // NODE_BYTES

    def __dealloc__(self):
        runs_clear(&self.fenced)
        runs_clear(&self.acknowledged)

    cdef bint fence(self, Batch batch, uint64_t blocks_max) noexcept nogil:
        """A batch is about to be taken: what it places is not written in place from now on.

        False, and nothing is kept, if it places nothing, or more than so many blocks.
        """
        cdef uint64_t blocks = 0
        cdef delta_t *delta
        cdef size_t i
        self.fenced.count = 0
        for i in range(batch.delta_count):
            delta = &batch.deltas[i]
            if kind_of(delta.target) == KIND_RUN:
                blocks += delta.count
                if blocks > blocks_max or runs_append(
                        &self.fenced, slot_of(delta.target), delta.count * self.slots_per_block) != 0:
                    self.fenced.count = 0
                    return False
        return blocks > 0

    cdef bint has(self, uint64_t slot, uint64_t *count) noexcept nogil:
        """Whether a record vouches for the block in a slot. `count` becomes for how many blocks that is so, or not."""
        return is_among(&self.fenced, self.slots_per_block, slot, count) or is_among(
            &self.acknowledged, self.slots_per_block, slot, count)

    @property
    def block_count(self):
        """How many blocks the last record vouches for; 0: there is nothing to confirm."""
        return slots_of(&self.acknowledged) // self.slots_per_block

    def checks(self):
        """The checks of what the batch taken last places, as [(slot, checksum)].

        The disk begins with the blocks meanwhile. Empty if they cannot be read, or if there is no memory.
        """
        cdef uint64_t i, blocks = slots_of(&self.fenced) // self.slots_per_block
        cdef uint64_t piece = max(self.block_bytes, <uint64_t>PIECE_BYTES)
        cdef char *buffer
        cdef uint64_t *checks
        cdef int status
        if blocks == 0:
            return []
        for i in range(self.fenced.count):
            self.io.begin_write(
                self.fd, self.fenced.items[i].slot * NODE_BYTES, self.fenced.items[i].count * NODE_BYTES)
        buffer, checks = <char *>malloc(piece), <uint64_t *>malloc(blocks * 2 * sizeof(uint64_t))
        try:
            if buffer == NULL or checks == NULL:
                return []
            with nogil:
                status = self.read_checks(buffer, piece, checks)
            return [(checks[2 * i], checks[2 * i + 1]) for i in range(blocks)] if status == 0 else []
        finally:
            free(buffer)
            free(checks)

    cdef int read_checks(self, char *buffer, uint64_t piece, uint64_t *checks) noexcept nogil:
        """Reads the blocks a piece at a time and sums them up. Holds no lock: the commit lock keeps the runs.
        """
        cdef uint64_t slot, end, part, at
        cdef size_t i
        cdef int status
        for i in range(self.fenced.count):
            slot = self.fenced.items[i].slot
            end = slot + self.fenced.items[i].count
            while slot < end:
                part = min(piece, (end - slot) * NODE_BYTES)
                status = self.io.read_at(self.fd, buffer, part, slot * NODE_BYTES)
                if status != 0:
                    return status
                at = 0
                while at < part:
                    checks[0] = slot
                    checks[1] = ce_xxh64(buffer + at, self.block_bytes, self.fold + slot)
                    checks += 2
                    at += self.block_bytes
                    slot += self.slots_per_block
        return 0

    def acknowledge(self, bint vouches):
        """The record of the batch taken last is durable, and so the one before is confirmed."""
        cdef runs_t before = self.acknowledged
        self.mutex.acquire()
        if vouches:
            self.acknowledged, self.fenced = self.fenced, before
        else:
            self.acknowledged.count = 0
        self.fenced.count = 0
        self.mutex.release()


cdef uint64_t slots_of(runs_t *runs) noexcept nogil:
    cdef uint64_t slots = 0
    cdef size_t i
    for i in range(runs.count):
        slots += runs.items[i].count
    return slots


cdef bint is_among(runs_t *runs, uint64_t slots_per_block, uint64_t slot, uint64_t *count) noexcept nogil:
    """Whether a slot lies in one of some runs; `count` becomes for how many blocks from there on, or before the next.
    """
    cdef run_t *run
    cdef size_t i
    for i in range(runs.count):
        run = &runs.items[i]
        if run.slot <= slot < run.slot + run.count:
            count[0] = min(count[0], (run.slot + run.count - slot) // slots_per_block)
            return True
        if slot < run.slot < slot + count[0] * slots_per_block:
            count[0] = (run.slot - slot) // slots_per_block
    return False
