"""Reads of many extents into one buffer, one behind the other, with the GIL given up once.

One look at the map, under the mutex, resolves many extents; what lies near each other in the file is read in one call,
however far apart it is in the volume, as `fetch` has it. Else as a read of each: readpath.pyx.

Invariant (docs/invariants.md)
    I5   A slot that a read may still need is not given out: each look registers in the era until its bytes are there.
    SE4  Whoever reads a sealed block verifies it.

Threads   Any number.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint32_t, uint64_t

from cowengine.core.observed cimport observed_add, observed_enter, observed_leave
from cowengine.core.radix cimport STATUS_BEYOND
from cowengine.core.readpath cimport EXTENTS_MAX, SEALS_MAX, ReadPath, extent_read_t, fetch
from cowengine.core.roots cimport Root
from cowengine.core.status cimport check_status

from cowengine import errors

ctypedef struct look_t:
    extent_read_t extents[2 * EXTENTS_MAX]      # physical; `resolve` adds at most EXTENTS_MAX
    uint32_t seals[SEALS_MAX]
    int count
    bint sealed
    uint64_t bytes

ctypedef struct cursor_t:       # what is still to be read
    const uint64_t *next        # offset and length of an extent
    const uint64_t *end
    uint64_t into               # that extent
    uint64_t room               # of the buffer


cdef int look_up(ReadPath path, Root root, uint64_t size, cursor_t *cursor, look_t *look) noexcept nogil:
    """Finds where the next extents lie, as many as one look takes, and what is sealed there. The mutex is held."""
    cdef uint64_t offset, wanted, covered, skip, blocks = SEALS_MAX
    cdef bint sealing = not path.seals.is_empty()
    cdef int found, status
    look.count, look.bytes = 0, 0
    while cursor.next < cursor.end and look.count < EXTENTS_MAX and blocks > 0:
        offset, wanted = cursor.next[0] + cursor.into, cursor.next[1] - cursor.into
        # The caller's array was checked, and may have been changed since.
        if wanted > cursor.room or wanted > size or offset > size - wanted or offset + wanted > root.size:
            return STATUS_BEYOND
        skip = offset & (path.block_bytes - 1)
        if sealing:
            wanted = min(wanted, (blocks << path.block_shift) - skip)
        status = path.resolve(&root.link, offset, wanted, &look.extents[look.count], &found, &covered)
        if status != 0:
            return status
        if sealing:
            blocks -= (skip + covered + path.block_bytes - 1) >> path.block_shift
        look.count += found
        look.bytes += covered
        cursor.room -= covered
        cursor.into += covered
        if cursor.into == cursor.next[1]:
            cursor.next, cursor.into = cursor.next + 2, 0
    return path.expect(look.extents, look.count, look.seals, &look.sealed)


cdef int read_many(ReadPath path, Root root, uint64_t size, char *data, cursor_t *cursor) noexcept nogil:
    """Reads all extents of a cursor; of none, only the state is looked at."""
    cdef look_t look
    cdef uint64_t era
    cdef int status = 0
    while True:
        path.mutex.acquire_nogil()
        root.used = True
        status = path.state if path.state != 0 else root.state
        if status == 0:
            status = look_up(path, root, size, cursor, &look)
        era = path.era
        if status == 0:
            observed_enter(&path.readers[era & 1])
            observed_add(&path.bytes_read, look.bytes)
        path.mutex.release()
        if status != 0:
            return status
        status = fetch(path, look.extents, look.count, look.seals if look.sealed else NULL, data, False)
        observed_leave(&path.readers[era & 1])
        if status != 0 or cursor.next == cursor.end:
            return status
        data += look.bytes


cdef int check_extents(const uint64_t[:, ::1] extents, uint64_t size, uint64_t room) except -1:
    """Raises OutOfRangeError unless all extents lie in `size` bytes and fit into `room` bytes together."""
    cdef uint64_t left = room
    cdef Py_ssize_t i
    for i in range(extents.shape[0]):
        if extents[i, 1] > size or extents[i, 0] > size - extents[i, 1]:
            raise errors.OutOfRangeError(
                f"extent {i}, {extents[i, 1]} bytes at {extents[i, 0]}, does not lie in the {size} bytes there are")
        if extents[i, 1] > left:
            raise errors.OutOfRangeError(f"the buffer has {room} bytes, the first {i + 1} extents have more")
        left -= extents[i, 1]
    return 0


def gather(ReadPath path not None, buffer, const uint64_t[:, ::1] extents not None, uint64_t size, Root root=None):
    """Fills a writable buffer with extents (offset, length) of the first `size` bytes of a root, or of the live volume.

    Returns how many bytes. Raises OutOfRangeError, before anything is read, for an extent that does not lie there and
    for a buffer that is too small; after any other error the buffer holds anything.
    """
    cdef Py_buffer view
    cdef cursor_t cursor
    cdef Py_ssize_t count = extents.shape[0]
    cdef uint64_t room
    cdef int status
    if extents.shape[1] != 2:
        raise ValueError("an extent is an offset and a length")
    if root is None:
        root = path.live
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    try:
        room = <uint64_t>view.len
        check_extents(extents, size, room)
        cursor.next = &extents[0, 0] if count > 0 else NULL
        cursor.end, cursor.into, cursor.room = cursor.next + 2 * count, 0, room
        with nogil:
            status = read_many(path, root, size, <char *>view.buf, &cursor)
    finally:
        PyBuffer_Release(&view)
    check_status(status, path.map)
    if path.is_crowded():
        path.trim()
    return room - cursor.room
