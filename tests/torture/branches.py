"""Whether the engine's own tests take every branch of what decides in it: all of cowengine.engine and cowengine.format.

    python -P tests/torture/branches.py
    python -P tests/torture/branches.py --tests tests/format --parts cowengine.format      # some tests, some parts

TESTS are the folders and files that come to it in the least time; the others would only add to what is counted. Counted
are the branches taken; one that is not, a line that no test reaches and a test that fails are violations.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent)]

from row import Tally, harness_parser, tell  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("cowengine.engine", "cowengine.format")
TESTS = (
    "tests/adopt/test_adopt.py",
    "tests/adopt/test_cli.py",
    "tests/adopt/test_every_call_fails.py",
    "tests/adopt/test_flatten.py",
    "tests/adopt/test_settled.py",
    "tests/anchors/test_shortcuts.py",
    "tests/bad_input/test_errnos.py",
    "tests/check/test_check.py",
    "tests/check/test_opened_images.py",
    "tests/check/test_volumes.py",
    "tests/clones",
    "tests/compaction",
    "tests/faults",
    "tests/format",
    "tests/full_disk/test_policy.py",
    "tests/hostile/test_impossible_events.py",
    "tests/names",
    "tests/readers",
    "tests/regressions/test_close_beside_others.py",
    "tests/regressions/test_flatten.py",
    "tests/regressions/test_full_disk.py",
    "tests/regressions/test_growth.py",
    "tests/regressions/test_reclaim.py",
    "tests/regressions/test_two_roots.py",
    "tests/repair",
    "tests/resize",
    "tests/seals",
    "tests/security",
    "tests/size",
    "tests/space",
    "tests/store/test_prepared.py",
    "tests/usage",
)
SUMMARY = re.compile(r"(?:FAILED|ERROR) (.*)")


def measure(tests: Sequence[str], parts: Sequence[str], folder: Path) -> tuple[list[str], dict[str, Any]]:
    """Runs tests; which of them failed, and for each file of the parts what coverage.py has to say."""
    coverage = [sys.executable, "-P", "-m", "coverage"]
    data, told = f"--data-file={folder / 'data'}", folder / "told.json"
    nothing = f"--rcfile={os.devnull}"
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={folder / 'tests'}", *tests]
    run = subprocess.run(
        [*coverage, "run", "--branch", f"--source={','.join(parts)}", data, nothing, *pytest],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    failed = SUMMARY.findall(run.stdout)
    if run.returncode and not failed:
        failed = [f"pytest ended with status {run.returncode}: {run.stdout[-1000:]}"]
    subprocess.run([*coverage, "json", "-q", "-o", str(told), data, nothing], cwd=ROOT, check=True)
    return failed, json.loads(told.read_text())["files"]


def add(tally: Tally, name: str, file: dict[str, Any]) -> None:
    """Counts what was taken of one file, and tells what was not."""
    name = name[name.rindex("cowengine/") :]
    tally.count += file["summary"]["covered_branches"]
    for start, end in file["missing_branches"]:
        tally.violation(f"{name}:{start}: never goes to {f'line {end}' if end > 0 else 'its end'}")
    for line in sorted(set(file["missing_lines"]) - {end for _, end in file["missing_branches"]}):
        tally.violation(f"{name}:{line}: never reached")


def main() -> int:
    parser = harness_parser("Counts the branches that the tests take, and names those that they do not.", 0)
    parser.add_argument("--tests", nargs="+", default=TESTS, metavar="TEST", help="folders and files for pytest")
    parser.add_argument("--parts", nargs="+", default=PARTS, metavar="MODULE", help="what is measured")
    arguments = parser.parse_args()
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        failed, files = measure(arguments.tests, arguments.parts, Path(folder))
    for test in failed:
        tally.violation(f"failed: {test}")
    for name, file in files.items():
        add(tally, name, file)
    return tell(tally, arguments, "branches taken", shown=len(tally.violations))


if __name__ == "__main__":
    sys.exit(main())
