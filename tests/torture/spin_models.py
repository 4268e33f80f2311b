"""Fence, commit and reclamation in every order of their steps: fence.pml, searched to its end by Spin.

The model is searched in four settings, each without some of its processes: all of them at once would take too long.
Then each rule is dropped in turn, and the search has to find what that breaks. `count` is the states seen with all
rules kept.

    python -P tests/torture/spin_models.py
    python -P tests/torture/spin_models.py --planted FENCE_DOES_NOT_WAIT        # one rule dropped: what happens then
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]

from row import Tally, tell  # noqa: E402

MODEL = Path(__file__).with_name("fence.pml")
DEEPEST = 100_000
SETTINGS = {
    "without deletes": ("NO_DELETES",),
    "without reads and flushes": ("NO_READER", "NO_FLUSH"),
    "reads, two writers": ("TWO_WRITERS", "NO_FLUSH"),
    "two writes of each writer": ("WRITES=2", "NO_DELETES", "NO_READER"),
}
FAULTS = {  # the rule of docs/invariants.md that is dropped, and a setting in which that shows
    "IN_PLACE_ALWAYS": ("I1", "without deletes"),
    "TWO_WRITES_AT_ONCE": ("I2", "without reads and flushes"),
    "NO_DATA_BARRIER": ("I3", "without deletes"),
    "BARRIER_BEFORE_THE_BATCH": ("I3", "without deletes"),
    "ONE_ERA": ("I5", "reads, two writers"),
    "READERS_ARE_FORGOTTEN": ("I5", "reads, two writers"),
    "FENCE_DOES_NOT_WAIT": ("I6", "without deletes"),
    "FROZEN_LATE": ("I6", "without deletes"),
    "PUBLISHED_WITHIN_A_FENCE": ("I6", "without deletes"),
    "HOLDER_LATE": ("I6", "without deletes"),
    "FREED_AT_ONCE": ("I7", "without reads and flushes"),
    "FREED_BEFORE_THE_BARRIER": ("I7", "without reads and flushes"),
    "NO_COMMIT_LOCK": ("I8", "without reads and flushes"),
    "SHARED_IS_FREED": ("I13", "without reads and flushes"),
    "ANCESTORS_ARE_FORGOTTEN": ("I13", "without reads and flushes"),
    "CURSOR_NOT_RECORDED": ("I13", "without reads and flushes"),
    "RULE_MOVES_FIRST": ("I13", "without reads and flushes"),
    "RULE_STAYS": ("I13", "without reads and flushes"),
}
STORED = re.compile(r"(\d+) states, stored")
FOUND = re.compile(r"^pan:1: (.*)$", re.MULTILINE)


class Search:
    """What Spin says of the model with some switches set."""

    def __init__(self, switches: tuple[str, ...]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.folder = folder
            self.run("spin", "-a", *(f"-D{switch}" for switch in switches), str(MODEL))
            self.run("gcc", "-O2", "-w", "-DSAFETY", "-DCOLLAPSE", "-o", "pan", "pan.c")
            said = self.run("./pan", f"-m{DEEPEST}")
            stored, found = STORED.search(said), FOUND.search(said)
            if stored is None or "max search depth too small" in said:
                raise RuntimeError(said)
            self.states = int(stored[1])
            self.fault = found[1] if found else ""
            self.trace = (
                self.run("spin", "-t", "-p", *(f"-D{switch}" for switch in switches), str(MODEL)) if found else ""
            )

    def run(self, *command: str) -> str:
        if command[0] == "spin" and "-t" in command:
            command = (*command[:-1], "-k", f"{MODEL.name}.trail", command[-1])
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True).stdout


def work(planted: str | None, late: float) -> Tally:
    tally = Tally()
    if lacking := [tool for tool in ("spin", "gcc") if shutil.which(tool) is None]:
        tally.skipped = f"needs {', '.join(lacking)}"
        return tally
    if planted:
        search = Search((planted, *SETTINGS[FAULTS[planted][1]]))
        tally.count = search.states
        if search.fault:
            tally.violation(f"{search.trace}{planted} ({FAULTS[planted][0]} is dropped): {search.fault}")
        return tally
    for name, switches in SETTINGS.items():
        search = Search(switches)
        tally.count += search.states
        if search.fault:
            tally.violation(f"{search.trace}{name}: {search.fault}")
    found = 0
    for number, (fault, (rule, setting)) in enumerate(FAULTS.items()):
        if time.monotonic() > late:
            tally.skipped = f"the time was up: {len(FAULTS) - number} of {len(FAULTS)} planted faults"
            break
        if Search((fault, *SETTINGS[setting])).fault:
            found += 1
        else:
            tally.violation(f"{fault}: {rule} is dropped, and nothing is found")
    tally.more = f"{found} of {len(FAULTS)} planted faults found"
    return tally


def main() -> int:
    parser = ArgumentParser(description="Searches the model of fence, commit and reclamation to its end.")
    parser.add_argument("--seconds", type=float, default=60, help="no planted fault is begun later")
    parser.add_argument("--seed", type=int, default=1, help="of no effect: nothing here is random")
    parser.add_argument("--planted", choices=FAULTS, help="drops one rule")
    parser.add_argument("--row", action="store_true", help="end with a line of JSON")
    arguments = parser.parse_args()
    tally = work(arguments.planted, time.monotonic() + arguments.seconds)
    return tell(tally, arguments, "states")


if __name__ == "__main__":
    sys.exit(main())
