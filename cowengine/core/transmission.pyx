"""The transmission phase of one NBD connection: requests come in, replies go out, without the GIL.

The protocol is proto.md of github.com/NetworkBlockDevice/nbd. One thread of a connection has the lead: it receives, as
many requests at a time as the client has sent, and carries out at once what needs no waiting, writes and those reads
whose bytes are in the page cache; their replies are gathered, and sent in one call before more is received. When it
meets a request that may wait (a read of the disk, a flush, whatever is asked of Python) it leaves the lead to another
thread, which is started if none is free, and carries that out itself: nobody has to wake up first.

A connection has two buffers of fixed size and one more a thread, whatever is asked of it: large requests are carried
out in pieces. So a client that is slow, or reads nothing, holds up itself and nobody else.

Threads   `run` is called once; `stop` at any time from anywhere. The lead is taken and left under `lock`; inbox and
          outbox are the leader's. The socket's sending side is guarded by `sending`.
"""

from cpython.buffer cimport PyBUF_READ
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.errno cimport EAGAIN, EINTR, EINVAL, EIO, ENOSPC, EPERM, errno
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove

from cowengine.core.datapath cimport DataPath
from cowengine.core.mutex cimport (
    Mutex, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
)
from cowengine.core.observed cimport observed_add, observed_int_t, observed_t
from cowengine.core.readpath cimport ReadPath
from cowengine.core.roots cimport Head, Root

import threading as _threading

cdef extern from "<sys/socket.h>" nogil:
    ssize_t c_recv "recv" (int fd, void *buffer, size_t length, int flags)
    ssize_t c_send "send" (int fd, const void *buffer, size_t length, int flags)
    int c_shutdown "shutdown" (int fd, int how)
    int MSG_NOSIGNAL
    int SHUT_RD
    int SHUT_RDWR

cdef extern from "<endian.h>" nogil:
    uint16_t htobe16(uint16_t number)
    uint32_t htobe32(uint32_t number)
    uint64_t htobe64(uint64_t number)
    uint16_t be16toh(uint16_t number)
    uint32_t be32toh(uint32_t number)
    uint64_t be64toh(uint64_t number)

cdef enum:                      # magics
    REQUEST_MAGIC = 0x25609513
    EXTENDED_REQUEST_MAGIC = 0x21e41c71
    SIMPLE_REPLY_MAGIC = 0x67446698
    CHUNK_MAGIC = 0x668e33ef
    EXTENDED_CHUNK_MAGIC = 0x6e8a278c

cdef enum:                      # commands
    CMD_READ = 0
    CMD_WRITE = 1
    CMD_DISC = 2
    CMD_FLUSH = 3
    CMD_TRIM = 4
    CMD_CACHE = 5
    CMD_WRITE_ZEROES = 6
    CMD_BLOCK_STATUS = 7

cdef enum:                      # flags of commands
    FLAG_FUA = 1
    FLAG_NO_HOLE = 2
    FLAG_DF = 4
    FLAG_REQ_ONE = 8
    FLAG_FAST_ZERO = 16
    FLAG_PAYLOAD_LEN = 32

cdef enum:                      # chunks
    CHUNK_DONE = 1
    CHUNK_NONE = 0
    CHUNK_OFFSET_DATA = 1
    CHUNK_BLOCK_STATUS = 5
    CHUNK_BLOCK_STATUS_EXT = 6
    CHUNK_ERROR = 0x8001

cdef enum:                      # how replies look
    SIMPLE = 0
    STRUCTURED = 1
    EXTENDED = 2

cdef enum:                      # why it ended; 0: it goes on
    END_CLOSED = 1
    END_DISCONNECTED = 2
    END_STOPPED = 3
    END_BROKEN = 4
    END_IDLE = 5
    END_MAGIC = 6
    END_PAYLOAD = 7
    GOES_ON = -1                # of one request: it is done; 0: it may wait, whoever leads is to carry it out

cdef enum:
    INBOX_BYTES = 512 << 10
    PIECE_BYTES = 256 << 10         # of a large request; fits the inbox and the outbox
    OUTBOX_BYTES = 320 << 10        # replies that are gathered
    GATHERED_BYTES = 64 << 10       # are sent once there are so many
    REQUEST_BYTES_MAX = 32 << 20    # of data, as negotiated
    HEADER_BYTES_MAX = 40           # of a reply, in front of its data

_ENDS = {
    END_CLOSED: "closed", END_DISCONNECTED: "disconnected", END_STOPPED: "stopped", END_IDLE: "idle",
    END_BROKEN: "broken: the client takes no replies",
    END_MAGIC: "protocol: what should be a request begins with something else",
    END_PAYLOAD: "protocol: a request that carries more than 4 GiB",
}

ctypedef struct request_t:
    uint64_t cookie                 # as it came: not swapped
    uint64_t offset
    uint64_t length
    uint16_t flags
    uint16_t kind


cdef inline uint16_t get16(const char *raw) noexcept nogil:
    cdef uint16_t number
    memcpy(&number, raw, 2)
    return be16toh(number)


cdef inline uint32_t get32(const char *raw) noexcept nogil:
    cdef uint32_t number
    memcpy(&number, raw, 4)
    return be32toh(number)


cdef inline uint64_t get64(const char *raw) noexcept nogil:
    cdef uint64_t number
    memcpy(&number, raw, 8)
    return be64toh(number)


cdef inline void put16(char *to, uint16_t number) noexcept nogil:
    number = htobe16(number)
    memcpy(to, &number, 2)


cdef inline void put32(char *to, uint32_t number) noexcept nogil:
    number = htobe32(number)
    memcpy(to, &number, 4)


cdef inline void put64(char *to, uint64_t number) noexcept nogil:
    number = htobe64(number)
    memcpy(to, &number, 8)


cdef class Transmission:
    """One connection behind its negotiation; see the module.

    `fd` is a connected stream socket that blocks; its SO_SNDTIMEO is how long a client may take no reply, its
    SO_RCVTIMEO how long it may send nothing. `root` is what is read: of a volume a Head, which is written as well if
    `writable`. `size` is in bytes, as negotiated. `replies` is 0 for simple ones, 1 for structured, 2 for extended
    headers. `commands` is asked for the rest, with the GIL. At most `in_flight_max` requests that may wait are under
    way at a time, each in a thread of its own.
    """

    cdef ReadPath path
    cdef Root root
    cdef DataPath data              # the same as `path`, and
    cdef Head head                  # the same as `root`, if it can be written
    cdef object commands
    cdef int fd
    cdef int replies
    cdef bint writable
    cdef uint64_t size
    cdef char *inbox
    cdef size_t unread, filled      # from where to where there is something in it
    cdef char *outbox
    cdef size_t gathered
    cdef pthread_mutex_t sending
    cdef Mutex lock
    cdef bint led                   # a thread has the lead
    cdef int end                    # why nobody takes it any more, or 0
    cdef int free_count             # threads that wait for it
    cdef int thread_count, threads_max
    cdef observed_int_t stopping, broken
    cdef list helpers               # the threads that were started
    cdef readonly observed_t requests, bytes_read, bytes_written

    def __cinit__(self, int fd, ReadPath path not None, Root root not None, uint64_t size, commands, *, int replies,
                  bint writable, int in_flight_max=16):
        if not SIMPLE <= replies <= EXTENDED or in_flight_max < 1:
            raise ValueError("replies are 0, 1 or 2, and at least one request is in flight")
        self.fd, self.path, self.root, self.size, self.commands = fd, path, root, size, commands
        self.replies, self.writable, self.threads_max = replies, writable, in_flight_max
        self.thread_count = 1
        if writable:
            self.data, self.head = path, root       # or TypeError
        self.lock, self.helpers = Mutex(), []
        pthread_mutex_init(&self.sending, NULL)
        self.inbox, self.outbox = <char *>malloc(INBOX_BYTES), <char *>malloc(OUTBOX_BYTES)
        if self.inbox == NULL or self.outbox == NULL:
            raise MemoryError("no memory for the buffers of a connection")

    def __dealloc__(self):
        free(self.inbox)
        free(self.outbox)
        pthread_mutex_destroy(&self.sending)

    def run(self):
        """Serves the client until it goes, or `stop` is called; returns why it ended. Releases the GIL.

        Everything received is carried out, and answered if the client still listens, when it returns.
        """
        self._work()
        for helper in self.helpers:
            helper.join()
        if self.end == END_CLOSED and self.stopping:
            return _ENDS[END_STOPPED]
        return _ENDS[END_BROKEN if self.broken and self.end == END_CLOSED else self.end]

    def stop(self):
        """No further request is received; those that were are carried out and answered. Returns at once."""
        self.stopping = True
        c_shutdown(self.fd, SHUT_RD)

    # -- the lead ------------------------------------------------------------------------------------------------------
    def _work(self):
        """What each thread does."""
        cdef request_t request
        cdef char *buffer = <char *>malloc(PIECE_BYTES + HEADER_BYTES_MAX)
        with nogil:
            while self.lead(&request):
                if buffer == NULL:
                    self.send_status(&request, EIO)
                else:
                    self.carry_out(&request, buffer)
                if self.path.is_crowded():
                    self.ask_trim()
        free(buffer)

    cdef bint lead(self, request_t *request) noexcept nogil:
        """Waits for the lead, and leaves it with a request that may wait; False if there are no more."""
        cdef int end = self.take_lead()
        if end == 0:
            end = self.receive(request)
            if self.send_gathered() != 0 and end == 0:
                end = END_BROKEN
            if self.leave_lead(end):
                self.hire()
        return end == 0

    cdef int take_lead(self) noexcept nogil:
        """Returns 0 with the lead, or why there is none."""
        cdef int end
        self.lock.acquire_nogil()
        self.free_count += 1
        while self.led and self.end == 0:
            self.lock.wait()
        self.free_count -= 1
        end = self.end
        self.led = True
        self.lock.release()
        return end

    cdef bint leave_lead(self, int end) noexcept nogil:
        """Whether a thread is to be started for it."""
        cdef bint wanted
        self.lock.acquire_nogil()
        self.led, self.end = False, end
        wanted = end == 0 and self.free_count == 0 and self.thread_count < self.threads_max
        self.thread_count += wanted
        if end != 0:
            self.lock.wake()
        else:
            self.lock.wake_one()
        self.lock.release()
        return wanted

    cdef void hire(self) noexcept with gil:
        """Starts the thread that `leave_lead` counted, if there is one to be had: else the lead waits for this one."""
        try:
            helper = _threading.Thread(target=self._work, name="cowengine-nbd", daemon=True)
            helper.start()
            self.helpers.append(helper)
        except Exception:
            self.lock.acquire()
            self.thread_count -= 1
            self.lock.release()

    cdef bint is_at_rest(self) noexcept nogil:
        """Whether only the leader has something to do."""
        cdef bint rests
        self.lock.acquire_nogil()
        rests = self.free_count + 1 == self.thread_count
        self.lock.release()
        return rests

    # -- receiving -----------------------------------------------------------------------------------------------------
    cdef int receive(self, request_t *slow) noexcept nogil:
        """Takes requests until one may wait, which is in `slow`, and returns 0; or returns why there are no more."""
        cdef int end
        while True:
            end = self.next_request(slow)
            if end != 0:
                return end
            observed_add(&self.requests, 1)
            end = self.take(slow)
            if end != GOES_ON:
                return end

    cdef int need(self, size_t count) noexcept nogil:
        """Waits until so many bytes are in the inbox, in a row; at most PIECE_BYTES."""
        cdef ssize_t got
        if self.filled - self.unread >= count:
            return 0
        # Nobody waits for more while an answer lies here.
        if self.send_gathered() != 0:
            return END_BROKEN
        if self.path.is_crowded():
            self.ask_trim()
        if self.unread == self.filled:
            self.unread = self.filled = 0
        elif self.unread + count > INBOX_BYTES:
            memmove(self.inbox, self.inbox + self.unread, self.filled - self.unread)
            self.filled -= self.unread
            self.unread = 0
        while self.filled - self.unread < count:
            got = c_recv(self.fd, self.inbox + self.filled, INBOX_BYTES - self.filled, 0)
            if got == 0:
                return END_CLOSED
            if got > 0:
                self.filled += <size_t>got
            elif errno == EAGAIN:
                if self.is_at_rest():
                    return END_IDLE
            elif errno != EINTR:
                return END_CLOSED
        return 0

    cdef int next_request(self, request_t *request) noexcept nogil:
        """The header of the next request."""
        cdef size_t length = 32 if self.replies == EXTENDED else 28
        cdef const char *raw
        cdef int end
        if self.stopping:
            return END_STOPPED
        end = self.need(length)
        if end != 0:
            return end
        raw = self.inbox + self.unread
        if get32(raw) != <uint32_t>(EXTENDED_REQUEST_MAGIC if self.replies == EXTENDED else REQUEST_MAGIC):
            return END_MAGIC
        request.flags, request.kind = get16(raw + 4), get16(raw + 6)
        memcpy(&request.cookie, raw + 8, 8)
        request.offset = get64(raw + 16)
        request.length = get64(raw + 24) if self.replies == EXTENDED else get32(raw + 24)
        self.unread += length
        return 0

    cdef int take(self, request_t *request) noexcept nogil:
        """Carries a request out unless it may wait: returns GOES_ON, 0, or why it is the last."""
        cdef int error
        cdef bint has_payload = request.kind == CMD_WRITE
        if request.kind == CMD_DISC:
            return END_DISCONNECTED
        if self.replies == EXTENDED:
            has_payload = request.flags & FLAG_PAYLOAD_LEN != 0
        error = self.refusal(request)
        if has_payload:
            return self.take_payload(request, error)
        if error != 0:
            return self.answer(request, error)
        if request.kind == CMD_READ:
            return self.read(request)
        return 0

    cdef int refusal(self, const request_t *request) noexcept nogil:
        """The error of a request that is wrong in itself, or 0."""
        cdef uint16_t flags = FLAG_FUA
        cdef bint changes = request.kind in (CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES)
        cdef bint inside = request.length <= self.size and request.offset <= self.size - request.length
        if request.kind == CMD_WRITE and self.replies == EXTENDED:
            flags |= FLAG_PAYLOAD_LEN
        elif request.kind == CMD_READ and self.replies != SIMPLE:
            flags |= FLAG_DF
        elif request.kind == CMD_WRITE_ZEROES:
            flags |= FLAG_NO_HOLE | FLAG_FAST_ZERO
        elif request.kind == CMD_BLOCK_STATUS:
            flags |= FLAG_REQ_ONE
        if request.kind > CMD_BLOCK_STATUS or request.flags & ~flags:
            return EINVAL
        if flags & FLAG_PAYLOAD_LEN and not request.flags & FLAG_PAYLOAD_LEN:
            return EINVAL               # a write that says that nothing follows
        if changes and not self.writable:
            return EPERM
        if request.kind == CMD_FLUSH:
            return 0
        if not inside:
            return ENOSPC if request.kind in (CMD_WRITE, CMD_WRITE_ZEROES) else EINVAL
        if request.kind in (CMD_READ, CMD_WRITE) and request.length > REQUEST_BYTES_MAX:
            return EINVAL
        if request.kind == CMD_BLOCK_STATUS and (self.replies == SIMPLE or request.length == 0):
            return EINVAL
        return 0

    cdef int take_payload(self, request_t *request, int error) noexcept nogil:
        """A request that carries data: written piece by piece as it comes, or, with an error, thrown away."""
        cdef uint64_t left = request.length, at = request.offset, piece, done
        cdef int status
        if left >> 32:
            return END_PAYLOAD
        while left > 0:
            piece = min(left, <uint64_t>PIECE_BYTES)
            status = self.need(piece)
            if status != 0:
                return status
            done = 0
            if error == 0:
                status = self.data.write_piecewise(self.head, self.inbox + self.unread, piece, at, &done)
                if status != 0:
                    error = self.ask_write(self.inbox + self.unread + done, piece - done, at + done, status)
                if error == 0:
                    observed_add(&self.bytes_written, piece)
            self.unread += piece
            at += piece
            left -= piece
        if error == 0 and request.flags & FLAG_FUA:
            return 0
        return self.answer(request, error)

    cdef int read(self, request_t *request) noexcept nogil:
        """Reads into the outbox what is in memory; what is not, or fails, may wait."""
        cdef size_t header = self.data_header_bytes()
        cdef char *to
        if request.length > PIECE_BYTES:
            return 0
        if self.gathered + header + request.length > OUTBOX_BYTES and self.send_gathered() != 0:
            return END_BROKEN
        to = self.outbox + self.gathered
        if self.path.read_cached(self.root, to + header, request.length, request.offset) != 0:
            return 0
        self.put_data_header(to, request, CHUNK_DONE, request.offset, request.length)
        self.gathered += header + request.length
        observed_add(&self.bytes_read, request.length)
        if self.gathered >= GATHERED_BYTES and self.send_gathered() != 0:
            return END_BROKEN
        return GOES_ON

    cdef int answer(self, const request_t *request, int error) noexcept nogil:
        """Gathers a reply without data."""
        if self.gathered + HEADER_BYTES_MAX > OUTBOX_BYTES and self.send_gathered() != 0:
            return END_BROKEN
        self.gathered += self.put_status(self.outbox + self.gathered, request, error)
        return GOES_ON

    cdef int send_gathered(self) noexcept nogil:
        """Sends the replies of the outbox; returns 0 unless the client is gone."""
        cdef int status
        if self.gathered == 0:
            return 0
        pthread_mutex_lock(&self.sending)
        status = self.send(self.outbox, self.gathered)
        pthread_mutex_unlock(&self.sending)
        self.gathered = 0
        return status

    # -- what may wait -------------------------------------------------------------------------------------------------
    cdef void carry_out(self, request_t *request, char *buffer) noexcept nogil:
        """A request that may wait; `buffer` has room for a piece and a header."""
        if request.kind == CMD_READ and request.length <= PIECE_BYTES:
            self.read_whole(request, buffer)
        elif request.kind == CMD_READ and (self.replies == SIMPLE or request.flags & FLAG_DF):
            self.read_undivided(request, buffer)
        elif request.kind == CMD_READ:
            self.read_in_chunks(request, buffer)
        elif request.kind == CMD_BLOCK_STATUS:
            self.send_block_status(request, buffer)
        else:
            self.send_status(request, self.ask(request))

    cdef void read_whole(self, const request_t *request, char *buffer) noexcept nogil:
        """A read of one piece."""
        cdef size_t header = self.data_header_bytes()
        cdef int status = self.path.read(self.root, buffer + header, request.length, request.offset)
        if status != 0:
            self.send_status(request, self.ask_read(status))
            return
        self.put_data_header(buffer, request, CHUNK_DONE, request.offset, request.length)
        self.send_reply(buffer, header + request.length)
        observed_add(&self.bytes_read, request.length)

    cdef void read_in_chunks(self, const request_t *request, char *buffer) noexcept nogil:
        """A large read: a chunk a piece, and an error where it is met."""
        cdef size_t header = self.data_header_bytes()
        cdef uint64_t done = 0, piece
        cdef int status
        while done < request.length:
            piece = min(request.length - done, <uint64_t>PIECE_BYTES)
            status = self.path.read(self.root, buffer + header, piece, request.offset + done)
            if status != 0:
                self.send_status(request, self.ask_read(status))
                return
            self.put_data_header(
                buffer, request, CHUNK_DONE if done + piece == request.length else 0, request.offset + done, piece)
            if self.send_reply(buffer, header + piece) != 0:
                return
            done += piece
        observed_add(&self.bytes_read, request.length)

    cdef void read_undivided(self, const request_t *request, char *buffer) noexcept nogil:
        """A large read whose bytes must follow one header: an error behind that can only end the connection."""
        cdef size_t header = self.data_header_bytes()
        cdef uint64_t done = 0, piece = PIECE_BYTES
        cdef int status = self.path.read(self.root, buffer + header, piece, request.offset)
        if status != 0:
            self.send_status(request, self.ask_read(status))
            return
        self.put_data_header(buffer, request, CHUNK_DONE, request.offset, request.length)
        pthread_mutex_lock(&self.sending)
        if self.send(buffer, header + piece) == 0:
            done = piece
            while done < request.length:
                piece = min(request.length - done, <uint64_t>PIECE_BYTES)
                status = self.path.read(self.root, buffer, piece, request.offset + done)
                if status != 0:
                    self.ask_read(status)
                    self.give_up()
                    break
                if self.send(buffer, piece) != 0:
                    break
                done += piece
        pthread_mutex_unlock(&self.sending)
        observed_add(&self.bytes_read, done)

    # -- sending -------------------------------------------------------------------------------------------------------
    cdef int send(self, const char *data, size_t length) noexcept nogil:
        """Sends all of it; `sending` is held. Returns 0 unless the client is gone, or took nothing for too long."""
        cdef size_t done = 0
        cdef ssize_t sent
        while done < length:
            if self.broken:
                return END_BROKEN
            sent = c_send(self.fd, data + done, length - done, MSG_NOSIGNAL)
            if sent > 0:
                done += <size_t>sent
            elif errno != EINTR:
                self.give_up()
        return 0

    cdef void give_up(self) noexcept nogil:
        """Nothing more can be said to this client."""
        self.broken = True
        c_shutdown(self.fd, SHUT_RDWR)

    cdef int send_reply(self, const char *data, size_t length) noexcept nogil:
        """Sends a reply that is not gathered, or a chunk of it."""
        pthread_mutex_lock(&self.sending)
        cdef int status = self.send(data, length)
        pthread_mutex_unlock(&self.sending)
        return status

    cdef int send_status(self, const request_t *request, int error) noexcept nogil:
        """Sends a reply that has no data and is not gathered."""
        cdef char reply[HEADER_BYTES_MAX]
        return self.send_reply(reply, self.put_status(reply, request, error))

    cdef size_t data_header_bytes(self) noexcept nogil:
        """Bytes in front of the data of a read."""
        return 16 if self.replies == SIMPLE else 28 if self.replies == STRUCTURED else 40

    cdef void put_data_header(self, char *to, const request_t *request, uint16_t flags, uint64_t offset,
                              uint64_t length) noexcept nogil:
        """What stands in front of the data of a read."""
        cdef size_t done
        if self.replies == SIMPLE:
            put32(to, SIMPLE_REPLY_MAGIC)
            put32(to + 4, 0)
            memcpy(to + 8, &request.cookie, 8)
            return
        done = self.put_chunk(to, request, flags, CHUNK_OFFSET_DATA, 8 + length)
        put64(to + done, offset)

    cdef size_t put_status(self, char *to, const request_t *request, int error) noexcept nogil:
        """A reply without data; returns its length."""
        cdef bint chunked = self.replies == EXTENDED or self.replies == STRUCTURED and (
            request.kind in (CMD_READ, CMD_BLOCK_STATUS))
        cdef size_t done
        if not chunked:
            put32(to, SIMPLE_REPLY_MAGIC)
            put32(to + 4, <uint32_t>error)
            memcpy(to + 8, &request.cookie, 8)
            return 16
        if error == 0:
            return self.put_chunk(to, request, CHUNK_DONE, CHUNK_NONE, 0)
        done = self.put_chunk(to, request, CHUNK_DONE, CHUNK_ERROR, 6)
        put32(to + done, <uint32_t>error)
        put16(to + done + 4, 0)         # no message: what it was stands in the log of the server
        return done + 6

    cdef size_t put_chunk(self, char *to, const request_t *request, uint16_t flags, uint16_t kind,
                          uint64_t length) noexcept nogil:
        """The header of a chunk with `length` bytes of payload; returns its own length."""
        put16(to + 4, flags)
        put16(to + 6, kind)
        memcpy(to + 8, &request.cookie, 8)
        if self.replies == STRUCTURED:
            put32(to, CHUNK_MAGIC)
            put32(to + 16, <uint32_t>length)
            return 20
        put32(to, <uint32_t>EXTENDED_CHUNK_MAGIC)
        put64(to + 16, request.offset)
        put64(to + 24, length)
        return 32

    # -- what Python is asked ------------------------------------------------------------------------------------------
    cdef int ask(self, const request_t *request) noexcept with gil:
        """Has a request carried out that is not of bytes, or the flush of one that was."""
        cdef int error = 0
        try:
            if request.kind != CMD_WRITE:
                error = self.commands.carry_out(request.kind, request.flags, request.offset, request.length)
            if error == 0 and request.flags & FLAG_FUA and request.kind in (CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES):
                error = self.commands.carry_out(CMD_FLUSH, 0, 0, 0)
        except BaseException:
            return EIO
        return error

    cdef int ask_read(self, int status) noexcept with gil:
        """What to say of a read that failed."""
        try:
            return self.commands.failed_read(status)
        except BaseException:
            return EIO

    cdef int ask_write(self, const char *data, uint64_t length, uint64_t offset, int status) noexcept with gil:
        """Has the rest of a write carried out, of which a kernel could not go on."""
        try:
            view = PyMemoryView_FromMemory(<char *>data, <Py_ssize_t>length, PyBUF_READ)
            return self.commands.failed_write(view, offset, status)
        except BaseException:
            return EIO

    cdef void ask_trim(self) noexcept with gil:
        """There is more of the map in memory than there should be."""
        try:
            self.commands.trim_memory()
        except BaseException:
            pass

    cdef void send_block_status(self, const request_t *request, char *buffer) noexcept with gil:
        """One chunk for each context that was chosen."""
        cdef bytes payload
        cdef size_t header
        try:
            answer = self.commands.block_status(request.flags, request.offset, request.length)
            payloads = None if isinstance(answer, int) else [bytes(each) for each in answer]
            error = answer if payloads is None else EINVAL if not payloads else 0
        except BaseException:
            payloads, error = None, EIO
        if error != 0:
            self.send_error(request, error)
            return
        kind = CHUNK_BLOCK_STATUS_EXT if self.replies == EXTENDED else CHUNK_BLOCK_STATUS
        whole = bytearray()
        for i, payload in enumerate(payloads):
            header = self.put_chunk(
                buffer, request, CHUNK_DONE if i == len(payloads) - 1 else 0, kind, <uint64_t>len(payload))
            whole += buffer[:header]
            whole += payload
        self.send_python(bytes(whole))

    cdef int send_error(self, const request_t *request, int error) except -1:
        with nogil:
            self.send_status(request, error)
        return 0

    cdef int send_python(self, bytes data) except -1:
        cdef const char *raw = data
        cdef size_t length = len(data)
        with nogil:
            self.send_reply(raw, length)
        return 0
