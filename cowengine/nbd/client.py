"""A client of an NBD server: small, synchronous, one request at a time.

For live volumes of a store that another process serves, and for tests of what other clients cannot do. Knows structured
replies and extended headers, no TLS.

Threads     Any may call anything; calls take turns.
Durability  As that of the server: what returned before `flush` is durable when that returns.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from struct import unpack_from
from typing import TYPE_CHECKING, NoReturn

from cowengine.closing import Closing
from cowengine.errors import (
    BusyError,
    ClosedError,
    CowEngineError,
    FormatError,
    NoSpaceError,
    NotFoundError,
    OutOfRangeError,
    ReadOnlyError,
    StorageError,
)
from cowengine.names import shown
from cowengine.nbd import protocol
from cowengine.nbd.protocol import Chunk, Command, CommandFlag, Errno, Info, Option, Replies, Reply, TransmissionFlag
from cowengine.nbd.sockets import connect_unix

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined]

_SIMPLE = -1  # a kind of chunk that there is not
PARTING_SECONDS = 5.0
PAYLOAD_BYTES_MAX = protocol.REQUEST_BYTES_MAX + 4096  # of a reply
_REFUSALS: dict[int, type[CowEngineError]] = {
    Reply.ERR_POLICY: BusyError,
    Reply.ERR_TLS_REQD: ReadOnlyError,
    Reply.ERR_UNKNOWN: NotFoundError,
    Reply.ERR_SHUTDOWN: ClosedError,
}
_ERRORS: dict[int, type[CowEngineError]] = {
    Errno.EPERM: ReadOnlyError,
    Errno.EINVAL: OutOfRangeError,
    Errno.EOVERFLOW: OutOfRangeError,
    Errno.ENOTSUP: OutOfRangeError,
    Errno.ENOSPC: NoSpaceError,
    Errno.ESHUTDOWN: ClosedError,
}


class Client(Closing):
    """A connection to one export. `size`, `flags`, `block_size` and `contexts` are as the server said."""

    def __init__(
        self, where: str | os.PathLike[str] | socket.socket, export: str = "", contexts: Sequence[str] = (), *,
        replies: Replies = Replies.STRUCTURED, timeout: float | None = None,
        handshake_seconds: float | None = None,
    ) -> None:  # fmt: skip
        """`where`: the path of a Unix socket, or a connected socket, which is the client's from now on.

        `timeout`: seconds to wait for the server each time, unless told for ever; `handshake_seconds` the same before
        the first request, unless told as `timeout`. A request that was not waited for may still be carried out later.
        Raises NotFoundError (no server, or no such export), BusyError (no client is taken now), FormatError (no NBD
        server), StorageError.
        """
        self._lock = threading.Lock()
        self._cookie = 0
        self._replies = replies
        self.export = export
        self.size = 0
        self.flags = TransmissionFlag(0)
        self.block_size = 4096
        self.description = ""
        #: The names of the selected contexts by their numbers.
        self.contexts: dict[int, str] = {}
        self.closed = False
        self._sock = where if isinstance(where, socket.socket) else connect_unix(where)
        try:
            self._sock.settimeout(timeout if handshake_seconds is None else handshake_seconds)
            self._negotiate(contexts)
            self._sock.settimeout(timeout)
        except BaseException:
            self._shut()
            raise

    def _shut(self) -> None:
        self.closed = True
        self._sock.close()

    def close(self) -> None:
        """Tells the server and closes the connection; idempotent. Flushes nothing.

        The server has given the export up when it returns, unless it takes more than PARTING_SECONDS.
        """
        with self._lock:
            if self.closed:
                return
            with suppress(CowEngineError, OSError):  # it is over anyway
                self._send(self._header(Command.DISC, 0, 0, 0))
                self._sock.settimeout(PARTING_SECONDS)
                while self._sock.recv(1 << 16):
                    pass
            self._shut()

    # -- messages -----------------------------------------------------------------------------------------------------
    def _send(self, *parts: Buffer) -> None:
        try:
            for part in parts:
                self._sock.sendall(part)
        except OSError as error:
            self._lost(error)

    def _receive(self, count: int) -> bytes:
        data = bytearray(count)
        self._receive_into(memoryview(data))
        return bytes(data)

    def _receive_into(self, view: memoryview) -> None:
        while view:
            try:
                count = self._sock.recv_into(view)
            except OSError as error:
                self._lost(error)
            if not count:
                self._lost(ConnectionResetError("the server went away"))
            view = view[count:]

    def _lost(self, error: OSError) -> NoReturn:
        """Nothing on this connection can be trusted any more."""
        self._shut()
        raise StorageError(f"the connection to the NBD server is lost: {error}") from error

    def _nonsense(self, what: str) -> NoReturn:
        self._shut()
        raise FormatError(f"the server does not speak NBD: {what}")

    # -- handshake ----------------------------------------------------------------------------------------------------
    def _negotiate(self, contexts: Sequence[str]) -> None:
        magic, option_magic, flags = protocol.GREETING.unpack(self._receive(protocol.GREETING.size))
        if magic != protocol.MAGIC or option_magic != protocol.OPTION_MAGIC or not flags & 1:
            self._nonsense("it begins with something else than a fixed newstyle handshake")
        self._send(protocol.CLIENT_FLAGS.pack(flags & 3))
        name = _text(self.export)
        if self._replies == Replies.STRUCTURED:
            self._ask(Option.STRUCTURED_REPLY)
        elif self._replies == Replies.EXTENDED:
            self._ask(Option.EXTENDED_HEADERS)
        if contexts:
            queries = b"".join(map(_text, contexts))
            for kind, data in self._ask(Option.SET_META_CONTEXT, name + protocol.U32.pack(len(contexts)) + queries):
                if kind == Reply.META_CONTEXT and len(data) > 4:
                    self.contexts[int.from_bytes(data[:4])] = data[4:].decode(errors="replace")
        wanted = (Info.DESCRIPTION, Info.BLOCK_SIZE)
        asked = b"".join(protocol.U16.pack(number) for number in (len(wanted), *wanted))
        for kind, data in self._ask(Option.GO, name + asked):
            if kind == Reply.INFO:
                self._note(data)
        if not self.flags:
            self._nonsense("it does not describe the export")

    def _note(self, data: bytes) -> None:
        kind = int.from_bytes(data[:2])
        if kind == Info.EXPORT and len(data) == protocol.INFO_EXPORT.size:
            _, self.size, flags = protocol.INFO_EXPORT.unpack(data)
            self.flags = TransmissionFlag(flags)
        elif kind == Info.BLOCK_SIZE and len(data) == protocol.INFO_BLOCK_SIZE.size:
            self.block_size = protocol.INFO_BLOCK_SIZE.unpack(data)[2]
        elif kind == Info.DESCRIPTION:
            self.description = data[2:].decode(errors="replace")

    def _ask(self, option: Option, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Sends an option; returns what came before its acknowledgement."""
        self._send(protocol.OPTION.pack(protocol.OPTION_MAGIC, option, len(data)), data)
        found: list[tuple[int, bytes]] = []
        while True:
            header = self._receive(protocol.OPTION_REPLY.size)
            magic, answered, kind, length = protocol.OPTION_REPLY.unpack(header)
            if magic != protocol.OPTION_REPLY_MAGIC or answered != option or length > protocol.OPTION_BYTES_MAX:
                self._nonsense("that is no reply to an option")
            payload = self._receive(length)
            if kind == Reply.ACK:
                return found
            if kind & 0x80000000:
                said = shown(payload.decode(errors="replace"))
                raise _REFUSALS.get(kind, FormatError)(f"the NBD server refuses export {shown(self.export)}: {said}")
            found.append((kind, payload))

    # -- requests -----------------------------------------------------------------------------------------------------
    def _header(self, command: Command, flags: int, offset: int, length: int) -> bytes:
        self._cookie += 1
        if self._replies == Replies.EXTENDED:
            magic, form = protocol.EXTENDED_REQUEST_MAGIC, protocol.EXTENDED_REQUEST
            flags |= CommandFlag.PAYLOAD_LEN if command == Command.WRITE else 0
        else:
            magic, form = protocol.REQUEST_MAGIC, protocol.REQUEST
        return form.pack(magic, flags, command, self._cookie, offset, length)

    def _request(
        self, command: Command, offset: int, length: int, *, flags: int = 0, data: Buffer = b"",
        into: memoryview | None = None,
    ) -> list[tuple[int, bytes]]:  # fmt: skip
        """One request to its end; bytes that were read go into `into`. Returns all other payloads."""
        length_max = (1 << 32) - 1 if self._replies != Replies.EXTENDED else (1 << 63) - 1
        if not 0 <= offset < 1 << 63 or not 0 <= length <= length_max:
            raise OutOfRangeError(f"{command.name}: {length} bytes at {offset} cannot be asked for")
        with self._lock:
            if self.closed:
                raise ClosedError("the connection is closed")
            try:
                self._send(self._header(command, flags, offset, length), data)
                return self._chunks(command, offset, into)
            except CowEngineError:
                raise
            except BaseException:  # Ctrl-C between two parts of a message
                self._shut()
                raise

    def _chunks(self, command: Command, offset: int, into: memoryview | None) -> list[tuple[int, bytes]]:
        found: list[tuple[int, bytes]] = []
        failure: CowEngineError | None = None
        covered = 0
        done = False
        while not done:
            flags, kind, length = self._chunk_header(command, into)
            done = bool(flags & 1)
            if kind == _SIMPLE:
                return []
            if kind == Chunk.OFFSET_DATA and into is not None:
                view = self._part(into, offset, length - 8)
                self._receive_into(view)
                covered += len(view)
            elif kind == Chunk.OFFSET_HOLE and into is not None and length == 12:
                at, count = unpack_from(">QI", self._receive(12))
                self._within(into, at - offset, count)[:] = bytes(count)
                covered += count
            elif kind & 0x8000:
                payload = self._receive(length)
                code, said = unpack_from(">IH", payload) if length >= 6 else (Errno.EIO, 0)
                failure = failure or self._error(command, code, payload[6 : 6 + said].decode(errors="replace"))
            elif length:
                found.append((kind, self._receive(length)))
        if failure is not None:
            raise failure
        if into is not None and covered != len(into):
            self._nonsense(f"{covered} bytes came where {len(into)} were asked for")
        return found

    def _chunk_header(self, command: Command, into: memoryview | None) -> tuple[int, int, int]:
        """Flags, kind and length of the next chunk; a simple reply is read to its end and has a kind of its own."""
        if self._replies == Replies.EXTENDED:
            form, expected = protocol.EXTENDED_REPLY, protocol.EXTENDED_REPLY_MAGIC
        else:
            form, expected = protocol.STRUCTURED_REPLY, protocol.STRUCTURED_REPLY_MAGIC
        begun = self._receive(protocol.SIMPLE_REPLY.size)  # no reply is shorter
        magic, error, cookie = protocol.SIMPLE_REPLY.unpack(begun)
        if magic == protocol.SIMPLE_REPLY_MAGIC and cookie == self._cookie and self._replies != Replies.EXTENDED:
            if error:
                raise self._error(command, error, "")
            if into is not None:
                self._receive_into(into)
            return 1, _SIMPLE, 0
        fields = form.unpack(begun + self._receive(form.size - len(begun)))
        magic, flags, kind, cookie, length = *fields[:4], fields[-1]
        if magic != expected or cookie != self._cookie or length > PAYLOAD_BYTES_MAX:
            self._nonsense("that is no reply to a request")
        return flags, kind, length

    def _part(self, into: memoryview, offset: int, count: int) -> memoryview:
        """Where the bytes of a chunk go, which begins with their offset."""
        if count < 0:
            self._nonsense("a chunk of data is too short")
        (at,) = unpack_from(">Q", self._receive(8))
        return self._within(into, at - offset, count)

    def _within(self, into: memoryview, begin: int, count: int) -> memoryview:
        if begin < 0 or begin + count > len(into):
            self._nonsense("it sent bytes that nobody asked for")
        return into[begin : begin + count]

    def _error(self, command: Command, code: int, said: str) -> CowEngineError:
        kind = _ERRORS.get(code)
        name = next((each.name for each in Errno if each == code), f"error {code}")
        message = f"export {shown(self.export)}: {command.name} failed with {name}{': ' + shown(said) if said else ''}"
        return StorageError(message, number=int(Errno.EIO)) if kind is None else kind(message)

    # -- what there is to do ------------------------------------------------------------------------------------------
    def pread(self, length: int, offset: int) -> bytes:
        """`length` bytes from byte `offset`. Raises OutOfRangeError past the end, StorageError, ClosedError."""
        data = bytearray(length)
        self.pread_into(data, offset)
        return bytes(data)

    def pread_into(self, buffer: Buffer, offset: int) -> int:
        """Fills a writable buffer from byte `offset`; returns its length. Raises as `pread`."""
        view = memoryview(buffer).cast("B")
        for begin in range(0, len(view), protocol.REQUEST_BYTES_MAX):
            part = view[begin : begin + protocol.REQUEST_BYTES_MAX]
            self._request(Command.READ, offset + begin, len(part), into=part)
        return len(view)

    def pwrite(self, data: Buffer, offset: int, *, fua: bool = False) -> int:
        """Writes a buffer; returns its length. With `fua` it is durable then.

        Raises OutOfRangeError past the end, ReadOnlyError, NoSpaceError, StorageError, ClosedError.
        """
        view = memoryview(data).cast("B")
        for begin in range(0, len(view), protocol.REQUEST_BYTES_MAX):
            part = view[begin : begin + protocol.REQUEST_BYTES_MAX]
            flags = CommandFlag.FUA if fua else 0
            self._request(Command.WRITE, offset + begin, len(part), flags=flags, data=part)
        return len(view)

    def flush(self) -> None:
        """All that returned before, on any connection, is durable when it returns."""
        self._request(Command.FLUSH, 0, 0)

    def _each(self, offset: int, length: int) -> list[tuple[int, int]]:
        """A range in parts whose length fits a request."""
        step = (1 << 31) if self._replies != Replies.EXTENDED else 1 << 62
        return [(begin, min(step, offset + length - begin)) for begin in range(offset, offset + length, step)]

    def trim(self, offset: int, length: int) -> None:
        """What lies there is not needed any more; see `Volume.discard`. Raises as `pwrite`."""
        for begin, count in self._each(offset, length):
            self._request(Command.TRIM, begin, count)

    def write_zeroes(self, offset: int, length: int, *, no_hole: bool = False, fast: bool = False) -> None:
        """The range reads as zeros from now on; with `no_hole` it has its space.

        `fast`: OutOfRangeError if that takes as long as writing. Raises as `pwrite`.
        """
        flags = (CommandFlag.NO_HOLE if no_hole else 0) | (CommandFlag.FAST_ZERO if fast else 0)
        for begin, count in self._each(offset, length):
            self._request(Command.WRITE_ZEROES, begin, count, flags=flags)

    def cache(self, offset: int, length: int) -> None:
        """The range will be read soon."""
        for begin, count in self._each(offset, length):
            self._request(Command.CACHE, begin, count)

    def block_status(self, offset: int, length: int, *, one: bool = False) -> dict[str, list[tuple[int, int]]]:
        """(length, flags) of the beginning of a range, for each selected context by its name.

        With `one`, one each. Raises as `pread`.
        """
        flags = CommandFlag.REQ_ONE if one else 0
        found: dict[str, list[tuple[int, int]]] = {}
        for kind, payload in self._request(Command.BLOCK_STATUS, offset, length, flags=flags):
            number = int.from_bytes(payload[:4])
            skip, width = (8, 8) if kind == Chunk.BLOCK_STATUS_EXT else (4, 4)
            if number not in self.contexts or (len(payload) - skip) % (2 * width):
                self._nonsense("that is no block status of a selected context")
            numbers = unpack_from(f">{(len(payload) - skip) // width}{'Q' if width == 8 else 'I'}", payload, skip)
            found[self.contexts[number]] = list(zip(numbers[::2], numbers[1::2], strict=True))
        return found


def _text(text: str) -> bytes:
    encoded = text.encode()
    return protocol.U32.pack(len(encoded)) + encoded
