"""The scoreboard: every harness for its share of the time, one row each, and a ledger that sums all runs.

    make torture MINUTES=8
    python -P tests/torture/torture.py --minutes 60 --only R1 R11      # these rows alone share the hour
    python -P tests/torture/torture.py --totals                        # what all runs in the ledger come to

A harness is a script that works for `--seconds` from `--seed` on and tells people what it found; with `--row` its last
line is JSON: {"count": .., "violations": .., "seed": .., "skipped": ".."}. Each runs in a process of its own: one that
dies is a row that failed, and the others go on. Exit status 1 if a row has a violation or told nothing.

No seed is used twice: those of a run begin at a thousand for each second since 2026, and no harness uses as many.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
YEAR_2026 = 1_767_225_600  # seconds since 1970: what the seeds count from
GOAL_MINUTES = 8  # the goals are those of such a run on two cores
GRACE_SECONDS = 120  # what a harness may need beyond its time, to build its inputs and to end


@dataclass(frozen=True)
class Line:
    """A row of the scoreboard: `share` is its part of the processors' time, `goal` its count in eight minutes."""

    name: str
    what: str
    script: str
    share: float
    goal: int
    every_core: bool = False  # it has workers of its own, and runs alone
    grows: bool = True  # more time finds more; else the count is of a list


LINES = (
    Line("R1", "distinct crash states", "tests/crash/explorer.py", 0.45, 500_000, every_core=True),
    Line("R4", "kills", "tests/crash/kill_nine.py", 0.06, 2_000),
    Line("R16", "planted bugs caught", "tests/torture/planted.py", 0.08, 30, grows=False),
)


@dataclass(frozen=True)
class Row:
    """What a harness told, as the ledger keeps it. `failure` is why it told nothing, or empty."""

    line: str
    commit: str
    seconds: int
    count: int = 0
    violations: int = 0
    seed: int = 0
    skipped: str = ""
    failure: str = ""

    @property
    def good(self) -> bool:
        return not self.violations and not self.failure


def commit_of_checkout() -> str:
    run = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return run.stdout.strip() or "unknown"


def run_line(line: Line, seconds: int, seed: int, workers: int, commit: str) -> Row:
    """Runs one harness and takes its last line; all else that it says goes to this process's error stream."""
    command = [sys.executable, "-P", str(ROOT / line.script), "--row", "--seconds", str(seconds), "--seed", str(seed)]
    command += ["--workers", str(workers)] if line.every_core else []
    started = time.monotonic()

    def row(**told: Any) -> Row:
        return Row(line.name, commit, round(time.monotonic() - started), **({"seed": seed} | told))

    try:
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=2 * seconds + GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        return row(failure="it did not end")
    *said, last = run.stdout.splitlines() or [""]
    sys.stderr.writelines(f"{line.name}: {text}\n" for text in said)
    try:
        return row(**{field: json.loads(last)[field] for field in ("count", "violations", "seed", "skipped")})
    except (ValueError, KeyError, TypeError):
        return row(failure=f"it told nothing and ended with status {run.returncode}")


def run_lines(lines: Sequence[Line], minutes: float, seed: int, workers: int) -> list[Row]:
    """The rows, in the order of `lines`. What takes every core runs first and alone, then the others side by side."""
    commit, shares = commit_of_checkout(), sum(line.share for line in lines)

    def run(line: Line) -> Row:
        cores = 1 if line.every_core else workers
        return run_line(line, max(1, round(minutes * 60 * cores * line.share / shares)), seed, workers, commit)

    rows = {line: run(line) for line in lines if line.every_core}
    longest_first = sorted((line for line in lines if not line.every_core), key=lambda line: -line.share)
    with ThreadPoolExecutor(workers) as lanes:
        rows |= dict(zip(longest_first, lanes.map(run, longest_first), strict=True))
    return [rows[line] for line in lines]


def table(lines: Sequence[Line], rows: Sequence[Row], minutes: float) -> str:
    """One row each; a count below its part of the goal is named, but is no failure: the machine may be slow."""
    told = [f"{'':4} {'what':44} {'count':>13} {'of':>13} {'violations':>10}   seed"]
    for line, row in zip(lines, rows, strict=True):
        goal = round(line.goal * minutes / GOAL_MINUTES) if line.grows else line.goal
        notes = [f"seed {row.seed}", row.failure, f"skipped: {row.skipped}" if row.skipped else ""]
        notes.append("below its goal" if row.count < goal and not row.skipped else "")
        what = f"{line.name:4} {line.what:44} {row.count:>13,} {goal:>13,} {row.violations:>10}   "
        told.append(what + ", ".join(filter(None, notes)))
    return "\n".join(told)


def totals(ledger: Path) -> str:
    """What all runs in the ledger come to, a line for each row of the scoreboard."""
    rows = [Row(**json.loads(text)) for text in ledger.read_text().splitlines()]
    told = []
    for line in LINES:
        runs = [row for row in rows if row.line == line.name]
        count, violations, seconds = (
            sum(getattr(row, field) for row in runs) for field in ("count", "violations", "seconds")
        )
        told.append(
            f"{line.name:4} {line.what:44} {count:>15,} in {seconds / 3600:.1f} h, {len(runs)} runs, "
            f"{violations} violations"
        )
    return "\n".join(told)


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs every harness and prints one row for each.")
    parser.add_argument("--minutes", type=float, default=GOAL_MINUTES)
    parser.add_argument("--seed", type=int, help="default: one that no run before had")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--only", nargs="+", choices=[line.name for line in LINES], metavar="ROW", help="these rows alone"
    )
    parser.add_argument(
        "--ledger", type=Path, default=ROOT / "build" / "torture-ledger.jsonl", help="every row is added to it"
    )
    parser.add_argument("--totals", action="store_true", help="print what the ledger comes to, and run nothing")
    arguments = parser.parse_args()
    if arguments.totals:
        print(totals(arguments.ledger))
        return 0
    seed = int((time.time() - YEAR_2026) * 1000) if arguments.seed is None else arguments.seed
    lines = [line for line in LINES if not arguments.only or line.name in arguments.only]
    rows = run_lines(lines, arguments.minutes, seed, arguments.workers)
    arguments.ledger.parent.mkdir(parents=True, exist_ok=True)
    with arguments.ledger.open("a") as ledger:
        ledger.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
    print(table(lines, rows, arguments.minutes))
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
