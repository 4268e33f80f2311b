"""`cowengine nbd` as a process: killed, told to end, started with sockets, and with what cannot be."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack

import pytest

from cowengine import BusyError, ExistsError, OutOfRangeError, StorageError, Volume
from cowengine.nbd.activation import activated_sockets
from cowengine.nbd.client import Client
from cowengine.nbd.exports import Exports
from cowengine.nbd.server import Server
from cowengine.nbd.sockets import connect_unix, listen_tcp, listen_unix

from .conftest import COMMAND, MIB, cowengine_nbd, run
from .test_exported import until


def test_kill_9_keeps_what_was_flushed(tmp_path, sock):
    path = tmp_path / "v.cow"
    Volume.create(path, 64 * MIB).close()
    for turn in range(3):
        with (
            cowengine_nbd(path, "--socket", sock) as (process, _),
            Client(sock, "v") as client,
            Client(sock, "v") as other,
        ):
            for block in range(100):
                client.pwrite(bytes([turn * 100 + block + 1 & 255]) * 4096, block * 40960)
            other.flush()
            client.pwrite(bytes([turn + 1]) * 4096, 63 * MIB, fua=True)
            client.pwrite(b"not flushed", 62 * MIB)
            process.kill()
            process.wait()
        assert sock.exists()  # stale; the next one replaces it
        with Volume.open(path) as volume:
            assert volume.check().ok
            for block in range(100):
                assert volume.pread(4096, block * 40960) == bytes([turn * 100 + block + 1 & 255]) * 4096
            assert volume.pread(4096, 63 * MIB) == bytes([turn + 1]) * 4096


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_told_to_end_keeps_what_it_answered(tmp_path, sock, number):
    path = tmp_path / "v.cow"
    Volume.create(path, 64 * MIB).close()
    answered = []
    with cowengine_nbd(path, "--socket", sock) as (process, _):

        def write(lane):
            with Client(sock, "v", timeout=60) as client:
                for turn in range(1_000_000):
                    block = lane * 4000 + turn % 4000
                    client.pwrite(block.to_bytes(4) * 1024, block * 4096)
                    answered.append(block)

        def until_the_end(lane):
            try:
                write(lane)
            except OSError:
                pass  # the server has ended

        lanes = [threading.Thread(target=until_the_end, args=(lane,)) for lane in range(4)]
        for lane in lanes:
            lane.start()
        until(lambda: len(answered) > 100, 60)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, "")
        for lane in lanes:
            lane.join()
    assert not sock.exists()
    with Volume.open(path) as volume:
        for block in set(answered):
            assert volume.pread(4096, block * 4096) == block.to_bytes(4) * 1024


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["none.cow"], 1, "none.cow"),
        (["disk.cow@none"], 1, "no snapshot named 'none'"),
        (["disk.cow", "--tcp", "127.0.0.1:0"], 2, "--tcp needs --tls"),
        (["disk.cow", "--tcp", "127.0.0.1:0", "--tls", "."], 1, "TLS needs this file"),
        (["disk.cow", "--bitmap", "none"], 1, "no snapshot named 'none'"),
        (["disk.cow", "--socket", "missing/too/nbd.sock"], 1, "no folder for the socket"),
        (["disk.cow", "--socket", "disk.cow"], 1, "in the way"),
        (["disk.cow", "--socket", "x" * 120], 2, "too long"),
    ],
)
def test_what_cannot_be_served_is_one_line(volume, tmp_path, words, code, said):
    volume.close()
    done = subprocess.run(
        [*COMMAND, "nbd", *words], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


def test_a_volume_that_is_served_is_busy_and_so_is_its_socket(volume, tmp_path, sock):
    volume.close()
    other = tmp_path / "other.cow"
    Volume.create(other, MIB).close()
    with cowengine_nbd(volume.path, "--socket", sock):
        for words in ([volume.path], [f"{volume.path}@monday"], [str(other), "--socket", str(sock)]):
            said = run(*COMMAND, "nbd", *words, code=5)
            assert "process" in said or "somebody serves" in said
        with Client(sock, "disk") as client:
            assert client.size == volume.size


# -- sockets ----------------------------------------------------------------------------------------------------------
def test_a_socket_at_a_long_path(volume, tmp_path, serve):
    folder = tmp_path / ("f" * 100) / ("g" * 100)
    folder.mkdir(parents=True)
    path = folder / "nbd.sock"
    serve(volume, path=path)
    with Client(path, "disk") as client:
        assert client.pread(4, 30 * MIB) == b"dddd"
    with pytest.raises(BusyError, match="somebody serves"):
        listen_unix(path)


def test_a_stale_socket_is_replaced_and_anything_else_is_not(tmp_path):
    path = tmp_path / "s"
    listen_unix(path).close()
    assert path.is_socket()
    with listen_unix(path):
        assert path.stat().st_mode & 0o777 == 0o600
        connect_unix(path).close()
        with pytest.raises(BusyError):
            listen_unix(path)
    path.unlink()
    for make in (path.touch, path.mkdir, lambda: path.symlink_to("nowhere")):
        make()
        with pytest.raises(ExistsError, match="in the way"):
            listen_unix(path)
        path.rmdir() if path.is_dir() else path.unlink()


def test_who_listens_and_accepts_nobody_is_not_waited_for(tmp_path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as stack:
        listener.bind(str(path))
        listener.listen(0)
        with pytest.raises(BlockingIOError):  # until its queue is full
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(str(path))
        with pytest.raises(BusyError):
            listen_unix(path)
    assert path.is_socket()


@pytest.mark.parametrize("address", ["", "localhost", "localhost:", ":x", "127.0.0.1:70000", "127.0.0.1:-1"])
def test_what_is_no_tcp_address_is_refused(address):
    with pytest.raises(OutOfRangeError, match="TCP address"):
        listen_tcp(address)


def test_a_tcp_port_is_taken_once():
    first = listen_tcp("127.0.0.1:0")
    try:
        with pytest.raises(BusyError):
            listen_tcp(f"127.0.0.1:{first[0].getsockname()[1]}")
    finally:
        first[0].close()


# -- activation -------------------------------------------------------------------------------------------------------
def in_child(code, *fds, **environment):
    """What a process says that got these descriptors from 3 on, and LISTEN_PID as its own number."""
    before = f"import os; os.environ['LISTEN_PID'] = str(os.getpid() + {environment.pop('off', 0)})\n"

    def place():
        copies = [os.dup2(fd, 100 + i) for i, fd in enumerate(fds)]
        for i, fd in enumerate(copies):
            os.dup2(fd, 3 + i)

    done = subprocess.run(
        [sys.executable, "-P", "-c", before + code], capture_output=True, text=True, timeout=60, check=False,
        preexec_fn=place, close_fds=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
    )  # fmt: skip
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


LISTED = """
from cowengine.nbd.activation import activated_sockets
found = activated_sockets()
inherited = any(os.get_inheritable(sock.fileno()) for sock in found)
print([sock.fileno() for sock in found], inherited, 'LISTEN_FDS' in os.environ)
"""


def test_sockets_are_taken_from_the_environment_once(tmp_path):
    with listen_unix(tmp_path / "a") as one, listen_unix(tmp_path / "b") as other:
        fds = [one.fileno(), other.fileno()]
        assert in_child(LISTED, *fds, LISTEN_FDS="2") == "[3, 4] False False"
        assert in_child(LISTED, *fds, LISTEN_FDS="2", off=1) == "[] False True"
        assert in_child(LISTED, *fds, LISTEN_FDS="x") == "[] False True"
        assert "at most 64" in in_child(LISTED, *fds, LISTEN_FDS="65")
    assert activated_sockets() == []


def test_a_descriptor_that_does_not_listen_is_refused(tmp_path):
    with (tmp_path / "file").open("w") as file:
        assert "is no socket" in in_child(LISTED, file.fileno(), LISTEN_FDS="1")
    one, other = socket.socketpair()
    with one, other:
        assert "is no listening" in in_child(LISTED, one.fileno(), LISTEN_FDS="1")


def test_an_activated_server_ends_with_its_last_connection(volume, tmp_path):
    volume.close()
    path = tmp_path / "activated"
    with listen_unix(path) as listener:
        script = "import os, sys; os.dup2(int(sys.argv[1]), 3)\n"
        script += "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n"
        script += "os.set_inheritable(3, True); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
        words = [*COMMAND[1:], "nbd", volume.path]
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", script, str(listener.fileno()), *words], pass_fds=[listener.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
    first = Client(path, "disk", timeout=60)
    with Client(path, "disk", timeout=60) as second:
        first.close()
        second.pwrite(b"last", 0)
        assert process.poll() is None
    assert process.wait(60) == 0
    with Volume.open(volume.path) as again:
        assert again.pread(4, 0) == b"last"


def test_a_server_without_a_socket_is_refused(volume):
    with pytest.raises(OutOfRangeError, match="needs a socket"):
        Server(Exports.of_volume(volume))


@pytest.mark.parametrize("as_json", [False, True])
def test_what_goes_wrong_is_said_on_stderr(volume, sock, as_json):
    """A library is silent unless logging is configured; a command that serves for days must not be."""
    place, _ = volume.engine.path.place(0, volume.engine.lineage.root(volume.get_snapshot("monday").id))
    assert volume.seal().done
    volume.close()
    with open(volume.path, "r+b") as file:
        file.seek(place * 4096)
        file.write(b"rot")
    words = [f"{volume.path}@monday", "--socket", sock, *(["--json"] if as_json else [])]
    with cowengine_nbd(*words) as (process, _):
        with Client(sock, "") as client, pytest.raises(StorageError, match="EIO"):
            client.pread(4096, 0)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
        (line,) = said.splitlines()
        assert "export disk@monday: read failed: the block at byte 0 in slot" in line
        assert not as_json or json.loads(line)["logger"] == "cowengine.nbd"
