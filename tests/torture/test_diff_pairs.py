"""The comparison of all pairs as the scoreboard runs it, and the off-by-ones that it has to find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from diff_pairs import PLANTED

RunHarness = Callable[..., dict[str, Any]]
SCRIPT = "tests/torture/diff_pairs.py"


def test_lists_of_changes_are_what_the_bytes_say(run_harness: RunHarness) -> None:
    row = run_harness(SCRIPT, "--seconds", "6", "--seed", "7")
    assert row["violations"] == 0, row["said"]
    assert row["count"]


@pytest.mark.parametrize("planted", PLANTED)
def test_an_off_by_one_is_found(run_harness: RunHarness, planted: str) -> None:
    row = run_harness(SCRIPT, "--seconds", "60", "--history", "1000001", "--planted", planted)
    assert row["violations"] == 1, row["said"]
    assert "compare all" in row["said"]
