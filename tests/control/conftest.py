"""A store that is served: in a thread of this process, or by a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cowengine import Store, connect
from cowengine.control import ControlServer

SERVE = """
import sys
from cowengine import Store
from cowengine.control import ControlServer
with Store.open(sys.argv[1]) as store, ControlServer(store) as server:
    server.start()
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "store")


@pytest.fixture
def server(folder: str) -> Iterator[ControlServer]:
    """A new store, served by a thread of this process."""
    with Store.create(folder) as store, ControlServer(store) as server:
        server.start()
        yield server


@pytest.fixture
def remote(server: ControlServer) -> Iterator[Store]:
    """That store as a client sees it."""
    with connect(server.store.path) as store:
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
