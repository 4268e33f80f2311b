"""Twenty thousand crash states, no violation. The command line of explorer.py does millions."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from itertools import islice
from pathlib import Path

import explorer
import pytest
from crash_workload import ALPHABET, sequence, sequence_count
from explorer import Plan, exhaustive_tasks, random_tasks, run_task, summary, sweep
from torture_ledger import Ledger

STATES = 20000


def test_every_crash_state_recovers_to_a_promised_commit() -> None:
    done = sweep(random_tasks(1), STATES, multiprocessing.cpu_count())
    tally = done.total
    print(summary(tally, done.seconds))
    assert not tally.violations, tally.violations[0]
    assert tally.distinct >= STATES
    assert min(tally.kills, tally.failed_barriers, tally.rotten) > 20, "a kind of fault was hardly tried"
    assert min(tally.recovery_states, tally.killed_states, tally.failed_states) > 500
    assert tally.second_recovery_states > 50


def test_a_task_reaches_the_same_states_each_time() -> None:
    """A violation is printed with its task's name: that must be enough to see it again."""
    first, second = (run_task("random:5", Plan(images=10)) for _ in range(2))
    assert first.states == second.states
    assert first.recoveries == second.recoveries


def test_sequences_of_one_step() -> None:
    """Some of them; the command line does all of two steps."""
    for name in [name for name in exhaustive_tasks(1) if int(name.split(":")[1]) % 9 == 4]:
        assert run_task(name, Plan(images=16, nested=0, kills=0.02)).violations == []


def test_short_sequences_are_complete() -> None:
    letters = [("a",), ("b",), ("c",)]
    found = [sequence(letters, number) for number in range(sequence_count(letters, 2))]
    assert len(set(found)) == len(found) == 1 + 3 + 9
    assert found[:4] == [(), (("a",),), (("b",),), (("c",),)]
    assert len({*exhaustive_tasks(2)}) > 2 * len(ALPHABET) ** 2


def test_a_sequence_is_cut_in_its_last_step() -> None:
    """What comes before is another sequence, so that no state is opened for each of those that begin alike."""
    letters = [ALPHABET.index(step) for step in (("write", 2, 3), ("flush",))]
    name = f"exhaustive:{2 * (1 + len(ALPHABET) + letters[0] + len(ALPHABET) * letters[1])}"
    assert explorer.make_task(name)[1][-2:] == (("write", 2, 3), ("flush",))
    whole, last = (run_task(each, Plan(images=4, nested=0, kills=0, rot=0)) for each in ("exhaustive:0", name))
    assert whole.barriers == 3  # of the prelude, and the end
    assert last.barriers == 2  # data and record, and the end


def test_a_failing_history_is_told_with_its_shortest_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the step that makes a policy durable does nothing."""
    monkeypatch.setattr(explorer.Runner, "_policy", lambda *_: None)
    name = next(name for name in random_tasks(1) if run_task(name, explorer.SIMPLE).violations)
    steps = explorer.shortest(name, seconds=600)
    assert steps[-1] == ("policy",)
    assert len(steps) <= 2 < len(explorer.make_task(name)[1])


def test_a_row_and_its_ledger(tmp_path: Path) -> None:
    """Two runs take two seeds, and the ledger adds them up; a seed that is there is not counted again."""
    kept = tmp_path / "ledger.jsonl"
    command = [sys.executable, "-P", explorer.__file__, "--seconds", "0.1", "--row", "--workers", "1"]
    command += ["--ledger", str(kept)]
    rows = []
    for more in ([], [], ["--seed", "2"]):
        run = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
        rows.append(json.loads(run.stdout.splitlines()[-1]))
    assert [row["seed"] for row in rows] == [1, 2, 2]
    assert all(row["count"] > 50 and row["violations"] == 0 and row["skipped"] == "" for row in rows)
    totals = Ledger(kept, "crash states").totals()
    assert totals["count"] == rows[0]["count"] + rows[1]["count"]
    assert (totals["runs"], totals["seeds"]) == (2, "1-2")


def test_tasks_of_two_seeds_are_different_ones() -> None:
    assert not set(islice(random_tasks(1), 1000)) & set(islice(random_tasks(2), 1000))
