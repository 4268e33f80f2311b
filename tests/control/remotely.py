"""A store served by this process, as a client sees it: for tests that do the same with a store of their own."""

from __future__ import annotations

import pytest

from cowengine import Store, connect
from cowengine.control import ControlServer
from cowengine.control.sockets import make_run_folder, nbd_path
from cowengine.nbd.exports import Exports
from cowengine.nbd.server import Server


def served(store: Store) -> Store:
    """A client of this store, which closes the store when it is closed itself."""
    make_run_folder(store.path)
    path = nbd_path(store.path)
    exports = Exports.of_store(store)
    blocks = Server(exports, path=path)
    server = ControlServer(store, exports, nbd_path=path)
    blocks.start()
    server.start()
    client = connect(store.path)
    end = client.close

    def close() -> None:
        try:
            end()
        finally:
            server.close()
            blocks.close()
            store.close()

    client.close = close  # type: ignore[method-assign]
    return client


def both_ways(metafunc: pytest.Metafunc, fixture: str, *, served: bool = True) -> None:
    """What takes this fixture runs with a store of its own, and with one that is served, unless it is marked."""
    if fixture in metafunc.fixturenames:
        alone = not served or metafunc.definition.get_closest_marker("unserved")
        ways = ["here"] if alone else ["here", "served"]
        metafunc.parametrize(fixture, ways, indirect=True)
