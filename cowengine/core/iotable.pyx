"""The one table of durable calls.

Every call that touches a volume, a store log or a backup goes through an `IOTable`. The class itself asks the kernel,
with the GIL released; a subclass may override any method, to record calls or to inject faults. Kernels written in
Cython call the same table: directly if it is exactly `IOTable`, through the overridden methods otherwise. Nothing here
retries a failed sync.

Threads   Every method may be called from any thread.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.buffer cimport PyBUF_READ, PyBUF_WRITE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.errno cimport EINTR, EIO, ENOENT, errno
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset
from posix.fcntl cimport F_RDLCK, F_WRLCK, fcntl as c_fcntl, flock
from posix.stat cimport S_ISREG, fstat as c_fstat, lstat as c_lstat, struct_stat
from posix.uio cimport iovec

from cowengine.core.mutex cimport (
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
)

import errno as _errno
import fcntl as _fcntl
import os as _os
import signal as _signal
import stat as _stat
import struct as _struct

cdef extern from "<unistd.h>" nogil:
    ssize_t c_pread "pread" (int fd, void *buffer, size_t length, int64_t offset)
    ssize_t c_pwrite "pwrite" (int fd, const void *buffer, size_t length, int64_t offset)
    int c_fdatasync "fdatasync" (int fd)

cdef extern from "<sys/uio.h>" nogil:
    ssize_t c_preadv2 "preadv2" (int fd, const iovec *vectors, int count, int64_t offset, int flags)
    int RWF_NOWAIT

cdef extern from "<fcntl.h>" nogil:
    int c_fallocate "fallocate" (int fd, int mode, int64_t offset, int64_t length)
    int c_sync_file_range "sync_file_range" (int fd, int64_t offset, int64_t length, unsigned int flags)
    int SYNC_FILE_RANGE_WRITE
    int c_fadvise "posix_fadvise" (int fd, int64_t offset, int64_t length, int advice)
    int POSIX_FADV_WILLNEED
    int FALLOC_FL_KEEP_SIZE
    int FALLOC_FL_PUNCH_HOLE

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_t:
        pass
    int pthread_create(pthread_t *thread, const void *attributes, void *(*start)(void *) noexcept nogil, void *given)
    int pthread_join(pthread_t thread, void **result)

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int SIG_SETMASK
    int sigfillset(sigset_t *signals)
    int pthread_sigmask(int how, const sigset_t *signals, sigset_t *before)

cdef enum:
    SYNC_THREADS_MAX = 15       # beside the caller's; to make one costs 30 to 50 us

cdef int _F_OFD_GETLK = 36, _F_OFD_SETLK = 37
cdef size_t CALL_BYTES_MAX = 1 << 30    # Linux moves at most 0x7ffff000 bytes a call


cdef int _pread_all(int fd, void *buffer, size_t length, uint64_t offset, size_t *done) noexcept nogil:
    """Reads until the end of the file; `done` gets the bytes read. Returns 0 or an errno."""
    cdef ssize_t count
    done[0] = 0
    while done[0] < length:
        count = c_pread(
            fd, <char *>buffer + done[0], min(length - done[0], CALL_BYTES_MAX), <int64_t>(offset + done[0]))
        if count < 0:
            if errno == EINTR:
                continue
            return errno
        if count == 0:
            break
        done[0] += <size_t>count
    return 0


cdef int _pwrite_all(int fd, const void *buffer, size_t length, uint64_t offset) noexcept nogil:
    cdef size_t done = 0
    cdef ssize_t count
    while done < length:
        count = c_pwrite(fd, <const char *>buffer + done, min(length - done, CALL_BYTES_MAX), <int64_t>(offset + done))
        if count < 0:
            if errno == EINTR:
                continue
            return errno
        if count == 0:
            return EIO
        done += <size_t>count
    return 0


cdef struct barriers_t:
    pthread_mutex_t mutex
    int *fds                # replaced by what came of their barriers
    int count
    int next                # the next one to be synced


cdef void *_sync_some(void *given) noexcept nogil:
    """What each thread does: one file after the other, until none is left."""
    cdef barriers_t *barriers = <barriers_t *>given
    cdef int at
    while True:
        pthread_mutex_lock(&barriers.mutex)
        at = barriers.next
        barriers.next += 1
        pthread_mutex_unlock(&barriers.mutex)
        if at >= barriers.count:
            return NULL
        barriers.fds[at] = errno if c_fdatasync(barriers.fds[at]) != 0 else 0


cdef list _fdatasync_all(list fds):
    """By this thread and as many more as there are to be had. No signal is handled in those."""
    cdef barriers_t barriers
    cdef pthread_t threads[SYNC_THREADS_MAX]
    cdef sigset_t all_signals, before
    cdef int i, started = 0
    barriers.count, barriers.next = len(fds), 0
    barriers.fds = <int *>PyMem_Malloc(max(1, len(fds)) * sizeof(int))
    if barriers.fds == NULL:
        raise MemoryError
    for i in range(barriers.count):
        barriers.fds[i] = fds[i]
    pthread_mutex_init(&barriers.mutex, NULL)
    sigfillset(&all_signals)
    with nogil:
        pthread_sigmask(SIG_SETMASK, &all_signals, &before)
        while started < min(barriers.count - 1, <int>SYNC_THREADS_MAX) and pthread_create(
                &threads[started], NULL, _sync_some, &barriers) == 0:
            started += 1
        pthread_sigmask(SIG_SETMASK, &before, NULL)
        _sync_some(&barriers)
        for i in range(started):
            pthread_join(threads[i], NULL)
    pthread_mutex_destroy(&barriers.mutex)
    results = [barriers.fds[i] for i in range(barriers.count)]
    PyMem_Free(barriers.fds)
    return results


_FLOCK = _struct.Struct("hhqqi4x")


def _range(kind, start, length):
    """A `struct flock`; length 0 is to the end of all offsets."""
    return _FLOCK.pack(kind, 0, start, length, 0)


cdef class IOTable:
    """The durable calls of one process; see the module. Subclass it to record or to fail them."""

    def __cinit__(self, *args, **kwargs):
        self.direct = type(self) is IOTable

    # -- for the kernels ----------------------------------------------------------------------------------------------
    cdef int read_at(self, int fd, void *buffer, size_t length, uint64_t offset) noexcept nogil:
        cdef size_t done
        cdef int status
        if not self.direct:
            return self.read_python(fd, buffer, length, offset)
        status = _pread_all(fd, buffer, length, offset, &done)
        if status == 0 and done < length:
            return STATUS_SHORT
        return status

    cdef int read_cached_at(self, int fd, void *buffer, size_t length, uint64_t offset) noexcept nogil:
        cdef iovec vector
        if not self.direct:
            return self.read_python(fd, buffer, length, offset)
        vector.iov_base, vector.iov_len = buffer, length
        # Whatever else it says, the read that may wait will say again.
        if c_preadv2(fd, &vector, 1, <int64_t>offset, RWF_NOWAIT) == <ssize_t>length:
            return 0
        return STATUS_WAIT

    cdef int read_parts_at(self, int fd, iovec *parts, int count, uint64_t offset, bint cached) noexcept nogil:
        cdef char passed[PASSED_BYTES_MAX]      # for what nobody wants: it stays in the processor's nearest cache
        cdef size_t length = 0
        cdef int i
        if not self.direct:
            return self.read_parts_python(fd, parts, count, offset)
        for i in range(count):
            if parts[i].iov_base == NULL:
                parts[i].iov_base = passed
            length += parts[i].iov_len
        if c_preadv2(fd, parts, count, <int64_t>offset, RWF_NOWAIT if cached else 0) == <ssize_t>length:
            return 0
        return STATUS_WAIT

    cdef int write_at(self, int fd, const void *buffer, size_t length, uint64_t offset) noexcept nogil:
        if not self.direct:
            return self.write_python(fd, buffer, length, offset)
        return _pwrite_all(fd, buffer, length, offset)

    cdef void begin_read(self, int fd, uint64_t offset, uint64_t length) noexcept nogil:
        if self.direct:
            c_fadvise(fd, <int64_t>offset, <int64_t>length, POSIX_FADV_WILLNEED)

    cdef int read_python(self, int fd, void *buffer, size_t length, uint64_t offset) noexcept with gil:
        cdef size_t done
        try:
            done = self.pread_into(fd, PyMemoryView_FromMemory(<char *>buffer, <Py_ssize_t>length, PyBUF_WRITE), offset)
        except OSError as error:
            return error.errno or EIO
        except BaseException:
            return EIO
        return 0 if done == length else STATUS_SHORT

    cdef int read_parts_python(self, int fd, const iovec *parts, int count, uint64_t offset) noexcept with gil:
        cdef size_t length = 0
        cdef int i
        given = []
        try:
            for i in range(count):
                length += parts[i].iov_len
                if parts[i].iov_base == NULL:
                    given.append(parts[i].iov_len)
                else:
                    given.append(PyMemoryView_FromMemory(
                        <char *>parts[i].iov_base, <Py_ssize_t>parts[i].iov_len, PyBUF_WRITE))
            return 0 if self.preadv_into(fd, given, offset) == length else STATUS_SHORT
        except BaseException:
            return EIO

    cdef int write_python(self, int fd, const void *buffer, size_t length, uint64_t offset) noexcept with gil:
        try:
            self.pwrite(fd, PyMemoryView_FromMemory(<char *>buffer, <Py_ssize_t>length, PyBUF_READ), offset)
        except OSError as error:
            return error.errno or EIO
        except BaseException:
            return EIO
        return 0

    # -- files --------------------------------------------------------------------------------------------------------
    def open(self, str path, int flags, int mode=0o600):
        """Opens a file, never through a symbolic link; a file it creates has exactly `mode`, whatever the umask."""
        fd = _os.open(path, flags | _os.O_CLOEXEC | _os.O_NOFOLLOW, mode)
        if flags & _os.O_CREAT and flags & _os.O_EXCL:
            try:
                _os.fchmod(fd, mode)
            except BaseException:
                _os.close(fd)
                raise
        return fd

    def close(self, int fd):
        """Closes a descriptor.

        What the disk has to say then counts for nothing: the number is free all the same, only a barrier tells whether
        data is durable, and an error from here would hide the one that matters. A wrong number raises.
        """
        try:
            _os.close(fd)
        except OSError as error:
            if error.errno == _errno.EBADF:
                raise

    def size(self, int fd):
        """The length of the file in bytes."""
        return _os.fstat(fd).st_size

    def stands(self, int fd):
        """(length of the file in bytes, how many names it has: at 0 it goes with its last descriptor)."""
        cdef struct_stat state
        if c_fstat(fd, &state) != 0:
            raise OSError(errno, _os.strerror(errno))
        return state.st_size, state.st_nlink

    def space(self, int fd):
        """(bytes that the file takes, bytes that are free for this user, bytes of the file system)."""
        state = _os.fstatvfs(fd)
        return _os.fstat(fd).st_blocks * 512, state.f_bavail * state.f_frsize, state.f_blocks * state.f_frsize

    def pread_into(self, int fd, buffer, uint64_t offset):
        """Fills a writable buffer from `offset`; returns the bytes read, fewer only at the end of the file."""
        cdef unsigned char[::1] view = buffer
        cdef size_t length = view.shape[0], done = 0
        cdef int status
        if length == 0:
            return 0
        with nogil:
            status = _pread_all(fd, &view[0], length, offset, &done)
        if status != 0:
            raise OSError(status, _os.strerror(status))
        return done

    def preadv_into(self, int fd, list parts not None, uint64_t offset):
        """Fills several writable buffers, one behind the other, from `offset` on; a number passes over so many bytes.

        Returns the bytes read and passed over, fewer only at the end of the file. Here each buffer is a read of its
        own, and so it is seen by a table with a `pread_into` of its own; the kernels ask the system once for all.
        """
        cdef uint64_t done = 0
        for part in parts:
            if isinstance(part, int):
                done += <uint64_t>part
                continue
            count = self.pread_into(fd, part, offset + done)
            done += <uint64_t>count
            if count < len(part):
                break
        return done

    def pread(self, int fd, size_t length, uint64_t offset):
        """Up to `length` bytes from `offset`; fewer only at the end of the file."""
        cdef bytes result = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>length)
        cdef size_t done = 0
        if length == 0:
            return b""
        done = self.pread_into(
            fd, PyMemoryView_FromMemory(PyBytes_AS_STRING(result), <Py_ssize_t>length, PyBUF_WRITE), offset)
        return result if done == length else result[:done]

    def pwrite(self, int fd, data, uint64_t offset):
        """Writes all of a buffer at `offset`, or raises OSError; then any part of it may have been written."""
        cdef const unsigned char[::1] view = data
        cdef size_t length = view.shape[0]
        cdef int status
        if length == 0:
            return
        with nogil:
            status = _pwrite_all(fd, &view[0], length, offset)
        if status != 0:
            raise OSError(status, _os.strerror(status))

    def begin_write(self, int fd, uint64_t offset, uint64_t length):
        """Lets the disk begin with a range that was written: its writer has other things to do before the barrier.

        Promises nothing, and never fails: what goes wrong is told by the barrier.
        """
        with nogil:
            c_sync_file_range(fd, <int64_t>offset, <int64_t>length, SYNC_FILE_RANGE_WRITE)

    def fdatasync(self, int fd):
        """The barrier: all earlier writes of the file are durable when it returns. After an error nothing is known."""
        cdef int status
        with nogil:
            status = c_fdatasync(fd)
            if status != 0:
                status = errno
        if status != 0:
            raise OSError(status, _os.strerror(status))

    def fdatasync_all(self, list fds not None):
        """The barriers of several files side by side; returns the errno of each, 0 if it succeeded.

        Files that sync at the same time share what the disk does for it. The threads end before it returns.
        """
        if self.direct:
            return _fdatasync_all(fds)
        return [self.fdatasync_errno(fd) for fd in fds]

    cdef int fdatasync_errno(self, int fd) except -1:
        try:
            self.fdatasync(fd)
        except OSError as error:
            return error.errno or EIO
        return 0

    def truncate(self, int fd, uint64_t size):
        """Sets the length of the file."""
        _os.ftruncate(fd, size)

    def punch(self, int fd, uint64_t offset, uint64_t length):
        """Gives a range back to the file system; it reads as zeros afterwards."""
        cdef int status
        with nogil:
            status = c_fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, <int64_t>offset, <int64_t>length)
            if status != 0:
                status = errno
        if status != 0:
            raise OSError(status, _os.strerror(status))

    def forget(self, int fd, uint64_t offset=0, uint64_t length=0):
        """Drops clean pages of the file, or of a range of it, from the cache: reads show what the disk holds."""
        _os.posix_fadvise(fd, offset, length, _os.POSIX_FADV_DONTNEED)

    def lock(self, int fd, bint exclusive, uint64_t start=0, uint64_t length=0):
        """Takes an open-file-description lock on a range of bytes, by default on all there can be.

        BlockingIOError if another description's lock is in the way. One of this description is replaced.
        """
        cdef flock wanted
        cdef int status
        memset(&wanted, 0, sizeof(flock))
        wanted.l_type = F_WRLCK if exclusive else F_RDLCK
        wanted.l_start, wanted.l_len = <int64_t>start, <int64_t>length
        with nogil:
            status = errno if c_fcntl(fd, _F_OFD_SETLK, &wanted) != 0 else 0
        if status != 0:
            raise OSError(status, _os.strerror(status))

    def unlock(self, int fd, uint64_t start=0, uint64_t length=0):
        """Gives up this description's locks on a range of bytes."""
        _fcntl.fcntl(fd, _F_OFD_SETLK, _range(_fcntl.F_UNLCK, start, length))

    def locked(self, int fd, bint exclusive, uint64_t start=0, uint64_t length=0):
        """The range (start, length) of a lock that would keep `lock` from succeeding now, or None."""
        asked = _range(_fcntl.F_WRLCK if exclusive else _fcntl.F_RDLCK, start, length)
        kind, _, found, count, _ = _FLOCK.unpack(_fcntl.fcntl(fd, _F_OFD_GETLK, asked))
        return None if kind == _fcntl.F_UNLCK else (found, count)

    def is_sole(self, int fd):
        """Whether no other descriptor of any process has the file open; True where the system cannot tell.

        `fd` must be open for writing. A write lease is granted only to the one opener, and is given back at once; who
        opens the file in between sends a signal that nobody minds.
        """
        try:
            _fcntl.fcntl(fd, _fcntl.F_SETSIG, _signal.SIGURG)
            _fcntl.fcntl(fd, _fcntl.F_SETLEASE, _fcntl.F_WRLCK)
        except OSError as error:
            return error.errno != _errno.EAGAIN
        _fcntl.fcntl(fd, _fcntl.F_SETLEASE, _fcntl.F_UNLCK)
        return True

    def next_data(self, int fd, uint64_t offset):
        """(begin, end) of the first data at or behind `offset`, as the file system tells it; None if there is none."""
        try:
            begin = _os.lseek(fd, offset, _os.SEEK_DATA)
        except OSError as error:
            if error.errno == _errno.ENXIO:
                return None
            raise
        return begin, _os.lseek(fd, begin, _os.SEEK_HOLE)

    def copy_range(self, int source, uint64_t source_offset, int target, uint64_t target_offset, uint64_t length):
        """Lets the file system copy between two files, sharing the space if it can; returns the bytes copied.

        Fewer at its pleasure; 0 if it cannot.
        """
        try:
            return _os.copy_file_range(source, target, length, source_offset, target_offset)
        except OSError as error:
            if error.errno in (_errno.EXDEV, _errno.ENOSYS, _errno.EOPNOTSUPP, _errno.EINVAL):
                return 0
            raise

    # -- directories --------------------------------------------------------------------------------------------------
    def sync_directory(self, str path):
        """Makes the entries of a directory durable."""
        fd = _os.open(path or ".", _os.O_RDONLY | _os.O_DIRECTORY | _os.O_CLOEXEC)
        try:
            _os.fsync(fd)
        finally:
            _os.close(fd)

    def rename(self, str source, str target):
        """Renames a file, replacing what is there."""
        _os.rename(source, target)

    def unlink(self, str path):
        """Removes a file."""
        _os.unlink(path)

    def mkdir(self, str path, int mode=0o700):
        """Makes a directory with exactly `mode` for user, group and others, whatever the umask."""
        _os.mkdir(path, mode)
        if _os.lstat(path).st_mode & 0o777 != mode:
            _os.chmod(path, mode)

    def rmdir(self, str path):
        """Removes an empty directory."""
        _os.rmdir(path)

    def names(self, str path):
        """The entries of a directory, sorted."""
        return sorted(_os.listdir(path))

    def is_file(self, str path):
        """Whether a regular file is there; a symbolic link is none."""
        cdef struct_stat state
        cdef bytes name = _os.fsencode(path)
        cdef const char *c_name = name
        cdef int status
        if b"\0" in name:
            raise ValueError("embedded null byte")
        with nogil:
            status = errno if c_lstat(c_name, &state) != 0 else 0
        if status == ENOENT:
            return False
        if status != 0:
            raise OSError(status, _os.strerror(status), path)
        return S_ISREG(state.st_mode)

    def is_folder(self, str path):
        """Whether a directory is there; a symbolic link is none."""
        try:
            return _stat.S_ISDIR(_os.lstat(path).st_mode)
        except FileNotFoundError:
            return False

    def same_file_system(self, str path, str other):
        """Whether a rename from one to the other can be; both exist."""
        return _os.stat(path).st_dev == _os.stat(other).st_dev


#: The production instance.
KERNEL = IOTable()
