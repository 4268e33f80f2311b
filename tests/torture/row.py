"""What every harness here is asked for, and what it says: to people, or with `--row` to the scoreboard."""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, field

SHOWN = 5  # violations in full, unless told
STARTED = time.monotonic()


@dataclass
class Tally:
    """What was counted, what broke, and why nothing or not all was looked at."""

    count: int = 0
    violations: list[str] = field(default_factory=list)
    skipped: str = ""
    more: str = ""  # for people
    also: dict[str, int] = field(default_factory=dict)  # what it counts for other rows of the scoreboard, by name

    def violation(self, trace: str) -> None:
        """A promise was broken: the seed, and the shortest story that tells how."""
        self.violations.append(trace)


def harness_parser(description: str, seconds: float) -> ArgumentParser:
    """What every harness takes; `seconds` is what it works for unless told."""
    parser = ArgumentParser(description=description)
    parser.add_argument("--seconds", type=float, default=seconds)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--row", action="store_true", help="end with a line of JSON for the scoreboard")
    return parser


def tell(tally: Tally, arguments: Namespace, what: str, shown: int = SHOWN) -> int:
    """Prints the result; the exit status of the harness."""
    for trace in tally.violations[:shown]:
        print(trace)
    if tally.violations:
        print(f"again: python -P {sys.argv[0]} --seconds {arguments.seconds:g} --seed {arguments.seed}")
    elapsed = time.monotonic() - STARTED
    print(
        f"seed {arguments.seed}: {tally.count:,} {what}, {len(tally.violations)} violations, {elapsed:.0f} s"
        + (f"; {tally.more}" if tally.more else "")
        + (f"; NOT RUN: {tally.skipped}" if tally.skipped else "")
    )
    if arguments.row:
        row = {"count": tally.count, "violations": len(tally.violations), "seed": arguments.seed}
        print(json.dumps({**row, "skipped": tally.skipped, "also": tally.also}), flush=True)
    return 1 if tally.violations else 0
