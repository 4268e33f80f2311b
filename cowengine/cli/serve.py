"""`cowengine serve`: the process that owns a store, and through which all others reach it until it is told to end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from cowengine.cli.output import Document, Output, shown
from cowengine.cli.store import STORE
from cowengine.cli.verb import Noun, Options
from cowengine.errors import BusyError

if TYPE_CHECKING:
    from cowengine import Store

NOUN = Noun("", "serve stores")


@NOUN.verb(
    "serve",
    "own a store and serve it to other processes, until SIGTERM or SIGINT; a line says when it is ready",
    STORE,
    examples=("cowengine serve /srv/store", "cowengine serve /srv/store --json"),
)
def serve(options: Options, out: Output) -> None:
    from cowengine.control import ControlServer

    with ExitStack() as stack:
        ended = stack.enter_context(told_to_end())
        store = stack.enter_context(_owned(options.store))
        for problem in store.problems:
            out.log("warning", problem)
        server = stack.enter_context(ControlServer(store))
        server.start()
        document: Document = {"store": options.store, "control": server.path, "pid": os.getpid()}
        out.emit(document, f"serving {shown(options.store)} at {shown(server.path)}")
        sys.stdout.flush()
        tell_supervisor("READY=1")
        ended()
        tell_supervisor("STOPPING=1")
        if not server.drain():
            out.log("warning", "some clients were not waited for any longer")


def _owned(path: str) -> Store:
    """The store, owned by this process. Raises BusyError that names the socket if it is served already."""
    from cowengine import Store
    from cowengine.control.sockets import answers, control_path

    try:
        return Store.open(path)
    except BusyError:
        socket_path = control_path(os.path.abspath(path))
        if answers(socket_path):
            raise BusyError("the store is served already, at this socket", socket_path) from None
        raise


@contextmanager
def told_to_end() -> Iterator[Callable[[], object]]:
    """A function that waits for SIGTERM or SIGINT; one that came before it is called counts."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def end(*_: object) -> None:
        with suppress(BlockingIOError):
            os.write(writing, b"x")  # in a signal handler nothing may wait for a lock

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: os.read(reading, 1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)


def tell_supervisor(state: str) -> None:
    """What systemd, or who else set NOTIFY_SOCKET, is told (sd_notify)."""
    import socket

    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        sock.sendall(state.encode())
