"""Reads and writes of a Volume and a Snapshot, where nothing about them is unusual.

The Python classes inherit from these: what a call has to say is a look-up and one system call, and a method written in
Python would cost as much as both. Decides nothing. Arguments that are not plain, and whatever a read or write returns
but success, go to a method of the Python class, which begins again or raises:

    _pread, _pread_into     the arguments are unusual: other types, nothing to read, beyond the end; or no root is known
    _read_failed            a read ended with a status
    _crowded                of a snapshot: there is more of the map in memory than there should be
    _pwrite                 any of it, of a write; with how much is done, and the status

A subclass of DataPath, as tests have them, is always asked by the methods that it can override.

Threads   Any. The data path is called without the GIL; it, the head or the root are held meanwhile, as another thread
          may bind the handle anew.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_Clear, PyErr_ExceptionMatches
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_Check
from libc.stdint cimport uint64_t

from weakref import ref as _ref

from cowengine.core.datapath cimport DataPath
from cowengine.core.roots cimport Head, Root

cdef extern from "Python.h":
    int get_buffer "PyObject_GetBuffer" (object buffer, Py_buffer *view, int flags)     # the error is looked at here


cdef bint is_plain(number, uint64_t *value) except -1:
    """Whether it is an int from 0 to 2^63 - 1; `value` becomes what it is."""
    cdef int overflow
    cdef long long found
    if not PyLong_Check(number):
        return False
    found = PyLong_AsLongLongAndOverflow(number, &overflow)     # -1 if it is too large
    value[0] = <uint64_t>found
    return found >= 0


cdef bint lends(buffer, Py_buffer *view, int flags) except -1:
    """Whether an object lends its bytes. If not, whoever is asked next says why."""
    if get_buffer(buffer, view, flags) == 0:
        return True
    if not PyErr_ExceptionMatches(Exception):
        return -1
    PyErr_Clear()
    return False


cdef inline bint lies_in(uint64_t length, uint64_t offset, uint64_t size) noexcept nogil:
    """Whether there are any bytes, and all of them lie in so many."""
    return 0 < length <= size and offset <= size - length


cdef class Handle:
    """What both have in common: None where something is unusual."""

    cdef void lead_to(self, DataPath path):
        self._path, self.direct = path, type(path) is DataPath

    cdef bytes read(self, Root root, uint64_t size, length, offset):
        """Bytes of a root of which so many can be read."""
        cdef DataPath path = self._path
        cdef uint64_t count, at
        cdef bytes result
        cdef char *data
        cdef int status
        if not self.direct or not is_plain(length, &count) or not is_plain(offset, &at) or not lies_in(count, at, size):
            return None
        result = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>count)
        data = PyBytes_AS_STRING(result)
        with nogil:
            status = path.read(root, data, count, at)
        self.settle(status)
        return result

    cdef object read_into(self, Root root, uint64_t size, buffer, offset):
        """Fills a buffer; returns how many bytes it has."""
        cdef DataPath path = self._path
        cdef Py_buffer view
        cdef uint64_t count, at
        cdef int status
        if not self.direct or not is_plain(offset, &at) or not lends(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE):
            return None
        count = <uint64_t>view.len
        if not lies_in(count, at, size):
            PyBuffer_Release(&view)
            return None
        with nogil:
            status = path.read(root, <char *>view.buf, count, at)
        PyBuffer_Release(&view)
        self.settle(status)
        return count

    cdef int settle(self, int status) except -1:
        """What follows a read."""
        if status != 0:
            self._read_failed(status)
        elif self._path.is_crowded():
            self.trim()
        return 0

    cdef int trim(self) except -1:
        self._path.trim()
        return 0


@cython.annotation_typing(False)     # what is not as annotated is unusual
cdef class HeadHandle(Handle):
    """A head that can be read and written; a Volume is one."""

    def _bind(self, DataPath path not None, Head head not None):
        """From now on it is this head."""
        self.lead_to(path)
        self._head = head

    def pread(self, length: int, offset: int) -> bytes:
        """`length` bytes from byte `offset`. Raises OutOfRangeError past the end. Releases the GIL."""
        cdef Head head = self._head
        result = None if head is None else self.read(head, head.size, length, offset)
        return self._pread(length, offset) if result is None else result

    def pread_into(self, buffer: Buffer, offset: int) -> int:
        """Fills a writable buffer from byte `offset`; returns its length. Raises OutOfRangeError past the end."""
        cdef Head head = self._head
        count = None if head is None else self.read_into(head, head.size, buffer, offset)
        return self._pread_into(buffer, offset) if count is None else count

    def pwrite(self, data: Buffer, offset: int) -> int:
        """Writes a buffer at byte `offset`; returns its length. Releases the GIL.

        Not durable before `flush` or `snapshot`: until then a crash may leave each block old, new or torn. Raises
        OutOfRangeError past the end (nothing is written), NoSpaceError, ReadOnlyError.
        """
        cdef DataPath path = self._path
        cdef Head head = self._head
        cdef Py_buffer view
        cdef uint64_t length, at, done = 0
        cdef int status = 0
        if (head is None or not self.direct or path.read_only or not is_plain(offset, &at)
                or not lends(data, &view, PyBUF_SIMPLE)):
            return self._pwrite(data, offset, 0, 0)
        length = <uint64_t>view.len
        if lies_in(length, at, head.size):
            with nogil:
                status = path.write_piecewise(head, <const char *>view.buf, length, at, &done)
        PyBuffer_Release(&view)
        return length if 0 < length == done else self._pwrite(data, offset, done, status)


@cython.annotation_typing(False)     # what is not as annotated is unusual
cdef class SnapshotHandle(Handle):
    """The bytes of a snapshot; a Snapshot is one.

    It does not keep the root: its memory is the lineage's, which gives it up for what is read more, and when its space
    is given back.
    """

    def _bind(self, DataPath path not None, uint64_t size):
        """It is a snapshot of this size; its root is not known yet."""
        self.lead_to(path)
        self._size = size

    def _note(self, Root root not None):
        """This is its root."""
        self._found = _ref(root)

    cdef Root root(self):
        """The root, if it is known, and still there."""
        return None if self._found is None else self._found()

    def pread(self, length: int, offset: int) -> bytes:
        """`length` bytes from byte `offset`. Raises OutOfRangeError past the end, NotFoundError once deleted or, as
        AnchorError, once the data was given up. Releases the GIL.
        """
        cdef Root root = self.root()
        result = None if root is None else self.read(root, self._size, length, offset)
        return self._pread(length, offset) if result is None else result

    def pread_into(self, buffer: Buffer, offset: int) -> int:
        """Fills a writable buffer from byte `offset`; returns its length. Raises as `pread`."""
        cdef Root root = self.root()
        count = None if root is None else self.read_into(root, self._size, buffer, offset)
        return self._pread_into(buffer, offset) if count is None else count

    cdef int trim(self) except -1:
        self._crowded()
        return Handle.trim(self)
