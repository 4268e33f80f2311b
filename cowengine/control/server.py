"""The control server: answers the clients of a store in the process that owns it. The protocol is docs/control.md.

One thread for each connection, up to a number; each call runs in the thread of its connection, so that neither a slow
client nor a long call holds up another one. What a client has belongs to its session (session.py).

Threads     `start`, `drain` and `close` may be called from any thread.
Durability  What a method promises; a connection that ends changes nothing about what was answered.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from cowengine.closing import Closing
from cowengine.control import methods, protocol, snapshot_methods, store_methods, volume_methods
from cowengine.control.encoding import encode_error
from cowengine.control.protocol import Lines, Message, ProtocolError
from cowengine.control.session import Call, Session
from cowengine.control.sockets import control_path, make_run_folder, peer_user
from cowengine.control.uses import Exports, VolumeUses
from cowengine.errors import BusyError, ClosedError, CowEngineError, ReadOnlyError, UnsupportedVersionError
from cowengine.nbd.sockets import listen_unix
from cowengine.version import __version__

if TYPE_CHECKING:
    from cowengine.store import Store

logger = logging.getLogger("cowengine.control")

CLIENTS_MAX: Final = 256
REFUSED_MAX: Final = 32
LONG_LINES_MAX: Final = 8
PARTING_SECONDS: Final = 1.0
SEND_SECONDS: Final = 30.0
LINE_SECONDS: Final = 60.0
HELLO_SECONDS: Final = 10.0
DRAIN_SECONDS: Final = 30.0
DECLARED: Final = (store_methods, volume_methods, snapshot_methods)  # imported, they are in the table


class ControlServer(Closing):
    """Serves one open store at a socket, until it is drained or closed. The store stays the caller's to close."""

    def __init__(
        self,
        store: Store,
        exports: Exports | None = None,
        *,
        path: str | None = None,
        nbd_path: str | None = None,
        clients_max: int = CLIENTS_MAX,
    ) -> None:
        """`exports`: what else serves the store's volumes here. `nbd_path`: where clients find them, if anywhere."""
        self.store = store
        self.path = control_path(store.path) if path is None else path
        self.nbd_path = nbd_path
        self.uses = VolumeUses(store, exports)
        self.draining = False
        #: Requests that take much memory: few at once, whatever the number of clients.
        self.long_lines = threading.BoundedSemaphore(LONG_LINES_MAX)
        self._clients_max = clients_max
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}
        self._clients: dict[_Client, threading.Thread] = {}
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None

    def start(self) -> None:
        """Listens from now on. Raises BusyError if the socket is served already, ReadOnlyError, StorageError."""
        if self.path == control_path(self.store.path):
            make_run_folder(self.store.path)
        self._listener = listen_unix(self.path)
        self._acceptor = threading.Thread(target=self._accept, name="cowengine-control", daemon=True)
        self._acceptor.start()

    # -- connections ---------------------------------------------------------------------------------------------------
    def _accept(self) -> None:
        listener = self._listener
        assert listener is not None
        while not self.draining:
            try:
                connection, _ = listener.accept()
            except OSError as error:
                if self.draining:
                    return
                logger.warning("a connection could not be accepted: %s", error)
                time.sleep(0.1)  # out of descriptors: those who go away make room
                continue
            with self._lock:
                count = len(self._clients)
                refusal = _stopping() if self.draining else None
                if count >= self._clients_max:
                    refusal = protocol.too_many(f"{self._clients_max} connections")
                if count < self._clients_max + REFUSED_MAX and self._begin(_Client(self, connection, refusal)):
                    continue
            connection.close()

    def _begin(self, client: _Client) -> bool:
        """False if the system has no thread for it. The lock is held."""
        thread = threading.Thread(target=client.serve, name="cowengine-control-client", daemon=True)
        self._clients[client] = thread
        try:
            thread.start()
        except RuntimeError as error:
            del self._clients[client]
            logger.error("no client can be served: %s", error)
            return False
        return True

    def gone(self, client: _Client) -> None:
        """A connection has ended."""
        self._leave(client.session)
        with self._lock:
            self._clients.pop(client, None)

    def join(self, token: str | None, *, read_only: bool) -> Session:
        """The session of a connection: a new one, or that of another connection of the same client."""
        with self._lock:
            if token is None:
                session = Session(self.store, self.uses, read_only=read_only)
                self._sessions[session.token] = session
            else:
                found = self._sessions.get(token)
                if found is None:
                    raise ClosedError("there is no such session: its last connection has ended")
                session = found
            session.connections += 1
            return session

    def _leave(self, session: Session | None) -> None:
        if session is None:
            return
        with self._lock:
            session.connections -= 1
            if session.connections:
                return
            del self._sessions[session.token]
        session.end()

    # -- the end -------------------------------------------------------------------------------------------------------
    def drain(self, seconds: float = DRAIN_SECONDS) -> bool:
        """Takes no more requests, lets running ones end, and closes; False if some did not end in time.

        Operations that can be cut short are. Idempotent.
        """
        with self._lock:
            self.draining = True
            clients = dict(self._clients)
        self._stop_listening()
        for client in clients:
            client.finish()
        deadline = time.monotonic() + seconds
        for thread in clients.values():
            thread.join(max(0.0, deadline - time.monotonic()))
        late = [client for client, thread in clients.items() if thread.is_alive()]
        for client in late:
            client.abandon()
        return not late

    def _stop_listening(self) -> None:
        with self._lock:
            listener, self._listener = self._listener, None
        if listener is None:
            return
        with suppress(OSError):
            os.unlink(self.path)
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # wakes the acceptor
        listener.close()
        if self._acceptor is not None:
            self._acceptor.join()

    def close(self) -> None:
        """As `drain`, at once."""
        self.drain(1.0)


class _Client:
    """One connection."""

    def __init__(self, server: ControlServer, connection: socket.socket, refusal: CowEngineError | None) -> None:
        """`refusal`: why there is no service, if there is none."""
        self._refusal = refusal
        self.session: Session | None = None
        self._server = server
        self._socket = connection
        self._lines = Lines(connection, server.long_lines)
        self._later: deque[bytes] = deque()  # requests that came while one ran
        self._cancelled = False

    def finish(self) -> None:
        """No more requests: the one that runs is answered."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def abandon(self) -> None:
        """The connection ends now."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    # -- in the connection's thread ------------------------------------------------------------------------------------
    def serve(self) -> None:
        """Until the client goes away, or does what the protocol does not know."""
        try:
            refusal = self._refusal or self._stranger()
            if refusal is not None:
                self._part(refusal)
                return
            self._hello()
            while self._one_request():
                pass
        except (OSError, CowEngineError) as error:
            logger.info("a control connection ended: %s", error)
        finally:
            self._lines.release()
            self._server.gone(self)
            self._socket.close()

    def _stranger(self) -> CowEngineError | None:
        """Why this user is not served, if not."""
        user = peer_user(self._socket)
        if user in (0, os.geteuid()):
            return None
        message = f"the store is served by user {os.geteuid()}, and not for user {user}"
        logger.warning("a connection was refused: %s", message)
        return ReadOnlyError(message, self._server.store.path)

    def _part(self, error: CowEngineError) -> None:
        """Says why there is no service. Closed with something unread, the connection would lose that."""
        self._send(protocol.failure(None, encode_error(error)))
        self._socket.shutdown(socket.SHUT_WR)
        self._socket.settimeout(PARTING_SECONDS)
        while self._socket.recv(protocol.READ_BYTES):
            pass

    def _hello(self) -> None:
        """The first request. Raises ProtocolError if it is none, or of no known version."""
        line = self._next_line(HELLO_SECONDS)
        if line is None:
            raise ClosedError("the client said nothing")
        number: object = None
        try:
            number, method, params = protocol.require_fields(protocol.decode(line))
            if method != "hello":
                raise ProtocolError(protocol.INVALID_REQUEST, "the first request is hello")
            self._send(protocol.response(number, self._welcome(**methods.checked(HELLO, params))))
        except CowEngineError as error:
            self._send(protocol.failure(number, encode_error(error)))
            raise

    def _welcome(
        self, versions: list[Any], client: str, session: str | None = None, read_only: bool = False
    ) -> Message:
        common = [version for version in protocol.PROTOCOL_VERSIONS if version in versions]
        if not common:
            raise UnsupportedVersionError(
                f"the store's server speaks versions {list(protocol.PROTOCOL_VERSIONS)} of the control protocol, and "
                f"{client[:60]} speaks {versions!r:.60}: use the same cowengine for both"
            )
        if self._server.draining:
            raise _stopping()
        self.session = self._server.join(session, read_only=read_only or self._server.store.read_only)
        store = self._server.store
        return {
            "version": max(common),
            "server": f"cowengine {__version__}",
            "session": self.session.token,
            "read_only": self.session.read_only,
            "store": {"path": store.path, "id": store.id},
            "nbd": self._server.nbd_path,
        }

    def _one_request(self) -> bool:
        """Answers the next request; False at the end of the stream."""
        line = self._next_line(None)
        if line is None:
            return False
        try:
            number, method, params = protocol.require_fields(protocol.decode(line))
        except ProtocolError as error:
            self._send(protocol.failure(None, encode_error(error)))
            return error.number != protocol.PARSE_ERROR  # who sends no JSON speaks another protocol
        if number is None:
            return True  # a notification: a cancel that came too late
        self._send_line(self._answered(number, method, params))
        return True

    def _answered(self, number: object, name: str, params: Message) -> bytes:
        """The answer of one request, whatever happens."""
        session = self.session
        assert session is not None
        self._cancelled = False
        tells = params.pop("progress", False) is True
        call = Call(session, (lambda report: self._tell(number, report)) if tells else None, self._wants_end)
        try:
            method = methods.find(name)
            if method.changes and session.read_only:
                raise ReadOnlyError("the store is open read-only", session.store.path)
            return protocol.encode(protocol.response(number, methods.invoke(method, call, params)))
        except Exception as error:
            return protocol.encode(protocol.failure(number, encode_error(error)))

    def _next_line(self, seconds: float | None) -> bytes | None:
        """A line, waited for: so many seconds for it to begin, or for ever."""
        if self._later:
            return self._later.popleft()
        return self._lines.next(begin_seconds=seconds, end_seconds=LINE_SECONDS)

    def _tell(self, number: object, report: Message) -> None:
        self._send(protocol.notification("progress", {"id": number, "report": report}))

    def _wants_end(self) -> bool:
        """Whether the call that runs shall end early: the client says so or is gone, or the server stops."""
        self._socket.settimeout(0.0)
        try:
            while not self._cancelled and sum(map(len, self._later)) < protocol.READ_BYTES:
                line = self._lines.take()
                if line is None:
                    if self._lines.full:
                        break
                    if not self._lines.receive():
                        return True
                elif _is_cancel(line):
                    self._cancelled = True
                else:
                    self._later.append(line)
        except BlockingIOError:
            pass
        except (OSError, CowEngineError):
            return True
        return self._cancelled or self._server.draining

    def _send(self, message: Message) -> None:
        self._send_line(protocol.encode(message))

    def _send_line(self, line: bytes) -> None:
        """Raises OSError if the client does not take it in time."""
        self._socket.settimeout(SEND_SECONDS)
        self._socket.sendall(line)


HELLO: Final = methods.Method(
    "hello",
    {"versions": "integers", "client": "text", "session": "text?", "read_only": "boolean?"},
    "object",
    False,
    _Client._welcome,
)


def _is_cancel(line: bytes) -> bool:
    try:
        return protocol.decode(line).get("method") == "cancel"
    except ProtocolError:
        return False  # said in its turn


def _stopping() -> BusyError:
    return BusyError("the store's server is ending: try again in a moment")
