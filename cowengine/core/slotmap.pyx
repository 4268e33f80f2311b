"""Two bitmaps of slots.

*used* is the free map of the format: what the commits so far use. *busy* is a superset of it: what must not be given
out now. A slot is busy but not used while a write or a runway has it and no commit knows of it yet, and, at the other
end of its life, after the commit that freed it until no read, no unconfirmed record and no retained checkpoint needs
it.

Invariants
    SM1  used is a subset of busy.
    SM2  used changes only at a commit or checkpoint; so what a checkpoint writes is exactly the state of its record.
    SM3  What a file says of slots behind its end is not believed: no memory is taken for it, no loop runs over it.

Threads   Methods for Python take the volume's mutex; the `cdef` ones need it held.
"""

from libc.stdint cimport uint64_t
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdlib cimport calloc, free, qsort, realloc
from libc.string cimport memcmp, memcpy, memset

from cowengine.core.mutex cimport Mutex
from cowengine.core.radix cimport STATUS_CORRUPT, STATUS_MEMORY, TREE_FREE_MAP, Tree, node_t, run_t
from cowengine.core.iotable cimport IOTable
from cowengine.core.status cimport check_status

cdef enum:
    LEAF_SHIFT = 15         # a leaf spans 32,768 slots
    LEAF_SLOTS = 1 << 15
    LEAF_WORDS = 512
    WINDOW_SLOTS = 16       # 64 KiB: the least that `take_windows` takes

cdef extern from *:
    int popcount "__builtin_popcountll" (unsigned long long word) nogil
    int lowest_bit "__builtin_ctzll" (unsigned long long word) nogil

cdef uint64_t SLOTS_MAX = <uint64_t>1 << 47


cdef inline uint64_t word_mask(uint64_t first, uint64_t end) noexcept nogil:
    """Bits first .. end - 1 of one word; 0 <= first < end <= 64."""
    return (~<uint64_t>0 << first) & (~<uint64_t>0 >> (64 - end))


cdef void set_bits(uint64_t *words, uint64_t first, uint64_t end, bint value) noexcept nogil:
    cdef uint64_t word, mask
    for word in range(first >> 6, ((end - 1) >> 6) + 1):
        mask = word_mask(
            first & 63 if word == first >> 6 else 0, ((end - 1) & 63) + 1 if word == (end - 1) >> 6 else 64)
        if value:
            words[word] |= mask
        else:
            words[word] &= ~mask


cdef bint any_bit(const uint64_t *words, uint64_t first, uint64_t end) noexcept nogil:
    cdef uint64_t word, mask
    for word in range(first >> 6, ((end - 1) >> 6) + 1):
        mask = word_mask(
            first & 63 if word == first >> 6 else 0, ((end - 1) & 63) + 1 if word == (end - 1) >> 6 else 64)
        if words[word] & mask:
            return True
    return False


cdef uint64_t first_run(
    const uint64_t *words, uint64_t *slot, uint64_t stop, uint64_t wanted, uint64_t multiple,
) noexcept nogil:
    """The length of the first usable run of clear bits from `slot` on, in one leaf, or 0.

    `slot` becomes its start.
    """
    cdef uint64_t at = slot[0], count
    while at < stop:
        if at & 63 == 0 and words[(at & (LEAF_SLOTS - 1)) >> 6] == ~<uint64_t>0:
            at += 64
            continue
        count = 0
        while at + count < stop and count < wanted and not (
                words[((at + count) & (LEAF_SLOTS - 1)) >> 6] >> ((at + count) & 63) & 1):
            count += 1
        if count >= multiple:
            slot[0] = at
            return count - count % multiple
        at += count + 1
    return 0


cdef bint is_same(const uint64_t *words, node_t *leaf) noexcept nogil:
    """Whether a part of busy is what a leaf of used says; no leaf: nothing is used."""
    if leaf != NULL:
        return memcmp(words, leaf.words, LEAF_WORDS * sizeof(uint64_t)) == 0
    return not any_bit(words, 0, LEAF_SLOTS)


cdef int by_slot(const void *one, const void *other) noexcept nogil:
    cdef uint64_t mine = (<const run_t *>one).slot, its = (<const run_t *>other).slot
    return (mine > its) - (mine < its)


cdef size_t merge(run_t *runs, size_t count) noexcept nogil:
    """Sorts and merges some runs where they are; how many are left."""
    cdef size_t i, last = 0
    if count == 0:
        return 0
    for i in range(1, count):
        if runs[i].slot < runs[i - 1].slot:
            qsort(runs, count, sizeof(run_t), &by_slot)
            break
    for i in range(1, count):
        if runs[last].slot + runs[last].count == runs[i].slot:
            runs[last].count += runs[i].count
        else:
            last += 1
            runs[last] = runs[i]
    return last + 1


def merged(bytes packed not None):
    """The same slots in as few runs as possible, ascending; both as in a record."""
    cdef bytes result = PyBytes_FromStringAndSize(PyBytes_AS_STRING(packed), len(packed))
    cdef run_t *runs = <run_t *>PyBytes_AS_STRING(result)
    cdef size_t count = len(packed) // sizeof(run_t)
    with nogil:
        count = merge(runs, count)
    return result[:count * sizeof(run_t)]


cdef class SlotMap:
    """The free map of a volume, and what is busy beyond it."""

    def __cinit__(self, IOTable io not None, int fd, uint64_t fold, Mutex mutex not None):
        self.used = Tree(io, fd, TREE_FREE_MAP, fold, LEAF_SHIFT, 1, SLOTS_MAX)
        self.mutex = mutex
        self.trees = []
        self.end = SLOTS_MAX

    def __dealloc__(self):
        cdef uint64_t i
        for i in range(self.busy_leaves):
            free(self.busy[i])
        free(self.busy)

    cdef int busy_leaf(self, uint64_t index, uint64_t **words) noexcept nogil:
        """The words of one leaf's span of busy; made from used at its first use."""
        cdef uint64_t **leaves
        cdef node_t *leaf
        cdef uint64_t room
        cdef int status
        if index >= self.busy_leaves:
            room = max(self.busy_leaves * 2, index + 64)
            leaves = <uint64_t **>realloc(self.busy, room * sizeof(uint64_t *))
            if leaves == NULL:
                return STATUS_MEMORY
            memset(leaves + self.busy_leaves, 0, (room - self.busy_leaves) * sizeof(uint64_t *))
            self.busy, self.busy_leaves = leaves, room
        if self.busy[index] == NULL:
            status = self.used.leaf(&self.used.root, index << LEAF_SHIFT, &leaf)
            if status != 0:
                return status
            self.busy[index] = <uint64_t *>calloc(LEAF_WORDS, sizeof(uint64_t))
            if self.busy[index] == NULL:
                return STATUS_MEMORY
            self.busy_count += 1
            if leaf != NULL:
                memcpy(self.busy[index], leaf.words, LEAF_WORDS * sizeof(uint64_t))
        words[0] = self.busy[index]
        return 0

    cdef int is_busy(self, uint64_t slot, uint64_t count, bint *busy) noexcept nogil:
        """Whether any slot of a run is busy."""
        cdef uint64_t *words
        cdef uint64_t end = slot + count, stop
        cdef int status
        busy[0] = False
        while slot < end and not busy[0]:
            stop = min(end, ((slot >> LEAF_SHIFT) + 1) << LEAF_SHIFT)
            status = self.busy_leaf(slot >> LEAF_SHIFT, &words)
            if status != 0:
                return status
            busy[0] = any_bit(words, slot & (LEAF_SLOTS - 1), ((stop - 1) & (LEAF_SLOTS - 1)) + 1)
            slot = stop
        return 0

    cdef int set_busy(self, uint64_t slot, uint64_t count, bint value) noexcept nogil:
        cdef uint64_t *words
        cdef uint64_t end = slot + count, stop
        cdef int status
        while slot < end:
            stop = min(end, ((slot >> LEAF_SHIFT) + 1) << LEAF_SHIFT)
            status = self.busy_leaf(slot >> LEAF_SHIFT, &words)
            if status != 0:
                return status
            set_bits(words, slot & (LEAF_SLOTS - 1), ((stop - 1) & (LEAF_SLOTS - 1)) + 1, value)
            slot = stop
        return 0

    cdef int set_used(self, uint64_t slot, uint64_t count, bint value) noexcept nogil:
        """Changes used; a slot that becomes used becomes busy (SM1), one that no longer is stays busy."""
        cdef node_t *leaf
        cdef uint64_t end = slot + count, stop
        cdef int status
        if end > self.end or end < slot:
            self.used.damaged_slot = slot
            return STATUS_CORRUPT
        if value:
            status = self.set_busy(slot, count, True)
            if status != 0:
                return status
        else:
            # Fill busy from used while it still says so.
            for stop in range(slot >> LEAF_SHIFT, ((end - 1) >> LEAF_SHIFT) + 1):
                status = self.set_busy(max(slot, stop << LEAF_SHIFT), 1, True)
                if status != 0:
                    return status
        while slot < end:
            stop = min(end, ((slot >> LEAF_SHIFT) + 1) << LEAF_SHIFT)
            status = self.used.leaf_for_change(slot, &leaf)
            if status != 0:
                return status
            set_bits(leaf.words, slot & (LEAF_SLOTS - 1), ((stop - 1) & (LEAF_SLOTS - 1)) + 1, value)
            slot = stop
        return 0

    def forget_busy(self):
        """What is busy is what is used; for the end of recovery, when nothing is in flight."""
        cdef uint64_t i
        self.mutex.acquire()
        for i in range(self.busy_leaves):
            free(self.busy[i])
            self.busy[i] = NULL
        self.busy_count = 0
        self.mutex.release()

    def unload(self):
        """Drops from memory the parts of busy that say what used says."""
        cdef uint64_t i
        cdef node_t *leaf
        cdef int status = 0
        for i in range(self.busy_leaves):
            self.mutex.acquire()
            if self.busy[i] != NULL:
                status = self.used.leaf(&self.used.root, i << LEAF_SHIFT, &leaf)
                if status == 0 and is_same(self.busy[i], leaf):
                    free(self.busy[i])
                    self.busy[i] = NULL
                    self.busy_count -= 1
            self.mutex.release()
            check_status(status, self.used)

    cdef void extend(self, uint64_t end) noexcept:
        """Slots up to `end` may be given out from now on (SM3)."""
        cdef Tree tree
        self.end = end
        self.used.slot_limit = end
        for tree in self.trees:
            tree.slot_limit = end

    def bound(self, uint64_t end, list trees not None):
        """The file has `end` slots, and grows by what `mark_busy` takes; `trees` are the others that lie in it."""
        self.mutex.acquire()
        self.trees = trees
        self.extend(end)
        self.mutex.release()

    def reach(self, uint64_t end):
        """The file has `end` slots now, unless it has more."""
        self.mutex.acquire()
        if end > self.end:
            self.extend(end)
        self.mutex.release()

    # -- for the allocator --------------------------------------------------------------------------------------------
    def find_free(self, uint64_t start, uint64_t end, uint64_t wanted, uint64_t multiple=1, bint take=False):
        """The first run of free slots in [start, end), as (slot, count) with `count` at most `wanted`; None if there is
        none.

        `count` is a multiple of `multiple`. A run ends where a leaf of the free map ends. The mutex is given up between
        leaves. With `take` the run is busy from now on: nobody can take a home among them in between.
        """
        cdef uint64_t slot = start, stop, count
        cdef uint64_t *words
        cdef int status
        while slot < end:
            stop = min(end, ((slot >> LEAF_SHIFT) + 1) << LEAF_SHIFT)
            self.mutex.acquire()
            status = self.busy_leaf(slot >> LEAF_SHIFT, &words)
            count = first_run(words, &slot, stop, wanted, multiple) if status == 0 else 0
            if take and count > 0:
                status = self.set_busy(slot, count, True)
            self.mutex.release()
            check_status(status, self.used)
            if count > 0:
                return slot, count
            slot = stop
        return None

    def take_windows(self, list runs not None, uint64_t least):
        """The aligned windows of WINDOW_SLOTS slots that some runs cover in part, if they are wholly free and begin at
        `least` or behind it.

        They are busy from now on. Ascending runs in, ascending runs out. What a run covers wholly is left out.
        """
        cdef uint64_t slot, count, window, start, first, done = 0
        cdef bint is_covered
        cdef uint64_t *words
        cdef int status = 0
        cdef list taken = []
        self.mutex.acquire()
        for slot, count in runs:
            for window in (slot // WINDOW_SLOTS, (slot + count - 1) // WINDOW_SLOTS):
                start = window * WINDOW_SLOTS
                is_covered = slot <= start and start + WINDOW_SLOTS <= slot + count
                if window < done or is_covered or start < least or start + WINDOW_SLOTS > self.end:
                    continue
                done = window + 1
                status = self.busy_leaf(start >> LEAF_SHIFT, &words)
                first = start & (LEAF_SLOTS - 1)
                if status == 0 and not any_bit(words, first, first + WINDOW_SLOTS):
                    status = self.set_busy(start, WINDOW_SLOTS, True)
                    taken.append((start, WINDOW_SLOTS))
                if status != 0:
                    break
            if status != 0:
                break
        self.mutex.release()
        check_status(status, self.used)
        return taken

    def mark_busy(self, uint64_t slot, uint64_t count):
        """Takes a run out of circulation; it may lie behind the end of the file."""
        self.mutex.acquire()
        cdef int status = self.set_busy(slot, count, True)
        if status == 0 and slot + count > self.end:
            self.extend(slot + count)
        self.mutex.release()
        check_status(status, self.used)

    def release(self, list runs not None):
        """Gives runs of (slot, count) back to circulation; none of them may be used."""
        self.set_runs(runs, False, False)

    def release_packed(self, bytes packed not None):
        """`release`, of runs as in a record. The mutex is given up now and then."""
        cdef const run_t *runs = <const run_t *>PyBytes_AS_STRING(packed)
        cdef size_t i = 0, stop, count = len(packed) // sizeof(run_t)
        cdef int status = 0
        while i < count and status == 0:
            stop = min(i + RUNS_AT_ONCE, count)
            self.mutex.acquire()
            while i < stop and status == 0:
                status = self.set_busy(runs[i].slot, runs[i].count, False)
                i += 1
            self.mutex.release()
        check_status(status, self.used)

    def mark_used(self, list runs not None, bint value=True):
        """Marks runs of (slot, count) as used, or no longer used (they stay busy)."""
        self.set_runs(runs, True, value)

    cdef int set_runs(self, list runs, bint used, bint value) except -1:
        """Changes used, or else busy, for all of some runs under one hold of the mutex."""
        cdef uint64_t slot, count
        cdef int status = 0
        self.mutex.acquire()
        for slot, count in runs:
            status = self.set_used(slot, count, value) if used else self.set_busy(slot, count, value)
            if status != 0:
                break
        self.mutex.release()
        check_status(status, self.used)
        return 0

    def used_slots(self, list runs not None):
        """The slots of some runs that are marked used, as runs of one."""
        cdef uint64_t slot, count, i, at
        cdef node_t *leaf
        cdef int status = 0
        cdef list found = []
        self.mutex.acquire()
        for slot, count in runs:
            if slot >= self.end or count > self.end - slot:
                self.used.damaged_slot = slot
                status = STATUS_CORRUPT
            i = slot
            while status == 0 and i < slot + count:
                status = self.used.leaf(&self.used.root, i, &leaf)
                at = i & (LEAF_SLOTS - 1)
                if status == 0 and leaf != NULL and any_bit(leaf.words, at, at + 1):
                    found.append((i, 1))
                i += 1
            if status != 0:
                break
        self.mutex.release()
        check_status(status, self.used)
        return found

    def count_busy(self, uint64_t start, uint64_t end):
        """How many slots of [start, end) are busy."""
        cdef uint64_t slot = start, stop, word, total = 0
        cdef uint64_t *words
        cdef int status
        while slot < end:
            stop = min(end, ((slot >> LEAF_SHIFT) + 1) << LEAF_SHIFT)
            self.mutex.acquire()
            status = self.busy_leaf(slot >> LEAF_SHIFT, &words)
            if status == 0:
                while slot < stop:
                    word = words[(slot & (LEAF_SLOTS - 1)) >> 6]
                    word &= word_mask(slot & 63, min(64, (slot & 63) + stop - slot))
                    total += popcount(word)
                    slot = min(stop, (slot | 63) + 1)
            self.mutex.release()
            check_status(status, self.used)
        return total
