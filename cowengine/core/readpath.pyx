"""Reads of one volume: the live head's and every snapshot's.

A range is resolved to physical extents under the mutex and read without it. Also what only looks: walks over extents,
eras of reads.

Invariant (docs/invariants.md)
    I5   A slot that a read may still need is not given out: readers register in an era, and a freed slot waits two
         eras.

Threads   Any number. The mutex guards all state; it is never held during the I/O of data, and never waited for with the
          GIL held.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from cowengine.core.blockmap cimport WALK_ALLOCATED, WALK_BORN_AFTER, BlockMap, extent_t, walk_t
from cowengine.core.iotable cimport IOTable
from cowengine.core.mutex cimport Mutex
from cowengine.core.radix cimport (
    NODE_BYTES, STATUS_BEYOND, STATUS_GONE, STATUS_HEADLESS, STATUS_STOPPED, TREE_MAP, entry_t, link_t, node_t,
    pointer_t, slot_of, sweep_t,
)
from cowengine.core.status cimport check_status

cdef enum:
    WALK_NODES = 64                 # visited while the mutex is held
    WALK_EXTENTS = 4096


@cython.no_gc_clear
cdef class Root:
    """The map's root as a snapshot holds it. `used` says that it was read since somebody last cleared it."""

    def __cinit__(self, ReadPath path not None, bytes pointer=None):
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

    def unload(self, size_t keep=0):
        """Drops clean nodes from memory until the map has at most `keep`; they are read again when needed."""
        cdef sweep_t sweep
        cdef bint more = True
        sweep.position = 0
        while more:
            self.path.mutex.acquire()
            more = self.path.map.forget_some(&self.link, &sweep, keep)
            self.path.mutex.release()

    def retire(self):
        """The snapshot is deleted: reads of it fail from now on."""
        self.path.mutex.acquire()
        self.gone = True
        self.path.mutex.release()


@cython.no_gc_clear
cdef class ReadPath:
    """What reads of a volume need; `DataPath` adds the rest."""

    def __cinit__(self, IOTable io not None, int fd, uint64_t fold, int block_shift, *args):
        self.io, self.fd, self.block_shift = io, fd, block_shift
        self.block_bytes = <uint64_t>1 << block_shift
        self.slots_per_block = self.block_bytes // NODE_BYTES
        self.mutex = Mutex()
        self.map = BlockMap(io, fd, TREE_MAP, fold, 8, self.slots_per_block, <uint64_t>1 << 47)
        self.era = 2
        self.node_limit = <size_t>-1

    def __dealloc__(self):
        self.drop_orphans()
        free(self.orphans)

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

    def bound(self, size_t node_limit, trim):
        """From now on `trim()` is called, with no lock held, after a read that finds more than `node_limit` nodes."""
        self.node_limit, self.trim = node_limit, trim

    def check_state(self):
        """Raises if the volume is poisoned or closed."""
        if self.state != 0:
            check_status(self.state, self.map)

    def unload(self, size_t keep):
        """Drops clean nodes of the live map from memory until the map has at most `keep`; goes on where it stopped.

        The commit lock is held.
        """
        cdef sweep_t sweep
        cdef bint more = True
        cdef int turns = 0
        sweep.position = self.hand
        while turns < 2:
            self.mutex.acquire()
            more = self.map.forget_some(&self.map.root, &sweep, keep)
            enough = self.map.node_count <= keep
            self.mutex.release()
            if enough:
                break
            if not more:
                sweep.position, turns = 0, turns + 1
        self.hand = sweep.position

    # -- bytes ---------------------------------------------------------------------------------------------------------
    def pread(self, uint64_t length, uint64_t offset, Root root=None):
        """Bytes of the live volume, or of a snapshot's root; the range was checked. The GIL is released."""
        cdef bytes result = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>length)
        cdef char *data = PyBytes_AS_STRING(result)
        cdef int status
        with nogil:
            status = self.read(root, data, length, offset)
        check_status(status, self.map)
        if self.map.node_count > self.node_limit:
            self.trim()
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
        if self.map.node_count > self.node_limit:
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

    def place(self, uint64_t block, Root root=None):
        """(slot or 0, count): where a block lies, and how many from it on lie there in a row or are holes as well."""
        cdef entry_t entry
        cdef uint64_t count
        cdef int status
        with nogil:
            self.mutex.acquire_nogil()
            status = self.state
            if status == 0 and root is not None and root.gone:
                status = STATUS_GONE
            if status == 0:
                status = self.map.find(&self.map.root if root is None else &root.link, block, &entry, &count)
            self.mutex.release()
        check_status(status, self.map)
        return slot_of(entry.target), count

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
            elif self.headless and status == 0:
                status = STATUS_HEADLESS
            elif status == 0 and offset + length > self.size:
                status = STATUS_BEYOND
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
                    status = self.io.read_at(
                        self.fd, data, extents[i].length, extents[i].slot * NODE_BYTES + extents[i].skip)
                data += extents[i].length
            self.mutex.acquire_nogil()
            self.readers[era & 1] -= 1
            self.mutex.release()
            if status != 0:
                return status
            offset += covered
            length -= covered
        return 0

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
                    elif self.headless and status == 0:
                        status = STATUS_HEADLESS
                    if status == 0:
                        status = self.map.walk(link, 0, &walk)
                    self.mutex.release()
                if self.map.node_count > self.node_limit:
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
