"""Gives dirty nodes their slots and writes them.

Not durable; the caller's barrier makes it so. The nodes are immutable while they are clean, so they are written without
the mutex.
"""

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from cowengine.core.iotable cimport IOTable
from cowengine.core.mutex cimport Mutex
from cowengine.core.radix cimport NODE_BYTES, STATUS_MEMORY, Tree, link_t, node_t, run_t, runs_clear
from cowengine.core.status cimport check_status

cdef enum:
    NODES_A_CALL = 64


cdef class NodeWriter:
    """One batch of nodes of one tree, into slots of `runs`, first to last."""

    def __cinit__(self, Tree tree not None, Mutex mutex not None, list runs not None):
        self.tree, self.mutex = tree, mutex
        self.slots.items = <run_t *>malloc(max(len(runs), 1) * sizeof(run_t))
        if self.slots.items == NULL:
            raise MemoryError
        # The first run comes last. None is merged with its neighbour: whoever gave them goes by their order.
        for run in reversed(runs):
            self.slots.items[self.slots.count].slot, self.slots.items[self.slots.count].count = run
            self.slots.count += 1

    def __dealloc__(self):
        free(self.written)
        runs_clear(&self.slots)

    cdef int add(self, link_t *link) noexcept nogil:
        """Gives every dirty node below a root its slot. The mutex is held."""
        return self.tree.flush_link(link, 0, &self.slots, &self.written, &self.count)

    cdef list finish(self, int status):
        """Writes the nodes, unless `status` says that adding failed; returns the runs left over.

        The mutex is not held.
        """
        cdef size_t i
        if status == 0:
            with nogil:
                status = write_nodes(self.tree.io, self.tree.fd, self.written, self.count)
        self.mutex.acquire()
        for i in range(self.count):
            self.tree.drop(self.written[i])
        self.mutex.release()
        check_status(status, self.tree)
        return [(self.slots.items[i].slot, self.slots.items[i].count) for i in reversed(range(self.slots.count))]


cdef int write_nodes(IOTable io, int fd, node_t **nodes, size_t count) noexcept nogil:
    """Writes nodes into their slots, runs of slots at one go. The nodes are immutable while they are clean."""
    cdef size_t i = 0, n
    cdef int status = 0
    cdef char *buffer = <char *>malloc(NODES_A_CALL * NODE_BYTES)
    if buffer == NULL:
        return STATUS_MEMORY
    while i < count and status == 0:
        n = 0
        while n < NODES_A_CALL and i + n < count and nodes[i + n].slot == nodes[i].slot + n:
            memcpy(buffer + n * NODE_BYTES, nodes[i + n].words, NODE_BYTES)
            n += 1
        status = io.write_at(fd, buffer, n * NODE_BYTES, nodes[i].slot * NODE_BYTES)
        i += n
    free(buffer)
    return status
