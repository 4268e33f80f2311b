"""Reads of one volume: every head's and every snapshot's.

A range is resolved to physical extents under the mutex and read without it. Also what only looks: walks over extents,
eras of reads.

Invariant (docs/invariants.md)
    I5   A slot that a read may still need is not given out: readers register in an era, and a freed slot waits two
         eras.
    SE4  Whoever reads a sealed block verifies it.

Threads   Any number. The mutex guards all state; it is never held during the I/O of data, and never waited for with the
          GIL held.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from posix.uio cimport iovec

from cowengine.core.blockmap cimport WALK_ALLOCATED, WALK_BORN_AFTER, BlockMap, extent_t, walk_t
from cowengine.core.checksum cimport CE_FASTEST, ce_seal
from cowengine.core.iotable cimport IOTable, PASSED_BYTES_MAX, STATUS_WAIT
from cowengine.core.mutex cimport Mutex
from cowengine.core.observed cimport observed_add, observed_enter, observed_leave
from cowengine.core.radix cimport (
    NODE_BYTES, STATUS_BEYOND, STATUS_CORRUPT, STATUS_MEMORY, STATUS_STOPPED, TREE_MAP, entry_t, link_t, slot_of,
)
from cowengine.core.roots cimport Head, Root
from cowengine.core.sealtable cimport SealTable
from cowengine.core.status cimport check_status, damaged

cdef enum:
    VERIFY_BYTES = 256 << 10        # read, then verified while the cache has them
    JOINED_MAX = 64                 # extents read by one call
    JOINED_AHEAD = 4                # how many extents without one that joins end the search
    WALK_NODES = 64                 # visited while the mutex is held
    WALK_EXTENTS = 4096
    BIRTHS_AT_ONCE = 512            # looked up while the mutex is held
    BIRTHS_FOUND = 1 << 16

cdef uint64_t BLOCKS_MAX = <uint64_t>1 << 47


cdef inline uint64_t place_of(const extent_read_t *extent) noexcept nogil:
    """Where an extent lies in the file, in bytes."""
    return extent.slot * NODE_BYTES + extent.skip


cdef inline int next_near(const extent_read_t *extents, int count, int at, uint64_t end, uint64_t room) noexcept nogil:
    """The next extent behind `at` that lies near the byte `end` of the file, or `count`."""
    cdef int i
    for i in range(at + 1, min(count, at + 1 + JOINED_AHEAD)):
        if (place_of(&extents[i]) - end <= PASSED_BYTES_MAX     # unsigned: not what lies before, either
                and extents[i].slot != 0 and not extents[i].there and extents[i].length <= room):
            return i
    return count


cdef bint fetch_near(ReadPath path, extent_read_t *extents, int count, uint64_t room, char *data,
                     bint cached) noexcept nogil:
    """Reads the first extent and what lies behind it in the file by one call; something is near.

    A few blocks that moved since they were written in a row would else cost a call for each run between them. Small
    gaps are passed over: they may be free, or be written at this time. Nothing of them reaches the buffer, and what
    goes wrong is not told: then it returns False, and each extent is read on its own.
    """
    cdef iovec parts[2 * JOINED_MAX]
    cdef int members[JOINED_MAX]
    cdef uint64_t begin = place_of(extents), end = begin, place
    cdef int at = 0, near = 0, joined = 0, count_of_parts = 0
    while near < count and joined < JOINED_MAX:
        while at < near:
            data += extents[at].length
            at += 1
        place = place_of(&extents[at])
        if place > end:
            parts[count_of_parts].iov_base, parts[count_of_parts].iov_len = NULL, place - end
            count_of_parts += 1
        parts[count_of_parts].iov_base, parts[count_of_parts].iov_len = data, extents[at].length
        count_of_parts += 1
        members[joined] = at
        joined += 1
        end = place + extents[at].length
        room -= extents[at].length
        near = next_near(extents, count, at, end, room)
    if path.io.read_parts_at(path.fd, parts, count_of_parts, begin, cached) != 0:
        return False
    for at in range(joined):
        extents[members[at]].there = True
    return True


cdef inline int fetch_one(ReadPath path, const extent_read_t *extent, const uint32_t *seals, char *data,
                          bint cached) noexcept nogil:
    """Reads an extent, unless its bytes are there, and verifies what is sealed of it."""
    cdef int status = 0
    if extent.slot == 0:
        memset(data, 0, extent.length)
        return 0
    if not extent.there and cached:
        status = path.io.read_cached_at(path.fd, data, extent.length, place_of(extent))
    elif not extent.there:
        if seals != NULL:
            return path.read_sealed(extent, seals, data)
        return path.io.read_at(path.fd, data, extent.length, place_of(extent))
    if status == 0 and seals != NULL:
        status = path.check_sealed(extent, seals, data)
        if status == STATUS_WAIT and not cached:
            status = path.read_sealed(extent, seals, data)
    return status


cdef int fetch(ReadPath path, extent_read_t *extents, int count, const uint32_t *seals, char *data,
               bint cached) noexcept nogil:
    """Reads extents to where one lies behind the other, and verifies them; `seals` is NULL if nothing is sealed."""
    cdef extent_read_t *extent
    cdef uint64_t room = <uint64_t>VERIFY_BYTES if seals != NULL else <uint64_t>-1
    cdef bint joining = True
    cdef int i, status
    for i in range(count):
        extent = &extents[i]
        if (joining and extent.slot != 0 and not extent.there and extent.length <= room and count - i > next_near(
                extent, count - i, 0, place_of(extent) + extent.length, room - extent.length)):
            joining = fetch_near(path, extent, count - i, room, data, cached)
        status = fetch_one(path, extent, seals, data, cached)
        if status != 0:
            return status
        if seals != NULL and extent.slot != 0:
            seals += path.blocks_in(extent)
        data += extent.length
    return 0


cdef inline int read_range(ReadPath path, Root root, char *data, uint64_t length, uint64_t offset,
                           bint cached) noexcept nogil:
    """`read` and `read_cached`: as far at a time as one look at the map goes."""
    cdef look_t found
    cdef const uint32_t *seals
    cdef int status
    while length > 0:
        status = path.look(root, length, offset, &found)
        if status != 0:
            return status
        seals = found.seals if found.sealed else NULL
        if found.count == 1:
            status = fetch_one(path, found.extents, seals, data, cached)
        else:
            status = fetch(path, found.extents, found.count, seals, data, cached)
        observed_leave(&path.readers[found.era & 1])
        if status != 0:
            return status
        data += found.covered
        offset += found.covered
        length -= found.covered
    return 0


@cython.no_gc_clear
cdef class ReadPath:
    """What reads of a volume need; `DataPath` adds the rest. `live` is head 0."""

    def __cinit__(self, IOTable io not None, int fd, uint64_t fold, int block_shift, *args):
        self.io, self.fd, self.block_shift = io, fd, block_shift
        self.block_bytes = <uint64_t>1 << block_shift
        self.slots_per_block = self.block_bytes // NODE_BYTES
        self.mutex = Mutex()
        self.map = BlockMap(io, fd, TREE_MAP, fold, 8, self.slots_per_block, <uint64_t>1 << 47)
        self.live = Head(self.map, self.mutex, 0, block_shift)
        self.seals = SealTable(io, fd, fold)
        self.era = 2
        self.node_limit = self.seal_limit = <size_t>-1

    def root_at(self, bytes pointer not None):
        """The root of the map that a pointer of 32 bytes leads to."""
        cdef Root root = Root(self.map, self.mutex)
        root.load(pointer)
        return root

    def bound(self, size_t node_limit, trim):
        """From now on `trim()` is called, with no lock held, after a read that finds more than `node_limit` nodes."""
        self.node_limit, self.trim = node_limit, trim

    def check_state(self):
        """Raises if the volume is poisoned or closed."""
        if self.state != 0:
            check_status(self.state, self.map)

    def check_status(self, int status):
        """Raises what a read or write that returned this status has met."""
        check_status(status, self.map)

    cdef bint is_crowded(self) noexcept nogil:
        """Whether more nodes are in memory than should be."""
        return self.map.node_count > self.node_limit or self.seals.tree.node_count > self.seal_limit

    # -- bytes ---------------------------------------------------------------------------------------------------------
    def pread(self, uint64_t length, uint64_t offset, Root root=None):
        """Bytes of the live volume, or of another root; the range was checked. The GIL is released."""
        cdef bytes result = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>length)
        cdef char *data = PyBytes_AS_STRING(result)
        cdef int status
        if root is None:
            root = self.live
        with nogil:
            status = self.read(root, data, length, offset)
        check_status(status, self.map)
        if self.is_crowded():
            self.trim()
        return result

    def pread_into(self, buffer, uint64_t offset, uint64_t length_max, Root root=None):
        """Fills a writable buffer, at most `length_max` bytes; returns how many."""
        cdef Py_buffer view
        cdef uint64_t length
        cdef int status
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        length = min(<uint64_t>view.len, length_max)
        if root is None:
            root = self.live
        with nogil:
            status = self.read(root, <char *>view.buf, length, offset)
        PyBuffer_Release(&view)
        check_status(status, self.map)
        if self.is_crowded():
            self.trim()
        return length

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
            blocks = (skip + length - covered[0] + self.block_bytes - 1) >> self.block_shift
            status = self.map.find(link, block, blocks, &entry, &blocks)
            if status != 0:
                return status
            bytes = min(length - covered[0], (blocks << self.block_shift) - skip)
            slot = slot_of(entry.target)
            if last != NULL and (slot == 0 and last.slot == 0 or slot != 0 and last.slot != 0 and (     # skip is 0 then
                    last.slot * NODE_BYTES + last.skip + last.length == slot * NODE_BYTES)):
                last.length += bytes
            elif count[0] == EXTENTS_MAX:
                break
            else:
                last = &extents[count[0]]
                last.slot, last.skip, last.length = slot, skip, bytes
                last.offset, last.there = offset + covered[0], False
                count[0] += 1
            covered[0] += bytes
        return 0

    def place(self, uint64_t block, Root root=None):
        """(slot or 0, count): where a block lies, and how many from it on lie there in a row or are holes as well."""
        cdef entry_t entry
        cdef uint64_t count
        cdef int status
        if root is None:
            root = self.live
        with nogil:
            self.mutex.acquire_nogil()
            status = self.state if self.state != 0 else root.state
            if status == 0:
                status = self.map.find(&root.link, block, BLOCKS_MAX, &entry, &count)
            self.mutex.release()
        check_status(status, self.map)
        return slot_of(entry.target), count

    cdef int look(self, Root root, uint64_t length, uint64_t offset, look_t *found) noexcept nogil:
        """Finds where the beginning of a range lies and what is sealed there; the mutex is held only here (I5, I42).

        If it returns 0, a read is registered in the era `found.era`, and its end must be.
        """
        cdef uint64_t wanted = length
        cdef int status
        self.mutex.acquire_nogil()
        if not root.used:       # every read comes here
            root.used = True
        status = self.state if self.state != 0 else root.state
        if status == 0 and offset + length > root.size:
            status = STATUS_BEYOND
        if not self.seals.is_empty():
            wanted = min(length, (<uint64_t>SEALS_MAX << self.block_shift) - (offset & (self.block_bytes - 1)))
        if status == 0:
            status = self.resolve(&root.link, offset, wanted, found.extents, &found.count, &found.covered)
        if status == 0:
            status = self.expect(found.extents, found.count, found.seals, &found.sealed)
        if status == 0:
            found.era = self.era
            observed_enter(&self.readers[found.era & 1])
            observed_add(&self.bytes_read, found.covered)
        self.mutex.release()
        return status

    cdef int read(self, Root root, char *data, uint64_t length, uint64_t offset) noexcept nogil:
        """Reads a range."""
        return read_range(self, root, data, length, offset, False)

    cdef int read_cached(self, Root root, char *data, uint64_t length, uint64_t offset) noexcept nogil:
        """As `read`, if that need not wait for the disk; else STATUS_WAIT, and anything in the buffer.

        So is what is not right: `read` meets it again, and says so. A node of the map may be read from the disk.
        """
        return read_range(self, root, data, length, offset, True)

    # -- seals ---------------------------------------------------------------------------------------------------------
    cdef uint64_t blocks_in(self, const extent_read_t *extent) noexcept nogil:
        """How many blocks an extent touches."""
        return (extent.skip + extent.length + self.block_bytes - 1) >> self.block_shift

    cdef int find_seals(self, uint64_t slot, uint64_t count, uint32_t *seals) noexcept nogil:
        """The seals, or 0, of some blocks that lie in a row from `slot` on. The mutex is held."""
        cdef int status = self.seals.find(slot, count, self.slots_per_block, seals)
        if status == STATUS_CORRUPT:
            self.map.damaged_slot = self.seals.tree.damaged_slot    # for the error, which asks the map
        return status

    cdef int expect(self, const extent_read_t *extents, int count, uint32_t *seals, bint *sealed) noexcept nogil:
        """The seals of the blocks of some extents, in their order; `sealed` says that there are any.

        The mutex is held.
        """
        cdef uint64_t blocks, block
        cdef int i, status
        sealed[0] = False
        if self.seals.is_empty():
            return 0
        for i in range(count):
            if extents[i].slot != 0:
                blocks = self.blocks_in(&extents[i])
                status = self.find_seals(extents[i].slot, blocks, seals)
                if status != 0:
                    return status
                for block in range(blocks):
                    sealed[0] = sealed[0] or seals[block] != 0
                seals += blocks
        return 0

    cdef int read_sealed(self, const extent_read_t *extent, const uint32_t *seals, char *data) noexcept nogil:
        """Reads an extent and verifies what is sealed of it (SE4)."""
        cdef uint64_t done = 0, block, into, bytes, slot
        cdef int status = 0
        while done < extent.length and status == 0:
            block = (extent.skip + done) >> self.block_shift
            into = (extent.skip + done) & (self.block_bytes - 1)
            slot = extent.slot + block * self.slots_per_block
            if into != 0 or extent.length - done < self.block_bytes:
                bytes = min(self.block_bytes - into, extent.length - done)
                status = self.read_part(slot, seals[block], extent.offset + done - into, data + done, into, bytes)
            else:
                bytes = min(extent.length - done, max(<uint64_t>VERIFY_BYTES, self.block_bytes))
                bytes &= ~(self.block_bytes - 1)
                status = self.read_blocks(
                    slot, bytes >> self.block_shift, seals + block, extent.offset + done, data + done)
            done += bytes
        return status

    cdef int check_sealed(self, const extent_read_t *extent, const uint32_t *seals, char *data) noexcept nogil:
        """Verifies what is sealed of an extent that was just read (SE4).

        STATUS_WAIT where it does not fit; a part of a block is read again, with the rest.
        """
        cdef uint64_t done = 0, block, into, bytes, slot
        cdef int status = 0
        while done < extent.length and status == 0:
            block = (extent.skip + done) >> self.block_shift
            into = (extent.skip + done) & (self.block_bytes - 1)
            slot = extent.slot + block * self.slots_per_block
            bytes = min(self.block_bytes - into, extent.length - done)
            if seals[block] != 0 and bytes < self.block_bytes:
                status = self.read_part(slot, seals[block], extent.offset + done - into, data + done, into, bytes)
            elif seals[block] != 0 and ce_seal(data + done, bytes, slot, CE_FASTEST) != seals[block]:
                status = STATUS_WAIT
            done += bytes
        return status

    cdef int read_part(self, uint64_t slot, uint32_t seal, uint64_t offset, char *data, uint64_t skip,
                       uint64_t length) noexcept nogil:
        """Reads a part of a block, and verifies the whole if it is sealed."""
        cdef char *whole
        cdef int status
        if seal == 0:
            return self.io.read_at(self.fd, data, length, slot * NODE_BYTES + skip)
        whole = <char *>malloc(self.block_bytes)
        if whole == NULL:
            return STATUS_MEMORY
        status = self.read_block(slot, seal, offset, whole)
        if status == 0:
            memcpy(data, whole + skip, length)
        free(whole)
        return status

    cdef int read_blocks(self, uint64_t slot, uint64_t count, const uint32_t *seals, uint64_t offset,
                         char *data) noexcept nogil:
        """Reads whole blocks that lie in a row, and verifies those that are sealed, where they were read to.

        Another thread may have changed those bytes since: what does not fit is read again, where nobody else sees it.
        """
        cdef uint64_t i
        cdef int status = self.io.read_at(self.fd, data, count << self.block_shift, slot * NODE_BYTES)
        for i in range(count):
            if status == 0 and seals[i] != 0 and seals[i] != ce_seal(
                    data + (i << self.block_shift), self.block_bytes, slot + i * self.slots_per_block, CE_FASTEST):
                status = self.read_part(
                    slot + i * self.slots_per_block, seals[i], offset + (i << self.block_shift),
                    data + (i << self.block_shift), 0, self.block_bytes)
        return status

    cdef int read_block(self, uint64_t slot, uint32_t seal, uint64_t offset, char *whole) noexcept nogil:
        """Reads a block, which lies at byte `offset` of the volume, into memory of our own; verifies it if sealed."""
        cdef int status = self.io.read_at(self.fd, whole, self.block_bytes, slot * NODE_BYTES)
        if status == 0 and seal != 0 and ce_seal(whole, self.block_bytes, slot, CE_FASTEST) != seal:
            status = damaged(slot, offset)
        return status

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

    # -- walks ---------------------------------------------------------------------------------------------------------
    def extents(self, Root root, uint64_t first, uint64_t end, uint64_t max_results, born_after=None):
        """Extents in blocks [first, end) as raw pairs (first, count): what is mapped, or what was born after an epoch.

        At most `max_results`. The mutex is given up now and then; of a head, later changes may be seen or not.
        """
        cdef walk_t walk
        cdef bytearray result = bytearray()
        cdef uint64_t rows = 0
        cdef int status = STATUS_STOPPED
        if root is None:
            root = self.live
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
                    root.used = True
                    status = self.state if self.state != 0 else root.state
                    if status == 0:
                        status = self.map.walk(&root.link, 0, &walk)
                    self.mutex.release()
                if self.is_crowded():
                    self.trim()
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

    def births(self, Root root not None, uint64_t first, uint64_t end, uint64_t max_results):
        """When the blocks [first, end) were written, as raw triples (first, count, epoch of birth, or 0 of a hole).

        At most `max_results`, and an end of the search after BIRTHS_FOUND look-ups: the answer may end before `end`,
        but has at least one triple. The mutex is given up now and then; of a head, later changes may be seen or not.
        """
        cdef bytearray result = bytearray()
        cdef birth_t births[BIRTHS_AT_ONCE]
        cdef uint64_t rows = 0
        cdef int status = 0, count, found = 0
        while first < end and rows < max_results and found < BIRTHS_FOUND:
            with nogil:
                self.mutex.acquire_nogil()
                root.used = True
                status = self.state if self.state != 0 else root.state
                if status == 0:
                    status = self.some_births(
                        root, &first, end, births, min(<uint64_t>BIRTHS_AT_ONCE, max_results - rows), &count, &found)
                self.mutex.release()
            check_status(status, self.map)
            result += (<const char *>births)[:count * sizeof(birth_t)]
            rows += count
            if self.is_crowded():
                self.trim()
        return result

    cdef int some_births(self, Root root, uint64_t *first, uint64_t end, birth_t *births, int room, int *count,
                         int *found) noexcept nogil:
        """Enters some births, and moves `first` behind what they tell of. The mutex is held."""
        cdef entry_t entry
        cdef uint64_t blocks, birth
        cdef birth_t *last = NULL
        cdef int status, looked = 0
        count[0] = 0
        if (end - 1) << self.block_shift >= root.size:
            return STATUS_BEYOND
        while first[0] < end and looked < BIRTHS_AT_ONCE:
            status = self.map.find(&root.link, first[0], end - first[0], &entry, &blocks)
            if status != 0:
                return status
            birth = entry.birth if slot_of(entry.target) != 0 else 0
            if last != NULL and last.birth == birth:
                last.count += blocks
            elif count[0] == room:
                break
            else:
                last = &births[count[0]]
                last.first, last.count, last.birth = first[0], blocks, birth
                count[0] += 1
            first[0] += blocks
            looked += 1
        found[0] += looked
        return 0
