"""From a kernel's status to an exception: the one place."""

from libc.stdint cimport uint64_t

from cowengine.core.radix cimport Tree

cdef int check_status(int status, Tree tree) except -1
cdef int damaged(uint64_t slot, uint64_t offset) noexcept nogil
