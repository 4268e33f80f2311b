"""A store with volumes to take sets over, closed at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from remotely import both_ways, served

from cowengine import Store

SIZE = 1024 * 1024


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    both_ways(metafunc, "make_store")


@pytest.fixture
def store_path(tmp_path: Path) -> str:
    return str(tmp_path / "store")


@pytest.fixture
def make_store(store_path: str, request: pytest.FixtureRequest) -> Iterator[Callable[..., Store]]:
    """Makes the store with volumes of the given names, open; its own, or as the client of who serves it."""
    made: list[Store] = []

    def make(*names: str, log_size: int = 256 * 1024) -> Store:
        store = Store.create(store_path, log_size=log_size, background=False)
        store = served(store) if request.param == "served" else store
        made.append(store)
        for name in names:
            store.create_volume(name, SIZE)
        return store

    yield make
    for store in made:
        store.close()
