"""The scoreboard: every harness for its share of the time, one row each, and a ledger that sums all runs.

    make torture MINUTES=8
    python -P tests/torture/torture.py --minutes 60 --only R1 R11      # these rows alone share the hour
    python -P tests/torture/torture.py --totals                        # what all runs in the ledger come to

A harness is a script that works for `--seconds` from `--seed` on and tells people what it found; with `--row` its last
line is JSON: {"count": .., "violations": .., "seed": .., "skipped": "..", "also": {}}; `also` has counts of rows that
it looks after on its way. Each runs in a process of its own: one that dies is a row that failed, and the others go on.
Exit status 1 if a row has a violation or told nothing.

No seed is used twice: those of a run begin at a thousand for each second since 2026, and no harness uses as many.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]

from torture_ledger import LEDGER, Ledger  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
YEAR_2026 = 1_767_225_600  # seconds since 1970: what the seeds count from
GOAL_MINUTES = 8  # the goals are those of such a run on two cores
LISTS_PART = 0.6  # of the time, at most: in a short run lists are cut off, too
GRACE_SECONDS = 120  # what a harness may need beyond its time, to build its inputs and to end


@dataclass(frozen=True)
class Line:
    """A row of the scoreboard: in its `seconds` of a run of eight minutes it should come to `goal`."""

    name: str
    what: str
    script: str
    seconds: int
    goal: int
    arguments: tuple[str, ...] = ()
    every_core: bool = False  # it has workers of its own, and runs alone
    grows: bool = True  # more time finds more; else it is a list, which takes about as long whatever the time
    along: str = ""  # the row whose harness counts this as well, without time of its own


OFTEN = ("--steps", "50", "--check-every", "50")  # many histories rather than long ones

QUICK = ("--quick", "--lots", "1", "--workers", "1")  # the lot that all were looked at of

LINES: tuple[Line, ...] = (
    Line("R1", "crash states", "tests/crash/explorer.py", 130, 500_000, ("--depth", "2"), every_core=True),
    Line("R2", "all sequences of two steps", "", 0, 2_073, along="R1", grows=False),
    Line("R3", "calls that fail", "tests/faults/every_call.py", 160, 24_000, grows=False),
    Line("R4", "kills of volumes, stores, backups", "tests/crash/kill_nine.py", 78, 2_000),
    Line("R5", "power cuts, ext4 and XFS", "tests/torture/power_cut.py", 5, 40),
    Line("R6", "states of a block log, mounted", "tests/torture/block_log.py", 40, 500),
    Line("R7", "barriers failed by a broken disk", "tests/torture/writeback_error.py", 13, 60),
    Line("R8", "disks filled up under an operation", "tests/torture/no_space.py", 18, 400),
    Line("R9", "damaged bits, sectors and slots", "tests/torture/flips.py", 140, 100_000),
    Line("R10", "executions of fuzzed parsers", "tests/torture/fuzz.py", 136, 5_000_000),
    Line("R11", "histories against the model", "tests/model/play.py", 80, 2_000, OFTEN, every_core=True),
    Line("R12", "branches of engine and format taken", "tests/torture/branches.py", 170, 2_000, grows=False),
    Line("R12k", "branches of the kernels taken", "tests/torture/kernel_branches.py", 13, 1_400, grows=False),
    Line("R13", "mutants of engine and format killed", "tests/torture/mutants.py", 45, 30, QUICK),
    Line("R14", "tests and calls under sanitizers", "tests/torture/sanitized.py", 32, 15_000),
    Line("R15", "states of the Spin model", "tests/torture/spin_models.py", 55, 3_000_000, grows=False),
    Line("R16", "planted bugs caught", "tests/torture/planted.py", 60, 30),
    Line("R17", "pairs of versions against their bytes", "tests/torture/diff_pairs.py", 32, 100_000),
    Line("R18", "snapshots read again behind a step", "", 0, 75_000, along="R11"),
    Line("R19", "snapshots deleted, and nothing leaked", "", 0, 5_000, along="R22"),
    Line("R20", "shapes of CVEs refused", "tests/hostile/cve_shapes.py", 4, 40, grows=False),
    Line("R21", "paths, rights, locks, forks, nonces", "tests/torture/security_row.py", 55, 60, grows=False),
    Line("R22", "commits and snapshots of a soak", "tests/torture/soak.py", 18, 60_000),
)


@dataclass(frozen=True)
class Row:
    """What a harness told. `failure` is why it told nothing, or empty."""

    seed: int
    seconds: float
    count: int = 0
    violations: int = 0
    skipped: str = ""
    failure: str = ""
    also: Mapping[str, int] = field(default_factory=dict)  # counts of rows that have no harness of their own

    @property
    def good(self) -> bool:
        return not self.violations and not self.failure


def run_line(line: Line, seconds: int, seed: int, workers: int) -> Row:
    """Runs one harness and takes its last line; all else that it says goes to this process's error stream."""
    command = [sys.executable, "-P", str(ROOT / line.script), "--row", "--seconds", str(seconds), "--seed", str(seed)]
    command += [*line.arguments, *(["--workers", str(workers)] if line.every_core else [])]
    started = time.monotonic()
    try:
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=2 * seconds + GRACE_SECONDS)
    except subprocess.TimeoutExpired as late:
        sys.stderr.write(late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or "")
        return Row(seed, time.monotonic() - started, failure="it did not end")
    took = time.monotonic() - started
    *said, last = run.stdout.splitlines() or [""]
    sys.stderr.writelines(f"{line.name}: {text}\n" for text in said)
    try:
        told = json.loads(last)
        also = told.get("also", {})
        return Row(told["seed"], took, told["count"], told["violations"], told["skipped"], also=also)
    except (ValueError, KeyError, TypeError):
        return Row(seed, took, failure=f"it told nothing and ended with status {run.returncode}")


def seconds_of(lines: Sequence[Line], minutes: float, lanes: int) -> dict[Line, int]:
    """How long each may take, so that all come to these minutes. What lists leave is shared by the lines that grow.

    A list ends when it is done. It has twice the time that it takes, as nothing is gained by half a list.
    """
    all_seconds = minutes * 60 * lanes
    taken = {line: line.seconds * (lanes if line.every_core else 1) for line in lines}
    lists = sum(taken[line] for line in lines if not line.grows)
    part = min(1.0, LISTS_PART * all_seconds / lists) if lists else 1.0
    others = sum(taken[line] for line in lines if line.grows)
    share = (all_seconds - part * lists) / others if others else 1.0
    if minutes >= GOAL_MINUTES:
        share = max(share, 1.0)  # every goal can be reached, though all of them take nearly nine minutes
    scales = {True: share, False: 2.0 if part == 1.0 else part}
    return {line: max(1, round(scales[line.grows] * line.seconds)) for line in lines}


def run_lines(lines: Sequence[Line], minutes: float, seed: int, workers: int, ledger: Path) -> list[Row]:
    """The rows, in the order of `lines`. What takes every core runs first and alone, then the others side by side.

    A line that goes along with another is told by that one's harness, and needs it among the lines.
    """
    lanes = workers + 1  # those that run side by side: some of them wait for a disk
    limits = seconds_of(lines, minutes, lanes)

    def run(line: Line) -> Row:
        kept = Ledger(ledger, line.what)
        kept.begin(seed)
        if line.along:
            told = rows[next(other for other in lines if other.name == line.along)]
            row = replace(told, count=told.also.get(line.name, 0))
        else:
            row = run_line(line, limits[line], seed, workers)
        kept.note(done=not row.failure, count=row.count, violations=row.violations, seconds=round(row.seconds, 1))
        return row

    rows = {line: run(line) for line in lines if line.every_core}
    rest = (line for line in lines if not line.every_core and not line.along)
    longest_first = sorted(rest, key=lambda line: -line.seconds)
    with ThreadPoolExecutor(lanes) as pool:
        rows |= dict(zip(longest_first, pool.map(run, longest_first), strict=True))
    rows |= {line: run(line) for line in lines if line.along}
    return [rows[line] for line in lines]


def table(lines: Sequence[Line], rows: Sequence[Row], minutes: float) -> str:
    """One row each; a count below its part of the goal is named, but is no failure: the machine may be slow."""
    told = [f"{'':4} {'what':36} {'count':>11} {'goal':>11} {'violations':>10} {'seconds':>8}  seed"]
    for line, row in zip(lines, rows, strict=True):
        goal = round(line.goal * minutes / GOAL_MINUTES) if line.grows else line.goal
        notes = [str(row.seed), row.failure, f"skipped: {row.skipped}" if row.skipped else ""]
        notes.append("below its goal" if row.count < goal and not row.skipped else "")
        numbers = f"{row.count:>11,} {goal:>11,} {row.violations:>10} {row.seconds:>8.0f}"
        told.append(f"{line.name:4} {line.what:36} {numbers}  {', '.join(filter(None, notes))}")
    return "\n".join(told)


def totals(ledger: Path) -> str:
    """What all runs in the ledger come to, a line for each row of the scoreboard."""
    told = []
    for line in LINES:
        sums = Ledger(ledger, line.what).totals()
        hours, count, violations = sums.get("seconds", 0) / 3600, sums.get("count", 0), sums.get("violations", 0)
        told.append(
            f"{line.name:4} {line.what:36} {count:>15,} in {hours:.1f} h, {sums['runs']} runs, {violations} violations"
        )
    return "\n".join(told)


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs every harness and prints one row for each.")
    parser.add_argument("--minutes", type=float, default=GOAL_MINUTES)
    parser.add_argument("--seed", type=int, help="default: one that no run before had")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    names = [line.name for line in LINES if not line.along]
    parser.add_argument("--only", nargs="+", choices=names, metavar="ROW", help=f"some of {', '.join(names)}")
    parser.add_argument("--ledger", type=Path, default=LEDGER, help=f"file that sums all runs; default {LEDGER}")
    parser.add_argument("--totals", action="store_true", help="print what the ledger comes to, and run nothing")
    arguments = parser.parse_args()
    if arguments.totals:
        print(totals(arguments.ledger))
        return 0
    seed = int((time.time() - YEAR_2026) * 1000) if arguments.seed is None else arguments.seed
    lines = [line for line in LINES if not arguments.only or (line.along or line.name) in arguments.only]
    rows = run_lines(lines, arguments.minutes, seed, arguments.workers, arguments.ledger)
    print(table(lines, rows, arguments.minutes))
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
