"""Putting blocks of a head back into their home slots.

A move is a placement like any other: a flight keeps writes off the blocks, the copy lies in the home slots before the
map says so, and the next record carries it. The birth stays what it was, so no list of changes sees a move; and only
blocks that the free rule calls unshared are moved, for a block that a snapshot holds as well cannot leave its slot.

Invariants   I2, I3, I6, I18, I28, I40 of docs/invariants.md.
Threads      Any number; no lock is held during I/O, and none waited for with the GIL held.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from cowengine.core.batch cimport BYTES_A_PIECE
from cowengine.core.blockmap cimport limit_of
from cowengine.core.checksum cimport CE_FASTEST, ce_seal
from cowengine.core.datapath cimport PIECES_MAX, DataPath, piece_t, plan_t
from cowengine.core.observed cimport observed_add
from cowengine.core.radix cimport KIND_RUN, NODE_BYTES, STATUS_COMMIT, STATUS_STOPPED, entry_t, kind_of, slot_of
from cowengine.core.roots cimport FLIGHTS_MAX, Head
from cowengine.core.status cimport check_status

cdef enum:
    MOVE_BYTES = 1 << 20            # at most at one go; no block is larger
    BLOCKS_MAX = MOVE_BYTES // NODE_BYTES
    LOOKS = 512                     # at the map while the mutex is held

cdef struct move_t:
    plan_t plan                     # pieces: `slot` is the home, `old_slot` where the blocks lie
    uint64_t births[PIECES_MAX]
    uint32_t seals[BLOCKS_MAX]      # of the blocks: where they lay, then where they were copied to
    uint64_t position               # looked at so far: blocks before this one


def move_home(DataPath path not None, uint64_t first, Head head=None):
    """Moves one run of blocks, the first from block `first` on that can be moved, and is at most 1 MiB long.

    Returns (the block to go on from, how many blocks were moved, whether the open batch must be committed first, the
    seals of those that had one as [(block, slot, birth, seal)] for `enter_seals`). The first is the number of blocks
    when there is nothing left. Not durable: the next commit makes it so, and only behind it can seals be entered.
    """
    cdef move_t *move = <move_t *>malloc(sizeof(move_t))
    cdef char *buffer = <char *>malloc(MOVE_BYTES)
    cdef int status
    if head is None:
        head = path.live
    try:
        if move == NULL or buffer == NULL:
            raise MemoryError
        move.position = first
        with nogil:
            status = move_run(path, head, move, buffer)
        if status == STATUS_COMMIT:
            return move.position, 0, True, []
        if status == STATUS_STOPPED:
            return move.position, 0, False, []
        check_status(status, path.map)
        return move.position, move.plan.end - move.plan.first, False, seals_of(path, move)
    finally:
        free(move)
        free(buffer)


cdef list seals_of(DataPath path, move_t *move):
    """What is to be sealed where it lies now."""
    cdef list made = []
    cdef piece_t *piece
    cdef uint64_t n, first
    cdef int i
    for i in range(move.plan.count):
        piece = &move.plan.pieces[i]
        first = piece.first - move.plan.first
        made += [
            (piece.first + n, piece.slot + n * path.slots_per_block, move.births[i], move.seals[first + n])
            for n in range(piece.count) if move.seals[first + n] != 0]
    return made


cdef int move_run(DataPath path, Head head, move_t *move, char *buffer) noexcept nogil:
    cdef plan_t *plan = &move.plan
    cdef int status
    path.mutex.acquire_nogil()
    status = begin(path, head, move)
    path.mutex.release()
    if status != 0:
        return status
    status = copy(path, move, buffer)
    path.mutex.acquire_nogil()
    if status == 0:
        status = publish(path, head, move)
    else:
        path.unplace(plan)
    path.end(head, plan)
    path.mutex.release()
    return status


cdef int begin(DataPath path, Head head, move_t *move) noexcept nogil:
    """Finds what to move, takes its homes and registers the flight. STATUS_STOPPED: not yet found, or there is none."""
    cdef plan_t *plan = &move.plan
    cdef int i, _look, status
    # Not between a fence and its snapshot: what is unshared now is shared a moment later.
    while path.status_of(head) == 0 and (head.paused or head.fencing or head.flight_count == FLIGHTS_MAX):
        path.mutex.wait()
    status = path.status_of(head)
    if status != 0:
        return status
    status = STATUS_STOPPED
    for _look in range(LOOKS):
        if move.position >= head.block_count:
            return STATUS_STOPPED
        status = find_run(path, head, move)
        if status != STATUS_STOPPED:
            break
    if status != 0:
        return status
    plan.reserved = plan.count * BYTES_A_PIECE
    if path.batch.bytes() + plan.reserved > path.batch.bytes_max:
        move.position = plan.first
        return STATUS_COMMIT
    for i in range(plan.count):     # the busy leaves are there, so this cannot fail
        path.slots.set_busy(plan.pieces[i].slot, plan.pieces[i].count * path.slots_per_block, True)
    path.register(head, plan)
    return 0


cdef int find_run(DataPath path, Head head, move_t *move) noexcept nogil:
    """Looks at the blocks from `position` on: 0 and a plan where a run can be moved, else STATUS_STOPPED further on."""
    cdef plan_t *plan = &move.plan
    cdef piece_t *piece
    cdef uint64_t home, room, count, blocks_max = MOVE_BYTES >> path.block_shift
    cdef entry_t entry
    cdef bint yes
    cdef int status
    plan.count, plan.first, plan.end = 0, move.position, move.position
    while plan.count < <int>path.chunk_blocks and plan.end - plan.first < blocks_max and plan.end < head.block_count:
        status = path.map.find(&head.link, plan.end, head.block_count - plan.end, &entry, &count)
        if status != 0:
            return status
        home = path.home_of(plan.end, &room)
        if plan.count > 0 and home != plan.pieces[0].slot + (plan.end - plan.first) * path.slots_per_block:
            break       # another home region begins here, and the pieces are written at one go
        status = can_move(path, head, plan.end, &entry, home, room, &count, &yes)
        if status != 0:
            return status
        if not yes:
            if plan.count == 0:
                move.position = plan.end + count
                return STATUS_STOPPED
            break
        count = min(count, blocks_max - (plan.end - plan.first))
        piece = &plan.pieces[plan.count]
        piece.first, piece.count, piece.slot, piece.old_slot = plan.end, count, home, slot_of(entry.target)
        piece.placed, piece.partial = True, False
        move.births[plan.count] = entry.birth
        status = path.find_seals(piece.old_slot, count, move.seals + (plan.end - plan.first))
        if status != 0:
            return status
        plan.count += 1
        plan.end += count
    move.position = plan.end
    return 0


cdef int can_move(DataPath path, Head head, uint64_t block, entry_t *entry, uint64_t home, uint64_t room,
                  uint64_t *count, bint *yes) noexcept nogil:
    """Whether the blocks of an entry can be moved, and for how many from `block` on that is so or not so.

    I28: what the free rule calls unshared, away from its home, with the home free.
    """
    cdef bint busy
    cdef int status
    yes[0] = False
    if home != 0:
        count[0] = min(count[0], room)
    if kind_of(entry.target) != KIND_RUN or home == 0 or slot_of(entry.target) == home:
        return 0
    if block < head.holder.cursor:
        count[0] = min(count[0], head.holder.cursor - block)    # behind the cursor the free rule is another one
    if entry.birth <= limit_of(&head.holder, block):
        return 0
    if head.overlaps(block, block + count[0]):
        count[0] = 1        # it is being written: whoever compacts next sees where it went
        return 0
    status = path.slots.is_busy(home, count[0] * path.slots_per_block, &busy)
    if status == 0 and busy and count[0] > 1:
        count[0] = 1
        status = path.slots.is_busy(home, path.slots_per_block, &busy)
    yes[0] = status == 0 and not busy
    return status


cdef int copy(DataPath path, move_t *move, char *buffer) noexcept nogil:
    """Reads the pieces and writes them into their homes, which lie one behind the other. Holds no lock.

    What is sealed is verified (SE4), and gets the seal of its new place.
    """
    cdef plan_t *plan = &move.plan
    cdef piece_t *piece
    cdef uint64_t block, first, n
    cdef int i, status
    for i in range(plan.count):
        piece = &plan.pieces[i]
        first, block = piece.first - plan.first, piece.first << path.block_shift
        status = path.read_blocks(
            piece.old_slot, piece.count, move.seals + first, block, buffer + (first << path.block_shift))
        if status != 0:
            return status
        for n in range(piece.count):
            if move.seals[first + n] != 0:
                move.seals[first + n] = ce_seal(
                    buffer + ((first + n) << path.block_shift), path.block_bytes,
                    piece.slot + n * path.slots_per_block, CE_FASTEST)
    return path.io.write_at(
        path.fd, buffer, (plan.end - plan.first) << path.block_shift, plan.pieces[0].slot * NODE_BYTES)


cdef int publish(DataPath path, Head head, move_t *move) noexcept nogil:
    """Enters the new places into the map and the batch (I3)."""
    cdef plan_t *plan = &move.plan
    cdef int i, status = 0
    if path.state != 0:
        path.unplace(plan)
        return path.state
    for i in range(plan.count):
        if status == 0:
            status = path.enter(head, &plan.pieces[i], move.births[i])
    observed_add(&path.data_writes, 1)
    return status
