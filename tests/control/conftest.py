"""A store that is served: in a thread of this process, or by a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cowengine import Store, connect
from cowengine.control import ControlServer
from cowengine.control.sockets import make_run_folder, nbd_path
from cowengine.nbd.exports import Exports
from cowengine.nbd.server import Server

SERVE = """
import sys
from cowengine import Store
from cowengine.control import ControlServer
from cowengine.control.sockets import make_run_folder, nbd_path
from cowengine.nbd.exports import Exports
from cowengine.nbd.server import Server
from cowengine.control.sockets import make_run_folder, nbd_path
from cowengine.nbd.exports import Exports
from cowengine.nbd.server import Server
with Store.open(sys.argv[1]) as store:
    make_run_folder(store.path)
    exports = Exports.of_store(store)
    with Server(exports, path=nbd_path(store.path)) as blocks:
        with ControlServer(store, exports, nbd_path=nbd_path(store.path)) as server:
            blocks.start()
            server.start()
            print("ready", flush=True)
            sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "store")


@pytest.fixture
def server(folder: str) -> Iterator[ControlServer]:
    """A new store, served by threads of this process, without NBD."""
    with Store.create(folder) as store, ControlServer(store) as server:
        server.start()
        yield server


@pytest.fixture
def exports(folder: str) -> Iterator[Exports]:
    """A new store, served by threads of this process, with NBD."""
    with Store.create(folder) as store:
        make_run_folder(folder)
        exports = Exports.of_store(store)
        path = nbd_path(folder)
        with Server(exports, path=path) as blocks, ControlServer(store, exports, nbd_path=path) as server:
            blocks.start()
            server.start()
            yield exports


@pytest.fixture(params=["server", "exports"])
def remote(request: pytest.FixtureRequest, folder: str) -> Iterator[Store]:
    """A served store as a client sees it: without NBD, and with it."""
    request.getfixturevalue(request.param)
    with connect(folder) as store:
        yield store


Serve = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves a store in a process of its own, to the end of the test unless it is killed before."""
    started: list[subprocess.Popen[str]] = []

    def start(path: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", SERVE, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.communicate()
