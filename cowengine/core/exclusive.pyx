"""What only one snapshot reaches: the blocks and nodes that none of its neighbours in the lineage shares.

A walk that looks and changes nothing, in steps: the mutex is held for some nodes at a time. Equal pointers prune it, so
it costs what differs, not what is mapped.

Counts what reclaim would free (blockmap.pyx, BM3): entries that no neighbour above shares, born after the nearest
ancestor that holds data. With no neighbour above it counts all that was born after that ancestor.

Threads   An object belongs to one thread; the mutex is taken by each step.
"""

cimport cython
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

from cowengine.core.blockmap cimport BlockMap
from cowengine.core.radix cimport (
    FANOUT, FANOUT_SHIFT, KIND_HOLE, KIND_NODE, KIND_RUN, LEAF_ENTRIES, LEVEL_MAX, STATUS_CORRUPT, STATUS_STOPPED,
    entry_t, kind_of, level_of, link_t, node_t,
)
from cowengine.core.readpath cimport ReadPath
from cowengine.core.roots cimport Root
from cowengine.core.status cimport check_status


@cython.final
cdef class ExclusiveWalk:
    """One walk over the map of `mine`, beside those of `others`."""

    cdef ReadPath path
    cdef BlockMap map
    cdef Root mine
    cdef list others
    cdef Py_ssize_t other_count
    cdef link_t *beside             # for each level, one link for each of the others
    cdef uint64_t before_epoch
    cdef uint64_t position          # walked so far: blocks [0, position)
    cdef size_t budget
    cdef readonly uint64_t block_count
    cdef readonly uint64_t node_count

    def __cinit__(self, ReadPath path not None, Root mine not None, list others not None, uint64_t before_epoch):
        self.path, self.mine, self.others, self.before_epoch = path, mine, others, before_epoch
        self.map = path.map
        self.other_count = len(others)
        self.beside = <link_t *>calloc((LEVEL_MAX + 1) * max(self.other_count, 1), sizeof(link_t))
        if self.beside == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.beside)

    cdef link_t *root_of(self, Root root) noexcept:
        root.used = True
        return &root.link

    def step(self, size_t nodes):
        """Goes on for so many nodes, more than a map is deep; returns whether the walk is at its end.

        Raises CorruptionError if a node is not what it should be: damaged, or given back since the walk began.
        """
        cdef link_t *top
        cdef link_t mine
        cdef link_t *others
        cdef int status
        cdef Py_ssize_t i
        self.budget = nodes
        self.path.mutex.acquire()
        status = self.path.state
        if status == 0:
            top = self.root_of(self.mine)
            mine = top[0]
            others = self.beside + level_of(mine.pointer.target) * self.other_count
            for i in range(self.other_count):
                if status == 0:
                    status = self.descend(self.root_of(self.others[i]), level_of(mine.pointer.target), &others[i])
            if status == 0:
                with nogil:
                    status = self.visit(&mine, 0)
                top.node = mine.node
                for i in range(self.other_count):
                    self.keep(self.root_of(self.others[i]), &others[i])
        self.path.mutex.release()
        if status != STATUS_STOPPED:
            check_status(status, self.path.map)
        return status == 0

    cdef int descend(self, link_t *root, int level, link_t *found) noexcept nogil:
        """What lies beside a map of this level: the root, or where the volume has grown since, its first child."""
        cdef link_t below
        cdef int status
        found[0] = root[0]
        while level_of(found.pointer.target) > level:
            if kind_of(found.pointer.target) == KIND_NODE:
                status = self.map.load(found, 0)
                if status != 0:
                    return status
                self.keep(root, found)
            below = self.map.child(found, 0)
            found[0] = below
        return 0 if level_of(found.pointer.target) == level else STATUS_CORRUPT

    cdef void keep(self, link_t *root, link_t *found) noexcept nogil:
        """Hangs a node that was loaded below a root, or is its own, where it belongs."""
        cdef node_t **place = &root.node
        if found.node == NULL:
            return
        while place[0] != NULL and place[0].level > found.node.level:
            place = &place[0].children[0]
        self.hang(place, found)

    cdef void hang(self, node_t **place, link_t *found) noexcept nogil:
        """Hangs a node, if it was loaded, where it belongs; one that came there for another root is taken instead."""
        if place[0] == NULL:
            place[0] = found.node
        elif place[0] != found.node:
            self.map.drop(found.node)
            found.node = place[0]

    cdef int visit(self, link_t *mine, uint64_t base) noexcept nogil:
        """Counts below one link; `beside` has the others' links to the same place.

        The position is never left of it.
        """
        cdef int level = level_of(mine.pointer.target), status = 0
        cdef uint64_t index, step, span = <uint64_t>1 << self.map.span_shift(level)
        cdef link_t *others = self.beside + level * self.other_count
        cdef link_t *lower
        cdef link_t below
        cdef Py_ssize_t i
        if base + span <= self.position:
            return 0
        if self.is_pruned(mine, others):
            self.position = base + span
            return 0
        if self.is_run_alone(mine, others):
            self.block_count += base + span - max(base, self.position)
            self.position = base + span
            return 0
        if self.budget == 0:
            return STATUS_STOPPED
        self.budget -= 1
        status = self.load(mine, others, base)
        if status != 0:
            return status
        if level == 0:
            self.visit_leaf(mine, others, base)
        else:
            step = span >> FANOUT_SHIFT
            lower = others - self.other_count
            for index in range((self.position - base) // step, FANOUT):
                below = self.map.child(mine, index)
                for i in range(self.other_count):
                    lower[i] = self.map.child(&others[i], index)
                status = self.visit(&below, base + index * step)
                if mine.node != NULL:
                    self.hang(&mine.node.children[index], &below)
                for i in range(self.other_count):
                    if others[i].node != NULL:
                        self.hang(&others[i].node.children[index], &lower[i])
                if status != 0:
                    break
        if status == 0 and mine.node != NULL and mine.node.slot != 0:
            self.node_count += 1    # passed once: no later step comes here
        return status

    cdef bint is_pruned(self, link_t *mine, link_t *others) noexcept nogil:
        """Whether nothing below is exclusive."""
        cdef Py_ssize_t i
        if kind_of(mine.pointer.target) == KIND_HOLE or mine.pointer.birth <= self.before_epoch:
            return True
        for i in range(self.other_count):
            if self.map.is_shared(mine, &others[i]):
                return True
        return False

    cdef bint is_run_alone(self, link_t *mine, link_t *others) noexcept nogil:
        """Whether a run lies beside other runs and holes only, so that it is exclusive as a whole."""
        cdef Py_ssize_t i
        if kind_of(mine.pointer.target) != KIND_RUN:
            return False
        for i in range(self.other_count):
            if kind_of(others[i].pointer.target) == KIND_NODE:
                return False
        return True

    cdef int load(self, link_t *mine, link_t *others, uint64_t base) noexcept nogil:
        cdef int status = 0
        cdef Py_ssize_t i
        if kind_of(mine.pointer.target) == KIND_NODE:
            status = self.map.load(mine, base)
        for i in range(self.other_count):
            if status == 0 and kind_of(others[i].pointer.target) == KIND_NODE:
                status = self.map.load(&others[i], base)
        return status

    cdef void visit_leaf(self, link_t *mine, link_t *others, uint64_t base) noexcept nogil:
        cdef entry_t entry
        cdef uint64_t block
        cdef bint shared
        cdef Py_ssize_t i
        for block in range(base, base + LEAF_ENTRIES):
            entry = self.map.entry_of(mine, block)
            if kind_of(entry.target) != KIND_RUN or entry.birth <= self.before_epoch:
                continue
            shared = False
            for i in range(self.other_count):
                shared = shared or self.map.entry_of(&others[i], block).target == entry.target
            if not shared:
                self.block_count += 1
        self.position = base + LEAF_ENTRIES
