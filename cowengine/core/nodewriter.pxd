"""Dirty nodes on their way to the file."""

from cowengine.core.mutex cimport Mutex
from cowengine.core.radix cimport Tree, link_t, node_t, runs_t


cdef class NodeWriter:
    cdef Tree tree
    cdef Mutex mutex
    cdef runs_t slots
    cdef node_t **written
    cdef size_t count

    cdef int add(self, link_t *link) noexcept nogil
    cdef list finish(self, int status)
