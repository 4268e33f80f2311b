"""Where the sockets of a served store lie, and who is at the other end of one.

Threads   Any.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from contextlib import suppress

from cowengine.errors import BusyError, CowEngineError, ExistsError, ReadOnlyError
from cowengine.nbd.sockets import connect_unix
from cowengine.oserrors import typed

RUN_NAME = "run"
CONTROL_SOCKET = "control.sock"
NBD_SOCKET = "nbd.sock"
ANSWER_SECONDS = 10.0
_CREDENTIALS = struct.Struct("3i")


def run_folder(store_path: str) -> str:
    """The folder of the sockets of a served store."""
    return os.path.join(store_path, RUN_NAME)


def control_path(store_path: str) -> str:
    """Where the control socket of a served store lies."""
    return os.path.join(run_folder(store_path), CONTROL_SOCKET)


def nbd_path(store_path: str) -> str:
    """Where the NBD socket of a served store lies, unless its server was told another place."""
    return os.path.join(run_folder(store_path), NBD_SOCKET)


def make_run_folder(store_path: str) -> str:
    """The folder for sockets, made if it is missing, for its owner only. Raises ExistsError, ReadOnlyError."""
    folder = run_folder(store_path)
    with typed(folder):
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        found = os.lstat(folder)
        if not stat.S_ISDIR(found.st_mode):
            raise ExistsError("something that is no folder is in the way of the sockets", folder)
        if found.st_uid != os.geteuid():
            raise ReadOnlyError("the folder of the sockets belongs to another user: remove it", folder)
        os.chmod(folder, 0o700)
    return folder


def answers(path: str) -> bool:
    """Whether somebody listens there, as far as this process may know."""
    try:
        connect_unix(path, ANSWER_SECONDS).close()
    except BusyError:
        return True
    except CowEngineError:
        return False
    return True


def peer_user(connection: socket.socket) -> int:
    """The user id of the process at the other end, as it was when it connected."""
    size = _CREDENTIALS.size
    return int(_CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[1])
