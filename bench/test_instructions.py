"""Instructions of one operation, which don't depend on the machine's mood."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from instructions import NAMES, RAW_NAMES

FOLDER = Path(__file__).parent


def test_instructions(race, directory, scale):
    """Counted by callgrind; where valgrind is missing, or time, the operations are run and nothing is counted."""
    folder, times = directory / "instructions", scale(1000, 1, quick=100)
    folder.mkdir()
    counts = folder / "counts"
    command = [sys.executable, "-P", str(FOLDER / "instructions.py"), str(folder), str(times)]
    lacking = "" if shutil.which("valgrind") else "valgrind is missing: apt install valgrind"
    if scale.kind == "quick":
        lacking = "they are counted in the full run only, which takes a minute for it"
    counted = scale.full and not lacking
    if counted:
        command = ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={counts}.%p", *command]
    path = os.pathsep.join([str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])])

    def run() -> str:
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
        assert done.returncode == 0, done.stderr
        return done.stdout

    processes = json.loads(race.benchmark.pedantic(run, rounds=1))
    assert [name for name, *_ in processes] == ["nothing", *NAMES, *RAW_NAMES]
    if not counted:
        if scale.full:
            race.missing("instruction counts", lacking)
        return

    def total(process: int) -> int:
        lines = Path(f"{counts}.{process}").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("totals:"))

    difference = {(name, subject): total(often) - total(once) for name, subject, once, often in processes}
    fork = difference["nothing", "nothing"]
    for name in NAMES:
        own = (difference[name, "cowengine"] - fork) / times
        raw = (difference[name, "raw"] - fork) / times if name in RAW_NAMES else None
        race.figure("", f"instructions: {name}", own, "instructions", base=raw)
