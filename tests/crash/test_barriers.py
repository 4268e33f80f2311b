"""Every barrier is needed, and the explorer would notice if it were gone.

A harness that finds no planted fault proves nothing: here each kind of barrier is switched off in turn (the engine
calls it, the disk ignores it), and histories are explored until a crash state breaks a promise.
"""

from __future__ import annotations

import time
from itertools import chain

import pytest
from barriers import KINDS, kinds, without
from crash_explorer import Plan, abandon
from crash_workload import determinism
from explorer import exhaustive_tasks, make_task, run_task

SECONDS = 600.0  # so that a fault of the harness ends
THOROUGH = Plan(images=60, nested=0.1, kills=0.5, rot=1.0, enough=1)


@pytest.mark.parametrize("name", KINDS)
def test_a_barrier_switched_off_is_caught(name: str) -> None:
    started = time.monotonic()
    for task in chain((f"random:{n}" for n in range(20)), exhaustive_tasks(2)):
        if run_task(task, THOROUGH, without(name)).violations:
            return
        assert time.monotonic() - started < SECONDS, f"no crash state needs the barrier: {name}"
    raise AssertionError(f"no crash state needs the barrier: {name}")


def test_with_all_barriers_working_the_same_exploration_finds_nothing() -> None:
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
