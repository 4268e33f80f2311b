"""Served volumes and stores: within the test's process, or by `cowengine nbd` in one of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cowengine import Store, Volume
from cowengine.nbd.exports import Exports
from cowengine.nbd.server import Limits, Server

COMMAND = [sys.executable, "-P", "-m", "cowengine"]
MIB = 1 << 20


@pytest.fixture
def sock(tmp_path: Path) -> Path:
    """Where the server's socket is."""
    return tmp_path / "run" / "nbd.sock"


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    """A volume of 32 MiB with two snapshots and something unflushed."""
    with Volume.create(tmp_path / "disk.cow", 32 * MIB) as made:
        made.pwrite(b"a" * 2 * MIB, 0)
        made.snapshot("monday")
        made.pwrite(b"b" * MIB, MIB // 2)
        made.pwrite(b"c" * 4096, 20 * MIB)
        made.snapshot("tuesday")
        made.discard(0, 8192)
        made.pwrite(b"d" * 100, 30 * MIB)
        yield made


@pytest.fixture
def serve(sock: Path) -> Iterator[Callable[..., Server]]:
    """Serves exports of a volume or store within this process."""
    servers: list[Server] = []

    def begin(what: Any, *, tls: Any = None, sockets: Any = (), path: Any = sock, **limits: Any) -> Server:
        exports = what if isinstance(what, Exports) else None
        if exports is None:
            exports = Exports.of_store(what) if isinstance(what, Store) else Exports.of_volume(what)
        server = Server(exports, path=path, sockets=sockets, tls=tls, limits=Limits(**limits))
        servers.append(server)
        server.start()
        return server

    yield begin
    for server in servers:
        server.close()


@pytest.fixture
def uri(sock: Path) -> Callable[[str], str]:
    """The URI of an export at the socket."""
    return lambda name="": f"nbd+unix:///{name}?socket={sock}"


@contextmanager
def cowengine_nbd(*words: object) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """`cowengine nbd` as a process: (the process, its URIs). Ends with SIGTERM, and must exit with 0."""
    process = subprocess.Popen(
        [*COMMAND, "nbd", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline().strip()
        assert first, process.stderr.read()
        yield process, [first]
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=60)
            assert process.returncode == 0, said
    finally:
        process.kill()
        process.communicate()


def run(*words: object, code: int = 0, **settings: Any) -> str:
    """Runs a client to its end; what it printed."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=120, check=False, **settings)
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + (done.stderr if code else "")
