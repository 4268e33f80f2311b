"""TLS: libnbd's and QEMU's clients with certificates that openssl made, and everybody who has none."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import threading
import time
from contextlib import ExitStack

import pytest
from certificates import make_authority, make_certificate, revoke
from nbd_wire import Wire, text

from cowengine import CorruptionError, NotFoundError, OutOfRangeError, Volume
from cowengine.nbd import server as server_module
from cowengine.nbd.client import Client
from cowengine.nbd.exports import Exports
from cowengine.nbd.protocol import Option, Reply
from cowengine.nbd.server import Server
from cowengine.nbd.sockets import listen_tcp
from cowengine.nbd.tls import server_context

from .conftest import MIB, cowengine_nbd, run
from .test_exported import until

pytestmark = pytest.mark.needs("openssl")


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    """Folders `server`, `client`, and `stranger`, whose authority is another one."""
    base = tmp_path_factory.mktemp("pki")
    make_authority(base / "authority")
    make_authority(base / "other")
    make_certificate(base / "authority", base / "server", "server")
    make_certificate(base / "authority", base / "client", "client")
    make_certificate(base / "other", base / "stranger", "client")
    shutil.copy(base / "authority" / "ca-cert.pem", base / "stranger")
    return base


@pytest.fixture
def port(volume, serve, sock, pki):
    """A TCP port of a server with TLS, which has the volume; its Unix socket offers TLS, too."""
    (listener,) = listen_tcp("127.0.0.1:0")
    number = listener.getsockname()[1]
    serve(volume, sockets=[listener], tls=server_context(pki / "server"))
    return number


def nbds(port, folder):
    return f"nbds://localhost:{port}/disk?tls-certificates={folder}"


@pytest.mark.needs("nbdinfo", "nbdcopy")
def test_the_tools_of_libnbd_speak_tls(volume, port, pki, sock, tmp_path):
    found = json.loads(run("nbdinfo", "--json", nbds(port, pki / "client")))
    assert found["TLS"] is True
    image = tmp_path / "copy.img"
    run("nbdcopy", "--connections=3", nbds(port, pki / "client"), image)
    assert image.read_bytes() == volume.pread(volume.size, 0)
    data = bytes(range(256)) * (volume.size // 256)
    image.write_bytes(data)
    run("nbdcopy", image, nbds(port, pki / "client"))
    assert volume.pread(volume.size, 0) == data
    over_unix = f"nbds+unix:///disk?socket={sock}&tls-certificates={pki / 'client'}&tls-verify-peer=false"
    assert json.loads(run("nbdinfo", "--json", over_unix))["TLS"] is True  # a socket has no name to verify


@pytest.mark.needs("qemu-img")
def test_qemu_speaks_tls(volume, port, pki, tmp_path):
    folder = tmp_path / "qemu"
    shutil.copytree(pki / "client", folder)
    words = ["--object", f"tls-creds-x509,id=tls0,endpoint=client,dir={folder}", "--image-opts"]
    options = f"driver=nbd,host=localhost,port={port},export=disk,tls-creds=tls0"
    raw = tmp_path / "copy.img"
    run("qemu-img", "convert", *words, options, "-O", "raw", raw)
    assert raw.read_bytes() == volume.pread(volume.size, 0)


@pytest.mark.needs("nbdinfo")
def test_who_has_no_certificate_or_a_strangers_is_not_let_in(volume, port, pki, tmp_path):
    run("nbdinfo", f"nbd://localhost:{port}/disk", code=1)
    said = run("nbdinfo", nbds(port, pki / "stranger"), code=1)
    assert "nbdinfo" in said
    only_authority = tmp_path / "none"
    only_authority.mkdir()
    shutil.copy(pki / "authority" / "ca-cert.pem", only_authority)
    run("nbdinfo", nbds(port, only_authority), code=1)
    assert json.loads(run("nbdinfo", "--json", nbds(port, pki / "client")))["TLS"] is True


def test_what_is_asked_before_tls_is_refused(volume, port):
    with Wire.to(socket.create_connection(("127.0.0.1", port))) as wire:
        for option, data in ((Option.LIST, b""), (Option.GO, text("disk") + b"\0\0"), (Option.STRUCTURED_REPLY, b"")):
            assert wire.ask(option, data)[0][0] == Reply.ERR_TLS_REQD
        assert wire.ask(Option.ABORT) == [(Reply.ACK, b"")]
    with Wire.to(socket.create_connection(("127.0.0.1", port))) as wire:
        wire.option(Option.EXPORT_NAME, b"disk")
        assert wire.ends()


def test_a_unix_socket_needs_no_tls(volume, port, sock):
    with Client(sock, "disk") as client:
        assert client.pread(4, 30 * MIB) == b"dddd"


def client_context(pki, who="client"):
    context = ssl.create_default_context(cafile=pki / "authority" / "ca-cert.pem")
    context.load_cert_chain(pki / who / "client-cert.pem", pki / who / "client-key.pem")
    return context


def encrypted(port, context):
    """A wire behind STARTTLS."""
    wire = Wire.to(socket.create_connection(("127.0.0.1", port), timeout=20))
    assert wire.ask(Option.STRUCTURED_REPLY) == [(Reply.ERR_TLS_REQD, b"this server speaks only TLS: start it first")]
    assert wire.ask(Option.STARTTLS) == [(Reply.ACK, b"")]
    wire.sock = context.wrap_socket(wire.sock, server_hostname="localhost")
    return wire


def test_a_handshake_goes_on_behind_tls(volume, port, pki):
    with encrypted(port, client_context(pki)) as wire:
        assert wire.sock.version() in ("TLSv1.2", "TLSv1.3")
        assert wire.ask(Option.STARTTLS) == [(Reply.ERR_INVALID, b"TLS has begun already")]
        wire.go("disk")
        for cookie in range(200):  # more than the pump holds
            wire.request(0, 0, 65536, cookie=cookie)
        for _ in range(200):
            assert wire.answer()[0] == 0
            wire.take(65536)
        wire.request(2)
        assert wire.ends()


def test_a_tcp_connection_notices_that_its_client_is_gone(volume, port, pki, monkeypatch):
    seen = []
    whole = server_module._tune
    monkeypatch.setattr(server_module, "_tune", lambda sock: (whole(sock), seen.append(sock.dup())))
    with encrypted(port, client_context(pki)) as wire:
        wire.go("disk")
    (sock,) = seen
    with sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        waits = [sock.getsockopt(socket.IPPROTO_TCP, each) for each in (socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)]
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) + waits[0] * waits[1] == 120


def test_strangers_who_say_nothing_leave_places_for_others(volume, serve, sock, pki):
    (listener,) = listen_tcp("127.0.0.1:0")
    address = listener.getsockname()
    server = serve(volume, sockets=[listener], tls=server_context(pki / "server"), connections=4, handshake_seconds=300)
    with encrypted(address[1], client_context(pki)) as known, ExitStack() as stack:
        known.go("disk")  # it counts no more as a stranger
        for _ in range(2):
            stranger = stack.enter_context(socket.create_connection(address, timeout=60))
            assert stranger.recv(8) == b"NBDMAGIC"
        third = stack.enter_context(socket.create_connection(address, timeout=60))
        assert third.recv(8) == b""
        with Client(sock, "disk", timeout=60) as client:
            assert client.pread(4, 30 * MIB) == b"dddd"
            assert server.connections == 4


def test_versions_before_1_2_are_refused(volume, port, pki):
    context = client_context(pki)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        encrypted(port, context).sock.close()


def test_who_breaks_off_or_lies_under_tls_leaves_nothing(volume, port, pki):
    for said in (b"", b"\x16\x03\x01", bytes(5000), b"GET / HTTP/1.0\r\n\r\n"):
        wire = Wire.to(socket.create_connection(("127.0.0.1", port), timeout=20))
        with wire:
            assert wire.ask(Option.STARTTLS) == [(Reply.ACK, b"")]
            wire.send(said)
    wire = encrypted(port, client_context(pki))
    wire.go("disk")
    wire.request(1, 0, 65536)
    wire.send(b"half")
    wire.sock.close()
    until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("cowengine-nbd-tls")])
    with encrypted(port, client_context(pki)) as wire:
        assert wire.go("disk")[0] == volume.size


def test_a_client_that_never_reads_under_tls_holds_up_nobody(volume, port, pki):
    with encrypted(port, client_context(pki)) as greedy, encrypted(port, client_context(pki)) as other:
        for wire in (greedy, other):  # both, as a handshake has its time
            wire.go("disk")
        greedy.sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            for cookie in range(1_000_000):
                greedy.request(0, 0, 8 * MIB, cookie=cookie)
        for _ in range(20):
            other.request(0, 0, 4096)
            assert other.answer() == (0, 7)
            other.take(4096)


def test_the_end_passes_on_what_was_answered(tmp_path, sock, pki):
    with Volume.create(tmp_path / "v.cow", 8 * MIB) as volume:
        (listener,) = listen_tcp("127.0.0.1:0")
        port = listener.getsockname()[1]
        server = Server(Exports.of_volume(volume), sockets=[listener], tls=server_context(pki / "server"))
        server.start()
        with encrypted(port, client_context(pki)) as wire:
            wire.go("v")
            wire.request(0, 0, 4 * MIB)
            assert wire.answer() == (0, 7)
            draining = threading.Thread(target=server.drain, args=(20,))
            draining.start()
            time.sleep(0.3)
            assert wire.take(4 * MIB) == bytes(4 * MIB)
            assert wire.ends()
            draining.join()


def test_a_revoked_certificate_is_not_let_in(volume, serve, pki, tmp_path):
    folder = tmp_path / "server"
    shutil.copytree(pki / "server", folder)
    authority = tmp_path / "authority"
    shutil.copytree(pki / "authority", authority)
    make_certificate(authority, tmp_path / "revoked", "client")
    revoke(authority, tmp_path / "revoked" / "client-cert.pem", folder)
    (listener,) = listen_tcp("127.0.0.1:0")
    port = listener.getsockname()[1]
    serve(volume, path=None, sockets=[listener], tls=server_context(folder))
    with encrypted(port, client_context(pki)) as wire:
        assert wire.go("disk")[0] == volume.size
    context = ssl.create_default_context(cafile=authority / "ca-cert.pem")
    context.load_cert_chain(tmp_path / "revoked" / "client-cert.pem", tmp_path / "revoked" / "client-key.pem")
    with pytest.raises((ssl.SSLError, EOFError, OSError)), encrypted(port, context) as wire:
        wire.go("disk")


def test_a_folder_that_lacks_something_is_refused(pki, tmp_path):
    for missing in ("ca-cert.pem", "server-cert.pem", "server-key.pem"):
        folder = tmp_path / missing
        shutil.copytree(pki / "server", folder)
        (folder / missing).unlink()
        with pytest.raises(NotFoundError, match=missing):
            server_context(folder)
        (folder / missing).write_text("nothing")
        with pytest.raises(CorruptionError, match="certificates cannot be used"):
            server_context(folder)


def test_tcp_without_tls_is_refused(volume):
    listeners = listen_tcp("127.0.0.1:0")
    with pytest.raises(OutOfRangeError, match="TCP without TLS"):
        Server(Exports.of_volume(volume), sockets=listeners)
    assert listeners[0].fileno() == -1


@pytest.mark.needs("nbdinfo")
def test_the_command_serves_tcp_with_tls(volume, pki, sock):
    volume.close()
    with cowengine_nbd(volume.path, "--tcp", "127.0.0.1:0", "--tls", pki / "server", "--socket", sock, "--json") as (
        _,
        said,
    ):
        document = json.loads(said[0])
        assert document["export"] == "disk"
        unix, tcp = document["uris"]
        assert tcp.startswith("nbds://127.0.0.1:")
        assert json.loads(run("nbdinfo", "--json", unix))["TLS"] is False
        found = json.loads(run("nbdinfo", "--json", f"{tcp}?tls-certificates={pki / 'client'}"))
        assert found["TLS"] is True
