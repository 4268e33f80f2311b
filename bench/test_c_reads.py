"""Reads through the C interface, from the page cache, beside `pread` in the same C program."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from c_program import compiled, environment
from race import Lane, nothing
from workload import BLOCK, MiB


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return compiled(Path(__file__).with_name("c_reads.c"), tmp_path_factory.mktemp("c") / "c_reads")


@pytest.mark.parametrize("of", ["volume", "snapshot"])
@pytest.mark.parametrize("how", ["random", "sequential"])
def test_c_reads(program, race, workload, scale, how, of):
    """A volume filled in the steps that are read; for a snapshot, an eighth of its blocks has moved away since."""
    size = scale(256, 8, quick=16) * MiB
    step = BLOCK if how == "random" else MiB
    raw = race.raw(size)
    workload.fill(raw.pwrite, size, step)
    disk = race.disk(race.subject("cowengine"), size)
    workload.fill(disk.pwrite, size, step)
    if of == "snapshot":
        disk.snapshot("read")
        for offset in workload.offsets(size, size // BLOCK // 8):
            disk.pwrite(workload.block, offset)
    disk.volume.close()
    what = how if of == "volume" else f"{how}-snapshot"
    rounds, count = (scale(200, 1), scale(1024, 16)) if how == "random" else (scale(40, 1), size // MiB)

    def run() -> list[tuple[float, float]]:
        command = [program, what, disk.volume.path, raw.path, str(rounds), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment())
        assert done.returncode == 0, done.stderr
        return [(float(cow), float(raw)) for cow, raw in map(str.split, done.stdout.splitlines())]

    race.against(Lane(nothing))
    shown, goal = ("random 4 KiB", None) if how == "random" else ("sequential 1 MiB", 0.9)
    race.of_program(f"from C: {shown} reads of the {of}", run, goal=goal, rate=how == "sequential")
