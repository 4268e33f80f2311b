"""Kills a process that works on real files, with signal 9 at a random moment, reopens them and compares.

The child announces each step on a pipe and tells what came of it; the parent compares what the child left with that,
checks it, and sends the next child on the same files: a volume, a store with snapshot sets, or a target of backups.
kill -9 leaves the page cache, so a missing barrier is not seen here (the explorer sees it); what is seen is real files,
real timing, background threads and real locks.

    python -P tests/crash/kill_nine.py --seconds 60 --seed 1
    python -P tests/crash/kill_nine.py --seconds 60 --seed 1 --planted    # records that are written too late
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("crash", "model", "torture")]

from barriers import LateRecords  # noqa: E402
from crash_workload import Runner, shrink  # noqa: E402
from row import Tally, harness_parser, tell  # noqa: E402
from told import AnyRunner, Notes, a_runner, conclude, look, some_life  # noqa: E402

from cowengine.core.iotable import KERNEL, IOTable  # noqa: E402

STEPS = 100  # more than a child lives to do
KILLS_PER_FILE = 25
LIFE_SECONDS = 0.006  # at most, behind the opening
# A kill leaves what was written in any case; here no barrier has to wait for a disk.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Killer:
    """Kills children, file after file; all but the timing follows from the seed."""

    def __init__(self, folder: str | None, io: IOTable = KERNEL) -> None:
        self.folder = folder
        self.io = io
        self.tally = Tally()
        self.acknowledged = self.in_flight = self.in_recovery = self.files = self.volumes = 0

    def __str__(self) -> str:
        return (
            f"{self.files} files or stores, {self.volumes} of them volumes, {self.acknowledged:,} steps acknowledged, "
            f"{self.in_flight:,} kills within a step, {self.in_recovery:,} while opening"
        )

    def on_one_file(self, seed: int, kills: int) -> None:
        """So many kills of processes that work on one volume or store."""
        rng = random.Random(seed)
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            runner = a_runner(seed, Path(folder), Notes(), self.io)
            runner.create()
            runner.close()
            self.files += 1
            self.volumes += isinstance(runner, Runner)
            for number in range(kills):
                try:
                    runner = self.kill(runner, rng)
                except Exception as error:
                    self.tally.violation(f"seed {seed}, kill {number}: {error!r}")
                    return
                self.tally.count += 1

    def kill(self, runner: AnyRunner, rng: random.Random) -> AnyRunner:
        steps, child = some_life(runner, rng, STEPS, LIFE_SECONDS)
        lines = child.kill()
        told = conclude(runner, steps, lines)
        self.in_recovery += not lines
        self.acknowledged += told.acknowledged
        self.in_flight += told.in_flight
        return look(runner, told.expected)

    def kill_many(self, seed: int, kills: int, seconds: float = 1e9) -> None:
        """Until there were so many kills, the time is up, or something was found."""
        late = time.monotonic() + seconds
        while self.tally.count < kills and not self.tally.violations and time.monotonic() < late:
            self.on_one_file(seed, min(KILLS_PER_FILE, kills - self.tally.count))
            seed += 1


def main() -> int:
    parser = harness_parser("Kills a working process again and again.", seconds=60)
    parser.add_argument("--kills", type=int, default=1 << 40, help="end after so many")
    parser.add_argument("--folder", default=MEMORY)
    parser.add_argument("--planted", action="store_true", help="with a fault that has to be found")
    arguments = parser.parse_args()
    shrink()
    killer = Killer(arguments.folder, LateRecords() if arguments.planted else KERNEL)
    killer.kill_many(arguments.seed, arguments.kills, arguments.seconds)
    killer.tally.more = str(killer)
    return tell(killer.tally, arguments, "kills")


if __name__ == "__main__":
    sys.exit(main())
