"""The data path of a volume: writes, discards, and the fence that separates one snapshot from the next. Reads:
readpath.pyx.

Places blocks, moves bytes, publishes map changes and collects them in the open batch, for whichever head is written to.
Does not commit: `take_batch` and the fence hand everything to the engine, which decides when. Python is called back for
two things only: more slots to place blocks in, and a commit when the batch is full.

Invariants (numbers as in docs/invariants.md)
    I1   In place only what was born after the last epoch ever frozen on this head.
    I2   Two writes that touch one block never run at the same time; so a partly written block loses nobody's bytes.
    I3   An entry is published after its block was written whole.
    I6   A write that began after the fence publishes after the snapshot's root was kept.
    I48  Not in place either what an unconfirmed record of one barrier vouches for, or one on its way.

Threads   Any number. One mutex guards all state; it is never held during the I/O of data, and never waited for with the
          GIL held.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from cowengine.core.batch cimport BYTES_A_PIECE, Batch, delta_t
from cowengine.core.blockmap cimport change_t
from cowengine.core.iotable cimport IOTable
from cowengine.core.nodewriter cimport NodeWriter
from cowengine.core.observed cimport observed_add
from cowengine.core.radix cimport (
    KIND_HOLE, KIND_RUN, NODE_BYTES, STATUS_ABSENT, STATUS_BEYOND, STATUS_COMMIT, STATUS_HEADLESS, STATUS_MEMORY,
    STATUS_POISONED, STATUS_SLOTS, STATUS_STOPPED, entry_t, entry_target, kind_of, run_t, runs_clear, runs_t, slot_of,
)
from cowengine.core.readpath cimport ReadPath
from cowengine.core.roots cimport FLIGHTS_MAX, Head, Root
from cowengine.core.slotmap cimport RUNS_AT_ONCE, SlotMap
from cowengine.core.status cimport check_status
from cowengine.core.unconfirmed cimport Unconfirmed

from cowengine.core.roots import fence_all


@cython.no_gc_clear
cdef class DataPath(ReadPath):
    """The moving parts of one open volume. `refill(slots)` and `commit()` are called back without any lock held.

    Where a head can be given and is not, the live volume is meant.
    """

    def __cinit__(self, IOTable io not None, int fd, uint64_t fold, int block_shift, uint64_t batch_max, refill,
                  commit):
        self.slots = SlotMap(io, fd, fold, self.mutex)
        self.heads = {0: self.live}
        self.batch = Batch(batch_max, self.slots_per_block)
        self.unconfirmed = Unconfirmed(io, fd, fold, block_shift, self.mutex)
        self.chunk_blocks = max(1, min(PIECES_MAX, batch_max // 4 // BYTES_A_PIECE))
        self.refill, self.commit = refill, commit

    def add_head(self, int number):
        """A head with this number, which no other has; it is not open and maps nothing yet."""
        cdef Head head = Head(self.map, self.mutex, number, self.block_shift)
        head.state = STATUS_ABSENT
        self.mutex.acquire()
        self.heads[number] = head
        self.mutex.release()
        return head

    def drop_head(self, Head head not None):
        """Removes a head that is not open; nothing of it is in flight or in the open batch."""
        assert head.flight_count == 0 and not head.is_open
        self.mutex.acquire()
        del self.heads[head.number]
        self.mutex.release()

    def note_epoch(self, uint64_t epoch):
        """An epoch that was given out, as a superblock or record says."""
        self.mutex.acquire()
        self.map.epoch = max(self.map.epoch, epoch)
        self.mutex.release()

    def set_regions(self, list regions not None):
        """The home regions as (first_block, slot, block_count)."""
        cdef int i
        if len(regions) > REGIONS_MAX:
            raise ValueError("too many home regions")
        self.mutex.acquire()
        self.region_count = len(regions)
        for i in range(self.region_count):
            self.regions[i].first_block, self.regions[i].slot, self.regions[i].block_count = regions[i]
        self.mutex.release()

    # -- public: bytes ------------------------------------------------------------------------------------------------
    def pwrite(self, data, uint64_t offset, Head head=None, uint64_t done=0, int status=0):
        """Writes a buffer; the caller checked nothing. Returns its length, or -1 if it does not lie in the head.

        Then nothing was written, unless the volume became smaller meanwhile. Goes on behind `done` bytes where
        `write_piecewise` stopped with a status.
        """
        cdef Py_buffer view
        cdef uint64_t length
        if head is None:
            head = self.live
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            length = <uint64_t>view.len
            if length > head.size or offset > head.size - length:
                return -1
            while done < length:
                if status == 0:
                    with nogil:
                        status = self.write_piecewise(head, <const char *>view.buf, length, offset, &done)
                if status == STATUS_BEYOND:
                    return -1
                if status != 0:
                    self.resume_after(status, self.chunk_blocks)
                    status = 0
        finally:
            PyBuffer_Release(&view)
        return length

    def discard(self, uint64_t first, uint64_t end, uint64_t size=0, Head head=None):
        """Makes blocks [first, end) holes with a tombstone.

        Returns False, with some of them done, once the head's size is not `size` any more (0: any will do).
        """
        cdef int status
        if head is None:
            head = self.live
        while first < end:
            with nogil:
                status = self.discard_some(head, first, end, size, &first)
            if status == STATUS_BEYOND:
                return False
            if status != 0:
                self.resume_after(status, 0)
        return True

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
    cdef int write_piecewise(self, Head head, const char *data, uint64_t length, uint64_t offset,
                             uint64_t *done) noexcept nogil:
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
            status = self.begin(head, &plan)
            if status != 0:
                return status
            status = self.transfer(&plan, data + done[0])
            self.mutex.acquire_nogil()
            if status == 0:
                status = self.publish(head, &plan)
            else:
                self.unplace(&plan)
            self.end(head, &plan)
            self.mutex.release()
            if status != 0:
                return status
            done[0] += plan.length
        return 0

    cdef int status_of(self, Head head) noexcept nogil:
        """Why a write cannot begin, or 0."""
        return self.state if self.state != 0 else head.state

    cdef int begin(self, Head head, plan_t *plan) noexcept nogil:
        """Registers a write and gives each of its blocks a place (I1, I2)."""
        cdef int status
        self.mutex.acquire_nogil()
        while self.status_of(head) == 0 and (
                head.paused or head.flight_count == FLIGHTS_MAX or head.overlaps(plan.first, plan.end)):
            self.mutex.wait()
        status = self.status_of(head)
        if status == 0 and (plan.first << self.block_shift) + plan.skip + plan.length > head.size:
            status = STATUS_BEYOND
        if status == 0:
            status = self.place(head, plan)
        if status == 0:
            self.register(head, plan)
        self.mutex.release()
        return status

    cdef void register(self, Head head, plan_t *plan) noexcept nogil:
        """A plan whose pieces have their places goes on its way: from here until `end` it is in flight."""
        self.batch.reserved += plan.reserved
        plan.epoch, plan.flight = head.epoch, head.begin_flight(plan.first, plan.end, self.batch.number)

    cdef void end(self, Head head, plan_t *plan) noexcept nogil:
        self.batch.reserved -= plan.reserved
        head.end_flight(plan.flight)

    cdef int place(self, Head head, plan_t *plan) noexcept nogil:
        """Splits a write into pieces: in place (I1, I48), or placed anew."""
        cdef uint64_t block = plan.first, count, slot, got, last = plan.end - 1
        cdef uint64_t tail = (plan.skip + plan.length) & (self.block_bytes - 1)
        cdef entry_t entry
        cdef piece_t *piece
        cdef bint hole, own, partial
        cdef int status
        plan.count, plan.reserved = 0, 0
        while block < plan.end:
            piece = &plan.pieces[plan.count]
            status = self.map.find(&head.link, block, plan.end - block, &entry, &count)
            if status != 0:
                self.unplace(plan)
                return status
            hole = kind_of(entry.target) == KIND_HOLE
            piece.first, piece.old_slot, piece.partial, piece.placed = block, 0, False, False
            own = not hole and entry.birth > head.frozen
            if own and not self.unconfirmed.has(slot_of(entry.target), &count):
                piece.slot, piece.count = slot_of(entry.target), count
            else:
                partial = block == plan.first and plan.skip != 0 or block == last and tail != 0
                if partial:
                    count = 1
                    piece.old_slot = slot_of(entry.target)
                    status = self.find_seals(piece.old_slot, 1, &piece.old_seal)
                    if status != 0:
                        self.unplace(plan)
                        return status
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
                plan.reserved += got * BYTES_A_PIECE
                if own:
                    observed_add(&self.placed_again, 1)
            block += piece.count
            plan.count += 1
        if plan.reserved > 0 and self.batch.bytes() + plan.reserved > self.batch.bytes_max:
            self.unplace(plan)
            return STATUS_COMMIT
        return 0

    cdef uint64_t home_of(self, uint64_t block, uint64_t *count) noexcept nogil:
        """The home slot of a block, and for how many blocks from it on homes follow; 0: it has none."""
        cdef int i
        for i in range(self.region_count):
            if (block >= self.regions[i].first_block
                    and block - self.regions[i].first_block < self.regions[i].block_count):
                count[0] = self.regions[i].first_block + self.regions[i].block_count - block
                return self.regions[i].slot + (block - self.regions[i].first_block) * self.slots_per_block
        count[0] = 0
        return 0

    cdef int place_run(self, plan_t *plan, uint64_t block, uint64_t count, bint hole, uint64_t *slot,
                       uint64_t *got) noexcept nogil:
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
        observed_add(&self.blocks_placed, room)
        return 0

    cdef void unplace(self, plan_t *plan) noexcept nogil:
        """Gives back what `place` took, last piece first. The busy leaf is there, so this cannot fail.

        What came off the runway goes back to it, as far as there is room: on a full file system the next try then
        begins with the space that this one got.
        """
        cdef uint64_t slot, count, room
        cdef run_t *front
        cdef int i
        for i in range(plan.count - 1, -1, -1):
            if not plan.pieces[i].placed:
                continue
            slot, count = plan.pieces[i].slot, plan.pieces[i].count * self.slots_per_block
            front = &self.runway[self.runway_count - 1] if self.runway_count > 0 else NULL
            if self.home_of(plan.pieces[i].first, &room) == slot:
                self.slots.set_busy(slot, count, False)
                continue
            observed_add(&self.blocks_placed, -plan.pieces[i].count)
            if front != NULL and front.slot == slot + count:
                front.slot -= count
                front.count += count
            elif self.runway_count < RUNWAY_MAX:
                self.runway[self.runway_count].slot, self.runway[self.runway_count].count = slot, count
                self.runway_count += 1
            else:
                self.slots.set_busy(slot, count, False)

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
                status = self.io.write_at(
                    self.fd, data + (start - plan.skip), stop - start, piece.slot * NODE_BYTES + skip)
            if status != 0:
                return status
        return 0

    cdef int write_partial(self, plan_t *plan, piece_t *piece, const char *data) noexcept nogil:
        """Places a block of which only a part is new: the rest is copied from where it was (P2, SE4)."""
        cdef uint64_t base = (piece.first - plan.first) << self.block_shift
        cdef uint64_t start = max(base, plan.skip), stop = min(base + self.block_bytes, plan.skip + plan.length)
        cdef char *whole = <char *>malloc(self.block_bytes)
        cdef int status = 0
        if whole == NULL:
            return STATUS_MEMORY
        if piece.old_slot == 0:
            memset(whole, 0, self.block_bytes)
        else:
            status = self.read_block(piece.old_slot, piece.old_seal, piece.first << self.block_shift, whole)
        if status == 0:
            memcpy(whole + (start - base), data + (start - plan.skip), stop - start)
            status = self.io.write_at(self.fd, whole, self.block_bytes, piece.slot * NODE_BYTES)
        free(whole)
        return status

    cdef int publish(self, Head head, plan_t *plan) noexcept nogil:
        """Enters the placed pieces into the map and the batch (I3, I6)."""
        cdef int i, in_place = 0, status = 0
        # Of an epoch that has just begun nothing is in place, so there is something to enter.
        while head.fencing and plan.epoch == head.epoch and self.state == 0:
            self.mutex.wait()
        if self.state != 0:
            self.unplace(plan)
            return self.state
        for i in range(plan.count):
            if not plan.pieces[i].placed:
                in_place = 1
            elif status == 0:
                status = self.enter(head, &plan.pieces[i], plan.epoch)
        observed_add(&self.data_writes, 1)
        observed_add(&self.in_place_writes, in_place)
        observed_add(&self.bytes_written, plan.length)
        return status

    cdef int enter(self, Head head, piece_t *piece, uint64_t birth) noexcept nogil:
        """Enters a piece that was written whole into the map and the batch. A failure half-way poisons the volume."""
        cdef change_t change
        cdef int status
        change.first, change.end, change.kind = piece.first, piece.first + piece.count, KIND_RUN
        change.slot, change.birth, change.holder = piece.slot, birth, &head.holder
        change.freed, change.freed_max = &self.batch.freed, ~<size_t>0
        status = self.map.set_range(&head.link, 0, &change)
        if status == 0:
            status = self.batch.add_delta(
                piece.first, piece.count, entry_target(KIND_RUN, piece.slot), numbered(birth, head))
        if status != 0:
            self.state = STATUS_POISONED
        return status

    cdef int discard_some(self, Head head, uint64_t first, uint64_t end, uint64_t size,
                          uint64_t *done) noexcept nogil:
        """Makes as many blocks from `first` on holes as the batch has room for."""
        cdef change_t change
        cdef int status
        self.mutex.acquire_nogil()
        while self.status_of(head) == 0 and (head.paused or head.fencing or head.overlaps(first, end)):
            self.mutex.wait()
        status = self.status_of(head)
        if status == 0 and (size != 0 and size != head.size or end > head.block_count):
            status = STATUS_BEYOND
        if status == 0 and self.batch.bytes() + 2 * BYTES_A_PIECE >= self.batch.bytes_max:
            status = STATUS_COMMIT
        if status == 0:
            change.first, change.end, change.kind, change.slot, change.birth = first, end, KIND_HOLE, 0, head.epoch
            change.freed, change.freed_max = &self.batch.freed, self.batch.runs_max(2 * BYTES_A_PIECE)
            change.holder, change.done = &head.holder, first
            status = self.map.set_range(&head.link, 0, &change)
            if change.done > first and self.batch.add_delta(
                    first, change.done - first, 0, numbered(head.epoch, head)) != 0:
                self.state = status = STATUS_POISONED
            if status == STATUS_STOPPED:
                status = STATUS_COMMIT if change.done == first else 0
            done[0] = change.done
        self.mutex.release()
        return status

    def batch_fill(self):
        """Bytes of the open batch, and how many it may have."""
        self.mutex.acquire()
        cdef size_t fill = self.batch.bytes()
        self.mutex.release()
        return fill, self.batch.bytes_max

    # -- the fence -----------------------------------------------------------------------------------------------------
    def fence(self, Head head=None):
        """Begins a snapshot: writes that begin from now on belong to the next epoch. Returns the epoch that ended."""
        if head is None:
            head = self.live
        return fence_all([head])[0]

    def take_batch(self, list keep not None, uint64_t vouched_max=0, Head fenced=None):
        """Takes the open batch: (deltas, freed runs, freed nodes, data_writes, superseded nodes, roots).

        After a `fence`, or with one over the head `fenced` in the same instant, waits until every write of the ended
        epoch is published. The three arrays are bytes as in a
        record. `keep` are the heads whose maps as of the batch are kept: roots are their Roots, and if there are any,
        superseded nodes are [(slot, count)].

        What the batch places, if that is at most `vouched_max` blocks, is not written any more: `unconfirmed` then has
        its checks (I47, I48).
        """
        cdef bint is_vouched
        cdef bytes deltas
        self.mutex.acquire()
        if fenced is not None:
            fenced.fence()
        self.await_older()
        if self.state != 0:
            self.mutex.release()
            check_status(self.state, self.map)
        is_vouched = self.unconfirmed.fence(self.batch, vouched_max)
        batch = self.take(keep)
        deltas = batch[0]
        if is_vouched:
            self.await_placed(<const delta_t *><const char *>deltas, len(deltas) // sizeof(delta_t))
        self.mutex.release()
        check_status(self.state, self.map)
        return batch

    def take_quiet(self, Head head not None, uint64_t synced_writes, bint fenced=True):
        """(root, superseded nodes), as `take_batch` gives them, of a head behind its fence, if nothing is to be synced.

        None, and nothing was done, if anything is in the batch or on its way there, or was written since so many
        writes. Unless it is `fenced` already its epoch ends in the same instant; None, then, if any write to it is
        under way.
        """
        cdef bint is_quiet
        root = superseded = None
        self.mutex.acquire()
        is_quiet = self.state == 0 and self.batch.bytes() == 0 and self.data_writes == synced_writes
        if is_quiet and (not head.has_older() if fenced else head.flight_count == 0):
            if not fenced:
                head.fence()
            *_, superseded, (root,) = self.take([head])
        self.mutex.release()
        return None if root is None else (root, superseded)

    def may_change(self, Head head not None):
        """Whether this head exists, is open and may be changed now. If not, whoever is asked next says why."""
        return self.state == 0 and not self.read_only and head.state == 0 and self.heads.get(head.number) is head

    cdef void await_older(self):
        """Waits until no write of an epoch that a fence ended is in flight.

        The mutex is held, but not all the time.
        """
        cdef Head head
        for head in list(self.heads.values()):
            with nogil:
                while head.fencing and self.state == 0 and head.has_older():
                    self.mutex.wait()

    cdef void await_placed(self, const delta_t *deltas, size_t count):
        """Waits until none of the writes that began before these were taken is under way on what they place (I47).

        The mutex is held, but not all the time.
        """
        cdef uint64_t number = self.batch.number
        cdef Head head
        cdef size_t i
        for i in range(count):
            head = self.heads[deltas[i].birth >> 48]
            with nogil:
                while self.state == 0 and head.has_earlier(
                        number, deltas[i].block, deltas[i].block + deltas[i].count):
                    self.mutex.wait()

    cdef tuple take(self, list keep):
        """The part of `take_batch` that gives up the mutex nowhere: batch and roots are of one moment."""
        cdef list superseded = [], roots = []
        cdef Head head
        for head in keep:
            roots.append(self.kept_root(head))
        if keep:
            self.map.stamp += 1
            superseded = taken_runs(&self.map.superseded)
        for head in self.heads.values():
            if head.fencing:
                head.stand_on_snapshot()
        self.map.drop_orphans()
        self.mutex.wake()
        return self.batch.take() + (self.data_writes, superseded, roots)

    cdef Root kept_root(self, Head head):
        cdef Root root = Root(self.map, self.mutex)
        root.link = head.link
        if root.link.node != NULL:
            root.link.node.references += 1
        return root

    def pause(self, tuple heads not None):
        """Lets no write to these heads begin, and waits for those that run."""
        cdef Head head
        self.mutex.acquire()
        for head in heads:
            head.paused = True
        for head in heads:
            with nogil:
                while head.flight_count > 0 and self.state == 0:
                    self.mutex.wait()
        self.mutex.release()

    def resume(self, tuple heads not None):
        """Ends `pause`."""
        cdef Head head
        self.mutex.acquire()
        for head in heads:
            head.paused = False
        self.mutex.wake()
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
        cdef Head head
        self.mutex.acquire()
        if self.state == 0:
            self.state = STATUS_POISONED
        for head in self.heads.values():
            head.fencing = False
        self.mutex.wake()
        self.mutex.release()

    def shut(self):
        """Every call fails with ClosedError from now on; waits for the writes and reads that run."""
        cdef Head head
        self.mutex.acquire()
        self.state = STATUS_ABSENT
        self.mutex.wake()
        for head in list(self.heads.values()):
            with nogil:
                while head.flight_count > 0:
                    self.mutex.wait()
        with nogil:
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

    def behead(self):
        """From now on there is no head here, only snapshots can be read. Lets go of the engine."""
        cdef Head head
        for head in self.heads.values():
            head.state = STATUS_HEADLESS
        self.refill = self.commit = None

    # -- records and checkpoints ---------------------------------------------------------------------------------------
    def replay(self, bytes deltas not None):
        """Applies the deltas of a record to the maps of their heads, and marks what they place as used.

        Returns False, with some of them applied, if one lies beyond the end of its head, or that does not exist.
        """
        cdef const char *raw = deltas
        cdef const delta_t *delta
        cdef change_t change
        cdef size_t i
        cdef runs_t ignored
        cdef bint inside = True
        cdef Head head
        cdef int status = 0
        ignored.items, ignored.count, ignored.room = NULL, 0, 0
        self.mutex.acquire()
        for i in range(len(deltas) // sizeof(delta_t)):
            delta = <const delta_t *>raw + i
            head = self.heads.get(delta.birth >> 48)
            if head is None or delta.block >= head.block_count or delta.count > head.block_count - delta.block:
                inside = False
                break
            change.first, change.end, change.kind = delta.block, delta.block + delta.count, kind_of(delta.target)
            change.slot, change.birth = slot_of(delta.target), delta.birth & 0xFFFFFFFFFFFF
            change.freed, change.freed_max, change.holder = &ignored, ~<size_t>0, &head.holder
            status = self.map.set_range(&head.link, 0, &change)
            if status == 0 and change.kind == KIND_RUN:
                status = self.use(change.slot, delta.count * self.slots_per_block)
            ignored.count = 0
            if status != 0:
                break
        self.mutex.release()
        runs_clear(&ignored)
        check_status(status, self.map)
        return inside

    def account(self, bytes deltas not None, bytes freed not None):
        """Takes a committed record into the free map: what it placed is used, what it freed no longer (SM2).

        The seals of both end (SE3). The mutex is given up now and then.
        """
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
                status = self.use(slot_of(delta.target), delta.count * self.slots_per_block)
        for i in range(len(freed) // sizeof(run_t)):
            run = <const run_t *>raw_freed + i
            if i > 0 and i % RUNS_AT_ONCE == 0:
                self.mutex.release()
                self.mutex.acquire()
            if status == 0:
                status = self.slots.set_used(run.slot, run.count, False)
            if status == 0:
                status = self.seals.clear(run.slot, run.count)
        self.mutex.release()
        check_status(status, self.map)

    cdef int use(self, uint64_t slot, uint64_t count) noexcept nogil:
        """A record placed blocks here: the slots are used, and nobody sealed what they hold (SE3)."""
        cdef int status = self.slots.set_used(slot, count, True)
        return status if status != 0 else self.seals.clear(slot, count)

    def free_runs(self, list runs not None):
        """Runs of (slot, count) that a record in replay freed: no longer used, and their seals end (SE3)."""
        cdef uint64_t slot, count
        cdef int status = 0
        self.slots.mark_used(runs, False)
        self.mutex.acquire()
        for slot, count in runs:
            if status == 0:
                status = self.seals.clear(slot, count)
        self.mutex.release()
        check_status(status, self.seals.tree)

    def dirty_nodes(self):
        """An upper bound of the map's nodes that a checkpoint would write now."""
        return self.map.dirty_count

    def flush_map(self, list roots not None, list runs not None):
        """Writes all dirty nodes of some roots into slots of `runs`; returns the runs left over.

        Not durable. The roots' pointers are right afterwards, and so is that of each head that did not change since.
        """
        cdef NodeWriter writer = NodeWriter(self.map, self.mutex, runs)
        cdef Root root
        cdef Head head
        cdef int status = 0
        self.mutex.acquire()
        for root in roots:
            if status == 0:
                status = writer.add(&root.link)
        for head in self.heads.values():
            head.was_written()
        self.mutex.release()
        return writer.finish(status)

    def take_stillborn(self):
        """Slots just given to nodes that a reclaim had passed while they were dirty, as [(slot, count)]."""
        self.mutex.acquire()
        runs = taken_runs(&self.map.stillborn)
        self.mutex.release()
        return runs


cdef inline uint64_t numbered(uint64_t birth, Head head) noexcept nogil:
    """The birth field of a delta (docs/format.md section 6)."""
    return birth | <uint64_t>head.number << 48


cdef list taken_runs(runs_t *runs):
    """Some runs as [(slot, count)]; there are none then."""
    cdef size_t i
    taken = [(runs.items[i].slot, runs.items[i].count) for i in range(runs.count)]
    runs.count = 0
    return taken


cdef extern from "<sched.h>" nogil:
    int _yield "sched_yield" ()
