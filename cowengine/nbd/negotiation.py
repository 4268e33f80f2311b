"""The handshake of one connection: fixed newstyle, option by option, until one begins the transmission.

What cannot be is answered by an NBD error and the next option is heard; what does not follow the protocol at all, or
goes on for too long, ends the connection. Memory is bounded by OPTION_BYTES_MAX, whoever the client is.

Threads   Those of its caller; one connection each.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

from cowengine.errors import BusyError, CowEngineError, NotFoundError, OutOfRangeError
from cowengine.names import shown
from cowengine.nbd import protocol
from cowengine.nbd.contexts import Context, find_contexts, list_contexts
from cowengine.nbd.exports import Export, Exports
from cowengine.nbd.protocol import HandshakeFlag, Info, Option, Replies, Reply
from cowengine.nbd.stream import Ended, Stream

logger = logging.getLogger("cowengine.nbd")

#: Makes a TLS server of the socket, and gives the socket on which its client speaks in the clear.
StartTls = Callable[[socket.socket], socket.socket]


class Agreement(NamedTuple):
    """What a client and the server agreed on. Who gets it closes the export and the socket."""

    sock: socket.socket
    export: Export
    replies: Replies
    contexts: list[Context]


class _Refused(Exception):
    """The option is answered by an error."""

    def __init__(self, reply: Reply, message: str) -> None:
        super().__init__(message)
        self.reply = reply


class _Reader:
    """The data of an option, from the front. What does not fit is an ERR_INVALID."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def number(self, bytes_count: int) -> int:
        return int.from_bytes(self._take(bytes_count))

    def text(self) -> str:
        """A length in 32 bits, and so many bytes of UTF-8."""
        length = self.number(4)
        if length > protocol.NAME_BYTES_MAX:
            raise _Refused(Reply.ERR_INVALID, f"a name has at most {protocol.NAME_BYTES_MAX} bytes")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError:
            raise _Refused(Reply.ERR_INVALID, "a name is no UTF-8") from None

    def _take(self, count: int) -> bytes:
        part = self._data[self._position : self._position + count]
        if len(part) < count:
            raise _Refused(Reply.ERR_INVALID, "the option has less data than it says")
        self._position += count
        return part

    def end(self) -> None:
        if self._position < len(self._data):
            raise _Refused(Reply.ERR_INVALID, "the option has more data than it says")


class Negotiation:
    """One handshake. `run` gives what was agreed on, or raises `Ended`."""

    def __init__(
        self, sock: socket.socket, exports: Exports, *, seconds: float, start_tls: StartTls | None, tls_required: bool
    ) -> None:  # fmt: skip
        self._stream = Stream(sock, seconds)
        self._exports = exports
        self._start_tls = start_tls
        self._tls_missing = tls_required
        self._encrypted = False
        self._zeroes = True
        self._replies = Replies.SIMPLE
        self._selected: tuple[str, Export, list[Context]] | None = None
        self._option = 0
        self._answers: dict[int, Callable[[bytes], Agreement | None]] = {
            Option.EXPORT_NAME: self._export_name,
            Option.ABORT: self._abort,
            Option.LIST: self._list,
            Option.STARTTLS: self._starttls,
            Option.INFO: self._info,
            Option.GO: self._go,
            Option.STRUCTURED_REPLY: self._structured,
            Option.LIST_META_CONTEXT: self._list_contexts,
            Option.SET_META_CONTEXT: self._set_contexts,
            Option.EXTENDED_HEADERS: self._extended,
        }

    def run(self) -> Agreement:
        """The handshake to its end."""
        try:
            return self._run()
        finally:
            self._unselect()

    @property
    def sock(self) -> socket.socket:
        """The socket that the client is reached by now; another one behind STARTTLS."""
        return self._stream.sock

    def _run(self) -> Agreement:
        flags = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
        self._stream.send(protocol.GREETING.pack(protocol.MAGIC, protocol.OPTION_MAGIC, flags))
        (said,) = protocol.CLIENT_FLAGS.unpack(self._stream.receive(protocol.CLIENT_FLAGS.size))
        if said & ~int(flags):
            raise Ended(f"the client has flags {said:#x} that nobody knows")
        self._zeroes = not said & HandshakeFlag.NO_ZEROES
        for _ in range(protocol.OPTIONS_MAX):
            agreement = self._next_option()
            if agreement is not None:
                return agreement
        raise Ended(f"the client sent more than {protocol.OPTIONS_MAX} options")

    def _next_option(self) -> Agreement | None:
        magic, self._option, length = protocol.OPTION.unpack(self._stream.receive(protocol.OPTION.size))
        if magic != protocol.OPTION_MAGIC:
            raise Ended("the client does not speak NBD")
        try:
            if length > protocol.OPTION_BYTES_MAX:
                self._pass_over(length)
            data = self._stream.receive(length)
            answer = self._answers.get(self._option)
            if answer is None:
                raise _Refused(Reply.ERR_UNSUP, "this server does not know that option")
            if self._tls_missing and self._option not in (Option.STARTTLS, Option.ABORT):
                raise _Refused(Reply.ERR_TLS_REQD, "this server speaks only TLS: start it first")
            return answer(data)
        except _Refused as refused:
            if self._option == Option.EXPORT_NAME:  # it has no other answer
                raise Ended(str(refused)) from None
            self._reply(refused.reply, str(refused).encode())
            return None

    def _pass_over(self, length: int) -> None:
        if length > protocol.SKIPPED_BYTES_MAX:
            raise Ended(f"the client sent an option of {length} bytes")
        self._stream.skip(length)
        raise _Refused(Reply.ERR_TOO_BIG, f"an option has at most {protocol.OPTION_BYTES_MAX} bytes")

    def _reply(self, reply: Reply, data: bytes = b"") -> None:
        header = protocol.OPTION_REPLY.pack(protocol.OPTION_REPLY_MAGIC, self._option, reply, len(data))
        self._stream.send(header + data)

    # -- exports ------------------------------------------------------------------------------------------------------
    def _open(self, name: str) -> Export:
        try:
            return self._exports.open(name)
        except (NotFoundError, OutOfRangeError):
            raise _Refused(Reply.ERR_UNKNOWN, f"there is no export {shown(name)}") from None
        except BusyError as error:
            raise _Refused(Reply.ERR_POLICY, str(error)) from None
        except (CowEngineError, OSError) as error:
            logger.error("export %s cannot be opened: %s", shown(name), error)
            raise _Refused(Reply.ERR_UNKNOWN, f"export {shown(name)} cannot be opened") from None

    def _taken(self, name: str) -> tuple[Export, list[Context]]:
        """The export that contexts were selected for, with them, if it has this name; else it is opened."""
        if self._selected is not None and self._selected[0] == name:
            _, export, contexts = self._selected
            self._selected = None
            return export, contexts
        return self._open(name), []

    def _unselect(self) -> None:
        if self._selected is not None:
            self._selected[1].close()
            self._selected = None

    def _export_name(self, data: bytes) -> Agreement:
        if len(data) > protocol.NAME_BYTES_MAX:
            raise _Refused(Reply.ERR_INVALID, "the name of the export is too long")
        try:
            name = data.decode()
        except UnicodeDecodeError:
            raise _Refused(Reply.ERR_INVALID, "the name of the export is no UTF-8") from None
        export, contexts = self._taken(name)
        flags = export.flags(structured=self._replies != Replies.SIMPLE)
        answer = protocol.EXPORT_NAME_REPLY.pack(export.size, flags)
        return self._begin(export, contexts, answer + bytes(protocol.ZEROES_BYTES if self._zeroes else 0))

    def _begin(self, export: Export, contexts: list[Context], answer: bytes) -> Agreement:
        with ExitStack() as undo:
            undo.callback(export.close)
            self._stream.send(answer)
            self._stream.finish()
            undo.pop_all()
        return Agreement(self.sock, export, self._replies, contexts)

    def _info(self, data: bytes) -> None:
        name, wanted = self._asked(data)
        if self._selected is not None and self._selected[0] == name:
            self._describe(self._selected[1], wanted)
        else:
            with self._open(name) as export:
                self._describe(export, wanted)
        self._reply(Reply.ACK)

    def _go(self, data: bytes) -> Agreement:
        name, wanted = self._asked(data)
        export, contexts = self._taken(name)
        with ExitStack() as undo:
            undo.callback(export.close)
            self._describe(export, wanted)
            undo.pop_all()
        header = protocol.OPTION_REPLY.pack(protocol.OPTION_REPLY_MAGIC, self._option, Reply.ACK, 0)
        return self._begin(export, contexts, header)

    def _asked(self, data: bytes) -> tuple[str, set[int]]:
        reader = _Reader(data)
        name = reader.text()
        wanted = {reader.number(2) for _ in range(reader.number(2))}
        reader.end()
        return name, wanted

    def _describe(self, export: Export, wanted: set[int]) -> None:
        flags = export.flags(structured=self._replies != Replies.SIMPLE)
        self._reply(Reply.INFO, protocol.INFO_EXPORT.pack(Info.EXPORT, export.size, flags))
        if Info.NAME in wanted:
            self._reply(Reply.INFO, protocol.U16.pack(Info.NAME) + export.name.encode())
        if Info.DESCRIPTION in wanted:
            self._reply(Reply.INFO, protocol.U16.pack(Info.DESCRIPTION) + export.description.encode())
        sizes = (1, max(4096, export.block_size), protocol.REQUEST_BYTES_MAX)
        self._reply(Reply.INFO, protocol.INFO_BLOCK_SIZE.pack(Info.BLOCK_SIZE, *sizes))

    def _list(self, data: bytes) -> None:
        self._require_empty(data)
        for name, description in self._exports.list(protocol.LISTED_MAX):
            encoded = name.encode()
            self._reply(Reply.SERVER, protocol.U32.pack(len(encoded)) + encoded + description.encode())
        self._reply(Reply.ACK)

    # -- contexts -----------------------------------------------------------------------------------------------------
    def _queries(self, data: bytes) -> tuple[str, list[str]]:
        if self._replies == Replies.SIMPLE:
            raise _Refused(Reply.ERR_INVALID, "contexts need structured replies: ask for those first")
        reader = _Reader(data)
        name = reader.text()
        count = reader.number(4)
        if count > protocol.QUERIES_MAX:
            raise _Refused(Reply.ERR_TOO_BIG, f"at most {protocol.QUERIES_MAX} queries are heard at a time")
        queries = [reader.text() for _ in range(count)]
        reader.end()
        return name, queries

    def _list_contexts(self, data: bytes) -> None:
        name, queries = self._queries(data)
        with self._open(name) as export:
            for context in list_contexts(export, queries):
                self._reply(Reply.META_CONTEXT, protocol.U32.pack(0) + context.encode())
        self._reply(Reply.ACK)

    def _set_contexts(self, data: bytes) -> None:
        self._unselect()
        name, queries = self._queries(data)
        export = self._open(name)
        with ExitStack() as undo:
            undo.callback(export.close)
            contexts = find_contexts(export, queries)
            for context in contexts:
                self._reply(Reply.META_CONTEXT, protocol.U32.pack(context.id) + context.name.encode())
            self._reply(Reply.ACK)
            undo.pop_all()
        self._selected = (name, export, contexts)

    # -- how to go on -------------------------------------------------------------------------------------------------
    def _require_empty(self, data: bytes) -> None:
        if data:
            raise _Refused(Reply.ERR_INVALID, "this option has no data")

    def _abort(self, data: bytes) -> None:
        self._reply(Reply.ACK)
        raise Ended("the client needs nothing more")

    def _starttls(self, data: bytes) -> None:
        self._require_empty(data)
        if self._encrypted:
            raise _Refused(Reply.ERR_INVALID, "TLS has begun already")
        if self._start_tls is None:
            raise _Refused(Reply.ERR_UNSUP, "TLS was not set up here")
        self._reply(Reply.ACK)
        self._unselect()  # what was agreed on before, somebody on the way may have said
        self._replies = Replies.SIMPLE
        self._stream.sock = self._start_tls(self._stream.sock)
        self._encrypted, self._tls_missing = True, False

    def _structured(self, data: bytes) -> None:
        self._require_empty(data)
        if self._replies == Replies.EXTENDED:
            raise _Refused(Reply.ERR_EXT_HEADER_REQD, "extended headers were agreed on already")
        self._upgrade(Replies.STRUCTURED)

    def _extended(self, data: bytes) -> None:
        self._require_empty(data)
        self._upgrade(Replies.EXTENDED)

    def _upgrade(self, replies: Replies) -> None:
        if self._replies == replies:
            raise _Refused(Reply.ERR_INVALID, "that was agreed on already")
        self._replies = replies
        self._reply(Reply.ACK)
