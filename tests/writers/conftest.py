"""A store with two small volumes, and views of a job for events that are called by themselves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cowengine.vss import JobView


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Any]:
    from cowengine.store import Store

    with Store.create(tmp_path / "store") as made:
        for name in ("data", "wal"):
            made.create_volume(name, 1 << 20)
        yield made


@pytest.fixture
def job() -> Callable[..., JobView]:
    def make(seconds: float = 120.0, name: str = "job-1", volumes: tuple[str, ...] = ("data",)) -> JobView:
        return JobView(name, "snapshot", volumes, deadline=time.monotonic() + seconds, set_name="monday")

    return make
