"""The data path as a table of function pointers, for callers that are not Python: see calltable.h.

Holds nothing and decides nothing; each function is the kernels' own, with plain pointers in place of objects.

Threads   Any, with or without the GIL; no function of the table takes it, unless the I/O table is written in Python.
"""

from libc.stdint cimport uint64_t, uintptr_t

from cowengine.core.datapath cimport DataPath
from cowengine.core.readpath cimport ReadPath
from cowengine.core.roots cimport Root


cdef extern from "calltable.h":
    ctypedef struct calltable_t:
        int (*read)(void *path, void *root, char *data, uint64_t length, uint64_t offset) noexcept nogil
        int (*write)(void *path, const char *data, uint64_t length, uint64_t offset, uint64_t *done) noexcept nogil
        uint64_t (*size)(void *path) noexcept nogil
        int (*is_crowded)(void *path) noexcept nogil
        int (*descriptor)(void *path) noexcept nogil


cdef int _read(void *path, void *root, char *data, uint64_t length, uint64_t offset) noexcept nogil:
    return (<ReadPath>path).read(<Root>root, data, length, offset)


cdef int _write(void *path, const char *data, uint64_t length, uint64_t offset, uint64_t *done) noexcept nogil:
    return (<DataPath>path).write_piecewise((<DataPath>path).live, data, length, offset, done)


cdef uint64_t _size(void *path) noexcept nogil:
    return (<ReadPath>path).live.size


cdef int _is_crowded(void *path) noexcept nogil:
    return (<ReadPath>path).is_crowded()


cdef int _descriptor(void *path) noexcept nogil:
    return (<ReadPath>path).fd


cdef calltable_t _TABLE
_TABLE.read, _TABLE.write, _TABLE.size = &_read, &_write, &_size
_TABLE.is_crowded, _TABLE.descriptor = &_is_crowded, &_descriptor


def addresses(DataPath path not None, Root root):
    """The addresses of the table, of the path and of the root, as ints; good as long as both objects live."""
    if root is None:
        root = path.live
    return <uintptr_t>&_TABLE, <uintptr_t><void *>path, <uintptr_t><void *>root


def settle(DataPath path not None, int status):
    """After a call that returned `status`: gets what a write needs before it can go on, or raises what is wrong."""
    path.resume_after(status, path.chunk_blocks)
