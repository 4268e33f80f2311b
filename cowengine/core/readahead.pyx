"""Nodes of the map that are about to be needed, read side by side.

A replay goes to one node after the other, and each that is not in the page cache costs a wait for the disk. What it
will come to is known before: so the disk is told of all of it, a level of the tree at a time.

Threads   Any; the volume's mutex is held while the nodes above the leaves are read.
"""

from libc.stdint cimport uint64_t

from cowengine.core.batch cimport delta_t
from cowengine.core.blockmap cimport BlockMap
from cowengine.core.datapath cimport DataPath
from cowengine.core.radix cimport FANOUT, KIND_NODE, NODE_BYTES, kind_of, level_of, link_t, node_t, pointer_t, slot_of
from cowengine.core.roots cimport Head


def read_ahead(DataPath path not None, bytes deltas not None):
    """Has the leaves on their way into the page cache that these deltas will change, and what leads to them in memory.

    Promises nothing: what cannot be read now is for who needs it.
    """
    cdef const delta_t *delta
    cdef const char *raw = deltas
    cdef size_t i
    cdef int level
    cdef Head head
    if not path.io.direct:
        return
    path.mutex.acquire()
    for level in (1, 0):
        for i in range(len(deltas) // sizeof(delta_t)):
            delta = <const delta_t *>raw + i
            head = path.heads.get(delta.birth >> 48)
            if head is not None:
                with nogil:
                    look_ahead(path.map, &head.link, delta.block, level)
    path.mutex.release()


cdef void look_ahead(BlockMap map, link_t *root, uint64_t block, int level) noexcept nogil:
    """Loads the nodes above a level on the way to a block, and lets the disk begin with the one there."""
    cdef link_t link
    cdef node_t *above = NULL
    cdef uint64_t index = 0
    if block >> map.span_shift(level_of(root.pointer.target)) != 0:
        return
    link = root[0]
    while kind_of(link.pointer.target) == KIND_NODE:
        if level_of(link.pointer.target) <= level:
            if link.node == NULL:
                map.io.begin_read(map.fd, slot_of(link.pointer.target) * NODE_BYTES, NODE_BYTES)
            return
        if link.node == NULL:
            if map.load(&link, block) != 0:
                return
            if above == NULL:
                root.node = link.node
            else:
                above.children[index] = link.node
        above = link.node
        index = (block >> map.span_shift(above.level - 1)) & (FANOUT - 1)
        link.pointer, link.node = (<pointer_t *>above.words)[index], above.children[index]
