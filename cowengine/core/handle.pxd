"""What a Volume and a Snapshot are to the core: a data path, and a head or root of it."""

from libc.stdint cimport uint64_t

from cowengine.core.datapath cimport DataPath
from cowengine.core.roots cimport Head, Root


cdef class Handle:
    cdef readonly DataPath _path
    cdef bint direct            # exactly a DataPath: a subclass may override what it is asked in Python

    cdef void lead_to(self, DataPath path)
    cdef bytes read(self, Root root, uint64_t size, length, offset)
    cdef object read_into(self, Root root, uint64_t size, buffer, offset)
    cdef int settle(self, int status) except -1
    cdef int trim(self) except -1


cdef class HeadHandle(Handle):
    cdef readonly Head _head


cdef class SnapshotHandle(Handle):
    cdef readonly uint64_t _size
    cdef object _found          # a weak reference to the root, once it was looked for

    cdef Root root(self)
