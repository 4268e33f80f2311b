"""The soak finds leaks that are planted, and none where there are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from growth import BOUNDS, Growth

RunHarness = Callable[..., dict[str, Any]]
SHORT = ("--commits", "6000", "--rounds", "600", "--seed", "1")
STEPS = range(0, 1_000_000, 10_000)


def test_a_short_life_leaves_nothing_behind(run_harness: RunHarness) -> None:
    row = run_harness("tests/torture/soak.py", *SHORT)
    assert (row["count"], row["violations"]) == (6600, 0), row["said"]


@pytest.mark.parametrize(
    ("leak", "said"), [("descriptor", "descriptors and threads"), ("slot", "compacted file"), ("record", "leaked")]
)
def test_a_planted_leak_is_found(run_harness: RunHarness, leak: str, said: str) -> None:
    row = run_harness("tests/torture/soak.py", *SHORT, "--planted", leak)
    assert row["violations"]
    assert said in row["said"]


def grown(name: str, values: list[int]) -> list[str]:
    growth = Growth()
    for steps, value in zip(STEPS, values, strict=True):
        growth.add(steps, {name: value})
    return growth.violations()


@pytest.mark.parametrize("name", [*BOUNDS, "engine.some.list"])
def test_a_number_that_goes_on_growing_is_a_violation(name: str) -> None:
    assert grown(name, [5000] * len(STEPS)) == []
    (found,) = grown(name, [at * (BOUNDS["file bytes"].noise // 20) for at in range(len(STEPS))])
    assert found.startswith(f"{name}: grew by")


def test_what_comes_to_an_end_in_the_first_half_is_none() -> None:
    assert grown("descriptors", [min(at, 40) for at in range(len(STEPS))]) == []
