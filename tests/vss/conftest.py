"""A real store with three small volumes, and a journal for scripted writers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Isolated writers are made again in another process, which has to find the module of their class.
sys.path.insert(0, str(Path(__file__).parent))

from remotely import both_ways, served
from scripted_writers import Journal

VOLUME_BYTES = 1 << 20


# What has to do with the store; how writers fail is the same wherever it is.
SERVED = {"test_backup_job", "test_cancel", "test_guide", "test_order", "test_queue"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    both_ways(metafunc, "store", served=metafunc.module.__name__.rpartition(".")[2] in SERVED)


@pytest.fixture
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    from cowengine.store import Store

    made = Store.create(tmp_path / "store")
    with served(made) if request.param == "served" else made as store:
        for name in ("a", "b", "c"):
            store.create_volume(name, VOLUME_BYTES)
        yield store


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    folder = tmp_path / "journal"
    folder.mkdir()
    yield Journal(folder / "journal")
    (folder / "release").touch()  # lets go of everybody who hangs
