"""The power goes while a process works on a mounted ext4 or XFS, again and again.

A child works on a volume, a store with snapshot sets or a target of backups, and tells a pipe what was acknowledged. At
a random moment the file system is shut down without its log being written (FS_IOC_SHUTDOWN, as in the file systems' own
tests). It is mounted again, what is there is opened, checked, and compared with what had been acknowledged before the
shutdown began: an fdatasync that races with it may say 0 for nothing. Then the next child goes on with the same files.

    python -P tests/torture/power_cut.py --seconds 40 --seed 1
    python -P tests/torture/power_cut.py --seconds 40 --seed 1 --planted    # no barrier behind a record
"""

from __future__ import annotations

import random
import shutil
import sys
import time
from contextlib import ExitStack
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("crash", "model", "torture")]

from barriers import UnsyncedRecords  # noqa: E402
from crash_workload import shrink  # noqa: E402
from mounted import EXT4, XFS, Disk, disk, lacking, run_harness  # noqa: E402
from row import Tally  # noqa: E402
from told import AnyRunner, Notes, a_runner, conclude, look, some_life  # noqa: E402

from cowengine.core.iotable import KERNEL, IOTable  # noqa: E402

FILE_SYSTEMS = (EXT4, XFS)
CUTS_PER_FILE = 5
STEPS = 200  # more than a child lives to do
LIFE_SECONDS = 0.05  # at most, behind the opening


def cuts_on_one_file(at: Disk, seed: int, late: float, io: IOTable, tally: Tally) -> None:
    """Some power cuts under one volume or store, on a mounted disk."""
    rng = random.Random(seed)
    folder = at.place / "files"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    runner = a_runner(seed, folder, Notes(), io)
    runner.create()
    runner.close()
    for number in range(CUTS_PER_FILE):
        if time.monotonic() > late:
            return
        try:
            runner = cut(at, runner, rng)
        except Exception as error:
            tally.violation(f"seed {seed}, {at.file_system.name}, power cut {number}: {error!r}")
            return
        tally.count += 1


def cut(at: Disk, runner: AnyRunner, rng: random.Random) -> AnyRunner:
    steps, child = some_life(runner, rng, STEPS, LIFE_SECONDS)
    child.cut[0] = 1  # nothing that returns from now on counts
    at.power_cut()
    told = conclude(runner, steps, child.end())
    at.unmount()
    at.mount()
    return look(runner, told.expected)


def work(folder: Path, seed: int, seconds: float, planted: bool) -> Tally:
    reason = lacking(folder, FILE_SYSTEMS)
    tally = Tally(skipped=reason)
    if reason:
        return tally
    shrink()
    late = time.monotonic() + seconds
    with ExitStack() as stack:
        disks = [stack.enter_context(disk(folder, each)) for each in FILE_SYSTEMS]
        for each in disks:
            each.mount()
        while time.monotonic() < late and not tally.violations:
            io = UnsyncedRecords() if planted else KERNEL
            cuts_on_one_file(disks[seed % len(disks)], seed, late, io, tally)
            seed += 1
    return tally


if __name__ == "__main__":
    sys.exit(run_harness(work, "Cuts the power of file systems at work.", 40, "power cuts"))
