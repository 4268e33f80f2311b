"""A store with volumes to take sets over, closed at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cowengine import Store

SIZE = 1024 * 1024


@pytest.fixture
def store_path(tmp_path: Path) -> str:
    return str(tmp_path / "store")


@pytest.fixture
def make_store(store_path: str) -> Iterator[Callable[..., Store]]:
    """Makes the store with volumes of the given names, open."""
    made: list[Store] = []

    def make(*names: str, log_size: int = 256 * 1024) -> Store:
        store = Store.create(store_path, log_size=log_size, background=False)
        made.append(store)
        for name in names:
            store.create_volume(name, SIZE)
        return store

    yield make
    for store in made:
        store.close()
