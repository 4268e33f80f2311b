"""From a kernel's status to an exception: the one place."""

from cowengine.core.radix cimport Tree

cdef int check_status(int status, Tree tree) except -1
