"""Roots of the block map: those that snapshots hold, and the heads: roots that change.

A head is a writable line of history: the live volume is head 0, clones have numbers from 1. It has what is its own: its
size, its epochs, its writes in flight, and what the free rule of its blocks goes by. What the heads of a file share is
the data path's.

Threads   The volume's mutex guards all state; methods for Python take it, the `cdef` ones need it held.
"""

cimport cython
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from cowengine.core.blockmap cimport BlockMap, change_t
from cowengine.core.mutex cimport Mutex
from cowengine.core.radix cimport (
    KIND_HOLE, KIND_NODE, STATUS_ABSENT, STATUS_GONE, pointer_t, pointer_target, runs_clear, runs_t, sweep_t,
)
from cowengine.core.status cimport check_status


@cython.no_gc_clear
cdef class Root:
    """The map's root as a snapshot holds it. `used` says that it was read since somebody last cleared it."""

    def __cinit__(self, BlockMap map not None, Mutex mutex not None, *args):
        self.map, self.mutex = map, mutex
        self.size = ~<uint64_t>0

    def __dealloc__(self):
        # The garbage collector may come here while the mutex is held; so the node is only noted (under the GIL).
        if self.link.node != NULL:
            self.map.add_orphan(self.link.node)

    @property
    def pointer(self):
        """The pointer as 32 bytes; valid on disk only if no node below it is dirty."""
        self.mutex.acquire()
        cdef bytes raw = (<const char *>&self.link.pointer)[:sizeof(pointer_t)]
        self.mutex.release()
        return raw

    def load(self, bytes pointer not None):
        """Makes it the root that a pointer of 32 bytes leads to; it has none yet."""
        cdef const char *raw = pointer
        if len(pointer) != sizeof(pointer_t):
            raise ValueError("a pointer has 32 bytes")
        memcpy(&self.link.pointer, raw, sizeof(pointer_t))

    def unload(self, size_t keep=0):
        """Drops clean nodes from memory until the map has at most `keep`; they are read again when needed."""
        cdef sweep_t sweep
        cdef bint more = True
        sweep.position = 0
        while more:
            self.mutex.acquire()
            more = self.map.forget_some(&self.link, &sweep, keep)
            self.mutex.release()

    def retire(self):
        """The snapshot is deleted: reads of it fail from now on."""
        self.mutex.acquire()
        self.state = STATUS_GONE
        self.mutex.release()


@cython.no_gc_clear
cdef class Head(Root):
    """A root that writes change."""

    def __cinit__(self, BlockMap map not None, Mutex mutex not None, int number, int block_shift):
        self.number, self.block_shift = number, block_shift
        self.size = 0

    @property
    def is_open(self):
        """Whether nobody has closed it, or not opened it yet."""
        return self.state != STATUS_ABSENT

    def open(self):
        """It can be read and written from now on."""
        self.mutex.acquire()
        self.state = 0
        self.mutex.release()

    def close(self):
        """Calls fail with ClosedError from now on; waits for the writes that run.

        Returns a stand-in for who had it open: one that stays closed, and empty, when this one is opened again.
        """
        cdef Head stand_in = Head(self.map, self.mutex, self.number, self.block_shift)
        stand_in.state = STATUS_ABSENT
        self.mutex.acquire()
        self.state = STATUS_ABSENT
        self.mutex.wake()
        with nogil:
            while self.flight_count > 0:
                self.mutex.wait()
        self.mutex.release()
        return stand_in

    # -- writes in flight ----------------------------------------------------------------------------------------------
    cdef bint overlaps(self, uint64_t first, uint64_t end) noexcept nogil:
        """Whether a write in flight touches one of these blocks (I2)."""
        cdef int i = 0, seen = 0
        while seen < self.flight_count:
            if self.flights[i].end != 0:
                if self.flights[i].first < end and first < self.flights[i].end:
                    return True
                seen += 1
            i += 1
        return False

    cdef int begin_flight(self, uint64_t first, uint64_t end, uint64_t batch) noexcept nogil:
        """Registers a write of the current epoch, for which there is room; returns its number."""
        cdef int i = 0
        while self.flights[i].end != 0:
            i += 1
        self.flights[i].first, self.flights[i].end, self.flights[i].epoch = first, end, self.epoch
        self.flights[i].batch = batch
        self.flight_count += 1
        return i

    cdef void end_flight(self, int flight) noexcept nogil:
        self.flights[flight].end = 0
        self.flight_count -= 1
        self.mutex.wake()

    cdef bint has_older(self) noexcept nogil:
        """Whether a write of an epoch that a fence ended is in flight."""
        cdef int i
        for i in range(FLIGHTS_MAX):
            if self.flights[i].end != 0 and self.flights[i].epoch <= self.frozen:
                return True
        return False

    cdef bint has_earlier(self, uint64_t batch, uint64_t first, uint64_t end) noexcept nogil:
        """Whether a write to one of these blocks that began before this batch is in flight."""
        cdef int i
        for i in range(FLIGHTS_MAX):
            if self.flights[i].batch < batch and self.flights[i].first < end and first < self.flights[i].end:
                return True
        return False

    # -- epochs --------------------------------------------------------------------------------------------------------
    cdef void fence(self) noexcept nogil:
        """Ends the epoch; the next one is no other head's, past or present (I37)."""
        self.frozen = self.epoch
        self.map.epoch += 1
        self.epoch = self.map.epoch
        self.fencing = True

    cdef void stand_on_snapshot(self) noexcept nogil:
        """Ends a fence: the free rule goes by the new snapshot before any write of the new epoch publishes (I6)."""
        self.holder.before_epoch = self.holder.parent_epoch
        self.holder.parent_epoch, self.holder.cursor = self.frozen, 0
        self.fencing = False

    def set_epochs(self, uint64_t epoch, uint64_t frozen):
        """The current epoch, and the last one ever frozen on this head."""
        self.mutex.acquire()
        self.epoch, self.frozen = epoch, frozen
        self.map.epoch = max(self.map.epoch, epoch)
        self.mutex.release()

    def set_holder(self, uint64_t parent_epoch, uint64_t before_epoch, uint64_t cursor):
        """What the free rule goes by (BM2)."""
        self.mutex.acquire()
        self.holder.parent_epoch, self.holder.before_epoch, self.holder.cursor = parent_epoch, before_epoch, cursor
        self.mutex.release()

    # -- what it maps --------------------------------------------------------------------------------------------------
    def replace_root(self, Root root not None):
        """Takes the map of a snapshot; writes are paused and nothing of this head is in the open batch."""
        self.mutex.acquire()
        self.map.drop(self.link.node)
        self.link = root.link
        if root.link.node != NULL:
            root.link.node.references += 1
        self.map.stamp += 1
        self.mutex.release()

    cdef void was_written(self) noexcept nogil:
        """A checkpoint wrote nodes; if the top one is among them, the pointer says where it is."""
        if self.link.node != NULL and not self.link.node.dirty:
            self.link.pointer.target = pointer_target(KIND_NODE, self.link.node.level, self.link.node.slot)
            self.link.pointer.checksum = self.link.node.checksum

    def set_size(self, uint64_t size):
        """The size in bytes, with the map left as it is."""
        self.mutex.acquire()
        self.size = size
        self.block_count = self.blocks_of(size)
        self.mutex.release()

    cdef uint64_t blocks_of(self, uint64_t size) noexcept nogil:
        return (size + (<uint64_t>1 << self.block_shift) - 1) >> self.block_shift

    def resize(self, uint64_t size, uint64_t birth):
        """Sets the size in bytes; the blocks that are gained or lost become holes with a tombstone of this birth.

        No write to what is lost is in flight, and snapshots hold what it maps: nothing is freed.
        """
        cdef change_t change
        cdef runs_t ignored
        cdef uint64_t blocks = self.blocks_of(size)
        cdef int status
        ignored.items, ignored.count, ignored.room = NULL, 0, 0
        self.mutex.acquire()
        change.first, change.end = min(blocks, self.block_count), max(blocks, self.block_count)
        change.kind, change.slot, change.birth, change.holder = KIND_HOLE, 0, birth, &self.holder
        change.freed, change.freed_max = &ignored, ~<size_t>0
        status = self.map.reach(&self.link, change.end - 1)
        if status == 0 and change.first < change.end:
            status = self.map.set_range(&self.link, 0, &change)
        self.size, self.block_count = size, blocks
        self.mutex.release()
        runs_clear(&ignored)
        check_status(status, self.map)

    def unload(self, size_t keep=0):
        """Drops clean nodes from memory until the map has at most `keep`; goes on where it stopped the last time.

        The commit lock is held.
        """
        cdef sweep_t sweep
        cdef bint more = True, enough = False
        cdef int turns = 0
        sweep.position = self.hand
        while turns < 2 and not enough:
            self.mutex.acquire()
            more = self.map.forget_some(&self.link, &sweep, keep)
            enough = self.map.node_count <= keep
            self.mutex.release()
            if not more and not enough:
                sweep.position, turns = 0, turns + 1
        self.hand = sweep.position


def fence_all(list heads not None):
    """One instant over heads of several volumes: no write begins while all mutexes are held; each one's epoch ends.

    `heads` come in a fixed order of their volumes, the same for everybody. Returns the epochs that ended.
    """
    cdef Head head
    for head in heads:
        head.mutex.acquire()
    for head in heads:
        head.fence()
    for head in heads:
        head.mutex.release()
    return [head.frozen for head in heads]
