"""The crash tests work on an engine with small constants; every other test of the same process must not."""

from __future__ import annotations

import pytest
from crash_workload import SMALL


@pytest.fixture(autouse=True)
def small_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in SMALL:
        monkeypatch.setattr(module, name, value)
