"""The model test is of volumes with an index of names, which small ones do not have of themselves."""

from __future__ import annotations

import pytest

from cowengine.engine import hashindex, names


@pytest.fixture(autouse=True)
def small_volumes_have_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "KEPT_FROM", 1)
    monkeypatch.setattr(hashindex, "LOAD", 2)
