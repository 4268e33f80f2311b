"""Looks for data races in the kernels: everything at once on one volume, under ThreadSanitizer.

    make build/tsan-site
    python -P tests/torture/races.py --seconds 60 --seed 1
    python -P tests/torture/races.py --planted            # reads under two mutexes, which must be found

Each seed is a process of its own (races_child.py): a volume in which threads read and write without the GIL while
others take snapshots, delete, clone, seal, compact, discard, resize and roll back; then it is closed under them. Before
the first the C interface has its turn: the scenes with threads of tests/c_interface/program.c.
Counted are calls; a violation is a race, or any other error that ThreadSanitizer tells, with a function of cowengine in
it; a volume that is not sound afterwards; and a process that died.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent)]

from row import Tally, harness_parser, tell  # noqa: E402
from sanitizers import ROOT, TSAN_SITE, races_in, tsan_environment, tsan_launcher  # noqa: E402

HERE = Path(__file__).resolve().parent
CHILD_SECONDS = 8


def compiled_hammer(folder: Path) -> Path:
    """The library of hammer.c, with ThreadSanitizer."""
    library = folder / "hammer.so"
    flags = ["-shared", "-fPIC", "-O1", "-g", "-fsanitize=thread", f"-I{ROOT / 'cowengine' / 'core'}"]
    subprocess.run([os.environ.get("CC", "gcc"), *flags, str(HERE / "hammer.c"), "-o", str(library)], check=True)
    return library


def play(
    launcher: list[str], site: Path, hammer: Path, seed: int, seconds: float, planted: bool
) -> tuple[int, list[str]]:
    """One process; how many calls it made, and what was wrong."""
    with tempfile.TemporaryDirectory(prefix="cowengine-races-") as folder:
        command = [*launcher, sys.executable, "-P", str(HERE / "races_child.py"), str(Path(folder) / "volume")]
        command += ["--hammer", str(hammer), "--seed", str(seed), "--seconds", str(seconds)]
        reports = Path(folder) / "report"
        environment = os.environ | tsan_environment(reports) | {"PYTHONPATH": str(site)}
        ended = subprocess.run(
            [*command, *(["--planted"] if planted else [])], capture_output=True, text=True, env=environment
        )
        wrong = [f"{places}\n{report}" for places, report in races_in(sorted(Path(folder).glob("report.*"))).items()]
    if ended.returncode != 0:
        return 0, [*wrong, f"the process ended with status {ended.returncode}\n{ended.stderr[-2000:]}"]
    told = json.loads(ended.stdout.splitlines()[-1])
    return told["calls"], [*wrong, *told["errors"]]


def play_program(site: Path) -> list[str]:
    """The C interface: what tests/c_interface/program.c does with threads; what was wrong."""
    described = site / "cowengine" / "capi"
    if not (described / "libcowengine.so").exists() or shutil.which("pkg-config") is None:
        return []
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "cowengine"], capture_output=True, text=True, check=True,
        env=os.environ | {"PKG_CONFIG_PATH": str(described)},
    ).stdout.split()  # fmt: skip
    wrong = []
    with tempfile.TemporaryDirectory(prefix="cowengine-races-") as folder:
        program = Path(folder) / "program"
        source = ROOT / "tests" / "c_interface" / "program.c"
        command = [os.environ.get("CC", "gcc"), "-std=c99", "-O1", "-g", "-pthread", "-fsanitize=thread"]
        subprocess.run([*command, "-o", str(program), str(source), *flags], check=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment |= {**tsan_environment(Path(folder) / "report"), "COWENGINE_PYTHON": sys.executable}
        del environment["LD_PRELOAD"]  # the program is linked with it
        for scene in ("threads", "unlocked"):
            command = [*(tsan_launcher() or []), str(program), scene, str(Path(folder) / scene)]
            ended = subprocess.run(command, capture_output=True, text=True, env=environment)
            if (ended.returncode, ended.stdout) != (0, "ok\n"):
                wrong.append(f"scene {scene} of program.c\nstatus {ended.returncode}, {ended.stdout}{ended.stderr}")
        wrong += [f"{places}\n{report}" for places, report in races_in(sorted(Path(folder).glob("report.*"))).items()]
    return wrong


def work(seconds: float, seed: int, site: Path = TSAN_SITE, planted: bool = False) -> Tally:
    """One seed after the other until the time is over; at least one."""
    tally, late = Tally(), time.monotonic() + seconds
    launcher = tsan_launcher()
    if not site.is_dir():
        tally.skipped = f"{site} is missing: make build/tsan-site"
    elif launcher is None:
        tally.skipped = "ThreadSanitizer does not start here: it needs addresses without randomization (setarch -R)"
    if tally.skipped:
        return tally
    seen: set[str] = set()
    if not planted:
        for trace in play_program(site):
            tally.violation(trace)
    with tempfile.TemporaryDirectory(prefix="cowengine-races-") as folder:
        hammer = compiled_hammer(Path(folder))
        while True:
            left = max(1.0, min(CHILD_SECONDS, late - time.monotonic()))
            calls, wrong = play(launcher or [], site, hammer, seed, left, planted)
            tally.count += calls
            for trace in wrong:
                if trace.partition("\n")[0] not in seen:
                    seen.add(trace.partition("\n")[0])
                    tally.violation(f"seed {seed}: {trace}")
            seed += 1
            if time.monotonic() >= late or (planted and seen):
                return tally


def main() -> int:
    parser = harness_parser("Looks for data races in the kernels, with ThreadSanitizer.", seconds=60)
    parser.add_argument("--site", type=Path, default=TSAN_SITE, help="where the kernels are that were built with it")
    parser.add_argument("--planted", action="store_true", help="plant a race, which has to be found")
    arguments = parser.parse_args()
    tally = work(arguments.seconds, arguments.seed, arguments.site, arguments.planted)
    return tell(tally, arguments, "calls under ThreadSanitizer")


if __name__ == "__main__":
    sys.exit(main())
