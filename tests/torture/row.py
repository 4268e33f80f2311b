"""What every harness here says in the end: to people, or with `--row` a last line of JSON for the scoreboard."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from dataclasses import dataclass, field

SHOWN = 5  # violations in full
STARTED = time.monotonic()


@dataclass
class Tally:
    """What was counted, what broke, and why nothing or not all was looked at."""

    count: int = 0
    violations: list[str] = field(default_factory=list)
    skipped: str = ""
    more: str = ""  # for people

    def violation(self, trace: str) -> None:
        """A promise was broken: the seed, and the shortest story that tells how."""
        self.violations.append(trace)


def tell(tally: Tally, arguments: Namespace, what: str) -> int:
    """Prints the result; the exit status of the harness."""
    for trace in tally.violations[:SHOWN]:
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
        print(json.dumps({**row, "skipped": tally.skipped}), flush=True)
    return 1 if tally.violations else 0
