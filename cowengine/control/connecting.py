"""Connecting to a store, whether or not another process serves it.

Threads   Any.
"""

from __future__ import annotations

import os

from cowengine.control.client import Client
from cowengine.control.sockets import control_path
from cowengine.errors import BusyError, NotFoundError, ReadOnlyError
from cowengine.names import check_path
from cowengine.store import Store


def connect(path: str | os.PathLike[str], *, read_only: bool = False) -> Store:
    """The store at `path`: through the process that serves it, if one does, else opened as `Store.open` does.

    What comes back has the interface of a Store either way. Raises as `Store.open`; BusyError if a process owns the
    store that does not serve it, or whose server ends or has too many clients, ReadOnlyError if it serves another user,
    UnsupportedVersionError if it speaks no common version of the protocol.
    """
    folder = os.path.abspath(check_path(path))
    served = served_store(folder, read_only=read_only)
    if served is not None:
        return served
    try:
        return Store.open(folder, read_only=read_only)
    except BusyError:
        served = served_store(folder, read_only=read_only)  # by somebody who began just now?
        if served is None:
            raise
        return served


def served_store(folder: str, *, read_only: bool) -> Store | None:
    """The store through its server; None if nobody serves it."""
    try:
        client = Client(control_path(folder), read_only=read_only)
    except NotFoundError:  # no socket, or one that nobody listens at
        return None
    except ReadOnlyError:
        if os.access(folder, os.R_OK | os.X_OK):  # else `Store.open` says what is wrong
            raise
        return None
    from cowengine.control.remote_store import RemoteStore

    return RemoteStore(folder, client)
