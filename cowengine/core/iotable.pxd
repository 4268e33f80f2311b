"""The I/O table as the kernels see it: five calls that need no GIL."""

from libc.stdint cimport uint64_t
from posix.uio cimport iovec


cdef enum:
    STATUS_SHORT = -9       # the file ends before what was to be read
    STATUS_WAIT = -13       # it could not be had without waiting for the disk
    PASSED_BYTES_MAX = 4096


cdef class IOTable:
    cdef bint direct    # exactly IOTable: call the system; else call the Python methods of the subclass

    # Each returns 0 or a positive errno; a read that meets the end of the file, STATUS_SHORT.
    cdef int read_at(self, int fd, void *buffer, size_t length, uint64_t offset) noexcept nogil
    # The same if all of it is in the page cache, else STATUS_WAIT and anything in the buffer. Of a table written in
    # Python, which alone knows what it reads, as `read_at`.
    cdef int read_cached_at(self, int fd, void *buffer, size_t length, uint64_t offset) noexcept nogil
    # Parts of a file, one behind the other, by one call; a part without memory, of at most PASSED_BYTES_MAX, is passed
    # over. Another status than 0 says nothing of any single part: it may be a sector between them that is bad.
    cdef int read_parts_at(self, int fd, iovec *parts, int count, uint64_t offset, bint cached) noexcept nogil
    cdef int write_at(self, int fd, const void *buffer, size_t length, uint64_t offset) noexcept nogil
    cdef void begin_read(self, int fd, uint64_t offset, uint64_t length) noexcept nogil     # a hint; never waits
    cdef int fdatasync_errno(self, int fd) except -1
    cdef int read_python(self, int fd, void *buffer, size_t length, uint64_t offset) noexcept with gil
    cdef int read_parts_python(self, int fd, const iovec *parts, int count, uint64_t offset) noexcept with gil
    cdef int write_python(self, int fd, const void *buffer, size_t length, uint64_t offset) noexcept with gil
