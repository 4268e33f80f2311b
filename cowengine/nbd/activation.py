"""Sockets that whoever started this process opened for it: LISTEN_FDS, as systemd and libnbd hand them over."""

from __future__ import annotations

import os
import socket

from cowengine.errors import OutOfRangeError

FIRST_FD = 3
FDS_MAX = 64


def activated_sockets() -> list[socket.socket]:
    """The listening sockets that were handed over; none if the environment is not about this very process.

    They are not passed on: the variables are taken away, and the descriptors close on exec. Raises OutOfRangeError for
    a descriptor that is no listening stream socket.
    """
    process, count = os.environ.get("LISTEN_PID", ""), os.environ.get("LISTEN_FDS", "")
    if process != str(os.getpid()) or not count.isascii() or not count.isdigit():
        return []
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    if int(count) > FDS_MAX:
        raise OutOfRangeError(f"LISTEN_FDS: at most {FDS_MAX} sockets are taken, not {count}")
    return [_listener(fd) for fd in range(FIRST_FD, FIRST_FD + int(count))]


def _listener(fd: int) -> socket.socket:
    try:
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise OutOfRangeError(f"LISTEN_FDS: descriptor {fd} is no socket ({error.strerror})") from None
    if sock.type != socket.SOCK_STREAM or not listens:
        sock.detach()
        raise OutOfRangeError(f"LISTEN_FDS: descriptor {fd} is no listening stream socket")
    return sock
