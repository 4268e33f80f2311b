"""Twenty thousand crash states, no violation. The command line of explorer.py does two hundred thousand and more."""

from __future__ import annotations

import multiprocessing
import time

from crash_workload import ALPHABET
from explorer import SHORT, Plan, run_task, summary, sweep

STATES = 20000


def test_every_crash_state_recovers_to_a_promised_commit() -> None:
    started = time.monotonic()
    tally = sweep(STATES, seed=1, workers=multiprocessing.cpu_count())
    print(summary(tally, time.monotonic() - started))
    assert not tally.violations, tally.violations[0]
    assert len(tally.states) >= STATES
    assert min(tally.kills, tally.failed_barriers, tally.rotten) > 50, "a kind of fault was hardly tried"


def test_a_task_reaches_the_same_states_each_time() -> None:
    """A violation is printed with its task's name: that must be enough to see it again."""
    first, second = (run_task("random:5", Plan(images=10)) for _ in range(2))
    assert first.states == second.states
    assert first.recoveries == second.recoveries


def test_short_histories_are_complete() -> None:
    assert len(SHORT) == 1 + len(ALPHABET) + len(ALPHABET) ** 2
