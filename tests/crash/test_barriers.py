"""Every barrier is needed, and the explorer notices if it is gone.

A harness that finds no planted fault proves nothing: here each kind of barrier is switched off in turn (the engine
calls it, the disk ignores it), and histories are explored until a crash state breaks a promise.
"""

from __future__ import annotations

import pytest
from barriers import KINDS, kinds
from crash_explorer import Plan, abandon
from crash_workload import determinism
from explorer import make_task, run_task
from planted import Caught, hunt
from planted_bugs import BUGS

THOROUGH = Plan(images=60, nested=0.1, kills=0.5, rot=1.0, enough=1)


@pytest.mark.parametrize("name", [one.name for one in BUGS.values() if one.barrier])
def test_a_barrier_switched_off_is_caught(name: str) -> None:
    found = hunt(BUGS[name], seed=1)
    assert isinstance(found, Caught), found


def test_with_all_barriers_working_a_thorough_exploration_finds_nothing() -> None:
    """Else the tests above would pass for another reason."""
    for task in ("random:0", "random:1"):
        assert run_task(task, THOROUGH).violations == []


def test_every_kind_of_barrier_occurs() -> None:
    """Else a test above would switch nothing off."""
    seen: set[str] = set()
    for number in range(10):
        with determinism(number):
            runner, steps = make_task(f"random:{number}")
            runner.create()
            runner.run(steps)
            abandon(runner)
            seen |= set(kinds(runner.disk.start, runner.disk.journal).values())
    assert seen == set(KINDS)
