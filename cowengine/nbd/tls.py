"""TLS between a client and a connection that knows nothing of it.

A pump stands between the client's socket and one end of a pair of sockets, of which the connection has the other. What
it holds is bounded, and where one side does not go on, the other is not heard: so a slow client holds up itself.

Threads   One a connection, started by `start_tls`.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import ssl
import threading
import time

from cowengine.errors import CorruptionError, NotFoundError
from cowengine.names import check_path
from cowengine.oserrors import typed

logger = logging.getLogger("cowengine.nbd")

AUTHORITY, CERTIFICATE, KEY, REVOKED = "ca-cert.pem", "server-cert.pem", "server-key.pem", "ca-crl.pem"
BUFFER_BYTES = 256 << 10  # each way
PARTING_SECONDS = 10.0  # for the last bytes, once the connection is over


def server_context(folder: str | os.PathLike[str]) -> ssl.SSLContext:
    """The server's side of TLS, from a folder with ca-cert.pem, server-cert.pem and server-key.pem, as QEMU has it.

    At least TLS 1.2. A client must show a certificate that the authority signed and, if there is a ca-crl.pem, did not
    revoke. Raises NotFoundError for a file that is missing, CorruptionError for one that is none or does not fit.
    """
    place = check_path(folder)
    paths = [os.path.join(place, name) for name in (AUTHORITY, CERTIFICATE, KEY)]
    for path in paths:
        if not os.path.exists(path):
            raise NotFoundError("TLS needs this file", path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    with typed(place):
        try:
            context.load_cert_chain(paths[1], paths[2])
            context.load_verify_locations(paths[0])
            if os.path.exists(revoked := os.path.join(place, REVOKED)):
                context.load_verify_locations(revoked)
                context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        except ssl.SSLError as error:
            raise CorruptionError(f"the certificates cannot be used: {error}", place) from None
    return context


def start_tls(context: ssl.SSLContext, sock: socket.socket) -> tuple[socket.socket, threading.Thread]:
    """The socket on which a client speaks in the clear, who speaks TLS on `sock`, and the thread of the pump.

    The pump takes `sock`, and closes it; it ends when the other one is closed.
    """
    inner, outer = socket.socketpair()
    try:
        client = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        client.setblocking(False)
        outer.setblocking(False)
        pump = threading.Thread(target=_Pump(client, outer).run, name="cowengine-nbd-tls", daemon=True)
        pump.start()
    except BaseException:
        inner.close()
        outer.close()
        raise
    return inner, pump


class _Pump:
    """Both directions of one connection, as far as each goes without waiting; then it waits for what it lacks."""

    def __init__(self, client: ssl.SSLSocket, plain: socket.socket) -> None:
        self._client = client
        self._plain = plain
        self._client_buffer = bytearray(BUFFER_BYTES)
        self._plain_buffer = bytearray(BUFFER_BYTES)
        self._from_client = memoryview(b"")  # what is not yet passed on
        self._from_plain = memoryview(b"")
        self._client_ended = False
        self._plain_ended = False
        self._wanted: dict[int, int] = {}
        self._parting: float | None = None

    def run(self) -> None:
        """Pumps until one side is gone and what it said has arrived."""
        try:
            while not self._is_over():
                self._wanted = {}
                # All four, so that each says what it waits for.
                moved = [self._receive_client(), self._send_plain(), self._receive_plain(), self._send_client()]
                if not any(moved) and not self._is_over():
                    self._wait()
        except OSError as error:
            logger.info("TLS: the connection ended: %s", error)
        except Exception:
            logger.exception("TLS: the connection ended")
        finally:
            self._close()

    def _is_over(self) -> bool:
        if not self._plain_ended:
            return False
        if self._parting is None:
            self._parting = time.monotonic() + PARTING_SECONDS
        return not self._from_plain or time.monotonic() > self._parting

    def _wait(self) -> None:
        poll = select.poll()
        for fd, events in self._wanted.items():
            poll.register(fd, events)
        poll.poll(None if self._parting is None else 1000)

    def _want(self, sock: socket.socket, events: int) -> bool:
        fd = sock.fileno()
        self._wanted[fd] = self._wanted.get(fd, 0) | events
        return False

    def _receive_client(self) -> bool:
        if self._from_client or self._client_ended or self._plain_ended:
            return False
        try:
            count = self._client.recv_into(self._client_buffer)
        except ssl.SSLWantReadError:
            return self._want(self._client, select.POLLIN)
        except ssl.SSLWantWriteError:
            return self._want(self._client, select.POLLOUT)
        if count:
            self._from_client = memoryview(self._client_buffer)[:count]
        else:
            self._client_ended = True
            self._plain.shutdown(socket.SHUT_WR)
        return True

    def _send_plain(self) -> bool:
        if not self._from_client:
            return False
        try:
            count = self._plain.send(self._from_client)
        except BlockingIOError:
            return self._want(self._plain, select.POLLOUT)
        except (BrokenPipeError, ConnectionResetError):  # the connection hears no more; it may still have to say
            self._from_client, self._client_ended = memoryview(b""), True
            return True
        self._from_client = self._from_client[count:]
        return True

    def _receive_plain(self) -> bool:
        if self._from_plain or self._plain_ended:
            return False
        try:
            count = self._plain.recv_into(self._plain_buffer)
        except BlockingIOError:
            return self._want(self._plain, select.POLLIN)
        self._from_plain = memoryview(self._plain_buffer)[:count]
        self._plain_ended = not count
        return True

    def _send_client(self) -> bool:
        if not self._from_plain:
            return False
        try:
            count = self._client.send(self._from_plain)
        except ssl.SSLWantReadError:
            return self._want(self._client, select.POLLIN)
        except ssl.SSLWantWriteError:
            return self._want(self._client, select.POLLOUT)
        self._from_plain = self._from_plain[count:]
        return True

    def _close(self) -> None:
        self._plain.close()
        try:
            self._client.unwrap()  # says that this is the end, and waits for no answer
        except (OSError, ValueError):
            pass
        self._client.close()
