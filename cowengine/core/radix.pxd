"""Radix trees of 4 KiB nodes: the block map, the lineage table and the free map (docs/format.md section 4)."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from cowengine.core.iotable cimport IOTable
from cowengine.core.observed cimport observed_t

cdef enum:
    NODE_BYTES = 4096
    FANOUT = 128
    FANOUT_SHIFT = 7
    LEVEL_MAX = 6
    LEAF_ENTRIES = 256
    TREE_MAP = 1
    TREE_LINEAGE = 2
    TREE_FREE_MAP = 3
    TREE_SEALS = 4
    TREE_NAMES = 5

cdef enum:              # of a dirty node that was replaced
    REPLACED_NOT = 0
    REPLACED_BY_HEAD = 1        # the checkpoint under way needs it, the next does not
    REPLACED_BY_RECLAIM = 2     # no checkpoint needs it

cdef enum:              # kinds: of pointers all three, of map entries the first two
    KIND_HOLE = 0
    KIND_RUN = 1        # in a map entry: mapped
    KIND_NODE = 2

cdef enum:              # a status is 0, a positive errno, or one of these
    STATUS_CORRUPT = -1
    STATUS_MEMORY = -2
    STATUS_SLOTS = -3       # the runway is empty: ask Python for more
    STATUS_COMMIT = -4      # the open batch is full: commit first
    STATUS_GONE = -5        # the snapshot was deleted
    STATUS_STOPPED = -6     # the budget is used up; go on from where it stopped
    STATUS_ABSENT = -7      # closed
    STATUS_POISONED = -8
    STATUS_HEADLESS = -10   # the live head is another process's
    STATUS_BEYOND = -11     # the volume became smaller than the range
    STATUS_DAMAGED = -12    # a block is not what its seal says; status.pyx knows which

ctypedef struct entry_t:
    uint64_t target
    uint64_t birth

ctypedef struct pointer_t:
    uint64_t target
    uint64_t birth
    uint64_t checksum
    uint64_t reserved

ctypedef struct run_t:
    uint64_t slot
    uint64_t count

ctypedef struct extent_t:       # in blocks
    uint64_t first
    uint64_t count

ctypedef struct runs_t:         # a growing array
    run_t *items
    size_t count
    size_t room

ctypedef struct node_t:
    uint32_t references
    uint8_t level
    uint8_t dirty           # no slot holds these bytes
    uint8_t replaced        # REPLACED_...: once it has a slot, nobody will need it for long
    uint64_t stamp          # may be changed in place while this is the tree's stamp
    uint64_t slot           # 0 while dirty
    uint64_t checksum       # of the bytes in that slot
    node_t **children       # interior nodes: FANOUT, NULL where not loaded
    uint64_t words[512]     # the node's bytes

ctypedef struct link_t:         # a root, or a child as its parent sees it
    pointer_t pointer
    node_t *node            # NULL: not loaded, or there is none

ctypedef struct sweep_t:        # over the clean nodes of a tree
    uint64_t position       # the first key not yet passed
    size_t budget           # nodes that may still be dropped

# What decides whether a replaced block or node is freed (see docs/invariants.md, the free rule).
ctypedef struct holder_t:
    uint64_t parent_epoch   # the nearest ancestor that holds data
    uint64_t before_epoch   # the one before it, for blocks below the cursor
    uint64_t cursor         # of the reclaim of that nearest ancestor; 0 if none runs

cdef int runs_reserve(runs_t *runs, size_t more) noexcept nogil
cdef int runs_append(runs_t *runs, uint64_t slot, uint64_t count) noexcept nogil
cdef void runs_clear(runs_t *runs) noexcept nogil

cdef inline uint64_t slot_of(uint64_t target) noexcept nogil:
    return target & <uint64_t>0xFFFFFFFFFFFF

cdef inline int kind_of(uint64_t target) noexcept nogil:
    return <int>(target >> 56)

cdef inline int level_of(uint64_t target) noexcept nogil:
    return <int>((target >> 48) & 0xFF)

cdef inline uint64_t pointer_target(int kind, int level, uint64_t slot) noexcept nogil:
    return (<uint64_t>kind << 56) | (<uint64_t>level << 48) | slot

cdef inline uint64_t entry_target(int kind, uint64_t slot) noexcept nogil:
    return (<uint64_t>kind << 56) | slot


cdef class Tree:
    cdef IOTable io
    cdef int fd
    cdef readonly int number
    cdef int leaf_shift             # log2 of the keys a leaf spans
    cdef uint64_t fold
    cdef uint64_t slots_per_block
    cdef uint64_t slot_limit        # no slot at or above this one can be valid
    cdef uint64_t stamp
    cdef link_t root                # not of the map: that has a root for each head and snapshot
    cdef runs_t superseded          # slots of nodes that the next checkpoint no longer needs
    cdef runs_t stillborn           # slots of nodes that no checkpoint needs, not even the one that writes them
    cdef readonly observed_t node_count
    cdef readonly observed_t dirty_count
    cdef readonly observed_t damaged_slot     # of the last node that failed its checksum, or of a run out of bounds

    cdef int span_shift(self, int level) noexcept nogil
    cdef node_t *create(self, int level) noexcept nogil
    cdef uint64_t seed(self, int level, uint64_t key) noexcept nogil
    cdef bint sound(self, node_t *node, uint64_t birth) noexcept nogil
    cdef void fill(self, node_t *node, pointer_t pointer) noexcept nogil
    cdef bint is_freed_with(self, uint64_t birth, uint64_t end, const holder_t *holder) noexcept nogil
    cdef bint collapse(self, link_t *link) noexcept nogil
    cdef int load(self, link_t *link, uint64_t key) noexcept nogil
    cdef void drop(self, node_t *node) noexcept nogil
    cdef int writable(self, link_t *link, uint64_t key, const holder_t *holder) noexcept nogil
    cdef int supersede(self, node_t *node, runs_t *runs) noexcept nogil
    cdef int reach(self, link_t *root, uint64_t key) noexcept nogil
    cdef int next_leaf(self, link_t *root, uint64_t *key) noexcept nogil
    cdef int leaf(self, link_t *root, uint64_t key, node_t **leaf) noexcept nogil
    cdef int leaf_for_change(self, uint64_t key, node_t **leaf) noexcept nogil
    cdef link_t child(self, link_t *link, uint64_t index) noexcept nogil
    cdef int flush_link(self, link_t *link, uint64_t key, runs_t *slots, node_t ***written,
                        size_t *count) noexcept nogil
    cdef void forget(self, link_t *link, uint64_t key, sweep_t *sweep) noexcept nogil
    cdef bint forget_some(self, link_t *link, sweep_t *sweep, size_t keep) noexcept nogil
