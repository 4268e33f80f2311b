"""Sockets of a server and its clients: Unix sockets at paths of any length, TCP, and those that were handed over.

Threads   Any.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cowengine.errors import BusyError, ExistsError, NotFoundError, OutOfRangeError
from cowengine.names import check_path
from cowengine.oserrors import typed

PATH_BYTES_MAX = 107  # of the address of a Unix socket
BACKLOG = 128
ANSWER_SECONDS = 1.0  # for whoever listens where a socket is to be made
_TIME = struct.Struct("@ll")


@contextmanager
def _address(path: str) -> Iterator[str]:
    """An address for a path: itself, or one through the opened folder if it is too long."""
    if len(os.fsencode(path)) <= PATH_BYTES_MAX:
        yield path
        return
    folder, name = os.path.split(path)
    if len(os.fsencode(name)) > PATH_BYTES_MAX - len("/proc/self/fd/0000000/"):
        raise OutOfRangeError("the name of the socket is too long", path)
    fd = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


def connect_unix(path: str | os.PathLike[str], timeout: float | None = None) -> socket.socket:
    """A connection to the Unix socket at a path, with a timeout in seconds, unless told none, that it keeps.

    Raises NotFoundError if nobody listens there, BusyError if it is not taken in time, ReadOnlyError if that is not
    allowed, StorageError.
    """
    name = check_path(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with typed(name), _address(name) as address:
            _connect(sock, address, name, timeout or 0.0)
        sock.settimeout(timeout)
    except (FileNotFoundError, NotADirectoryError):  # of the folder
        sock.close()
        raise NotFoundError("nobody serves at this socket", name) from None
    except BaseException:
        sock.close()
        raise
    return sock


def _connect(sock: socket.socket, address: str, name: str, seconds: float) -> None:
    """Waits in the kernel while the queue of the listener is full: a socket of Python's with a timeout does not."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIME.pack(int(seconds), int(seconds % 1 * 1_000_000)))
    try:
        sock.connect(address)
    except BlockingIOError:
        raise BusyError("whoever listens at this socket takes no connection", name) from None
    except (ConnectionRefusedError, FileNotFoundError, NotADirectoryError):
        raise NotFoundError("nobody serves at this socket", name) from None
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIME.pack(0, 0))


def listen_unix(path: str | os.PathLike[str]) -> socket.socket:
    """A listening Unix socket at a path, mode 0600; its folder is made, mode 0700, if it is missing.

    A socket that a dead process left there is replaced. Raises BusyError if somebody listens there, ExistsError if
    something else is there, NotFoundError, OutOfRangeError, StorageError, ReadOnlyError.
    """
    name = os.path.abspath(check_path(path))
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with typed(name):
            with suppress(FileExistsError):
                os.mkdir(os.path.dirname(name), 0o700)
            _bind(sock, name)
            os.chmod(name, 0o600)  # before it listens: nobody can have connected
            sock.listen(BACKLOG)
    except (FileNotFoundError, NotADirectoryError):
        sock.close()
        raise NotFoundError("there is no folder for the socket", name) from None
    except BaseException:
        sock.close()
        raise
    return sock


def _bind(sock: socket.socket, name: str) -> None:
    with _address(name) as address:
        try:
            sock.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_stale(name)
            sock.bind(address)


def _remove_stale(name: str) -> None:
    if not stat.S_ISSOCK(os.lstat(name).st_mode):
        raise ExistsError("something that is no socket is in the way", name)
    try:
        connect_unix(name, ANSWER_SECONDS).close()
    except NotFoundError:
        os.unlink(name)
    else:
        raise BusyError("somebody serves at this socket", name)


def listen_tcp(address: str) -> list[socket.socket]:
    """Listening TCP sockets of HOST:PORT or [HOST]:PORT, one for each address of the host; an empty host is any.

    Raises OutOfRangeError for what is no address, BusyError if the port is taken, NotFoundError for an unknown host.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise OutOfRangeError(f"{address!r} is no TCP address: write HOST:PORT, or [HOST]:PORT of IPv6")
    try:
        found = socket.getaddrinfo(
            host.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )  # fmt: skip
    except socket.gaierror as error:
        raise NotFoundError(f"{address!r} leads nowhere: {error.strerror}") from None
    sockets: list[socket.socket] = []
    try:
        with typed(address):
            for family, _, _, _, where in dict.fromkeys(found):
                sockets.append(_listen_at(family, where))
    except BaseException as error:
        for sock in sockets:
            sock.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise BusyError("somebody listens at this port", address) from None
        raise
    return sockets


def _listen_at(family: int, where: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(where)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
