"""The model of fence, commit and reclamation as the scoreboard searches it, and its planted faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from spin_models import FAULTS, SETTINGS, Search

SCRIPT = "tests/torture/spin_models.py"
pytestmark = pytest.mark.needs("spin", "gcc")


@pytest.mark.parametrize("setting", ["without deletes", "without reads and flushes"])
def test_nothing_breaks_in_any_order(setting: str) -> None:
    search = Search(SETTINGS[setting])
    assert search.states > 100_000
    assert not search.fault, search.trace


@pytest.mark.parametrize("fault", ["FENCE_DOES_NOT_WAIT", "FREED_BEFORE_THE_BARRIER", "RULE_STAYS"])
def test_a_dropped_rule_is_found(run_harness: Callable[..., dict[str, Any]], fault: str) -> None:
    row = run_harness(SCRIPT, "--planted", fault)
    assert row["violations"] == 1, row["said"]
    assert f"{FAULTS[fault][0]} is dropped" in row["said"]
