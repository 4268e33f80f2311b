"""The client's side of the control protocol: calls to the process that serves a store.

A few connections make up one session at the server: a call has one to itself, so that a long one holds up none of
another thread. The first connection carries no calls: as long as it stands, what the client has at the server stands.

Threads   Any thread may call; at most CONNECTIONS_MAX calls run at once, others wait.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from cowengine.closing import Closing
from cowengine.control import protocol
from cowengine.control.encoding import decode_error
from cowengine.control.protocol import Lines, Message
from cowengine.errors import ClosedError, CowEngineError, NotFoundError
from cowengine.nbd.sockets import connect_unix
from cowengine.version import __version__

CONNECTIONS_MAX: Final = 16
IDLE_MAX: Final = 4
HELLO_SECONDS: Final = 30.0
SEND_SECONDS: Final = 60.0
STOP_SECONDS: Final = 0.1

Progress = Callable[[Message], None]


class _Connection:
    """One connection of a session."""

    def __init__(self, path: str, params: Message) -> None:
        """Connects and says hello. Raises NotFoundError if nobody listens, and what the server says."""
        self._socket = connect_unix(path, HELLO_SECONDS)
        self._lines = Lines(self._socket)
        self._path = path
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._number = 0
        self.is_open = True
        try:
            self.welcome: Message = self.call("hello", params, seconds=HELLO_SECONDS)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Idempotent."""
        self.is_open = False
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for an answer
        self._socket.close()

    def call(
        self, method: str, params: Message, *, seconds: float | None = None, progress: Progress | None = None,
        stop: threading.Event | None = None,
    ) -> Any:  # fmt: skip
        """The result. Raises what the server says, ClosedError if it went away."""
        line = protocol.encode(protocol.request(self._number + 1, method, params))
        self._number += 1
        self.is_open = False  # until the answer is here: nothing else may be sent before
        with self._typed():
            self._socket.settimeout(SEND_SECONDS)
            with suppress(BrokenPipeError):  # what the server said before it went is still to be read
                self._socket.sendall(line)
        while True:
            with self._typed():
                message = self._receive(seconds, stop)
            if message.get("method") != "progress":
                break
            if progress is not None:
                progress(message["params"]["report"])
        if message.get("id") == self._number:
            self.is_open = True
        elif message.get("id") is not None:
            raise self._lost("it answered another call")
        if "error" in message:
            raise decode_error(message["error"])
        return message.get("result")

    def _receive(self, seconds: float | None, stop: threading.Event | None) -> Message:
        """The next message. Told to stop, it tells the server once, and goes on waiting for the answer."""
        while stop is not None:
            if stop.is_set():
                self._socket.sendall(protocol.encode(protocol.notification("cancel", {"id": self._number})))
                stop = None
            elif self._lines.begun or self._poll.poll(STOP_SECONDS * 1000):
                break
        line = self._lines.next(begin_seconds=seconds)
        if line is None:
            raise self._lost("it closed the connection")
        return protocol.decode(line)

    @contextmanager
    def _typed(self) -> Iterator[None]:
        """Where the connection fails, the server is gone."""
        try:
            yield
        except OSError as error:
            if isinstance(error, CowEngineError):
                raise
            raise self._lost(error) from error

    def _lost(self, why: object) -> ClosedError:
        return ClosedError(
            f"the process that served the store is gone ({why}); what was acknowledged is kept: connect anew",
            self._path,
        )


@contextmanager
def told_of(given: object, path: str) -> Iterator[None]:
    """An error about a path that was made absolute to be sent tells of what was given."""
    try:
        yield
    except CowEngineError as error:
        if getattr(error, "filename", None) == path:
            error.filename = given  # type: ignore[attr-defined]
        raise


class Client(Closing):
    """A session with the server of a store."""

    def __init__(self, path: str, *, read_only: bool) -> None:
        """Raises NotFoundError if nobody listens at the socket; BusyError, ReadOnlyError or UnsupportedVersionError if
        the server says so.
        """
        self.path = path
        self._hello: Message = {
            "versions": list(protocol.PROTOCOL_VERSIONS),
            "client": f"cowengine {__version__}",
            "read_only": read_only,
        }
        self._first = _Connection(path, self._hello)
        self.welcome = self._first.welcome
        self._hello["session"] = self.welcome["session"]
        self._lock = threading.Lock()
        self._room = threading.Semaphore(CONNECTIONS_MAX)
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._pid = os.getpid()
        self.closed = False

    def check_open(self) -> None:
        """Raises ClosedError."""
        if self.closed or os.getpid() != self._pid:
            raise ClosedError("the store is closed, or belongs to the parent process: open it anew", self.path)

    def call(
        self, method: str, params: Message | None = None, /, *, progress: Progress | None = None,
        stop: threading.Event | None = None, **more: Any,
    ) -> Any:  # fmt: skip
        """The result of a method. What is None is not sent. Raises what the method raises, ClosedError.

        `progress` is called with the report of a long operation about once a second; it ends early, with its result,
        once `stop` is set.
        """
        params = {name: value for name, value in {**(params or {}), **more}.items() if value is not None}
        if progress is not None or stop is not None:
            params["progress"] = True
        self.check_open()
        with self._room:
            connection = self._take()
            try:
                return connection.call(method, params, progress=progress, stop=stop)
            finally:
                self._give_back(connection)

    def _take(self) -> _Connection:
        with self._lock:
            if self._idle:
                connection = self._idle.pop()
                self._busy.add(connection)
                return connection
        try:
            connection = _Connection(self.path, self._hello)
        except NotFoundError:
            raise ClosedError(
                "the process that served the store is gone; what was acknowledged is kept: connect anew", self.path
            ) from None
        with self._lock:
            self._busy.add(connection)
        return connection

    def _give_back(self, connection: _Connection) -> None:
        with self._lock:
            self._busy.discard(connection)
            if not self.closed and connection.is_open and len(self._idle) < IDLE_MAX:
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Ends the session: what it had open or was preparing is given up. Idempotent."""
        if self.closed:
            return
        self.closed = True
        if os.getpid() != self._pid:
            return
        with self._lock:
            connections = [*self._idle, *self._busy, self._first]
            self._idle = []
        for connection in connections:
            connection.close()
