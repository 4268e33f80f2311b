"""Row R14: tests on kernels with AddressSanitizer and UndefinedBehaviorSanitizer, and races.py with ThreadSanitizer.

    make build/asan-site build/tsan-site
    python -P tests/torture/sanitized.py --seconds 60 --seed 1     # half the time tests in a seeded order, then races
    make test-asan                                                 # every test that can run so: `--suite`

Counted are tests that passed and calls made by threads at once; violations are what a sanitizer found, tests that
failed, and volumes that were not sound.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import races  # noqa: E402
from row import Tally, harness_parser, tell  # noqa: E402
from sanitizers import ASAN_SITE, ROOT, asan_environment  # noqa: E402

TESTS = ROOT / "tests"
# Where the kernels work hardest for each second.
FOLDERS = (
    "anchors", "bad_input", "clones", "compaction", "faults", "format", "names", "readers", "regressions", "repair",
    "resize", "seals", "space",
)  # fmt: skip
FILES_AT_ONCE = 8
END_SECONDS = 30  # for a run that is told to end
TOLD_TO_END = 2  # whatever pytest makes of being interrupted; reports and tests that failed are looked at
# What cannot run with these sanitizers, and why.
UNFIT = {
    "hostile/test_mutations.py": "limits the address space, of which the sanitizer takes terabytes",
    "package/test_hardening.py": "the sanitized build is not what is released",
    "package/test_release.py": "builds the release",
    "tidy": "reads sources",
    "models": "imports nothing of cowengine",
}


def unfit() -> list[str]:
    """For pytest: leaves out what cannot run so."""
    return [f"--{'deselect' if '::' in name else 'ignore'}={TESTS / name}" for name in UNFIT]


def pytest(arguments: list[str], reports: Path, seconds: float | None) -> tuple[int, str]:
    """Runs tests on the sanitized build for so long at most; the exit status, and what was said."""
    environment = os.environ | asan_environment(f"log_path={reports}") | {"PYTHONPATH": str(ASAN_SITE)}
    command = [sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider", *unfit(), *arguments]
    run = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, start_new_session=True,
        stdout=None if seconds is None else subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        said = run.communicate(timeout=seconds)[0]
        return run.returncode, said or ""
    except subprocess.TimeoutExpired:
        run.send_signal(signal.SIGINT)  # it prints what failed, and ends
        try:
            said = run.communicate(timeout=END_SECONDS)[0]
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            said = run.communicate()[0]
    return TOLD_TO_END, said or ""


def work(seconds: float, seed: int) -> Tally:
    """Tests in the order that the seed gives, some files at a time, until the time is over."""
    tally, late = Tally(), time.monotonic() + seconds
    if not ASAN_SITE.is_dir():
        tally.skipped = f"{ASAN_SITE} is missing: make build/asan-site"
        return tally
    files = sorted(str(file) for folder in FOLDERS for file in (TESTS / folder).glob("test_*.py"))
    random.Random(seed).shuffle(files)
    while files and (left := late - time.monotonic()) > 0:
        chosen, files = files[:FILES_AT_ONCE], files[FILES_AT_ONCE:]
        with tempfile.TemporaryDirectory(prefix="pytest-asan-") as folder:
            status, said = pytest(["-v", f"--basetemp={folder}/tests", *chosen], Path(folder) / "report", left)
            found = [report.read_text(errors="replace")[:6000] for report in Path(folder).glob("report.*")]
        tally.count += len(re.findall(r" PASSED", said))
        found += re.findall(r"^(?:FAILED|ERROR) .*", said, re.MULTILINE)
        if status not in (0, TOLD_TO_END) and not found:
            found.append(f"pytest ended with status {status}\n{said[-3000:]}")
        for trace in found:
            tally.violation(f"seed {seed}: {trace}")
    return tally


def main() -> int:
    parser = harness_parser("Runs tests and threads on kernels with sanitizers.", seconds=60)
    parser.add_argument("--suite", nargs="*", metavar="TEST", help="these tests, or all, under ASan and UBSan; no row")
    arguments = parser.parse_args()
    if arguments.suite is not None:
        with tempfile.TemporaryDirectory(prefix="pytest-asan-") as folder:
            status, _ = pytest(arguments.suite or [str(TESTS)], Path(folder) / "report", None)
            found = [report.read_text(errors="replace") for report in sorted(Path(folder).glob("report.*"))]
        print("\n".join([*found, f"reports of sanitizers: {len(found)}"]))
        return 1 if status or found else 0
    began = time.monotonic()
    tests = work(arguments.seconds / 2, arguments.seed)
    raced = races.work(arguments.seconds - (time.monotonic() - began), arguments.seed)
    tally = Tally(
        tests.count + raced.count,
        tests.violations + raced.violations,
        "; ".join(filter(None, [tests.skipped, raced.skipped])),
        f"{tests.count:,} tests under ASan and UBSan, {raced.count:,} calls under TSan",
    )
    return tell(tally, arguments, "tests and calls under sanitizers")


if __name__ == "__main__":
    sys.exit(main())
