"""What the harnesses have counted so far: counts are summed over runs, and no seed is run twice.

One JSON object a line. A run writes one when it begins, so that no other takes its seed, and more as it goes on; the
last line of a harness and seed holds. Who gives a seed that is there already wants to see that run again: it is not
counted twice.

    {"harness": "crash states", "seed": 7, "commit": "236491c", "began": "2026-11-23T05:16:11+00:00", "seconds": 200.1,
     "count": 512345, "violations": 0, "done": true, ...}
"""

from __future__ import annotations

import datetime
import fcntl
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
LEDGER = ROOT / "build" / "torture-ledger.jsonl"


class Ledger:
    """The ledger of one harness in a file, which other harnesses and processes share. `path` None: nothing is kept."""

    def __init__(self, path: str | Path | None, harness: str) -> None:
        self.path = None if path is None else Path(path)
        self.harness = harness
        self.entry: dict[str, Any] | None = None  # of the run that is counted

    def begin(self, seed: int | None) -> int:
        """Takes a seed, by default the first that no run has had; returns it."""
        with self._opened() as runs:
            seeds = {entry["seed"] for entry in runs}
            if seed is None:
                seed = next(number for number in range(1, len(seeds) + 2) if number not in seeds)
            if seed not in seeds:
                now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
                self.entry = {"harness": self.harness, "seed": seed, "commit": commit(), "began": now}
                self._append(count=0, violations=0, seconds=0.0, done=False)
        return seed

    def note(self, *, done: bool = False, **counts: Any) -> None:
        """What this run has counted until now."""
        with self._opened():
            self._append(done=done, **counts)

    def totals(self) -> dict[str, Any]:
        """Sums over all runs."""
        with self._opened() as runs:
            sums: dict[str, Any] = {"harness": self.harness, "runs": len(runs)}
            for name in dict.fromkeys(name for run in runs for name in run):
                numbers = [run.get(name, 0) for run in runs]
                if name != "seed" and all(isinstance(each, int | float) and each is not True for each in numbers):
                    sums[name] = round(sum(numbers), 1)
            sums["seeds"] = ranges(sorted(run["seed"] for run in runs))
            sums["commits"] = sorted({run["commit"] for run in runs})
            return sums

    @contextmanager
    def _opened(self) -> Iterator[list[dict[str, Any]]]:
        """The runs of this harness, while nobody else looks or writes."""
        if self.path is None:
            yield []
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            runs: dict[int, dict[str, Any]] = {}
            for line in file:
                entry = json.loads(line)
                if entry["harness"] == self.harness:
                    runs[entry["seed"]] = entry
            yield list(runs.values())

    def _append(self, **more: Any) -> None:
        if self.path is not None and self.entry is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(self.entry | more) + "\n")


def commit() -> str:
    """What is tested; with a + if files of the engine differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def ranges(numbers: list[int]) -> str:
    """1-3,7"""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
