"""The block map: which slots hold each block, and since which epoch."""

from libc.stdint cimport uint64_t

from cowengine.core.observed cimport observed_signed_t, observed_t
from cowengine.core.radix cimport Tree, entry_t, extent_t, holder_t, link_t, node_t, pointer_t, runs_t

ctypedef struct change_t:       # blocks [first, end) become holes, or lie consecutively from `slot`
    uint64_t first
    uint64_t end
    int kind
    uint64_t slot
    uint64_t birth
    const holder_t *holder      # the free rule of the head that is changed
    runs_t *freed               # gets the runs that nobody holds any more
    size_t freed_max            # stop before there are more
    uint64_t done               # set so far: [first, done)

cdef enum:
    WALK_ALLOCATED = 0
    WALK_BORN_AFTER = 1

ctypedef struct walk_t:
    int mode
    uint64_t epoch              # of WALK_BORN_AFTER
    uint64_t position           # visited so far: [.., position)
    uint64_t end
    size_t budget               # nodes to visit before stopping
    extent_t *extents
    size_t count
    size_t room

ctypedef struct unshared_t:     # the space that only a deleted snapshot holds
    uint64_t before_epoch       # of the nearest ancestor that holds data
    uint64_t position           # the cursor
    uint64_t end                # stop there
    size_t budget
    runs_t *freed
    size_t freed_max            # stop before there are more
    runs_t *freed_nodes

cdef inline uint64_t limit_of(const holder_t *holder, uint64_t block) noexcept nogil:
    """BM2: what was born later than this is held by the head alone."""
    return holder.before_epoch if block < holder.cursor else holder.parent_epoch


cdef class BlockMap(Tree):
    cdef readonly observed_t kept_uncounted   # subtrees left to snapshots whose blocks are not in `kept_blocks`
    cdef readonly observed_signed_t kept_blocks   # left by heads to snapshots, less those reclaimed; since the open
    cdef int find(self, link_t *root, uint64_t block, uint64_t wanted, entry_t *entry, uint64_t *count) noexcept nogil
    cdef entry_t entry_in(self, pointer_t pointer, uint64_t into) noexcept nogil
    cdef entry_t entry_of(self, link_t *leaf, uint64_t block) noexcept nogil
    cdef readonly uint64_t epoch        # the largest given out so far, to any head
    cdef node_t **orphans
    cdef size_t orphan_count
    cdef void add_orphan(self, node_t *node) noexcept
    cdef void drop_orphans(self) noexcept
    cdef int release_run(self, pointer_t pointer, uint64_t base, uint64_t end, change_t *change) noexcept nogil
    cdef int set_range(self, link_t *link, uint64_t base, change_t *change) noexcept nogil
    cdef int set_entries(self, link_t *link, uint64_t base, change_t *change) noexcept nogil
    cdef int walk(self, link_t *link, uint64_t base, walk_t *walk) noexcept nogil
    cdef int emit(self, walk_t *walk, uint64_t first, uint64_t end) noexcept nogil
    cdef int walk_leaf(self, link_t *link, uint64_t base, walk_t *walk) noexcept nogil
    cdef bint is_shared(self, link_t *one, link_t *other) noexcept nogil
    cdef int unshared(self, link_t *dead, link_t *kept, uint64_t base, unshared_t *found) noexcept nogil
    cdef int unshared_below(self, link_t *dead, link_t *kept, uint64_t base, unshared_t *found) noexcept nogil
    cdef int unshared_blocks(self, link_t *dead, link_t *kept, uint64_t base, unshared_t *found) noexcept nogil
