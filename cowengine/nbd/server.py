"""The server: listening sockets, a thread a connection, limits, and an end that loses nothing.

Threads     `start`, `drain` and `close` may be called from any thread.
Durability  As NBD has it: what a flush, or a request with FUA, was answered for is durable. `drain` answers everything
            that was received; it flushes nothing.
"""

from __future__ import annotations

import errno
import logging
import os
import selectors
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial

from cowengine.closing import Closing
from cowengine.core.transmission import Transmission
from cowengine.errors import OutOfRangeError
from cowengine.nbd.commands import ExportCommands
from cowengine.nbd.exports import Exports
from cowengine.nbd.negotiation import Negotiation
from cowengine.nbd.sockets import listen_unix
from cowengine.nbd.stream import Ended
from cowengine.nbd.tls import PARTING_SECONDS, start_tls

logger = logging.getLogger("cowengine.nbd")

LOG_SECONDS = 10.0  # between two lines that say the same
_TIME = struct.Struct("ll")  # seconds and microseconds, as the kernel has them


@dataclass(frozen=True)
class Limits:
    """What clients may take. Seconds of None are no limit."""

    connections: int = 256
    """At a time, of which at most half are TCP ones whose handshake is not over; a further one is closed unheard."""
    handshake_seconds: float = 10.0
    """From the connect to the transmission."""
    idle_seconds: float | None = None
    """Without a request, before the connection is closed."""
    send_seconds: float = 60.0
    """For a client to take some of a reply."""
    in_flight: int = 16
    """Requests of one connection that wait for the disk at the same time; each takes up to 256 KiB of memory."""


class Server(Closing):
    """Serves exports on some sockets. Closed by leaving a `with` block, or by `close`; then `start` did its last."""

    def __init__(
        self, exports: Exports, *, path: str | os.PathLike[str] | None = None, sockets: Sequence[socket.socket] = (),
        tls: ssl.SSLContext | None = None, limits: Limits | None = None,
        when_unused: Callable[[], object] | None = None,
    ) -> None:  # fmt: skip
        """`path` is where a Unix socket is made (see `listen_unix`); `sockets` listen already, and are the server's.

        TCP needs `tls` (`tls.server_context`), which is then required there, and offered on Unix sockets.
        `when_unused` is called, in a thread of the server, when the last connection has ended. Raises OutOfRangeError
        for TCP without TLS or no socket at all, and as `listen_unix`.
        """
        self._exports = exports
        self._tls = tls
        self._limits = limits or Limits()
        self._when_unused = when_unused
        self._lock = threading.Lock()
        self._connections: set[_Connection] = set()
        self._draining = False
        self._turned_away = 0
        self._told: dict[str, float] = {}  # when, by what
        self._thread: threading.Thread | None = None
        self._path = None if path is None else os.path.abspath(os.fspath(path))
        with ExitStack() as undo:
            for sock in sockets:
                undo.callback(sock.close)
                if sock.family != socket.AF_UNIX and tls is None:
                    raise OutOfRangeError("TCP without TLS is not served: anybody on the way could read and write")
            self._listeners = [*sockets, *([] if self._path is None else [listen_unix(self._path)])]
            if not self._listeners:
                raise OutOfRangeError("a server needs a socket")
            undo.pop_all()
        self._wake, self._woken = socket.socketpair()

    @property
    def connections(self) -> int:
        """How many there are now."""
        with self._lock:
            return len(self._connections)

    # -- begin and end ------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Accepts clients from now on, in threads of its own."""
        assert self._thread is None, "started once"
        self._thread = threading.Thread(target=self._accept, name="cowengine-nbd-accept", daemon=True)
        self._thread.start()

    def drain(self, timeout: float = 10.0) -> bool:
        """Accepts nobody any more, and has everything that was received carried out and answered.

        What is left after `timeout` seconds is cut off; then it returns False. The server is closed in any case.
        """
        with self._lock:
            self._draining = True
            connections = list(self._connections)
        self._stop_accepting()
        for connection in connections:
            connection.stop()
        deadline = time.monotonic() + timeout
        for connection in connections:
            connection.thread.join(max(0.0, deadline - time.monotonic()))
        left = [connection for connection in connections if connection.thread.is_alive()]
        for connection in left:
            connection.cut()
        deadline = time.monotonic() + max(1.0, timeout)
        for connection in left:  # what waits for the disk ends when that answers
            connection.thread.join(max(0.0, deadline - time.monotonic()))
        return not left

    def close(self) -> None:
        """As `drain`, with no patience; idempotent."""
        self.drain(0.5)

    def _stop_accepting(self) -> None:
        with suppress(OSError):
            self._wake.send(b"x")
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            listeners, self._listeners = self._listeners, []
        for sock in listeners:
            if self._path is not None and sock is listeners[-1]:  # the one that was made here
                with suppress(OSError):
                    os.unlink(self._path)
            sock.close()
        self._wake.close()
        self._woken.close()

    # -- accepting ----------------------------------------------------------------------------------------------------
    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            for sock in self._listeners:
                sock.setblocking(False)
                selector.register(sock, selectors.EVENT_READ)
            while not self._draining:
                for key, _ in selector.select():
                    if key.fileobj is not self._woken and not self._draining:
                        self._accept_one(key.fileobj)  # type: ignore[arg-type]

    def _accept_one(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                self._tell(f"no client can be accepted: {error.strerror}")
                time.sleep(0.1)  # the client still waits, and is found again at once
            return
        sock.setblocking(True)
        if listener.family != socket.AF_UNIX:
            _tune(sock)
        connection = _Connection(self, sock, tls_required=listener.family != socket.AF_UNIX)
        with self._lock:
            full = self._is_full(stranger=connection.tls_required)
            taken = not full and not self._draining
            if taken:
                self._connections.add(connection)
                taken = connection.start()
            if not taken:
                self._connections.discard(connection)
        if not taken:
            sock.close()
        if full:
            self._turned_away += 1
            self._tell(f"clients are turned away: there are {full} already", f", {self._turned_away} by now")

    def _is_full(self, *, stranger: bool) -> str:
        """What there is too much of, if there is. Nobody knows yet who comes over TCP: such take half of the places."""
        places = self._limits.connections
        if len(self._connections) >= places:
            return f"{places} connections"
        strangers = sum(each.tls_required and not each.is_known for each in self._connections) if stranger else 0
        return f"{strangers} TCP connections in their handshake" if strangers >= max(1, places // 2) else ""

    def _tell(self, what: str, how_often: str = "") -> None:
        """A line in the log, but not one for each of thousands."""
        now = time.monotonic()
        if now >= self._told.get(what, float("-inf")) + LOG_SECONDS:
            self._told[what] = now
            logger.warning("%s%s", what, how_often)

    def serve(self, connection: _Connection) -> None:
        """One connection from its beginning to its end; in its thread."""
        try:
            with connection:
                self._serve(connection)
        except Ended as ended:
            logger.info("a client left: %s", ended)
        except Exception:
            logger.exception("a connection ended")
        finally:
            with self._lock:
                self._connections.discard(connection)
                unused = not self._connections and not self._draining
            if unused and self._when_unused is not None:
                self._when_unused()

    def _serve(self, connection: _Connection) -> None:
        agreement = Negotiation(
            connection.sock, self._exports, seconds=self._limits.handshake_seconds,
            start_tls=None if self._tls is None else partial(connection.start_tls, self._tls),
            tls_required=connection.tls_required,
        ).run()  # fmt: skip
        with agreement.export as export:
            self._limit_waiting(agreement.sock)
            transmission = Transmission(
                agreement.sock.fileno(), export.path, export.root, export.size,
                ExportCommands(export, agreement.contexts, agreement.replies),
                replies=agreement.replies, writable=not export.read_only, in_flight_max=self._limits.in_flight,
            )  # fmt: skip
            logger.info("export %s: a client came", export.name)
            connection.transmits(transmission)
            logger.info("export %s: a client left: %s", export.name, transmission.run())

    def _limit_waiting(self, sock: socket.socket) -> None:
        for option, seconds in (
            (socket.SO_SNDTIMEO, self._limits.send_seconds),
            (socket.SO_RCVTIMEO, self._limits.idle_seconds or 0),
        ):
            sock.setsockopt(socket.SOL_SOCKET, option, _TIME.pack(int(seconds), int(seconds % 1 * 1_000_000)))


def _tune(sock: socket.socket) -> None:
    """Of TCP: replies leave at once, and a client whose machine is gone is noticed after two minutes."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)


class _Connection(Closing):
    """A client, its socket and its thread."""

    def __init__(self, server: Server, sock: socket.socket, *, tls_required: bool) -> None:
        self.sock = sock
        self.tls_required = tls_required
        self.thread = threading.Thread(target=server.serve, args=(self,), name="cowengine-nbd", daemon=True)
        self._lock = threading.Lock()
        self._stopping = False
        #: Whether the handshake is over.
        self.is_known = False
        self._transmission: Transmission | None = None
        self._pump: threading.Thread | None = None

    def start(self) -> bool:
        """False if the system has no thread for it."""
        try:
            self.thread.start()
        except RuntimeError as error:
            logger.error("no client can be served: %s", error)
            return False
        return True

    def start_tls(self, context: ssl.SSLContext, sock: socket.socket) -> socket.socket:
        """From now on the client is reached through a pump, by another socket."""
        with self._lock:
            self.sock, self._pump = start_tls(context, sock)
            return self.sock

    def transmits(self, transmission: Transmission) -> None:
        """The handshake is over."""
        with self._lock:
            self.is_known = True
            self._transmission = transmission
            if self._stopping:
                transmission.stop()

    def stop(self) -> None:
        """Receives nothing more, and ends when what was received is answered."""
        with self._lock:
            self._stopping = True
            if self._transmission is not None:
                self._transmission.stop()
                return
        self.cut()

    def cut(self) -> None:
        """Ends whatever waits for this client."""
        with self._lock, suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Nobody waits for this client any more."""
        with self._lock:
            self._transmission = None
            self.sock.close()
        if self._pump is not None:
            self._pump.join(2 * PARTING_SECONDS)  # the client gets what was said last
