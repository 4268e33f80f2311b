"""A socket during the handshake: whole messages, and an end to the patience with whoever sends them.

Threads   One.
"""

from __future__ import annotations

import socket
import time

SKIP_BYTES = 16 << 10


class Ended(Exception):
    """The connection is over; the message says why, for the log."""


class Stream:
    """Reads and writes until a deadline; everything that ends the connection is an `Ended`."""

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self.sock = sock
        self._deadline = time.monotonic() + seconds

    def _patience(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise Ended("the handshake took too long")
        self.sock.settimeout(left)

    def receive(self, count: int) -> bytes:
        """Exactly so many bytes."""
        data = bytearray()
        while len(data) < count:
            data += self._some(count - len(data))
        return bytes(data)

    def skip(self, count: int) -> None:
        """Reads so many bytes and forgets them."""
        while count > 0:
            count -= len(self._some(min(count, SKIP_BYTES)))

    def _some(self, count: int) -> bytes:
        self._patience()
        try:
            data = self.sock.recv(count)
        except TimeoutError:
            raise Ended("the handshake took too long") from None
        except OSError as error:
            raise Ended(f"the connection broke: {error.strerror or error}") from None
        if not data:
            raise Ended("the client went away during the handshake")
        return data

    def send(self, data: bytes) -> None:
        """All of it."""
        self._patience()
        try:
            self.sock.sendall(data)
        except TimeoutError:
            raise Ended("the handshake took too long") from None
        except OSError as error:
            raise Ended(f"the connection broke: {error.strerror or error}") from None

    def finish(self) -> None:
        """The handshake is over: from now on the socket blocks."""
        try:
            self.sock.settimeout(None)
        except OSError as error:
            raise Ended(f"the connection broke: {error.strerror or error}") from None
