"""Plays histories of the machines for as long as it is told, each seed once, with `check` after each step.

    python tests/model/play.py --minutes 60 --seed 1

A difference is printed with its shortest history, which is also what to turn into a test; the run then goes on with the
next seed. Seeds that were played are not worth playing again: what a seed gives follows from it and from the code.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS / folder) for folder in ("model", "crash", "readers")]

import hypothesis  # noqa: E402
from clones_machine import ClonesMachine  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from hypothesis.stateful import invariant, run_state_machine_as_test  # noqa: E402
from shared_machine import OTHERS, SharedFileMachine  # noqa: E402
from volume_machine import FileMachine, VolumeMachine  # noqa: E402

MACHINES: dict[str, type[VolumeMachine]] = {
    "memory": VolumeMachine, "file": FileMachine, "shared": SharedFileMachine, "clones": ClonesMachine,
}  # fmt: skip
HISTORIES_OF_A_SEED = 25
REPORT_SECONDS = 60.0


@dataclass
class Tally:
    """What a run came to."""

    seeds: int = 0
    histories: int = 0
    steps: int = 0
    checks: int = 0
    differences: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.seeds:,} seeds, {self.histories:,} histories, {self.steps:,} steps, {self.checks:,} checks, "
            f"{len(self.differences)} differences"
        )


def counted(machine: type[VolumeMachine], tally: Tally, check_every: int) -> Any:
    """The machine, with `check` after each step, or after every so many."""

    class Counted(machine):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            tally.histories += 1

        @invariant()
        def check_is_clean(self) -> None:
            tally.steps += 1
            if self.volume is not None and tally.steps % check_every == 0:
                tally.checks += 1
                assert self.volume.check().problems == []

    return Counted


def play(machine: type[VolumeMachine], seed: int, steps: int, tally: Tally, check_every: int) -> None:
    """The histories of one seed on one machine; what differs goes into the tally."""
    chosen = hypothesis.seed(seed)(counted(machine, tally, check_every))
    limits = settings(
        max_examples=HISTORIES_OF_A_SEED,
        stateful_step_count=steps,
        database=None,
        deadline=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(chosen, settings=limits)
    except Exception as error:
        tally.differences.append(f"seed {seed}, {machine.__name__}:\n{''.join(traceback.format_exception(error))}")
        print(tally.differences[-1], flush=True)
    tally.seeds += 1


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Plays histories of volumes against the model.")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long; the last seed is played to its end")
    parser.add_argument("--seed", type=int, default=1, help="the first; the others follow")
    parser.add_argument("--steps", type=int, default=60, help="of a history, at most (default 60)")
    parser.add_argument("--check-every", type=int, default=1, metavar="N", help="check after every N steps (default 1)")
    parser.add_argument("--machine", action="append", choices=MACHINES, help="default: all in turn")
    chosen = parser.parse_args(arguments)
    machines = [MACHINES[name] for name in chosen.machine or MACHINES]
    tally, began, reported, seed = Tally(), time.monotonic(), time.monotonic(), chosen.seed
    while time.monotonic() - began < chosen.minutes * 60:
        play(machines[seed % len(machines)], seed, chosen.steps, tally, chosen.check_every)
        seed += 1
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            print(f"{reported - began:.0f} s, seeds {chosen.seed} to {seed - 1}: {tally}", flush=True)
    OTHERS.end()
    print(f"{time.monotonic() - began:.0f} s, seeds {chosen.seed} to {seed - 1}: {tally}", flush=True)
    return 1 if tally.differences else 0


if __name__ == "__main__":
    sys.exit(main())
