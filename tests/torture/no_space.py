"""The tests of tests/full_disk as a harness: how many disks were full under an operation, on ext4, XFS and a quota.

The tests run in an order that follows from the seed, as long as there is time.

    python -P tests/torture/no_space.py --seconds 60 --seed 1
    python -P tests/torture/no_space.py --seconds 60 --seed 1 --planted    # nothing is kept back for deletes
"""

from __future__ import annotations

import os
import random
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]

import pytest  # noqa: E402
from mounted import in_own_namespace  # noqa: E402
from row import Tally, harness_parser, tell  # noqa: E402

from cowengine.engine import engine  # noqa: E402

FOLDER = Path(__file__).parents[1] / "full_disk"


class Counter:
    """Sums what pytest reports."""

    def __init__(self, seed: int, late: float) -> None:
        self.seed = seed
        self.late = late
        self.tally = Tally()
        self.tests = self.ended = 0
        self.skipped: set[str] = set()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        random.Random(self.seed).shuffle(items)
        self.tests = len(items)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.tally.violations:  # what its teardown says then is no second one
            self.tally.violation(f"pytest {report.nodeid}\n{report.longreprtext}")
        elif report.skipped and isinstance(report.longrepr, tuple):
            self.skipped.add(report.longrepr[2])
        elif report.when == "call":
            self.ended += 1
            self.tally.count += int(str(dict(report.user_properties).get("disks", 1)))

    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        if time.monotonic() > self.late or self.tally.violations:
            item.session.shouldstop = "the time is up, or something was found"


def work(seed: int, seconds: float, folder: Path | None) -> Tally:
    """The disks are images in a folder, else wherever pytest has its own."""
    counter = Counter(seed, time.monotonic() + seconds)
    where = [f"--basetemp={folder / 'tests'}"] if folder else []
    with redirect_stdout(sys.stderr):
        pytest.main([str(FOLDER), "-q", "-p", "no:cacheprovider", *where], plugins=[counter])
    counter.tally.skipped = "; ".join(sorted(counter.skipped))
    counter.tally.more = f"{counter.ended} of {counter.tests} tests"
    return counter.tally


def main() -> int:
    parser = harness_parser("Fills disks up under every operation.", seconds=60)
    parser.add_argument("--planted", action="store_true", help="with a fault that has to be found")
    arguments = parser.parse_args()
    if arguments.planted:
        engine.RESERVE_SLOTS = engine.RESERVE_SLOTS_SMALL = 0

    def harness(folder: Path | None = None) -> int:
        return tell(work(arguments.seed, arguments.seconds, folder), arguments, "disks filled up")

    return in_own_namespace(harness) if os.geteuid() == 0 else harness()


if __name__ == "__main__":
    sys.exit(main())
