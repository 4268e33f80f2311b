"""Unix stream sockets in a folder of mode 0700, however long their path is, and who is at the other end.

A socket's address holds 107 bytes: where the path has more, it is reached through the opened folder, in
/proc/self/fd.

Threads   Any.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Iterator

from cowengine.errors import BusyError, ExistsError, ReadOnlyError
from cowengine.oserrors import typed

RUN_NAME = "run"
CONTROL_SOCKET = "control.sock"
NBD_SOCKET = "nbd.sock"
ADDRESS_BYTES_MAX = 107
BACKLOG = 128
_CREDENTIALS = struct.Struct("3i")


def run_folder(store_path: str) -> str:
    """Where the sockets of a served store lie."""
    return os.path.join(store_path, RUN_NAME)


def control_path(store_path: str) -> str:
    """Where the control socket of a served store lies."""
    return os.path.join(run_folder(store_path), CONTROL_SOCKET)


def make_run_folder(store_path: str) -> str:
    """The folder for sockets, made if it is missing, for its owner only. Raises ExistsError, ReadOnlyError."""
    folder = run_folder(store_path)
    with typed(folder):
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        found = os.lstat(folder)
        if not stat.S_ISDIR(found.st_mode):
            raise ExistsError("something that is no folder is in the way of the sockets", folder)
        if found.st_uid != os.geteuid():
            raise ReadOnlyError("the folder of the sockets belongs to another user: remove it", folder)
        os.chmod(folder, 0o700)
    return folder


@contextlib.contextmanager
def _address(path: str) -> Iterator[str]:
    """What to bind or to connect to for a path."""
    if len(os.fsencode(path)) <= ADDRESS_BYTES_MAX:
        yield path
        return
    folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{os.path.basename(path)}"
    finally:
        os.close(folder)


def connect_to(path: str, seconds: float | None = None) -> socket.socket:
    """A connected stream socket. Raises OSError."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.settimeout(seconds)
        with _address(path) as address:
            made.connect(address)
    except BaseException:
        made.close()
        raise
    return made


def answers(path: str) -> bool:
    """Whether somebody listens there, as far as this process may know."""
    try:
        connect_to(path, 5.0).close()
    except TimeoutError:  # its queue of connections is full
        return True
    except OSError:
        return False
    return True


def listen_at(path: str) -> socket.socket:
    """A listening stream socket, mode 0600, in place of one that nobody listens at.

    Raises BusyError if somebody does, ExistsError if something else is in the way, ReadOnlyError, StorageError. The
    caller makes sure that nobody else does the same at the same time.
    """
    with typed(path):
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            pass
        else:
            if not stat.S_ISSOCK(found.st_mode):
                raise ExistsError("something that is no socket is in the way", path)
            if answers(path):
                raise BusyError("another process serves it already, at this socket", path)
            os.unlink(path)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _address(path) as address:
                made.bind(address)
            os.chmod(path, 0o600)
            made.listen(BACKLOG)
        except BaseException:
            made.close()
            raise
    return made


def peer_user(connection: socket.socket) -> int:
    """The user id of the process at the other end, as it was when it connected."""
    size = _CREDENTIALS.size
    return int(_CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[1])
