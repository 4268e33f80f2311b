"""The tests of paths, permissions, locks, forks, retention and nonces as a row of the scoreboard: each counts once.

    python -P tests/torture/security_row.py                            # all of them
    python -P tests/torture/security_row.py --tests tests/security     # or some

They are pytest's, run in a process of its own; those that need a user without rights become one. What could not be run
is named. The seed is that of Python's own generators, for what they draw.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

sys.path[:0] = [str(Path(__file__).parent)]

from row import Tally, harness_parser, tell  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
TESTS = (
    "tests/security",
    "tests/space/test_retention.py",
    "tests/threads/test_fork.py",
    "tests/threads/test_fork_clones.py",
    "tests/regressions/test_forked_descriptors.py",
)


def run_tests(tests: list[str], seed: int) -> Tally:
    """What pytest says of each test."""
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="security-row-") as folder:
        told = Path(folder) / "told.xml"
        options = ["-q", "-p", "no:cacheprovider", f"--basetemp={folder}/tests", f"--junitxml={told}"]
        environment = {**os.environ, "PYTHONHASHSEED": str(seed % 2**32)}
        command = [sys.executable, "-P", "-m", "pytest", *options, *tests]
        run = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if run.returncode not in (0, 1) or not told.exists():  # it ran none, or broke down
            tally.violation(run.stdout.decode(errors="replace"))
            return tally
        cases = list(ElementTree.parse(told).iter("testcase"))
    skipped = []
    for case in cases:
        name = f"{case.get('classname', '')}::{case.get('name', '')}"
        broken = [found for kind in ("failure", "error") for found in case.findall(kind)]
        if broken:
            tally.violation(f"{name}\n{broken[0].text}")
        elif case.find("skipped") is not None:
            skipped.append(name)
        else:
            tally.count += 1
    tally.more = f"skipped {len(skipped)}: {', '.join(skipped)}" if skipped else ""
    tally.skipped = tally.more if not tally.count else ""
    return tally


def main() -> int:
    """The command line."""
    parser = harness_parser(__doc__.partition("\n")[0], seconds=60)
    parser.add_argument("--tests", nargs="+", default=TESTS, help="files or folders of pytest's")
    arguments = parser.parse_args()
    return tell(run_tests(list(arguments.tests), arguments.seed), arguments, "tests passed")


if __name__ == "__main__":
    sys.exit(main())
