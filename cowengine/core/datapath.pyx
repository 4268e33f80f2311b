"""The data path of a volume: reads, writes, discards, and the fence that separates one snapshot from the next.

Places blocks, moves bytes, publishes map changes and collects them in the open batch. Does not commit: `take_batch` and
the fence hand everything to the engine, which decides when. Python is called back for two things only: more slots to
place blocks in, and a commit when the batch is full.

Invariants (numbers as in docs/invariants.md)
    I1   In place only what was born after the last epoch ever frozen on this head.
    I2   Two writes that touch one block never run at the same time; so a partly written block loses nobody's bytes.
    I3   An entry is published after its block was written whole.
    I6   A write that began after the fence publishes after the snapshot's root was kept.
    I5   A slot that a read may still need is not given out: readers register in an era, and a freed slot waits two
         eras.

Threads   Any number. One mutex guards all state; it is never held during the I/O of data, and never waited for with the
          GIL held.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from cowengine.core.blockmap cimport (
    WALK_ALLOCATED, WALK_BORN_AFTER, BlockMap, change_t, extent_t, unshared_t, walk_t,
)
from cowengine.core.iotable cimport IOTable
from cowengine.core.mutex cimport Mutex
from cowengine.core.radix cimport (
    KIND_HOLE, KIND_NODE, KIND_RUN, NODE_BYTES, STATUS_ABSENT, STATUS_COMMIT, STATUS_GONE, STATUS_MEMORY, STATUS_POISONED,
    STATUS_SLOTS, STATUS_STOPPED, TREE_MAP, Tree, entry_t, entry_target, kind_of, level_of, link_t, node_t, pointer_t,
    pointer_target, runs_append, runs_clear, runs_t, slot_of,
)
from cowengine.core.slotmap cimport SlotMap
from cowengine.core.status cimport check_status

import struct as _struct

cdef enum:
    BATCH_BYTES_A_BLOCK = 48        # a delta and a freed run
    WALK_NODES = 64                 # visited while the mutex is held
    WALK_EXTENTS = 4096


@cython.no_gc_clear
cdef class Root:
    """The map's root as a snapshot holds it. `used` says that it was read since somebody last cleared it."""

    def __cinit__(self, DataPath path not None, bytes pointer=None):
        cdef const char *raw
        self.path = path
        if pointer is not None:
            if len(pointer) != sizeof(pointer_t):
                raise ValueError("a pointer has 32 bytes")
            raw = pointer
            memcpy(&self.link.pointer, raw, sizeof(pointer_t))

    def __dealloc__(self):
        # The garbage collector may come here while the mutex is held; so the node is only noted (under the GIL).
        if self.link.node != NULL:
            self.path.add_orphan(self.link.node)

    @property
    def pointer(self):
        """The pointer as 32 bytes; valid on disk only if no node below it is dirty."""
        self.path.mutex.acquire()
        cdef bytes raw = (<const char *>&self.link.pointer)[:sizeof(pointer_t)]
        self.path.mutex.release()
        return raw

    def unload(self):
        """Drops the clean nodes from memory; they are read again when needed."""
        self.path.mutex.acquire()
        self.path.map.forget_clean(&self.link)
        self.path.mutex.release()

    def retire(self):
        """The snapshot is deleted: reads of it fail from now on."""
        self.path.mutex.acquire()
        self.gone = True
        self.path.mutex.release()


@cython.no_gc_clear
cdef class DataPath:
    """The moving parts of one open volume. `refill(slots)` and `commit()` are called back without any lock held."""

    def __cinit__(self, IOTable io not None, int fd, uint64_t fold, int block_shift, uint64_t batch_max, refill, commit):
        self.io, self.fd, self.block_shift = io, fd, block_shift
        self.block_bytes = <uint64_t>1 << block_shift
        self.slots_per_block = self.block_bytes // NODE_BYTES
        self.mutex = Mutex()
        self.map = BlockMap(io, fd, TREE_MAP, fold, 8, self.slots_per_block, <uint64_t>1 << 47)
        self.slots = SlotMap(io, fd, fold, self.mutex)
        self.batch_max = batch_max
        self.chunk_blocks = max(1, min(PIECES_MAX, batch_max // 4 // BATCH_BYTES_A_BLOCK))
        self.refill, self.commit = refill, commit
        self.era = 2

    def __dealloc__(self):
        self.drop_orphans()
        free(self.orphans)
        free(self.deltas)
        runs_clear(&self.freed)
        runs_clear(&self.freed_nodes)

    def set_geometry(self, uint64_t size, list regions not None):
        """The size in bytes, and the home regions as (first_block, slot, block_count)."""
        cdef int i
        if len(regions) > REGIONS_MAX:
            raise ValueError("too many home regions")
        self.mutex.acquire()
        self.size = size
        self.block_count = (size + self.block_bytes - 1) >> self.block_shift
        self.region_count = len(regions)
        for i in range(self.region_count):
            self.regions[i].first_block, self.regions[i].slot, self.regions[i].block_count = regions[i]
        self.mutex.release()

    cdef void add_orphan(self, node_t *node) noexcept:
        """Notes a node whose Root is gone. Needs the GIL, not the mutex."""
        cdef node_t **grown
        if self.orphan_count % 64 == 0:
            grown = <node_t **>realloc(self.orphans, (self.orphan_count + 64) * sizeof(node_t *))
            if grown == NULL:
                return      # the nodes stay in memory until the volume is closed
            self.orphans = grown
        self.orphans[self.orphan_count] = node
        self.orphan_count += 1

    cdef void drop_orphans(self) noexcept:
        """Drops the nodes noted by `add_orphan`. Needs the GIL and the mutex."""
        cdef size_t i
        for i in range(self.orphan_count):
            self.map.drop(self.orphans[i])
        self.orphan_count = 0

    # -- public: bytes ------------------------------------------------------------------------------------------------
    def pread(self, uint64_t length, uint64_t offset, Root root=None):
        """Bytes of the live volume, or of a snapshot's root; the range was checked. The GIL is released."""
        cdef bytes result = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>length)
        cdef char *data = PyBytes_AS_STRING(result)
        cdef int status
        with nogil:
            status = self.read(root, data, length, offset)
        check_status(status, self.map)
        return result

    def pread_into(self, buffer, uint64_t offset, uint64_t length_max, Root root=None):
        """Fills a writable buffer, at most `length_max` bytes; returns how many."""
        cdef Py_buffer view
        cdef uint64_t length
        cdef int status
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        length = min(<uint64_t>view.len, length_max)
        with nogil:
            status = self.read(root, <char *>view.buf, length, offset)
        PyBuffer_Release(&view)
        check_status(status, self.map)
        return length

    def pwrite(self, data, uint64_t offset):
        """Writes a buffer; the caller checked nothing. Returns its length, or -1 if it does not lie in the volume."""
        cdef Py_buffer view
        cdef uint64_t length, done = 0
        cdef int status
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            length = <uint64_t>view.len
            if length > self.size or offset > self.size - length:
                return -1
            while done < length:
                with nogil:
                    status = self.write_piecewise(<const char *>view.buf, length, offset, &done)
                if status != 0:
                    self.resume_after(status, self.chunk_blocks)
        finally:
            PyBuffer_Release(&view)
        return length

    def discard(self, uint64_t first, uint64_t end):
        """Makes blocks [first, end) holes with a tombstone."""
        cdef int status
        while first < end:
            with nogil:
                status = self.discard_some(first, end, &first)
            if status != 0:
                self.resume_after(status, 0)

    cdef int resume_after(self, int status, uint64_t blocks) except -1:
        """What a write needs before it can go on; raises where there is nothing to be done."""
        if status == STATUS_SLOTS:
            self.refill(blocks * self.slots_per_block)
        elif status == STATUS_COMMIT:
            self.commit()
        else:
            check_status(status, self.map)
        return 0

    # -- writing -------------------------------------------------------------------------------------------------------
    cdef int write_piecewise(self, const char *data, uint64_t length, uint64_t offset, uint64_t *done) noexcept nogil:
        """Writes chunk after chunk from `done` on; stops at the first that needs something."""
        cdef plan_t plan
        cdef uint64_t at
        cdef int status
        while done[0] < length:
            at = offset + done[0]
            plan.first = at >> self.block_shift
            plan.skip = at & (self.block_bytes - 1)
            plan.length = min(length - done[0], (self.chunk_blocks << self.block_shift) - plan.skip)
            plan.end = (at + plan.length + self.block_bytes - 1) >> self.block_shift
            status = self.begin(&plan)
            if status != 0:
                return status
            status = self.transfer(&plan, data + done[0])
            self.mutex.acquire_nogil()
            if status == 0:
                status = self.publish(&plan)
            else:
                self.unplace(&plan)
            self.end_flight(&plan)
            self.mutex.release()
            if status != 0:
                return status
            done[0] += plan.length
        return 0

    cdef bint overlaps(self, uint64_t first, uint64_t end) noexcept nogil:
        cdef int i, seen = 0
        if self.flight_count == 0:
            return False
        for i in range(FLIGHTS_MAX):
            if self.flights[i].end != 0:
                if self.flights[i].first < end and first < self.flights[i].end:
                    return True
                seen += 1
                if seen == self.flight_count:
                    break
        return False

    cdef int begin(self, plan_t *plan) noexcept nogil:
        """Registers a write and gives each of its blocks a place (I1, I2)."""
        cdef int i, status
        self.mutex.acquire_nogil()
        while self.state == 0 and (
                self.paused or self.flight_count == FLIGHTS_MAX or self.overlaps(plan.first, plan.end)):
            self.mutex.wait()
        status = self.state
        if status == 0:
            status = self.place(plan)
        if status == 0:
            i = 0
            while self.flights[i].end != 0:
                i += 1
            self.flights[i].first, self.flights[i].end, self.flights[i].epoch = plan.first, plan.end, self.epoch
            self.flight_count += 1
            plan.flight, plan.epoch = i, self.epoch
        self.mutex.release()
        return status

    cdef void end_flight(self, plan_t *plan) noexcept nogil:
        self.flights[plan.flight].end = 0
        self.flight_count -= 1
        self.reserved -= plan.reserved
        self.mutex.wake()

    cdef int place(self, plan_t *plan) noexcept nogil:
        """Splits a write into pieces: in place (I1), or placed anew."""
        cdef uint64_t block = plan.first, count, slot, got, last = plan.end - 1
        cdef uint64_t tail = (plan.skip + plan.length) & (self.block_bytes - 1)
        cdef entry_t entry
        cdef piece_t *piece
        cdef bint hole, partial
        cdef int status
        plan.count, plan.reserved = 0, 0
        while block < plan.end:
            piece = &plan.pieces[plan.count]
            status = self.map.find(&self.map.root, block, &entry, &count)
            if status != 0:
                self.unplace(plan)
                return status
            count = min(count, plan.end - block)
            hole = kind_of(entry.target) == KIND_HOLE
            piece.first, piece.old_slot, piece.partial, piece.placed = block, 0, False, False
            if not hole and entry.birth > self.frozen:
                piece.slot, piece.count = slot_of(entry.target), count
            else:
                partial = block == plan.first and plan.skip != 0 or block == last and tail != 0
                if partial:
                    count = 1
                    piece.old_slot = slot_of(entry.target)
                elif tail != 0 and block + count > last:
                    count = last - block
                status = self.place_run(plan, block, count, hole, &slot, &got)
                if status == STATUS_SLOTS and block > plan.first:
                    # Write what has a place; the rest comes when there are more slots.
                    plan.end = block
                    plan.length = ((block - plan.first) << self.block_shift) - plan.skip
                    break
                if status != 0:
                    self.unplace(plan)
                    return status
                piece.slot, piece.count, piece.partial, piece.placed = slot, got, partial, True
                plan.reserved += got * BATCH_BYTES_A_BLOCK
            block += piece.count
            plan.count += 1
        if plan.reserved > 0 and self.batch_bytes() + plan.reserved > self.batch_max:
            self.unplace(plan)
            return STATUS_COMMIT
        self.reserved += plan.reserved
        return 0

    cdef uint64_t home_of(self, uint64_t block, uint64_t *count) noexcept nogil:
        """The home slot of a block, and for how many blocks from it on homes follow; 0: it has none."""
        cdef int i
        for i in range(self.region_count):
            if block >= self.regions[i].first_block and block - self.regions[i].first_block < self.regions[i].block_count:
                count[0] = self.regions[i].first_block + self.regions[i].block_count - block
                return self.regions[i].slot + (block - self.regions[i].first_block) * self.slots_per_block
        count[0] = 0
        return 0

    cdef int place_run(self, plan_t *plan, uint64_t block, uint64_t count, bint hole, uint64_t *slot, uint64_t *got) noexcept nogil:
        """Slots for up to `count` blocks: a hole's home if it is free, else the front of the runway."""
        cdef uint64_t room, home
        cdef bint busy
        cdef int status
        if hole:
            home = self.home_of(block, &room)
            if home != 0:
                room = min(count, room)
                status = self.slots.is_busy(home, room * self.slots_per_block, &busy)
                if status == 0 and busy and room > 1:
                    room = 1
                    status = self.slots.is_busy(home, self.slots_per_block, &busy)
                if status != 0:
                    return status
                if not busy:
                    slot[0], got[0] = home, room
                    return self.slots.set_busy(home, room * self.slots_per_block, True)
        while self.runway_count > 0 and self.runway[self.runway_count - 1].count < self.slots_per_block:
            self.runway_count -= 1
        if self.runway_count == 0:
            return STATUS_SLOTS
        room = min(count, self.runway[self.runway_count - 1].count // self.slots_per_block)
        slot[0], got[0] = self.runway[self.runway_count - 1].slot, room
        self.runway[self.runway_count - 1].slot += room * self.slots_per_block
        self.runway[self.runway_count - 1].count -= room * self.slots_per_block
        self.blocks_placed += room
        return 0

    cdef void unplace(self, plan_t *plan) noexcept nogil:
        """Gives back what `place` took. The busy leaf is there, so this cannot fail."""
        cdef int i
        for i in range(plan.count):
            if plan.pieces[i].placed:
                self.slots.set_busy(plan.pieces[i].slot, plan.pieces[i].count * self.slots_per_block, False)

    cdef int transfer(self, plan_t *plan, const char *data) noexcept nogil:
        """Writes the pieces; holds no lock."""
        cdef piece_t *piece
        cdef uint64_t skip, start, stop
        cdef int i, status
        for i in range(plan.count):
            piece = &plan.pieces[i]
            if piece.partial:
                status = self.write_partial(plan, piece, data)
            else:
                # Bytes of the piece, counted from the beginning of the write's first block.
                start = max((piece.first - plan.first) << self.block_shift, plan.skip)
                stop = min((piece.first + piece.count - plan.first) << self.block_shift, plan.skip + plan.length)
                skip = start - ((piece.first - plan.first) << self.block_shift)
                status = self.io.write_at(self.fd, data + (start - plan.skip), stop - start, piece.slot * NODE_BYTES + skip)
            if status != 0:
                return status
        return 0

    cdef int write_partial(self, plan_t *plan, piece_t *piece, const char *data) noexcept nogil:
        """Places a block of which only a part is new: the rest is copied from where it was (P2)."""
        cdef uint64_t base = (piece.first - plan.first) << self.block_shift
        cdef uint64_t start = max(base, plan.skip), stop = min(base + self.block_bytes, plan.skip + plan.length)
        cdef char *whole = <char *>malloc(self.block_bytes)
        cdef int status = 0
        if whole == NULL:
            return STATUS_MEMORY
        if piece.old_slot == 0:
            memset(whole, 0, self.block_bytes)
        else:
            status = self.io.read_at(self.fd, whole, self.block_bytes, piece.old_slot * NODE_BYTES)
        if status == 0:
            memcpy(whole + (start - base), data + (start - plan.skip), stop - start)
            status = self.io.write_at(self.fd, whole, self.block_bytes, piece.slot * NODE_BYTES)
        free(whole)
        return status

    cdef int publish(self, plan_t *plan) noexcept nogil:
        """Enters the placed pieces into the map and the batch (I3, I6). A failure half-way poisons the volume."""
        cdef change_t change
        cdef piece_t *piece
        cdef int i, status = 0
        while self.fencing and plan.epoch == self.epoch and self.state == 0 and plan.reserved > 0:
            self.mutex.wait()
        if self.state != 0:
            self.unplace(plan)
            return self.state
        for i in range(plan.count):
            piece = &plan.pieces[i]
            if piece.placed and status == 0:
                change.first, change.end, change.kind = piece.first, piece.first + piece.count, KIND_RUN
                change.slot, change.birth, change.freed = piece.slot, plan.epoch, &self.freed
                change.freed_max = ~<size_t>0
                status = self.map.set_range(&self.map.root, 0, &change)
                if status == 0:
                    status = self.add_delta(piece.first, piece.count, entry_target(KIND_RUN, piece.slot), plan.epoch)
        if status != 0:
            self.state = STATUS_POISONED
        self.data_writes += 1
        self.bytes_written += plan.length
        return status

    cdef int add_delta(self, uint64_t block, uint64_t count, uint64_t target, uint64_t birth) noexcept nogil:
        """Appends a delta to the open batch, merged with the last one if it continues it."""
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

    cdef size_t batch_bytes(self) noexcept nogil:
        """What the open batch may come to in a record, with what writes in flight have reserved."""
        return (self.reserved + self.delta_count * sizeof(delta_t)
                + (self.freed.count + self.freed_nodes.count) * sizeof(run_t))

    cdef int discard_some(self, uint64_t first, uint64_t end, uint64_t *done) noexcept nogil:
        """Makes as many blocks from `first` on holes as the batch has room for."""
        cdef change_t change
        cdef size_t bytes
        cdef int status
        self.mutex.acquire_nogil()
        while self.state == 0 and (self.paused or self.fencing or self.overlaps(first, end)):
            self.mutex.wait()
        status = self.state
        bytes = self.batch_bytes() + 2 * BATCH_BYTES_A_BLOCK
        if status == 0 and bytes >= self.batch_max:
            status = STATUS_COMMIT
        if status == 0:
            change.first, change.end, change.kind, change.slot, change.birth = first, end, KIND_HOLE, 0, self.epoch
            change.freed, change.done = &self.freed, first
            change.freed_max = self.freed.count + (self.batch_max - bytes) // sizeof(run_t)
            status = self.map.set_range(&self.map.root, 0, &change)
            if change.done > first and self.add_delta(first, change.done - first, 0, self.epoch) != 0:
                self.state = STATUS_POISONED
            if status == STATUS_STOPPED:
                status = STATUS_COMMIT if change.done == first else 0
            done[0] = change.done
        self.mutex.release()
        return status

    # -- reading -------------------------------------------------------------------------------------------------------
    cdef int resolve(self, link_t *link, uint64_t offset, uint64_t length, extent_read_t *extents, int *count,
                     uint64_t *covered) noexcept nogil:
        """Turns the beginning of a range into at most EXTENTS_MAX physical extents."""
        cdef uint64_t block, blocks, skip, bytes, slot
        cdef entry_t entry
        cdef extent_read_t *last = NULL
        cdef int status
        count[0], covered[0] = 0, 0
        while covered[0] < length:
            block = (offset + covered[0]) >> self.block_shift
            skip = (offset + covered[0]) & (self.block_bytes - 1)
            status = self.map.find(link, block, &entry, &blocks)
            if status != 0:
                return status
            bytes = min(length - covered[0], (blocks << self.block_shift) - skip)
            slot = slot_of(entry.target)
            if last != NULL and (slot == 0 and last.slot == 0 or slot != 0 and last.slot != 0 and skip == 0 and (
                    last.slot * NODE_BYTES + last.skip + last.length == slot * NODE_BYTES)):
                last.length += bytes
            elif count[0] == EXTENTS_MAX:
                break
            else:
                last = &extents[count[0]]
                last.slot, last.skip, last.length = slot, skip, bytes
                count[0] += 1
            covered[0] += bytes
        return 0

    cdef int read(self, Root root, char *data, uint64_t length, uint64_t offset) noexcept nogil:
        """Reads a range; the mutex is held only to find where it lies (I5)."""
        cdef extent_read_t extents[EXTENTS_MAX]
        cdef uint64_t covered, era
        cdef link_t *link
        cdef int i, count, status
        while length > 0:
            self.mutex.acquire_nogil()
            status = self.state
            link = &self.map.root
            if root is not None:
                link = &root.link
                root.used = True
                if root.gone and status == 0:
                    status = STATUS_GONE
            if status == 0:
                status = self.resolve(link, offset, length, extents, &count, &covered)
            era = self.era
            if status == 0:
                self.readers[era & 1] += 1
                self.bytes_read += covered
            self.mutex.release()
            if status != 0:
                return status
            for i in range(count):
                if extents[i].slot == 0:
                    memset(data, 0, extents[i].length)
                elif status == 0:
                    status = self.io.read_at(self.fd, data, extents[i].length, extents[i].slot * NODE_BYTES + extents[i].skip)
                data += extents[i].length
            self.mutex.acquire_nogil()
            self.readers[era & 1] -= 1
            self.mutex.release()
            if status != 0:
                return status
            offset += covered
            length -= covered
        return 0

    def batch_fill(self):
        """Bytes of the open batch, and how many it may have."""
        self.mutex.acquire()
        cdef size_t fill = self.batch_bytes()
        self.mutex.release()
        return fill, self.batch_max

    def turn_era(self):
        """Moves to the next era if no read of the one before the current is left; returns the current era.

        What was freed in era e may be given out in era e + 2.
        """
        self.mutex.acquire()
        if self.readers[(self.era + 1) & 1] == 0:
            self.era += 1
        cdef uint64_t era = self.era
        self.mutex.release()
        return era

    # -- the fence -----------------------------------------------------------------------------------------------------
    def fence(self):
        """Begins a snapshot: writes that begin from now on belong to the next epoch. Returns the epoch that ended."""
        fence_all([self])
        return self.frozen

    def take_batch(self, bint keep_root):
        """Takes the open batch: (deltas, freed runs, freed nodes, data_writes, superseded nodes, root).

        After `fence`, waits until every write of the ended epoch is published. The three arrays are bytes as in a
        record. With `keep_root` the map as of the batch is kept: root is a Root, and superseded nodes are [(slot,
        count)]; else None and [].
        """
        cdef Root root = Root(self) if keep_root else None
        self.mutex.acquire()
        self.await_older()
        if self.state != 0:
            self.mutex.release()
            check_status(self.state, self.map)
        batch = self.take(root)
        self.mutex.release()
        return batch

    cdef void await_older(self):
        """Waits until no write of the epoch that a fence ended is in flight.

        The mutex is held, but not all the time.
        """
        cdef bint older = self.fencing
        cdef int i
        with nogil:
            while older and self.state == 0:
                older = False
                for i in range(FLIGHTS_MAX):
                    older = older or self.flights[i].end != 0 and self.flights[i].epoch <= self.frozen
                if older:
                    self.mutex.wait()

    cdef tuple take(self, Root root):
        """The part of `take_batch` that gives up the mutex nowhere: batch and root are of one moment."""
        cdef list superseded = []
        cdef size_t n
        deltas = (<const char *>self.deltas)[:self.delta_count * sizeof(delta_t)] if self.delta_count else b""
        freed = (<const char *>self.freed.items)[:self.freed.count * sizeof(run_t)] if self.freed.count else b""
        freed_nodes = ((<const char *>self.freed_nodes.items)[:self.freed_nodes.count * sizeof(run_t)]
                       if self.freed_nodes.count else b"")
        self.delta_count = 0
        self.freed.count = 0
        self.freed_nodes.count = 0
        if root is not None:
            root.link = self.map.root
            if root.link.node != NULL:
                root.link.node.references += 1
            self.map.stamp += 1
            for n in range(self.map.superseded.count):
                superseded.append((self.map.superseded.items[n].slot, self.map.superseded.items[n].count))
            self.map.superseded.count = 0
        if self.fencing:
            # The free rule goes by the new snapshot before any write of the new epoch publishes (I6).
            self.map.holder.before_epoch = self.map.holder.parent_epoch
            self.map.holder.parent_epoch, self.map.holder.cursor = self.frozen, 0
            self.fencing = False
        self.drop_orphans()
        self.mutex.wake()
        return deltas, freed, freed_nodes, self.data_writes, superseded, root

    def pause(self):
        """Lets no write begin, and waits for those that run; for rollback."""
        self.mutex.acquire()
        self.paused = True
        with nogil:
            while self.flight_count > 0 and self.state == 0:
                self.mutex.wait()
        self.mutex.release()

    def resume(self):
        """Ends `pause`."""
        self.mutex.acquire()
        self.paused = False
        self.mutex.wake()
        self.mutex.release()

    def replace_root(self, Root root not None):
        """Makes the live map that of a snapshot; the volume is paused and its open batch empty."""
        self.mutex.acquire()
        self.map.drop(self.map.root.node)
        self.map.root = root.link
        if root.link.node != NULL:
            root.link.node.references += 1
        self.map.stamp += 1
        self.mutex.release()

    def set_epochs(self, uint64_t epoch, uint64_t frozen):
        """The head's current epoch, and the last one ever frozen on it."""
        self.mutex.acquire()
        self.epoch, self.frozen = epoch, frozen
        self.mutex.release()

    def set_holder(self, uint64_t parent_epoch, uint64_t before_epoch, uint64_t cursor):
        """What the free rule goes by (BM2)."""
        self.mutex.acquire()
        self.map.holder.parent_epoch, self.map.holder.before_epoch = parent_epoch, before_epoch
        self.map.holder.cursor = cursor
        self.mutex.release()

    def add_runway(self, list runs not None):
        """Adds runs of (slot, count), already busy, to place blocks in; returns those it has no room for."""
        cdef uint64_t slot, count
        cdef list left = []
        self.mutex.acquire()
        for slot, count in runs:
            if self.runway_count < RUNWAY_MAX:
                self.runway[self.runway_count].slot, self.runway[self.runway_count].count = slot, count
                self.runway_count += 1
            else:
                left.append((slot, count))
        self.mutex.release()
        return left

    def drain_runway(self):
        """Takes all runs back from the runway."""
        cdef list runs = []
        cdef int i
        self.mutex.acquire()
        for i in range(self.runway_count):
            if self.runway[i].count > 0:
                runs.append((self.runway[i].slot, self.runway[i].count))
        self.runway_count = 0
        self.mutex.release()
        return runs

    def runway_slots(self):
        """How many slots the runway holds."""
        cdef int i
        cdef uint64_t total = 0
        self.mutex.acquire()
        for i in range(self.runway_count):
            total += self.runway[i].count
        self.mutex.release()
        return total

    # -- states --------------------------------------------------------------------------------------------------------
    def poison(self):
        """Every call fails with PoisonedError from now on; wakes who waits."""
        self.mutex.acquire()
        if self.state == 0:
            self.state = STATUS_POISONED
        self.fencing = False
        self.mutex.wake()
        self.mutex.release()

    def shut(self):
        """Every call fails with ClosedError from now on; waits for the writes and reads that run."""
        self.mutex.acquire()
        self.state = STATUS_ABSENT
        self.mutex.wake()
        with nogil:
            while self.flight_count > 0:
                self.mutex.wait()
            while self.readers[0] + self.readers[1] > 0:
                self.mutex.release()
                _yield()
                self.mutex.acquire_nogil()
        self.mutex.release()

    def disown(self):
        """In the child of a fork: every call fails from now on.

        The parent's threads are not here, so no lock is taken.
        """
        self.mutex.renew()
        self.state = STATUS_ABSENT

    def check_state(self):
        """Raises if the volume is poisoned or closed."""
        if self.state != 0:
            check_status(self.state, self.map)

    # -- roots and checkpoints -----------------------------------------------------------------------------------------
    @property
    def root_pointer(self):
        """The live root's pointer, as 32 bytes."""
        self.mutex.acquire()
        cdef bytes raw = (<const char *>&self.map.root.pointer)[:sizeof(pointer_t)]
        self.mutex.release()
        return raw

    def load_roots(self, bytes map_root not None, bytes free_map_root not None):
        """Sets the roots of the live map and the free map, from a superblock and the live head's record."""
        cdef const char *live = map_root
        cdef const char *used = free_map_root
        memcpy(&self.map.root.pointer, live, sizeof(pointer_t))
        memcpy(&self.slots.used.root.pointer, used, sizeof(pointer_t))

    def replay(self, bytes deltas not None):
        """Applies the deltas of a record to the live map, and marks what they place as used.

        Returns False, with some of them applied, if one lies beyond the end of the volume.
        """
        cdef const char *raw = deltas
        cdef const delta_t *delta
        cdef change_t change
        cdef size_t i
        cdef runs_t ignored
        cdef bint inside = True
        cdef int status = 0
        ignored.items, ignored.count, ignored.room = NULL, 0, 0
        self.mutex.acquire()
        for i in range(len(deltas) // sizeof(delta_t)):
            delta = <const delta_t *>raw + i
            if delta.block >= self.block_count or delta.count > self.block_count - delta.block:
                inside = False
                break
            change.first, change.end, change.kind = delta.block, delta.block + delta.count, kind_of(delta.target)
            change.slot, change.birth = slot_of(delta.target), delta.birth & 0xFFFFFFFFFFFF
            change.freed, change.freed_max = &ignored, ~<size_t>0
            status = self.map.set_range(&self.map.root, 0, &change)
            if status == 0 and change.kind == KIND_RUN:
                status = self.slots.set_used(change.slot, delta.count * self.slots_per_block, True)
            ignored.count = 0
            if status != 0:
                break
        self.mutex.release()
        runs_clear(&ignored)
        check_status(status, self.map)
        return inside

    def account(self, bytes deltas not None, bytes freed not None):
        """Takes a committed record into the free map: what it placed is used, what it freed no longer (SM2)."""
        cdef const char *raw = deltas
        cdef const char *raw_freed = freed
        cdef const delta_t *delta
        cdef const run_t *run
        cdef size_t i
        cdef int status = 0
        self.mutex.acquire()
        for i in range(len(deltas) // sizeof(delta_t)):
            delta = <const delta_t *>raw + i
            if status == 0 and kind_of(delta.target) == KIND_RUN:
                status = self.slots.set_used(slot_of(delta.target), delta.count * self.slots_per_block, True)
        for i in range(len(freed) // sizeof(run_t)):
            run = <const run_t *>raw_freed + i
            if status == 0:
                status = self.slots.set_used(run.slot, run.count, False)
        self.mutex.release()
        check_status(status, self.map)

    def dirty_nodes(self):
        """An upper bound of the map's nodes that a checkpoint would write now."""
        return self.map.dirty_count

    def flush_map(self, list roots not None, list runs not None):
        """Writes all dirty nodes of some roots into slots of `runs`; returns the runs left over.

        Not durable. The roots' pointers are right afterwards, and so is the live root's if it did not change since.
        """
        cdef node_t **written = NULL
        cdef size_t i, count = 0
        cdef runs_t slots
        cdef Root root
        cdef uint64_t slot, slot_count
        cdef int status = 0
        cdef list left
        slots.items, slots.count, slots.room = NULL, 0, 0
        for slot, slot_count in reversed(runs):
            if runs_append(&slots, slot, slot_count) != 0:
                raise MemoryError
        self.mutex.acquire()
        for root in roots:
            if status == 0:
                status = self.map.flush_link(&root.link, 0, &slots, &written, &count)
                if root.link.node != NULL and root.link.node == self.map.root.node:
                    self.map.root.pointer = root.link.pointer
        self.mutex.release()
        left = [(slots.items[i].slot, slots.items[i].count) for i in range(slots.count)]
        runs_clear(&slots)
        if status == 0:
            with nogil:
                status = write_nodes(self.io, self.fd, written, count)
        self.mutex.acquire()
        for i in range(count):
            self.map.drop(written[i])
        self.mutex.release()
        free(written)
        check_status(status, self.map)
        return left

    def forget_busy(self):
        """After replay: what is busy is what is used."""
        self.slots.forget_busy()

    def forget_nodes(self):
        """Drops all clean nodes of the live map from memory."""
        self.mutex.acquire()
        self.map.forget_clean(&self.map.root)
        self.mutex.release()

    # -- walks ---------------------------------------------------------------------------------------------------------
    def extents(self, Root root, uint64_t first, uint64_t end, uint64_t max_results, born_after=None):
        """Extents in blocks [first, end) as raw pairs (first, count): what is mapped, or what was born after an epoch.

        At most `max_results`. The mutex is given up now and then; of the live map, later changes may be seen or not.
        """
        cdef walk_t walk
        cdef link_t *link
        cdef bytearray result = bytearray()
        cdef uint64_t rows = 0
        cdef int status = STATUS_STOPPED
        walk.extents = <extent_t *>malloc(WALK_EXTENTS * sizeof(extent_t))
        if walk.extents == NULL:
            raise MemoryError
        walk.mode = WALK_ALLOCATED if born_after is None else WALK_BORN_AFTER
        walk.epoch = 0 if born_after is None else born_after
        walk.position, walk.end, walk.count = first, end, 0
        try:
            while status == STATUS_STOPPED and rows < max_results:
                # The last extent stays in the array, so that the next part can continue it.
                walk.room = min(<uint64_t>WALK_EXTENTS, max_results - rows)
                walk.budget = WALK_NODES
                with nogil:
                    self.mutex.acquire_nogil()
                    status = self.state
                    link = &self.map.root
                    if root is not None:
                        link = &root.link
                        root.used = True
                        if root.gone:
                            status = STATUS_GONE
                    if status == 0:
                        status = self.map.walk(link, 0, &walk)
                    self.mutex.release()
                if walk.count == walk.room and status == STATUS_STOPPED:
                    result += (<const char *>walk.extents)[:(walk.count - 1) * sizeof(extent_t)]
                    rows += walk.count - 1
                    walk.extents[0] = walk.extents[walk.count - 1]
                    walk.count = 1
                    if rows + 1 >= max_results:
                        break
            if status != STATUS_STOPPED:
                check_status(status, self.map)
            result += (<const char *>walk.extents)[:walk.count * sizeof(extent_t)]
        finally:
            free(walk.extents)
        return result

    def reclaim(self, Root dead not None, Root kept, bint live, uint64_t before_epoch, uint64_t cursor, uint64_t budget):
        """One step of giving back what only `dead` holds; `kept` is its child, `live` says that the live head is.

        What it frees and the move of the cursor are of one moment with the batch that is taken then (I13). Returns
        (cursor, whether it is at the end, the batch as `take_batch` gives it, without a root).
        """
        cdef unshared_t found
        cdef link_t *other = NULL
        cdef size_t bytes
        cdef int status
        self.mutex.acquire()
        status = self.state
        if status == 0:
            bytes = self.batch_bytes() + 32 * sizeof(run_t)
            found.before_epoch, found.position, found.budget = before_epoch, cursor, budget
            found.freed, found.freed_nodes = &self.freed, &self.freed_nodes
            found.freed_max = self.freed.count
            if bytes < self.batch_max:
                found.freed_max += (self.batch_max - bytes) // sizeof(run_t)
            if live:
                other = &self.map.root
            elif kept is not None:
                other = &kept.link
            with nogil:
                status = self.map.unshared(&dead.link, other, 0, &found)
            cursor = found.position
            if live:
                self.map.holder.cursor = cursor
        if status != 0 and status != STATUS_STOPPED:
            self.mutex.release()
            check_status(status, self.map)
        batch = self.take(None)
        self.mutex.release()
        return cursor, status == 0, batch


cdef extern from "<sched.h>" nogil:
    int _yield "sched_yield" ()


def fence_all(list paths not None):
    """One instant over several volumes: no write begins while all mutexes are held; each volume's epoch ends there.

    `paths` come in a fixed order, the same for everybody.
    """
    cdef DataPath path
    for path in paths:
        path.mutex.acquire()
    for path in paths:
        path.frozen = path.epoch
        path.epoch += 1
        path.fencing = True
    for path in paths:
        path.mutex.release()


cdef int write_nodes(IOTable io, int fd, node_t **nodes, size_t count) noexcept nogil:
    """Writes nodes into their slots, runs of slots at one go. The nodes are immutable while they are clean."""
    cdef size_t room = 64, i = 0, n
    cdef int status = 0
    cdef char *buffer = <char *>malloc(room * NODE_BYTES)
    if buffer == NULL:
        return STATUS_MEMORY
    while i < count and status == 0:
        n = 0
        while n < room and i + n < count and nodes[i + n].slot == nodes[i].slot + n:
            memcpy(buffer + n * NODE_BYTES, nodes[i + n].words, NODE_BYTES)
            n += 1
        status = io.write_at(fd, buffer, n * NODE_BYTES, nodes[i].slot * NODE_BYTES)
        i += n
    free(buffer)
    return status


cdef class PagedTable:
    """A tree whose leaves Python reads and writes: the lineage table, and the free map when a checkpoint writes it."""

    cdef readonly Tree tree
    cdef Mutex mutex

    def __cinit__(self, DataPath path not None, Tree tree not None):
        self.tree, self.mutex = tree, path.mutex

    @property
    def pointer(self):
        """The root's pointer as 32 bytes."""
        return (<const char *>&self.tree.root.pointer)[:sizeof(pointer_t)]

    @pointer.setter
    def pointer(self, bytes raw not None):
        cdef const char *data = raw
        memcpy(&self.tree.root.pointer, data, sizeof(pointer_t))

    def read(self, uint64_t key):
        """The 4,096 bytes of the leaf that holds a key, or None."""
        cdef node_t *leaf = NULL
        cdef bytes result = None
        self.mutex.acquire()
        cdef int status = self.tree.leaf(&self.tree.root, key, &leaf)
        if status == 0 and leaf != NULL:
            result = (<const char *>leaf.words)[:NODE_BYTES]
        self.mutex.release()
        check_status(status, self.tree)
        return result

    def write(self, uint64_t key, uint64_t offset, bytes data not None):
        """Changes bytes of the leaf that holds a key."""
        cdef node_t *leaf = NULL
        cdef const char *raw = data
        if offset + len(data) > NODE_BYTES:
            raise ValueError("beyond the leaf")
        self.mutex.acquire()
        cdef int status = self.tree.leaf_for_change(key, &leaf)
        if status == 0:
            memcpy(<char *>leaf.words + offset, raw, len(data))
        self.mutex.release()
        check_status(status, self.tree)

    def take_superseded(self):
        """Slots of nodes that the next checkpoint no longer needs, as [(slot, count)]."""
        cdef size_t i
        self.mutex.acquire()
        runs = [(self.tree.superseded.items[i].slot, self.tree.superseded.items[i].count)
                for i in range(self.tree.superseded.count)]
        self.tree.superseded.count = 0
        self.mutex.release()
        return runs

    def dirty_nodes(self):
        """How many nodes a checkpoint would write now."""
        return self.tree.dirty_count

    def flush(self, list runs not None):
        """Writes all dirty nodes into slots of `runs`, which must be just enough. Not durable."""
        cdef node_t **written = NULL
        cdef size_t i, count = 0
        cdef runs_t slots
        cdef uint64_t slot, slot_count
        cdef int status
        slots.items, slots.count, slots.room = NULL, 0, 0
        for slot, slot_count in reversed(runs):
            if runs_append(&slots, slot, slot_count) != 0:
                raise MemoryError
        self.mutex.acquire()
        status = self.tree.flush_link(&self.tree.root, 0, &slots, &written, &count)
        self.tree.stamp += 1
        self.mutex.release()
        runs_clear(&slots)
        if status == 0:
            with nogil:
                status = write_nodes(self.tree.io, self.tree.fd, written, count)
        self.mutex.acquire()
        for i in range(count):
            self.tree.drop(written[i])
        self.mutex.release()
        free(written)
        check_status(status, self.tree)


def lineage_table(DataPath path not None, uint64_t fold):
    """An empty lineage table of a volume."""
    return PagedTable(path, Tree(path.io, path.fd, 2, fold, 3, 1, <uint64_t>1 << 47))
