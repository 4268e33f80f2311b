"""Row 13: opening a volume with a large map and many snapshots, after a clean close and after kill -9; its memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from itertools import count

import pytest
from race import Lane
from workload import BLOCK, MiB

import cowengine

# Commits until its log is nearly as long as it gets before a checkpoint, then ends as a killed process does.
KILLED = """
import os, random, sys
import cowengine
path, commits, span, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
generator = random.Random(seed)
volume = cowengine.Volume.open(path, background=False)
for number in range(commits):
    for _ in range(16):
        volume.pwrite(generator.randbytes(4096), generator.randrange(span // 4096) * 4096)
    volume.snapshot(f"{seed} {number}") if number % 10 == 0 else volume.flush()
os.kill(os.getpid(), 9)
"""

# Prints bytes of the process: before the open, after it, and after reads all over the map have filled the cache.
MEASURED = """
import random, sys
import cowengine, cowengine.volume
def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096
path, reads, span = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sizes = [resident()]
with cowengine.Volume.open(path) as volume:
    volume.snapshot(sys.argv[4])
    sizes.append(resident())
    generator = random.Random(sys.argv[4])
    for _ in range(reads):
        volume.pread(4096, generator.randrange(span // 4096) * 4096)
    sizes.append(resident())
print(*sizes)
"""


@pytest.mark.parametrize("end", ["clean close", "kill -9"])
def test_open(race, scale, big_maps, end):
    """Open the volume that has everything; raw: open, overwrite 4 KiB, fdatasync, close."""
    path, span = big_maps.all_together(), big_maps.sizes["span"]
    commits, rounds, opened = scale(250, 20, quick=100), count(), []
    race.disks.callback(lambda: [volume.close() for volume in opened])

    def prepare() -> None:
        while opened:
            opened.pop().close()
        if end == "kill -9":
            assert python(KILLED, path, commits, span, f"{end} {next(rounds)}").returncode == -9

    race.against(overwrite_anew, MiB)
    goal = {"clean close": 0.02, "kill -9": 0.2}[end]
    race.enter_lane(Lane(lambda: opened.append(cowengine.Volume.open(path)), prepare), goal=goal)
    race.run("13", f"open {big_maps.what} after {end}", rounds=20, absolute=True)


def test_memory_and_first_look_ups(benchmark, race, scale, big_maps):
    """A process of its own opens the volume, takes a snapshot, and reads all over the map, which fills the cache."""
    path, reads = big_maps.all_together(), scale(20_000, 100, quick=5000)
    done = benchmark.pedantic(python, args=(MEASURED, path, reads, big_maps.sizes["span"], "measured"))
    assert done.returncode == 0, done.stderr
    before, opened, full = map(int, done.stdout.split())
    what = f"memory with {big_maps.what}"
    race.figure("13", what, opened / MiB, "MiB", variant="of the process, opened, one snapshot taken", goal=64)
    race.figure("13", what, (opened - before) / MiB, "MiB", variant="of that not there before the open")
    race.figure("13", what, (full - before) / MiB, "MiB", variant=f"the same after {reads:,} random reads", goal=64)
    with cowengine.Volume.open(path) as volume:
        number = big_maps.sizes["snapshots"] // 2
        for name, look in {
            "first look-up by name": lambda: volume.get_snapshot(f"snapshot {number}"),
            "a page of 100 from the middle": lambda: volume.snapshots(number, 100),
        }.items():
            began = time.perf_counter()
            look()
            race.figure("", f"after opening {big_maps.what}", time.perf_counter() - began, "s", variant=name)


def python(script, *arguments):
    """Runs a script in a process of its own."""
    command = [sys.executable, "-P", "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


def overwrite_anew(raw, workload):
    """Opens, overwrites 4 KiB durably and closes."""
    workload.fill(raw.pwrite, MiB, BLOCK)

    def overwrite() -> None:
        fd = os.open(raw.path, os.O_RDWR | os.O_CLOEXEC)
        os.pwrite(fd, workload.block, 0)
        os.fdatasync(fd)
        os.close(fd)

    return Lane(overwrite)
