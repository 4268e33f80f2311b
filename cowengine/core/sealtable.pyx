"""The table of seals: the checksum of each sealed block, kept by the slot in which it begins.

Where nothing was ever sealed there is no leaf, and nothing costs anything. Decides nothing: who may enter a seal and
when it ends are SE1 to SE3 of docs/invariants.md.

On disk   docs/format.md sections 4 and 8.

Threads   The volume's mutex is held.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from cowengine.core.iotable cimport IOTable
from cowengine.core.radix cimport (
    FANOUT, KIND_HOLE, KIND_NODE, STATUS_CORRUPT, TREE_SEALS, Tree, kind_of, link_t, node_t, pointer_t,
)

cdef enum:
    LEAF_SHIFT = 10
    LEAF_SEALS = 1 << LEAF_SHIFT

cdef uint64_t SLOTS_MAX = <uint64_t>1 << 47


cdef class SealTable:
    """The seals of one volume."""

    def __cinit__(self, IOTable io not None, int fd, uint64_t fold):
        self.tree = Tree(io, fd, TREE_SEALS, fold, LEAF_SHIFT, 1, SLOTS_MAX)

    cdef bint is_empty(self) noexcept nogil:
        """Whether nothing is sealed."""
        return kind_of(self.tree.root.pointer.target) == KIND_HOLE

    cdef int leaf_from(self, uint64_t *slot, uint64_t end, node_t **leaf) noexcept nogil:
        """The first leaf with any of the slots [slot, end), and moves `slot` to its part of them; NULL: there is none.

        Passes over gaps at one go, however wide.
        """
        cdef link_t below
        cdef node_t *node
        cdef uint64_t index
        cdef int shift, status
        leaf[0] = NULL
        if self.is_empty():
            return 0
        status = self.tree.load(&self.tree.root, 0)
        while status == 0 and slot[0] < end and slot[0] >> self.tree.span_shift(self.tree.root.node.level) == 0:
            node = self.tree.root.node
            while node != NULL and node.level > 0:
                shift = self.tree.span_shift(node.level - 1)
                index = (slot[0] >> shift) & (FANOUT - 1)
                if node.children[index] == NULL:
                    below.pointer, below.node = (<pointer_t *>node.words)[index], NULL
                    if kind_of(below.pointer.target) != KIND_NODE:
                        slot[0] = ((slot[0] >> shift) + 1) << shift
                        node = NULL
                        break
                    status = self.tree.load(&below, slot[0])
                    if status != 0:
                        return status
                    node.children[index] = below.node
                node = node.children[index]
            if node != NULL:
                leaf[0] = node
                return 0
        return status

    cdef int find(self, uint64_t slot, uint64_t count, uint64_t stride, uint32_t *seals) noexcept nogil:
        """The seals, or 0, of `count` blocks of `stride` slots each that lie in a row from `slot` on."""
        cdef uint64_t at = slot, end = slot + count * stride, stop, block
        cdef node_t *leaf
        cdef int status
        if count == 1:      # what a small read asks
            status = self.tree.leaf(&self.tree.root, slot, &leaf)
            seals[0] = 0 if leaf == NULL else (<uint32_t *>leaf.words)[slot & (LEAF_SEALS - 1)]
            return status
        memset(seals, 0, count * sizeof(uint32_t))
        while at < end:
            status = self.leaf_from(&at, end, &leaf)
            if status != 0 or leaf == NULL:
                return status
            stop = min(end, ((at >> LEAF_SHIFT) + 1) << LEAF_SHIFT)
            for block in range((at - slot + stride - 1) // stride, (stop - slot + stride - 1) // stride):
                seals[block] = (<uint32_t *>leaf.words)[(slot + block * stride) & (LEAF_SEALS - 1)]
            at = stop
        return 0

    cdef int enter(self, uint64_t slot, uint32_t seal) noexcept nogil:
        """Seals the block that begins in a slot, unless it is sealed."""
        cdef node_t *leaf
        cdef uint32_t *entry
        cdef int status = self.tree.leaf(&self.tree.root, slot, &leaf)
        if slot >= SLOTS_MAX:
            return STATUS_CORRUPT
        if status == 0 and (leaf == NULL or (<uint32_t *>leaf.words)[slot & (LEAF_SEALS - 1)] == 0):
            status = self.tree.leaf_for_change(slot, &leaf)
            if status == 0:
                entry = &(<uint32_t *>leaf.words)[slot & (LEAF_SEALS - 1)]
                entry[0] = seal
        return status

    cdef int clear(self, uint64_t slot, uint64_t count) noexcept nogil:
        """Ends the seals of a run of slots (SE3)."""
        cdef uint64_t end = slot + count, stop, first
        cdef node_t *leaf
        cdef uint32_t any_seal
        cdef int status
        while slot < end:
            status = self.leaf_from(&slot, end, &leaf)
            if status != 0 or leaf == NULL:
                return status
            stop = min(end, ((slot >> LEAF_SHIFT) + 1) << LEAF_SHIFT)
            any_seal = 0
            for first in range(slot, stop):
                any_seal |= (<uint32_t *>leaf.words)[first & (LEAF_SEALS - 1)]
            if any_seal != 0:
                status = self.tree.leaf_for_change(slot, &leaf)
                if status != 0:
                    return status
                memset(
                    &(<uint32_t *>leaf.words)[slot & (LEAF_SEALS - 1)], 0, (stop - slot) * sizeof(uint32_t))
            slot = stop
        return 0
