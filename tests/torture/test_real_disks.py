"""The harnesses on real file systems find nothing in the engine, find a planted fault, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NBD = ("mkfs.ext4", "mkfs.xfs", "nbdkit", "nbdfuse")
HARNESSES = [
    pytest.param("tests/crash/kill_nine.py", id="kills"),
    pytest.param("tests/torture/power_cut.py", id="power cuts", marks=pytest.mark.privileged("mkfs.ext4", "mkfs.xfs")),
    pytest.param(
        "tests/torture/writeback_error.py", id="failed barriers", marks=pytest.mark.privileged(*NBD, "mkfs.btrfs")
    ),
    pytest.param("tests/torture/block_log.py", id="block log", marks=pytest.mark.privileged(*NBD)),
    pytest.param("tests/torture/no_space.py", id="full disks", marks=pytest.mark.privileged("mkfs.ext4", "mkfs.xfs")),
]


@pytest.mark.parametrize("script", HARNESSES)
def test_a_planted_fault_is_found_and_without_it_nothing(
    script: str, run_harness: Callable[..., dict[str, Any]]
) -> None:
    assert run_harness(script, "--seconds", "60", "--seed", "4", "--planted")["violations"] == 1
    row = run_harness(script, "--seconds", "2", "--seed", "1")
    assert row["violations"] == 0, row["said"]
    assert row["count"] > 0


@pytest.mark.privileged("mkfs.ext4", "mkfs.xfs")
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_harness_that_is_stopped_leaves_nothing_mounted(stop: signal.Signals, tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-P", str(ROOT / "tests/torture/power_cut.py"), "--seconds", "60", "--seed", "1"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (used := loops_of(tmp_path)) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(stop)
    process.wait()
    assert used or process.returncode == 0
    while loops_of(tmp_path):
        time.sleep(0.05)
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def loops_of(folder: Path) -> list[str]:
    """Loop devices whose image is there."""
    found = []
    for each in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found += [each.read_text()]
        except OSError:
            continue  # gone meanwhile
    return [image for image in found if str(folder) in image]
