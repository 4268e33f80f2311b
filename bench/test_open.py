"""Opening a volume: after a clean close, and after its process was killed. Raw: open, 4 KiB, fdatasync, close."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

import cowengine

MiB = 1 << 20

# Writes, flushes and takes snapshots, and then ends as a killed process does: nothing is closed.
KILLED = """
import os, random, sys
import cowengine
path, size, seed = sys.argv[1], int(sys.argv[2]), sys.argv[3]
generator = random.Random(seed)
volume = cowengine.Volume.create(path, size)
for number in range(200):
    for _ in range(16):
        volume.pwrite(generator.randbytes(4096), generator.randrange(size // 4096) * 4096)
    volume.snapshot(str(number)) if number % 10 == 0 else volume.flush()
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def open_raw(make_raw):
    """Opens, writes durably and closes the raw file."""
    raw = make_raw(MiB)

    def run() -> None:
        fd = os.open(raw.path, os.O_RDWR | os.O_CLOEXEC)
        os.pwrite(fd, b"\x55" * 4096, 0)
        os.fdatasync(fd)
        os.close(fd)

    return run


def test_open_after_clean_close(compare, workload, volume_path, open_raw, scale):
    """Open and close a volume with 1,000 snapshots."""
    size = scale(256, 8) * MiB
    with cowengine.Volume.create(str(volume_path), size) as volume:
        workload.fill(volume.pwrite, size)
        for number, offset in enumerate(workload.offsets(size, scale(1000, 10))):
            volume.pwrite(workload.block, offset)
            volume.snapshot(str(number))

    compare(lambda: cowengine.Volume.open(str(volume_path)).close(), open_raw, rounds=scale(50, 1))


def test_open_after_kill(compare, volume_path, open_raw, scale):
    """Open and close a volume whose process was killed: its log is replayed."""
    size = scale(64, 8) * MiB
    killed = volume_path.with_suffix(".killed")
    command = [sys.executable, "-P", "-c", KILLED, str(killed), str(size), "open after kill"]
    assert subprocess.run(command, check=False, timeout=60).returncode == -9

    def bring_back() -> None:
        volume_path.unlink(missing_ok=True)
        shutil.copyfile(killed, volume_path)
        with volume_path.open("rb") as copied:
            os.fsync(copied.fileno())

    try:
        compare(
            lambda: cowengine.Volume.open(str(volume_path)).close(),
            open_raw,
            before_cow=bring_back,
            rounds=scale(20, 1),
        )
    finally:
        killed.unlink()
