"""Plays histories of the machines for as long as it is told, each seed once, with `check` after each step.

    python -P tests/model/play.py --seconds 3600 --seed 1

A difference is printed with its shortest history, which is also what to turn into a test; the run goes on with the next
seed. Looking for the shortest takes minutes: with `--row` it is printed as it was found. Seeds that were played are
not worth playing again: what a seed gives follows from it and from the code. A seed is many histories here; the
scoreboard counts these. The last one is cut off when the time is up.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS / folder) for folder in ("model", "crash", "faults", "readers", "torture")]

import hypothesis  # noqa: E402
from clones_machine import ClonesMachine  # noqa: E402
from faults_machine import FaultsMachine, FaultsOnFileMachine  # noqa: E402
from hypothesis import HealthCheck, Phase, settings  # noqa: E402
from hypothesis.stateful import invariant, run_state_machine_as_test  # noqa: E402
from row import Tally as Row  # noqa: E402
from row import tell  # noqa: E402
from shared_machine import OTHERS, SharedFileMachine  # noqa: E402
from volume_machine import FileMachine, VolumeMachine  # noqa: E402

MACHINES: dict[str, type[VolumeMachine]] = {
    "memory": VolumeMachine, "file": FileMachine, "shared": SharedFileMachine, "clones": ClonesMachine,
    "faults": FaultsMachine, "faults on file": FaultsOnFileMachine,
}  # fmt: skip
HISTORIES_OF_A_SEED = 25
REPORT_SECONDS = 60.0


class TimeUp(KeyboardInterrupt):
    """No difference: Hypothesis lets it pass as it does Ctrl-C."""


@dataclass
class Tally:
    """What a run came to, and when it has to end."""

    late: float
    seeds: int = 0
    histories: int = 0
    steps: int = 0
    checks: int = 0
    snapshots: int = 0  # whose content was compared, each behind each step
    differing: bool = False  # in the seed that is being played: Hypothesis looks for the shortest history now
    differences: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """What another one came to as well."""
        self.seeds += other.seeds
        self.histories += other.histories
        self.steps += other.steps
        self.checks += other.checks
        self.snapshots += other.snapshots
        self.differences += other.differences

    def __str__(self) -> str:
        return (
            f"{self.seeds:,} seeds to their end, {self.histories:,} histories, {self.steps:,} steps, "
            f"{self.checks:,} checks, {self.snapshots:,} contents of snapshots, {len(self.differences)} differences"
        )


def counted(machine: type[VolumeMachine], tally: Tally, check_every: int) -> Any:
    """The machine, with `check` after each step, or after every so many."""

    class Counted(machine):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            if time.monotonic() > tally.late and not tally.differing:
                raise TimeUp
            super().__init__()
            tally.histories += 1

        def teardown(self) -> None:
            tally.differing = tally.differing or isinstance(sys.exc_info()[1], Exception)
            super().teardown()

        @invariant()
        def check_is_clean(self) -> None:
            tally.steps += 1
            if self.volume is not None:  # the machine's own invariant has read them all
                tally.snapshots += sum(not each.anchor for each in self.model.snapshots)
            if self.volume is not None and tally.steps % check_every == 0:
                tally.checks += 1
                assert self.volume.check().problems == []

    return Counted


def play(machine: type[VolumeMachine], seed: int, chosen: argparse.Namespace, tally: Tally) -> None:
    """The histories of one seed on one machine; what differs goes into the tally."""
    tally.differing = False
    played = hypothesis.seed(seed)(counted(machine, tally, chosen.check_every))
    limits = settings(
        max_examples=HISTORIES_OF_A_SEED,
        stateful_step_count=chosen.steps,
        phases=[Phase.generate] if chosen.row else list(Phase),
        database=None,
        deadline=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(played, settings=limits)
    except TimeUp:
        return
    except Exception as error:
        trace = "".join(traceback.format_exception(error))
        tally.differences.append(f"seed {seed} (--seed {seed} plays it first), {machine.__name__}:\n{trace}")
    tally.seeds += 1


def play_some(chosen: argparse.Namespace, first: int, late: float) -> Tally:
    """Every so many-th seed from the first one on, as one of the workers."""
    machines = [MACHINES[name] for name in chosen.machine or MACHINES]
    tally, reported, seed = Tally(late), time.monotonic(), first
    while time.monotonic() < late:
        play(machines[seed % len(machines)], seed, chosen, tally)
        seed += chosen.workers
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            print(f"before seed {seed}: {tally}", file=sys.stderr, flush=True)
    OTHERS.end()
    return tally


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Plays histories of volumes against the model.")
    parser.add_argument("--seconds", type=float, default=600.0, help="how long (default 600)")
    parser.add_argument("--seed", type=int, default=1, help="the first; the others follow")
    parser.add_argument("--steps", type=int, default=60, help="of a history, at most (default 60)")
    parser.add_argument("--check-every", type=int, default=1, metavar="N", help="check after every N steps (default 1)")
    parser.add_argument("--machine", action="append", choices=MACHINES, help="default: all in turn")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument("--row", action="store_true", help="end with a line of JSON")
    chosen = parser.parse_args(arguments)
    late, firsts = time.monotonic() + chosen.seconds, range(chosen.seed, chosen.seed + chosen.workers)
    with ProcessPoolExecutor(chosen.workers) as workers:
        tallies = list(workers.map(play_some, repeat(chosen), firsts, repeat(late)))
    total = Tally(late)
    for tally in tallies:
        total.add(tally)
    also = {"R18": total.snapshots}
    return tell(Row(total.histories, total.differences, more=str(total), also=also), chosen, "histories")


if __name__ == "__main__":
    sys.exit(main())
