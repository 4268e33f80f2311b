"""Making seals and verifying by them, for the blocks that a snapshot reaches: a bounded piece at a call.

Reads blocks as a read of the snapshot would, so a slot that is read here is not given out meanwhile (I5). Enters a seal
only for a block that still lies where it was read (SE2).

Threads   Any; no lock is held during I/O. `enter` needs the engine's commit lock, so that no slot is freed meanwhile.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from cowengine.core.checksum cimport CE_FASTEST, ce_seal
from cowengine.core.observed cimport observed_enter, observed_leave
from cowengine.core.radix cimport NODE_BYTES, STATUS_CORRUPT, entry_t, slot_of
from cowengine.core.readpath cimport SEALS_MAX, ReadPath
from cowengine.core.roots cimport Root
from cowengine.core.status cimport check_status

cdef enum:
    PIECE_BYTES = 1 << 20       # read at a call
    LOOKS = 512                 # at the map while the mutex is held
    FRESH_BYTES = 1 << 27       # of the file, let go of at once: many times what a system reads ahead

cdef struct found_t:            # blocks that lie in a row, and the seals they have
    uint64_t first
    uint64_t count
    uint64_t slot               # 0: there are none; go on from `first`
    uint64_t birth
    uint64_t era
    uint32_t seals[SEALS_MAX]


cdef int find_blocks(ReadPath path, Root root, uint64_t end, uint64_t count_max, found_t *found) noexcept nogil:
    """The next mapped blocks from `first` on and before `end`; if there are any, a read of them has begun (I5)."""
    cdef entry_t entry
    cdef uint64_t count
    cdef int _look, status
    found.slot, found.count = 0, 0
    path.mutex.acquire_nogil()
    root.used = True
    status = path.state if path.state != 0 else root.state
    for _look in range(LOOKS):
        if status != 0 or found.first >= end:
            break
        status = path.map.find(&root.link, found.first, end - found.first, &entry, &count)
        if status == 0 and slot_of(entry.target) != 0:
            found.count = min(count, min(count_max, <uint64_t>SEALS_MAX))
            status = path.find_seals(slot_of(entry.target), found.count, found.seals)
            if status == 0:
                found.slot, found.birth, found.era = slot_of(entry.target), entry.birth, path.era
                observed_enter(&path.readers[path.era & 1])
            break
        found.first += count
    path.mutex.release()
    return status


cdef void end_read(ReadPath path, found_t *found) noexcept nogil:
    observed_leave(&path.readers[found.era & 1])


cdef int make_room(ReadPath path) except -1:
    """As after every read: nodes that were only looked at leave the memory."""
    if path.is_crowded():
        path.trim()
    return 0


cdef class Piece:
    """Memory for one piece of work."""

    cdef char *data
    cdef found_t *found
    cdef uint64_t blocks_max

    def __cinit__(self, ReadPath path not None):
        self.data = <char *>malloc(max(<uint64_t>PIECE_BYTES, path.block_bytes))
        self.found = <found_t *>malloc(sizeof(found_t))
        self.blocks_max = max(<uint64_t>1, <uint64_t>PIECE_BYTES >> path.block_shift)
        if self.data == NULL or self.found == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.data)
        free(self.found)


def make_seals(ReadPath path not None, Root root not None, uint64_t first, uint64_t end):
    """Reads those of blocks [first, end) of a snapshot that are not sealed, up to 1 MiB, and makes their seals.

    Returns (the block to go on from, bytes read, [(block, slot, birth, seal)] for `enter_seals`). Raises as a read.
    """
    cdef Piece piece = Piece(path)
    cdef found_t *found = piece.found
    cdef uint64_t read = 0, i, blocks
    cdef int status, _turn
    cdef list made = []
    found.first = first
    for _turn in range(LOOKS):      # much of it may be sealed
        if found.first >= end or read >= piece.blocks_max:
            break
        with nogil:
            status = find_blocks(path, root, end, piece.blocks_max, found)
        check_status(status, path.map)
        if found.slot == 0:
            if found.first < end:
                break       # there was much to pass over
            continue
        i = blocks = 0
        while i < found.count and found.seals[i] != 0:
            i += 1
        while i + blocks < found.count and found.seals[i + blocks] == 0 and blocks < piece.blocks_max - read:
            blocks += 1
        with nogil:
            status = read_and_seal(path, found, i, blocks, piece.data)
            end_read(path, found)
        check_status(status, path.map)
        made += [
            (found.first + n, found.slot + n * path.slots_per_block, found.birth, found.seals[n])
            for n in range(i, i + blocks)]
        read += blocks
        found.first += i + blocks
    make_room(path)
    return min(found.first, end), read << path.block_shift, made


cdef int read_and_seal(ReadPath path, found_t *found, uint64_t first, uint64_t count, char *data) noexcept nogil:
    """Reads some of the blocks found and puts their seals in the place of those they have not."""
    cdef uint64_t i, slot = found.slot + first * path.slots_per_block
    cdef int status = 0
    if count > 0:
        status = path.io.read_at(path.fd, data, count << path.block_shift, slot * NODE_BYTES)
    for i in range(count):
        found.seals[first + i] = ce_seal(
            data + (i << path.block_shift), path.block_bytes, slot + i * path.slots_per_block, CE_FASTEST)
    return status


def enter_seals(ReadPath path not None, Root root not None, list made not None):
    """Enters what `make_seals` made of a snapshot, or `move_home` of a head, where the same blocks lie (SE1, SE2).

    A head may have written another block there since. Of one that a snapshot froze, number and birth tell for ever what
    it holds. The commit lock is held. Raises NotFoundError if the snapshot is gone.
    """
    cdef uint64_t block, slot, birth, count
    cdef uint32_t seal
    cdef entry_t entry
    cdef int status
    path.mutex.acquire()
    status = path.state if path.state != 0 else root.state
    for block, slot, birth, seal in made:
        if status == 0:
            status = path.map.find(&root.link, block, 1, &entry, &count)
        if status == 0 and slot_of(entry.target) == slot and entry.birth == birth:
            status = path.seals.enter(slot, seal)
    path.mutex.release()
    check_status(status, path.map)


cdef class Fresh:
    """What makes one verification read from the disk: the system lets go of what it has of the file.

    A window at a time, as that drops what was read ahead, too: piece by piece, each would be read several times.
    """

    cdef uint64_t window

    def __cinit__(self):
        self.window = ~<uint64_t>0

    cdef int forget(self, ReadPath path, uint64_t offset, uint64_t length) except -1:
        cdef uint64_t window
        for window in range(offset // FRESH_BYTES, (offset + length - 1) // FRESH_BYTES + 1):
            if window != self.window:
                try:
                    path.io.forget(path.fd, window * FRESH_BYTES, FRESH_BYTES)
                except OSError:
                    pass  # as far as the system lets go
                self.window = window
        return 0


def verify_blocks(
    ReadPath path not None, Root root not None, uint64_t first, uint64_t end, Fresh fresh=None, bint sealed_only=False,
):
    """Verifies what is sealed of blocks [first, end) of a snapshot, up to 1 MiB of them.

    The rest is read as well, unless `sealed_only`. `fresh`: read from the disk, as far as the system lets go of what it
    has in memory. Returns (the block to go on from, blocks, how many of them are not sealed, [(block, slot)] of those
    that are damaged). Raises where the first of them cannot be found; before one further on it ends.
    """
    cdef Piece piece = Piece(path)
    cdef found_t *found = piece.found
    cdef uint64_t blocks = 0, unsealed = 0, open_, i, slot
    cdef int status
    cdef list bad = []
    found.first = first
    while found.first < end and blocks < piece.blocks_max:
        with nogil:
            status = find_blocks(path, root, end, piece.blocks_max - blocks, found)
        if status == STATUS_CORRUPT and found.first > first:
            break
        check_status(status, path.map)
        if found.slot == 0:
            if found.first < end:
                break
            continue
        open_ = 0
        for i in range(found.count):
            open_ += found.seals[i] == 0
        unsealed += open_
        try:
            if fresh is not None:
                fresh.forget(path, found.slot * NODE_BYTES, found.count << path.block_shift)
            if open_ < found.count or not sealed_only:
                with nogil:
                    status = path.io.read_at(
                        path.fd, piece.data, found.count << path.block_shift, found.slot * NODE_BYTES)
                check_status(status, path.map)
            for i in range(found.count):
                slot = found.slot + i * path.slots_per_block
                if found.seals[i] != 0 and ce_seal(
                        piece.data + (i << path.block_shift), path.block_bytes, slot, CE_FASTEST) != found.seals[i]:
                    bad.append((found.first + i, slot))
        finally:
            with nogil:
                end_read(path, found)
        blocks += found.count
        found.first += found.count
    make_room(path)
    return min(found.first, end), blocks, unsealed, bad


def unsealed_blocks(ReadPath path not None, Root root not None, uint64_t first, uint64_t end):
    """How many of blocks [first, end) of a snapshot have no seal, and the block to go on from: a part at a call."""
    cdef Piece piece = Piece(path)
    cdef found_t *found = piece.found
    cdef uint64_t unsealed = 0, i
    cdef int status, _turn
    found.first = first
    for _turn in range(LOOKS):
        if found.first >= end:
            break
        with nogil:
            status = find_blocks(path, root, end, SEALS_MAX, found)
            if status == 0 and found.slot != 0:
                end_read(path, found)
        check_status(status, path.map)
        for i in range(found.count):
            unsealed += found.seals[i] == 0
        found.first += found.count
    make_room(path)
    return min(found.first, end), unsealed
