"""`cowengine nbd`: one volume or snapshot as a block device for whatever speaks NBD."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable
from contextlib import ExitStack, suppress

from cowengine.cli.address import find_snapshot, open_volume, split_store
from cowengine.cli.ending import allow_many_files, told_to_end
from cowengine.cli.image import VOLUME_OR_SNAPSHOT, split_view
from cowengine.cli.logs import logged_to
from cowengine.cli.output import Output
from cowengine.cli.verb import Noun, Options, argument
from cowengine.errors import OutOfRangeError

NOUN = Noun("", "serve volumes")

DRAIN_SECONDS = 30.0
TCP = argument("--tcp", metavar="HOST:PORT", help="listen there as well; needs --tls")
TLS = argument(
    "--tls", metavar="DIR",
    help="a folder with ca-cert.pem, server-cert.pem and server-key.pem; clients need a certificate of that CA",
)  # fmt: skip


@NOUN.verb(
    "nbd",
    "serve a volume, or read-only a snapshot, as an NBD export, until SIGTERM or until its client has ended",
    VOLUME_OR_SNAPSHOT,
    argument("--socket", metavar="PATH", help="the Unix socket to make (default: one in a new folder)"),
    TCP,
    TLS,
    argument("--bitmap", metavar="SNAPSHOT", help="the one snapshot that clients can compare with (default: any)"),
    examples=(
        "cowengine nbd disk.cow --socket disk.sock",
        "cowengine nbd disk.cow@monday --tcp :10809 --tls /etc/pki/cowengine",
        "nbdcopy -- [ cowengine nbd disk.cow@monday ] monday.img    # socket activation: LISTEN_FDS",
    ),
)  # fmt: skip
def nbd(options: Options, out: Output) -> None:
    from cowengine.nbd.activation import activated_sockets
    from cowengine.nbd.exports import Exports
    from cowengine.nbd.server import Server
    from cowengine.nbd.sockets import listen_tcp
    from cowengine.nbd.tls import server_context

    if options.tcp and not options.tls:
        raise OutOfRangeError("--tcp needs --tls DIR: without TLS anybody on the way could read and write")
    tls = server_context(options.tls) if options.tls else None
    address, snapshot_name = split_view(options.volume)
    with ExitStack() as stack:
        allow_many_files()
        stack.enter_context(logged_to(out))
        ended, end = stack.enter_context(told_to_end())
        volume = stack.enter_context(open_volume(address, read_only=bool(snapshot_name)))
        snapshot = find_snapshot(volume, snapshot_name) if snapshot_name else None
        in_store = split_store(address)
        exports = Exports.of_volume(
            volume, snapshot, name=None if in_store is None else in_store[1], bitmap=options.bitmap
        )  # fmt: skip
        sockets = activated_sockets()
        activated = bool(sockets)
        path = None if activated and not options.socket else options.socket or _new_path(stack)
        sockets += listen_tcp(options.tcp) if options.tcp else []
        where = tcp_addresses(sockets)
        server = Server(exports, path=path, sockets=sockets, tls=tls, when_unused=end if activated else None)
        stack.enter_context(server)
        server.start()
        name = exports.list(1)[0][0]
        if not activated:
            uris = ([] if path is None else [_unix_uri(path, name)]) + [_tcp_uri(each, name) for each in where]
            document = {"volume": address, "snapshot": snapshot_name or None, "export": name, "socket": path}
            out.emit({**document, "uris": uris}, "\n".join(uris))
            sys.stdout.flush()
        ended()
        if not server.drain(DRAIN_SECONDS):
            out.log("warning", "some clients were not waited for any longer")


def tcp_addresses(sockets: Iterable[socket.socket]) -> list[str]:
    """HOST:PORT of those that are no Unix sockets."""
    names = [sock.getsockname() for sock in sockets if sock.family != socket.AF_UNIX]
    return [f"{name[0]}:{name[1]}" for name in names]


def _new_path(stack: ExitStack) -> str:
    """A path in a folder of its own, mode 0700, which goes at the end."""
    import tempfile

    folder = tempfile.mkdtemp(prefix="cowengine-nbd-", dir=os.environ.get("XDG_RUNTIME_DIR") or None)

    def remove() -> None:
        with suppress(OSError):
            os.rmdir(folder)

    stack.callback(remove)
    return os.path.join(folder, "socket")


def _unix_uri(path: str, name: str) -> str:
    from urllib.parse import quote

    return f"nbd+unix:///{quote(name)}?socket={quote(os.path.abspath(path), safe='/')}"


def _tcp_uri(where: str, name: str) -> str:
    from urllib.parse import quote

    host, _, port = where.rpartition(":")
    return f"nbds://{f'[{host}]' if ':' in host else host}:{port}/{quote(name)}"
