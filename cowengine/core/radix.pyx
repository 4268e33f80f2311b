"""Radix trees of 4 KiB nodes with copy-on-write, loaded from the file on demand.

A *link* is a pointer as it stands on disk plus the node in memory, if there is one. Nodes are shared: between the live
root and the roots of snapshots, and while a checkpoint writes them. Performs reads only; who writes nodes, and when, is
the engine's.

On disk   docs/format.md section 4.

Invariants
    RT1  A node whose stamp is not the tree's is never changed; who wants to change it copies it first.
    RT2  A dirty node's parents are dirty. A clean parent's pointers are right; a dirty one's may lag behind nodes it
         has loaded.
    RT3  A node that a loaded link does not hold is on disk, behind the link's pointer.
    RT4  A pointer's birth is at least every birth below it.
    RT5  A node that is replaced while a checkpoint has yet to write it gets a slot that is superseded from the
         beginning.

Threads   The caller holds the volume's mutex; nothing here takes a lock or needs the GIL.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from cowengine.core.checksum cimport ce_xxh64
from cowengine.core.iotable cimport IOTable

cdef enum:
    SWEEP_NODES = 256       # dropped while the mutex is held


cdef int runs_reserve(runs_t *runs, size_t more) noexcept nogil:
    """Makes room for so many runs, 64 at most: they are added without fail."""
    cdef size_t room = 64 if runs.room == 0 else runs.room * 2
    cdef run_t *items
    if runs.room - runs.count >= more:
        return 0
    items = <run_t *>realloc(runs.items, room * sizeof(run_t))
    if items == NULL:
        return STATUS_MEMORY
    runs.items, runs.room = items, room
    return 0


cdef int runs_append(runs_t *runs, uint64_t slot, uint64_t count) noexcept nogil:
    """Adds a run, merged with the last one if it continues it."""
    cdef int status
    if runs.count > 0 and runs.items[runs.count - 1].slot + runs.items[runs.count - 1].count == slot:
        runs.items[runs.count - 1].count += count
        return 0
    status = runs_reserve(runs, 1)
    if status != 0:
        return status
    runs.items[runs.count].slot = slot
    runs.items[runs.count].count = count
    runs.count += 1
    return 0


cdef void runs_clear(runs_t *runs) noexcept nogil:
    free(runs.items)
    runs.items, runs.count, runs.room = NULL, 0, 0


cdef class Tree:
    """One of the three trees of a volume. `leaf_shift` is log2 of the keys a leaf spans."""

    def __cinit__(self, IOTable io not None, int fd, int number, uint64_t fold, int leaf_shift,
                  uint64_t slots_per_block, uint64_t slot_limit):
        self.io, self.fd, self.number, self.fold = io, fd, number, fold
        self.leaf_shift, self.slots_per_block, self.slot_limit = leaf_shift, slots_per_block, slot_limit
        self.stamp = 1

    def __dealloc__(self):
        self.drop(self.root.node)
        runs_clear(&self.superseded)
        runs_clear(&self.stillborn)

    cdef int span_shift(self, int level) noexcept nogil:
        """log2 of the keys that a node of this level spans."""
        return self.leaf_shift + FANOUT_SHIFT * level

    # -- nodes in memory -----------------------------------------------------------------------------------------------
    cdef node_t *create(self, int level) noexcept nogil:
        cdef node_t *node = <node_t *>malloc(sizeof(node_t))
        if node == NULL:
            return NULL
        node.children = NULL
        if level > 0:
            node.children = <node_t **>calloc(FANOUT, sizeof(node_t *))
            if node.children == NULL:
                free(node)
                return NULL
        node.references, node.level, node.dirty, node.replaced = 1, <uint8_t>level, 0, 0
        node.stamp, node.slot, node.checksum = 0, 0, 0
        self.node_count += 1
        return node

    cdef void drop(self, node_t *node) noexcept nogil:
        """Gives up one reference."""
        cdef int i
        if node == NULL:
            return
        node.references -= 1
        if node.references > 0:
            return
        if node.children != NULL:
            for i in range(FANOUT):
                self.drop(node.children[i])
            free(node.children)
        self.node_count -= 1
        self.dirty_count -= node.dirty
        free(node)

    cdef int load(self, link_t *link, uint64_t key) noexcept nogil:
        """Makes link.node the node behind a KIND_NODE pointer, read and verified if it was not in memory."""
        cdef node_t *node
        cdef uint64_t seed, slot = slot_of(link.pointer.target)
        cdef int status, level = level_of(link.pointer.target)
        if link.node != NULL:
            return 0
        if slot == 0 or slot >= self.slot_limit:
            self.damaged_slot = slot
            return STATUS_CORRUPT
        node = self.create(level)
        if node == NULL:
            return STATUS_MEMORY
        status = self.io.read_at(self.fd, node.words, NODE_BYTES, slot * NODE_BYTES)
        if status == 0:
            seed = self.seed(level, key)
            node.checksum = ce_xxh64(node.words, NODE_BYTES, seed)
            if node.checksum != link.pointer.checksum or not self.sound(node, link.pointer.birth):
                self.damaged_slot = slot
                status = STATUS_CORRUPT
        if status != 0:
            self.drop(node)
            return status
        node.slot = slot
        link.node = node
        return 0

    cdef uint64_t seed(self, int level, uint64_t key) noexcept nogil:
        return self.fold + (<uint64_t>self.number << 56) + (<uint64_t>level << 48) + (key >> self.span_shift(level))

    cdef bint sound(self, node_t *node, uint64_t birth) noexcept nogil:
        """Whether a node just read keeps the format's bounds.

        Its checksum is right, so only a hostile file does not.
        """
        cdef pointer_t *pointers = <pointer_t *>node.words
        cdef entry_t *entries = <entry_t *>node.words
        cdef uint64_t slot, slots
        cdef int i, kind
        if node.level > 0:
            slots = self.slots_per_block << self.span_shift(node.level - 1)     # of a run; less than 2^51
            for i in range(FANOUT):
                kind = kind_of(pointers[i].target)
                if kind > KIND_NODE or (kind == KIND_RUN and self.number != TREE_MAP) or pointers[i].birth > birth:
                    return False
                if level_of(pointers[i].target) != node.level - 1 or pointers[i].reserved != 0:
                    return False
                slot = slot_of(pointers[i].target)
                if (kind == KIND_HOLE) != (slot == 0) or slot >= self.slot_limit:
                    return False
                if kind == KIND_RUN and slot + slots > self.slot_limit:
                    return False
        elif self.number == TREE_MAP:
            for i in range(LEAF_ENTRIES):
                kind = kind_of(entries[i].target)
                if kind > KIND_RUN or level_of(entries[i].target) != 0 or entries[i].birth > birth:
                    return False
                slot = slot_of(entries[i].target)
                if (kind == KIND_HOLE) != (slot == 0) or slot + self.slots_per_block > self.slot_limit:
                    return False
        return True

    cdef void fill(self, node_t *node, pointer_t pointer) noexcept nogil:
        """Gives a new node the contents that a hole or run pointer stands for."""
        cdef pointer_t *pointers = <pointer_t *>node.words
        cdef entry_t *entries = <entry_t *>node.words
        cdef uint64_t slot = slot_of(pointer.target), step
        cdef int i, kind = kind_of(pointer.target)
        memset(node.words, 0, NODE_BYTES)
        if node.level > 0:
            step = (<uint64_t>1 << self.span_shift(node.level - 1)) * self.slots_per_block
            for i in range(FANOUT):
                pointers[i].target = pointer_target(kind, node.level - 1, slot + i * step if kind == KIND_RUN else 0)
                pointers[i].birth = pointer.birth
        elif self.number == TREE_MAP:
            for i in range(LEAF_ENTRIES):
                entries[i].target = entry_target(kind, slot + i * self.slots_per_block if kind == KIND_RUN else 0)
                entries[i].birth = pointer.birth

    cdef bint is_freed_with(self, uint64_t birth, uint64_t end, const holder_t *holder) noexcept nogil:
        """The free rule for a node that is replaced: nobody else holds it. `end` is the end of its span.

        In a tree without births nobody ever does: there `holder` is NULL.
        """
        if holder == NULL:
            return True
        return birth > (holder.before_epoch if end <= holder.cursor else holder.parent_epoch)

    cdef int writable(self, link_t *link, uint64_t key, const holder_t *holder) noexcept nogil:
        """Makes link.node a node that may be changed: itself, a copy (RT1), or a new one for a hole or run."""
        cdef node_t *node
        cdef node_t *old
        cdef int i, status, level = level_of(link.pointer.target)
        cdef uint64_t end
        if kind_of(link.pointer.target) == KIND_NODE:
            status = self.load(link, key)
            if status != 0:
                return status
            if link.node.stamp == self.stamp:
                return 0
        node = self.create(level)
        if node == NULL:
            return STATUS_MEMORY
        old = link.node
        if old != NULL:
            memcpy(node.words, old.words, NODE_BYTES)
            if level > 0:
                for i in range(FANOUT):
                    node.children[i] = old.children[i]
                    if node.children[i] != NULL:
                        node.children[i].references += 1
            end = ((key >> self.span_shift(level)) + 1) << self.span_shift(level)
            if self.is_freed_with(link.pointer.birth, end, holder):
                status = self.supersede(old, &self.superseded)
                if status != 0:
                    self.drop(node)
                    return status
            self.drop(old)
        else:
            self.fill(node, link.pointer)
        node.stamp, node.dirty = self.stamp, 1
        self.dirty_count += 1
        link.node = node
        link.pointer.target = pointer_target(KIND_NODE, level, 0)
        link.pointer.checksum = 0
        return 0

    cdef int supersede(self, node_t *node, runs_t *runs) noexcept nogil:
        """The next checkpoint does not need this node: notes its slot, or that it will have to be noted (RT5)."""
        if node.slot != 0:
            return runs_append(runs, node.slot, 1)
        node.replaced = REPLACED_BY_HEAD if runs == &self.superseded else REPLACED_BY_RECLAIM
        return 0

    # -- reaching leaves -----------------------------------------------------------------------------------------------
    cdef link_t child(self, link_t *link, uint64_t index) noexcept nogil:
        """The child of a link whose node is loaded, or of a hole or run: the part of it that lies there."""
        cdef link_t result
        cdef int level = level_of(link.pointer.target) - 1, kind = kind_of(link.pointer.target)
        if kind == KIND_NODE:
            result.pointer = (<pointer_t *>link.node.words)[index]
            result.node = link.node.children[index]
            return result
        result.pointer = link.pointer
        result.pointer.target = pointer_target(kind, level, 0)
        if kind == KIND_RUN:
            result.pointer.target += (
                slot_of(link.pointer.target) + (index << self.span_shift(level)) * self.slots_per_block)
        result.node = NULL
        return result

    cdef int reach(self, link_t *root, uint64_t key) noexcept nogil:
        """Grows the tree until `key` lies in it; the old root becomes child 0."""
        cdef node_t *node
        cdef link_t old
        cdef pointer_t *pointers
        cdef int i, level = level_of(root.pointer.target)
        while key >> self.span_shift(level) != 0:
            if kind_of(root.pointer.target) == KIND_HOLE and root.pointer.birth == 0:
                level += 1
                root.pointer.target = pointer_target(KIND_HOLE, level, 0)
                continue
            node = self.create(level + 1)
            if node == NULL:
                return STATUS_MEMORY
            old = root[0]
            memset(node.words, 0, NODE_BYTES)
            pointers = <pointer_t *>node.words
            for i in range(1, FANOUT):
                pointers[i].target = pointer_target(KIND_HOLE, level, 0)
            pointers[0] = old.pointer
            node.children[0] = old.node
            node.stamp, node.dirty = self.stamp, 1
            self.dirty_count += 1
            level += 1
            root.node = node
            root.pointer.target = pointer_target(KIND_NODE, level, 0)
            root.pointer.checksum = 0
        return 0

    cdef int leaf(self, link_t *root, uint64_t key, node_t **leaf) noexcept nogil:
        """The leaf that holds `key`, for reading; NULL where there is none. Only for trees without runs."""
        cdef link_t below
        cdef node_t *node
        cdef uint64_t index
        cdef int status
        leaf[0] = NULL
        if kind_of(root.pointer.target) != KIND_NODE or key >> self.span_shift(level_of(root.pointer.target)) != 0:
            return 0
        status = self.load(root, key)
        if status != 0:
            return status
        node = root.node
        while node.level > 0:
            index = (key >> self.span_shift(node.level - 1)) & (FANOUT - 1)
            if node.children[index] == NULL:
                below.pointer, below.node = (<pointer_t *>node.words)[index], NULL
                if kind_of(below.pointer.target) != KIND_NODE:
                    return 0
                status = self.load(&below, key)
                if status != 0:
                    return status
                node.children[index] = below.node
            node = node.children[index]
        leaf[0] = node
        return 0

    cdef int next_leaf(self, link_t *root, uint64_t *key) noexcept nogil:
        """Moves `key` to the first key of the first leaf there is at or behind it; STATUS_STOPPED if there is none.

        Costs the interior nodes it passes, however far apart the leaves are. Only for trees without runs.
        """
        cdef link_t below
        cdef node_t *node
        cdef uint64_t index
        cdef int shift, status
        if kind_of(root.pointer.target) != KIND_NODE:
            return STATUS_STOPPED
        status = self.load(root, 0)
        if status != 0:
            return status
        while key[0] >> self.span_shift(root.node.level) == 0:
            node = root.node
            while node.level > 0:
                shift = self.span_shift(node.level - 1)
                index = (key[0] >> shift) & (FANOUT - 1)
                below.pointer, below.node = (<pointer_t *>node.words)[index], node.children[index]
                if kind_of(below.pointer.target) != KIND_NODE:
                    key[0] = ((key[0] >> shift) + 1) << shift
                    break
                if node.level == 1:
                    key[0] = key[0] >> shift << shift
                    return 0
                status = self.load(&below, key[0])
                if status != 0:
                    return status
                node.children[index] = below.node
                node = below.node
            else:
                key[0] = 0
                return 0
        return STATUS_STOPPED

    cdef int leaf_for_change(self, uint64_t key, node_t **leaf) noexcept nogil:
        """The leaf that holds `key`, dirty and changeable; made if there is none. For trees without births."""
        cdef link_t link
        cdef pointer_t *pointers
        cdef node_t *parent
        cdef uint64_t index
        cdef int level, status = self.reach(&self.root, key)
        if status == 0:
            status = self.writable(&self.root, key, NULL)
        if status != 0:
            return status
        parent = self.root.node
        level = parent.level
        while level > 0:
            level -= 1
            index = (key >> self.span_shift(level)) & (FANOUT - 1)
            pointers = <pointer_t *>parent.words
            link.pointer, link.node = pointers[index], parent.children[index]
            status = self.writable(&link, key, NULL)
            pointers[index], parent.children[index] = link.pointer, link.node
            if status != 0:
                return status
            parent = link.node
        leaf[0] = parent
        return 0

    # -- writing back --------------------------------------------------------------------------------------------------
    cdef int flush_link(self, link_t *link, uint64_t key, runs_t *slots, node_t ***written,
                        size_t *count) noexcept nogil:
        """Gives each dirty node below its slot and checksum, children first; lists it, with a reference, in `written`.

        Takes slots from the front of `slots`. A map node whose blocks form one run, or are one hole, becomes its
        pointer.
        """
        cdef pointer_t *pointers
        cdef node_t *node = link.node
        cdef link_t below
        cdef node_t **list
        cdef int i, status, level
        if node == NULL:
            return 0
        level = node.level
        if node.dirty:
            if level > 0:
                pointers = <pointer_t *>node.words
                for i in range(FANOUT):
                    if node.children[i] != NULL:
                        below.pointer, below.node = pointers[i], node.children[i]
                        status = self.flush_link(
                            &below, (key >> self.span_shift(level) << self.span_shift(level))
                            + (<uint64_t>i << self.span_shift(level - 1)), slots, written, count)
                        pointers[i], node.children[i] = below.pointer, below.node
                        if status != 0:
                            return status
            if self.collapse(link):
                return 0
            if slots.count == 0:
                return STATUS_SLOTS
            if count[0] % 64 == 0:
                list = <node_t **>realloc(written[0], (count[0] + 64) * sizeof(node_t *))
                if list == NULL:
                    return STATUS_MEMORY
                written[0] = list
            node.slot = slots.items[slots.count - 1].slot
            slots.items[slots.count - 1].slot += 1
            slots.items[slots.count - 1].count -= 1
            if slots.items[slots.count - 1].count == 0:
                slots.count -= 1
            node.checksum = ce_xxh64(node.words, NODE_BYTES, self.seed(level, key))
            node.dirty = 0
            self.dirty_count -= 1
            if node.replaced:
                status = runs_append(
                    &self.superseded if node.replaced == REPLACED_BY_HEAD else &self.stillborn, node.slot, 1)
                if status != 0:
                    return status
            node.references += 1
            written[0][count[0]] = node
            count[0] += 1
        link.pointer.target = pointer_target(KIND_NODE, level, node.slot)
        link.pointer.checksum = node.checksum
        return 0

    cdef bint collapse(self, link_t *link) noexcept nogil:
        """Turns a dirty map node whose blocks form one run, or are one hole, into a pointer that says so.

        So is a node of the table of seals without any seal, and one of the lineage table without any record.
        """
        cdef uint64_t *words = link.node.words      # pairs (target, birth) at a distance of `stride` words
        cdef uint64_t step
        cdef int i, kind, level = link.node.level, stride = 2 if level == 0 else 4
        if self.number != TREE_MAP and self.number != TREE_SEALS and self.number != TREE_LINEAGE:
            return False
        if self.number != TREE_MAP and level == 0 and (words[0] != 0 or words[1] != 0):
            return False
        kind = kind_of(words[0])
        if kind == KIND_NODE:
            return False
        step = 0
        if kind == KIND_RUN:
            step = self.slots_per_block << (self.span_shift(level - 1) if level > 0 else 0)
        for i in range(1, 512 // stride):
            if words[i * stride + 1] != words[1] or words[i * stride] != words[0] + i * step:
                return False
        link.pointer.target = pointer_target(kind, level, slot_of(words[0]))
        link.pointer.birth, link.pointer.checksum = words[1], 0
        self.drop(link.node)
        link.node = NULL
        return True

    # -- making room in memory -----------------------------------------------------------------------------------------
    cdef void forget(self, link_t *link, uint64_t key, sweep_t *sweep) noexcept nogil:
        """Drops clean nodes below a link from memory, in the order of their keys; they are on disk (RT3). Some budget
        is left.

        No node may be on its way to the disk meanwhile: that is, no checkpoint runs.
        """
        cdef link_t below
        cdef node_t *node = link.node
        cdef pointer_t *pointers
        cdef uint64_t end
        cdef size_t before
        cdef bint empty = True
        cdef int i
        if node == NULL:
            return
        key = key >> self.span_shift(node.level) << self.span_shift(node.level)
        end = key + (<uint64_t>1 << self.span_shift(node.level))
        if end <= sweep.position:
            return
        if node.level > 1 or (node.level == 1 and node.dirty):
            pointers = <pointer_t *>node.words
            for i in range(FANOUT):
                if node.children[i] == NULL:
                    continue
                below.pointer, below.node = pointers[i], node.children[i]
                self.forget(&below, key + (<uint64_t>i << self.span_shift(node.level - 1)), sweep)
                node.children[i] = below.node
                if node.dirty:
                    pointers[i] = below.pointer
                empty = empty and below.node == NULL
                if sweep.budget == 0:
                    return
        if empty and not node.dirty:
            link.pointer.target = pointer_target(KIND_NODE, node.level, node.slot)
            link.pointer.checksum = node.checksum
            link.node = NULL
            before = self.node_count
            self.drop(node)
            sweep.budget -= min(sweep.budget, max(<size_t>1, before - self.node_count))
        sweep.position = end

    cdef bint forget_some(self, link_t *link, sweep_t *sweep, size_t keep) noexcept nogil:
        """One step of a sweep, short enough for the mutex; whether there is more to do to come down to `keep` nodes."""
        if self.node_count <= keep:
            return False
        sweep.budget = SWEEP_NODES
        self.forget(link, 0, sweep)
        return sweep.budget == 0
