"""A store and its VFS for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

import cowengine
from cowengine.sqlite import VFS

CAPACITY = 1 << 30


@pytest.fixture
def store(tmp_path: Path) -> Iterator[cowengine.Store]:
    with cowengine.Store.create(tmp_path / "store") as made:
        yield made


@pytest.fixture
def vfs(store: cowengine.Store) -> Iterator[VFS]:
    with VFS(store, capacity=CAPACITY) as made:
        yield made
        # After a test that failed there may be some.
        for connection in apsw.connections():
            connection.close(True)
