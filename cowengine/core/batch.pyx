"""The open batch of a volume: the map changes of all its heads that no record has yet, and the space they left.

Grows while writes publish; a commit takes it whole. Its size is bounded, so that a record always has room for it.

Threads   The volume's mutex is held.
"""

from libc.stdint cimport uint64_t
from libc.stdlib cimport free, realloc

from cowengine.core.radix cimport STATUS_MEMORY, run_t, runs_clear, runs_t


cdef class Batch:
    """Deltas, freed runs and freed nodes, of at most `bytes_max` bytes in a record."""

    def __cinit__(self, size_t bytes_max, uint64_t slots_per_block):
        self.bytes_max, self.slots_per_block = bytes_max, slots_per_block

    def __dealloc__(self):
        free(self.deltas)
        runs_clear(&self.freed)
        runs_clear(&self.freed_nodes)

    cdef int add_delta(self, uint64_t block, uint64_t count, uint64_t target, uint64_t birth) noexcept nogil:
        """Appends a delta, merged with the last one if it continues it."""
        cdef delta_t *last = &self.deltas[self.delta_count - 1] if self.delta_count > 0 else NULL
        cdef delta_t *grown
        cdef size_t room
        if last != NULL and last.block + last.count == block and last.birth == birth and (
                target == 0 and last.target == 0
                or target != 0 and last.target != 0 and last.target + last.count * self.slots_per_block == target):
            last.count += count
            return 0
        if self.delta_count == self.delta_room:
            room = 256 if self.delta_room == 0 else self.delta_room * 2
            grown = <delta_t *>realloc(self.deltas, room * sizeof(delta_t))
            if grown == NULL:
                return STATUS_MEMORY
            self.deltas, self.delta_room = grown, room
        last = &self.deltas[self.delta_count]
        last.block, last.count, last.target, last.birth = block, count, target, birth
        self.delta_count += 1
        return 0

    cdef size_t bytes(self) noexcept nogil:
        """What it may come to in a record, with what writes in flight have reserved."""
        return (self.reserved + self.delta_count * sizeof(delta_t)
                + (self.freed.count + self.freed_nodes.count) * sizeof(run_t))

    cdef size_t runs_max(self, size_t kept) noexcept nogil:
        """How many freed runs it may come to have, with `kept` bytes left for other things."""
        cdef size_t bytes = self.bytes() + kept
        return self.freed.count + ((self.bytes_max - bytes) // sizeof(run_t) if bytes < self.bytes_max else 0)

    cdef tuple take(self):
        """Its three arrays as bytes, as in a record; it is empty then, and the next one."""
        taken = (
            (<const char *>self.deltas)[:self.delta_count * sizeof(delta_t)] if self.delta_count else b"",
            packed(&self.freed),
            packed(&self.freed_nodes),
        )
        self.delta_count = 0
        self.freed.count = 0
        self.freed_nodes.count = 0
        self.number += 1
        return taken


cdef bytes packed(runs_t *runs):
    return (<const char *>runs.items)[:runs.count * sizeof(run_t)] if runs.count else b""
