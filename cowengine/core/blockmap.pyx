"""The block map: block -> (slots, birth), for every head and every snapshot.

Answers where a block lies, changes ranges of a head, and walks: what is mapped, what was born after an epoch, and
what only a deleted snapshot holds. Decides nothing about placing; does no writes. All walks stop within a budget and go
on from a position.

Invariants (docs/invariants.md has them in full)
    BM1  An entry's birth is at most the largest epoch given out; a pointer's birth is the largest below it.
    BM2  The free rule: a replaced block is freed iff it was born after the nearest ancestor that holds data; below the
         cursor of a running reclaim of that ancestor, after the one before it.
    BM3  What a deleted snapshot alone holds: entries its child does not share, born after the nearest ancestor that
         holds data.

Threads   The caller holds the volume's mutex.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, realloc

from cowengine.core.radix cimport (
    FANOUT, FANOUT_SHIFT, KIND_HOLE, KIND_NODE, KIND_RUN, LEAF_ENTRIES, STATUS_CORRUPT, STATUS_STOPPED, Tree,
    entry_t, entry_target, kind_of, level_of, link_t, node_t, pointer_t, pointer_target, runs_append, runs_reserve,
    slot_of,
)

cdef extern from * nogil:
    void prefetch "__builtin_prefetch" (const void *address)
    int trailing_zeros "__builtin_ctz" (unsigned int bits)

cdef enum:
    RUNS_OF_A_POINTER = 2       # a run pointer is freed as one run, or as two if the reclaim cursor lies in it
    ENTRY_WORDS = 2             # the second is the birth
    POINTER_WORDS = 4           # this one's, too


cdef inline uint64_t next_young(const uint64_t *births, int stride, uint64_t index, uint64_t end,
                                uint64_t epoch) noexcept nogil:
    """The first of some births, `stride` words apart, from `index` on that is after an epoch, or `end`.

    Most are old where little changed: eight are compared without a branch between them.
    """
    cdef const uint64_t *eight
    cdef unsigned int young
    while index + 8 <= end:
        eight = births + index * stride
        young = ((eight[0] > epoch) | (eight[stride] > epoch) << 1
                 | (eight[2 * stride] > epoch) << 2 | (eight[3 * stride] > epoch) << 3
                 | (eight[4 * stride] > epoch) << 4 | (eight[5 * stride] > epoch) << 5
                 | (eight[6 * stride] > epoch) << 6 | (eight[7 * stride] > epoch) << 7)
        if young != 0:
            return index + trailing_zeros(young)
        index += 8
    while index < end and births[index * stride] <= epoch:
        index += 1
    return index


cdef int young_children(const node_t *node, uint64_t index, uint64_t end, const walk_t *walk,
                        uint8_t *young) noexcept nogil:
    """Which children of a node, from `index` on, a walk must look at; how many.

    All of them before the first is looked at: so this node comes from memory in one go, and their beginnings meanwhile.
    """
    cdef bint born = walk.mode == WALK_BORN_AFTER
    cdef int count = 0
    while True:
        if born:
            index = next_young(&node.words[1], POINTER_WORDS, index, end, walk.epoch)
        if index >= end:
            return count
        if node.children[index] != NULL:
            prefetch(node.children[index])
            prefetch(&node.children[index].words[3])    # the next line of 64 bytes
        young[count] = <uint8_t>index
        count += 1
        index += 1


cdef inline bint is_looked_for(const entry_t *entry, bint born, uint64_t epoch) noexcept nogil:
    """Whether a block was born after an epoch, or else is mapped."""
    return entry.birth > epoch if born else kind_of(entry.target) == KIND_RUN


cdef class BlockMap(Tree):
    """The radix tree of map entries; the roots of heads and snapshots are passed in."""

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
            self.drop(self.orphans[i])
        self.orphan_count = 0

    # -- where is it? --------------------------------------------------------------------------------------------------
    cdef int find(self, link_t *root, uint64_t block, uint64_t wanted, entry_t *entry, uint64_t *count) noexcept nogil:
        """The entry of a block, and for how many blocks from it on the tree says so at one go: at least 1, at most
        `wanted`. A leaf is read no further than that.
        """
        cdef link_t below
        cdef node_t *node
        cdef entry_t *entries
        cdef pointer_t pointer = root.pointer
        cdef uint64_t index, into, end, key = block
        cdef int shift, status
        if kind_of(pointer.target) == KIND_NODE:
            status = self.load(root, block)
            if status != 0:
                return status
            node = root.node
            while node.level > 0:
                index = (key >> self.span_shift(node.level - 1)) & (FANOUT - 1)
                pointer = (<pointer_t *>node.words)[index]
                if kind_of(pointer.target) != KIND_NODE:
                    break
                if node.children[index] == NULL:
                    below.pointer, below.node = pointer, NULL
                    status = self.load(&below, key)
                    if status != 0:
                        return status
                    node.children[index] = below.node
                node = node.children[index]
            if node.level == 0:
                index = key & (LEAF_ENTRIES - 1)
                entries = <entry_t *>node.words
                entry[0] = entries[index]
                into = index + 1
                end = min(<uint64_t>LEAF_ENTRIES, index + wanted)
                if kind_of(entry.target) == KIND_RUN:
                    while (into < end and entries[into].birth == entry.birth
                           and entries[into].target == entries[into - 1].target + self.slots_per_block):
                        into += 1
                else:
                    while into < end and entries[into].target == 0 and entries[into].birth == entry.birth:
                        into += 1
                count[0] = into - index
                return 0
        shift = self.span_shift(level_of(pointer.target))
        into = key & ((<uint64_t>1 << shift) - 1)
        entry[0] = self.entry_in(pointer, into)
        count[0] = min(wanted, (<uint64_t>1 << shift) - into)
        return 0

    cdef entry_t entry_in(self, pointer_t pointer, uint64_t into) noexcept nogil:
        """What a hole or run pointer says of the block that lies `into` it."""
        cdef entry_t entry
        entry.birth = pointer.birth
        entry.target = 0
        if kind_of(pointer.target) == KIND_RUN:
            entry.target = entry_target(KIND_RUN, slot_of(pointer.target) + into * self.slots_per_block)
        return entry

    cdef entry_t entry_of(self, link_t *leaf, uint64_t block) noexcept nogil:
        """The entry of a block in the span of a leaf, which is loaded, or of the hole or run that it is."""
        cdef uint64_t into = block & (LEAF_ENTRIES - 1)
        if leaf.node != NULL:
            return (<entry_t *>leaf.node.words)[into]
        return self.entry_in(leaf.pointer, into)

    # -- changing a head ----------------------------------------------------------------------------------------------
    cdef int release_run(self, pointer_t pointer, uint64_t base, uint64_t end, change_t *change) noexcept nogil:
        """Frees the blocks [base, end) of a run pointer, as BM2 says; the run begins at `base`."""
        cdef uint64_t middle = min(max(change.holder.cursor, base), end), slot = slot_of(pointer.target)
        cdef int status
        if kind_of(pointer.target) != KIND_RUN:
            return 0
        # Both parts or none: what is freed is not mapped any more.
        status = runs_reserve(change.freed, RUNS_OF_A_POINTER)
        if status != 0:
            return status
        if middle > base:
            if pointer.birth > limit_of(change.holder, base):
                runs_append(change.freed, slot, (middle - base) * self.slots_per_block)
            else:
                self.kept_blocks += middle - base
        if end > middle:
            if pointer.birth > limit_of(change.holder, middle):
                runs_append(
                    change.freed, slot + (middle - base) * self.slots_per_block, (end - middle) * self.slots_per_block)
            else:
                self.kept_blocks += end - middle
        return 0

    cdef int set_range(self, link_t *link, uint64_t base, change_t *change) noexcept nogil:
        """Applies a change to the part of it that lies below `link`; `change.done` says how far it came."""
        cdef int status, level = level_of(link.pointer.target)
        cdef uint64_t index, step, span = <uint64_t>1 << self.span_shift(level)
        cdef bint whole = change.first <= base and change.end - base >= span
        cdef link_t below
        # What the nearest snapshot holds as it is frees nothing: a tombstone costs the same however much is behind it.
        if not (whole and (kind_of(link.pointer.target) != KIND_NODE
                           or link.pointer.birth <= limit_of(change.holder, base))):
            status = self.writable(link, base, change.holder)
            if status != 0:
                return status
            link.pointer.birth = max(link.pointer.birth, change.birth)
            if level == 0:
                status = self.set_entries(link, base, change)
            else:
                step = span >> FANOUT_SHIFT
                index = (max(change.first, base) - base) // step
                while status == 0 and index < FANOUT and base + index * step < change.end:
                    below = self.child(link, index)
                    status = self.set_range(&below, base + index * step, change)
                    (<pointer_t *>link.node.words)[index], link.node.children[index] = below.pointer, below.node
                    index += 1
            if status != 0 or not whole:
                return status
            self.drop(link.node)
            link.node = NULL
        else:
            if kind_of(link.pointer.target) == KIND_RUN and change.freed_max - change.freed.count < RUNS_OF_A_POINTER:
                return STATUS_STOPPED
            status = self.release_run(link.pointer, base, base + span, change)
            if status != 0:
                return status
            if kind_of(link.pointer.target) == KIND_NODE:
                self.kept_uncounted += 1
            self.drop(link.node)
            link.node = NULL
        link.pointer.target = pointer_target(
            change.kind, level,
            change.slot + (base - change.first) * self.slots_per_block if change.kind == KIND_RUN else 0)
        link.pointer.birth, link.pointer.checksum = change.birth, 0
        change.done = base + span
        return 0

    cdef int set_entries(self, link_t *link, uint64_t base, change_t *change) noexcept nogil:
        """The part of `set_range` in a leaf."""
        cdef entry_t *entries = <entry_t *>link.node.words
        cdef uint64_t block, end = min(base + LEAF_ENTRIES, change.end)
        cdef entry_t *entry
        cdef int status
        for block in range(max(base, change.first), end):
            entry = &entries[block - base]
            if kind_of(entry.target) == KIND_RUN:
                if entry.birth > limit_of(change.holder, block):
                    if change.freed.count >= change.freed_max:
                        return STATUS_STOPPED
                    status = runs_append(change.freed, slot_of(entry.target), self.slots_per_block)
                    if status != 0:
                        return status
                else:
                    self.kept_blocks += 1
            entry.target = 0
            if change.kind == KIND_RUN:
                entry.target = entry_target(KIND_RUN, change.slot + (block - change.first) * self.slots_per_block)
            entry.birth = change.birth
            change.done = block + 1
        return 0

    # -- walks ---------------------------------------------------------------------------------------------------------
    cdef int emit(self, walk_t *walk, uint64_t first, uint64_t end) noexcept nogil:
        """Adds an extent, merged with the last one if it continues it."""
        cdef extent_t *last = &walk.extents[walk.count - 1] if walk.count > 0 else NULL
        if last != NULL and last.first + last.count == first:
            last.count += end - first
        elif walk.count == walk.room:
            return STATUS_STOPPED
        else:
            walk.extents[walk.count].first, walk.extents[walk.count].count = first, end - first
            walk.count += 1
        walk.position = end
        return 0

    cdef int walk(self, link_t *link, uint64_t base, walk_t *walk) noexcept nogil:
        """Collects the extents that a walk looks for, left to right; prunes what is older than its epoch.

        Its position is never left of where it looks.
        """
        cdef int status = 0, kind = kind_of(link.pointer.target), level = level_of(link.pointer.target)
        cdef uint64_t index, step, span = <uint64_t>1 << self.span_shift(level)
        cdef uint64_t end = min(base + span, walk.end)
        cdef uint8_t young[FANOUT]
        cdef int i, count
        cdef link_t below
        if end <= walk.position:
            return 0
        if walk.mode == WALK_BORN_AFTER and link.pointer.birth <= walk.epoch:
            walk.position = end
            return 0
        if kind != KIND_NODE:
            if walk.mode == WALK_BORN_AFTER or kind == KIND_RUN:
                return self.emit(walk, walk.position, end)
            walk.position = end
            return 0
        if walk.budget == 0:
            return STATUS_STOPPED
        walk.budget -= 1
        status = self.load(link, base)
        if status != 0:
            return status
        if level == 0:
            return self.walk_leaf(link, base, walk)
        step = span >> FANOUT_SHIFT
        index = (walk.position - base) // step
        count = young_children(link.node, index, (end - base + step - 1) // step, walk, young)
        for i in range(count):
            walk.position = max(walk.position, base + young[i] * step)
            below = self.child(link, young[i])
            status = self.walk(&below, base + young[i] * step, walk)
            link.node.children[young[i]] = below.node
            if status != 0:
                return status
        walk.position = end
        return 0

    cdef int walk_leaf(self, link_t *link, uint64_t base, walk_t *walk) noexcept nogil:
        cdef entry_t *entries = <entry_t *>link.node.words
        cdef uint64_t first, block = walk.position, end = min(base + LEAF_ENTRIES, walk.end)
        cdef bint born = walk.mode == WALK_BORN_AFTER
        cdef int status
        while block < end:
            if born:
                block = base + next_young(&entries[0].birth, ENTRY_WORDS, block - base, end - base, walk.epoch)
            while block < end and not is_looked_for(&entries[block - base], born, walk.epoch):
                block += 1
            walk.position = first = block
            while block < end and is_looked_for(&entries[block - base], born, walk.epoch):
                block += 1
            if block > first:
                status = self.emit(walk, first, block)
                if status != 0:
                    return status
        return 0

    # -- reclaim -------------------------------------------------------------------------------------------------------
    cdef bint is_shared(self, link_t *one, link_t *other) noexcept nogil:
        """Whether a link, which is no hole, leads to the same node as another, or stands for the same run."""
        cdef int kind = kind_of(one.pointer.target)
        if kind != kind_of(other.pointer.target):
            return False
        if kind == KIND_RUN:
            return one.pointer.target == other.pointer.target
        cdef uint64_t mine = one.node.slot if one.node != NULL else slot_of(one.pointer.target)
        cdef uint64_t its = other.node.slot if other.node != NULL else slot_of(other.pointer.target)
        return one.node != NULL and one.node == other.node or mine != 0 and mine == its

    cdef int unshared(self, link_t *dead, link_t *kept, uint64_t base, unshared_t *found) noexcept nogil:
        """Finds what only the deleted snapshot `dead` holds below this link (BM3); `kept` is its child, or NULL.

        A node goes with the step that passes its end, so a walk that goes on from the cursor never needs it again. The
        position is never left of what is looked at.
        """
        cdef int status = 0, level = level_of(dead.pointer.target)
        cdef uint64_t index, step, span = <uint64_t>1 << self.span_shift(level)
        cdef link_t below, beside
        if kept != NULL and level_of(kept.pointer.target) != level:
            return self.unshared_below(dead, kept, base, found)
        if base + span <= found.position:
            return 0
        if base >= found.end:
            return STATUS_STOPPED
        if (kind_of(dead.pointer.target) == KIND_HOLE or dead.pointer.birth <= found.before_epoch
                or kept != NULL and self.is_shared(dead, kept)):
            found.position = base + span
            return 0
        if kept != NULL and kind_of(kept.pointer.target) == KIND_NODE:
            status = self.load(kept, base)
        if status == 0 and kind_of(dead.pointer.target) == KIND_NODE:
            status = self.load(dead, base)
        if status != 0:
            return status
        if level == 0:
            return self.unshared_blocks(dead, kept, base, found)
        step = span >> FANOUT_SHIFT
        index = (found.position - base) // step
        while index < FANOUT:
            below = self.child(dead, index)
            if kept != NULL:
                beside = self.child(kept, index)
            status = self.unshared(&below, &beside if kept != NULL else NULL, base + index * step, found)
            if dead.node != NULL:
                dead.node.children[index] = below.node
            if kept != NULL and kept.node != NULL:
                kept.node.children[index] = beside.node
            if status != 0:
                return status
            index += 1
        if dead.node != NULL:
            return self.supersede(dead.node, found.freed_nodes)
        return 0

    cdef int unshared_below(self, link_t *dead, link_t *kept, uint64_t base, unshared_t *found) noexcept nogil:
        """`unshared` where the head has grown since: what the dead root spans is the first child of the kept one."""
        cdef link_t beside
        cdef int status = 0
        if level_of(kept.pointer.target) < level_of(dead.pointer.target):
            return STATUS_CORRUPT
        if kind_of(kept.pointer.target) == KIND_NODE:
            status = self.load(kept, base)
        if status != 0:
            return status
        beside = self.child(kept, 0)
        status = self.unshared(dead, &beside, base, found)
        if kept.node != NULL:
            kept.node.children[0] = beside.node
        return status

    cdef int unshared_blocks(self, link_t *dead, link_t *kept, uint64_t base, unshared_t *found) noexcept nogil:
        """The part of `unshared` in one leaf span; either side may be a loaded leaf, a run or a hole."""
        cdef entry_t mine
        cdef uint64_t i
        cdef int status
        if found.budget == 0:
            return STATUS_STOPPED
        found.budget -= 1
        for i in range(found.position - base, LEAF_ENTRIES):
            found.position = base + i       # what lies before is done, this block is not
            if found.freed.count >= found.freed_max or base + i >= found.end:
                return STATUS_STOPPED
            mine = self.entry_of(dead, base + i)
            if kind_of(mine.target) != KIND_RUN or mine.birth <= found.before_epoch:
                continue
            if kept != NULL and self.entry_of(kept, base + i).target == mine.target:
                continue
            status = runs_append(found.freed, slot_of(mine.target), self.slots_per_block)
            if status != 0:
                return status
            self.kept_blocks -= 1
        if dead.node != NULL:
            status = self.supersede(dead.node, found.freed_nodes)
            if status != 0:
                return status
        found.position = base + LEAF_ENTRIES
        return 0
