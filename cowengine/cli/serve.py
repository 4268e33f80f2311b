"""`cowengine serve`: the process that owns a store, and through which all others reach it until it is told to end."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from cowengine.cli.ending import allow_many_files, told_to_end
from cowengine.cli.logs import logged_to
from cowengine.cli.nbd import DRAIN_SECONDS, TCP, TLS, tcp_addresses
from cowengine.cli.output import Document, Output, shown
from cowengine.cli.store import STORE
from cowengine.cli.verb import Noun, Options, argument
from cowengine.errors import BusyError, OutOfRangeError

if TYPE_CHECKING:
    from cowengine import Store

NOUN = Noun("", "serve stores")


@NOUN.verb(
    "serve",
    "own a store and serve it to other processes, until SIGTERM or SIGINT; a line says when it is ready",
    STORE,
    argument("--nbd-socket", metavar="PATH", help="the NBD socket to make (default: STORE/run/nbd.sock)"),
    TCP,
    TLS,
    examples=(
        "cowengine serve /srv/store",
        "cowengine serve /srv/store --json --tcp :10809 --tls /etc/pki/cowengine",
    ),
)
def serve(options: Options, out: Output) -> None:
    from cowengine.control import ControlServer
    from cowengine.control.sockets import make_run_folder, nbd_path
    from cowengine.nbd.exports import Exports
    from cowengine.nbd.server import Server
    from cowengine.nbd.sockets import listen_tcp
    from cowengine.nbd.tls import server_context

    if options.tcp and not options.tls:
        raise OutOfRangeError("--tcp needs --tls DIR: without TLS anybody on the way could read and write")
    tls = server_context(options.tls) if options.tls else None
    with ExitStack() as stack:
        allow_many_files()
        stack.enter_context(logged_to(out))
        ended, _ = stack.enter_context(told_to_end())
        store = stack.enter_context(_owned(options.store))
        for problem in store.problems:
            out.log("warning", problem)
        make_run_folder(store.path)
        path = os.path.abspath(options.nbd_socket or nbd_path(store.path))
        sockets = listen_tcp(options.tcp) if options.tcp else []
        where = tcp_addresses(sockets)
        exports = Exports.of_store(store)
        blocks = stack.enter_context(Server(exports, path=path, sockets=sockets, tls=tls))
        control = stack.enter_context(ControlServer(store, exports, nbd_path=path))
        blocks.start()
        control.start()
        document: Document = {"store": options.store, "control": control.path, "nbd": path, "tcp": where}
        lines = [f"serving {shown(options.store)} at {shown(control.path)}", f"NBD at {shown(path)}"]
        out.emit({**document, "pid": os.getpid()}, "\n".join([*lines, *(f"NBD with TLS at {each}" for each in where)]))
        sys.stdout.flush()
        tell_supervisor("READY=1")
        ended()
        tell_supervisor("STOPPING=1")
        if not (control.drain() & blocks.drain(DRAIN_SECONDS)):
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


def tell_supervisor(state: str) -> None:
    """What systemd, or who else set NOTIFY_SOCKET, is told (sd_notify)."""
    import socket

    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        sock.sendall(state.encode())
