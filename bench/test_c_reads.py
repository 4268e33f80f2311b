"""Reads through the C interface, from the page cache, beside `pread` in the same C program."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from c_program import compiled, environment

import cowengine

MiB = 1 << 20
BLOCK = 4096
# As for reads from Python: a rate of at least 0.9 of a raw read.
GOAL = 1 / 0.9


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return compiled(Path(__file__).with_name("c_reads.c"), tmp_path_factory.mktemp("c") / "c_reads")


def compare_in_c(program, compare, workload, volume_path, make_raw, scale, what, goal=None):
    """A volume filled in the steps that are read; for a snapshot, an eighth of its blocks has moved away since."""
    size = scale(256, 8) * MiB
    step = BLOCK if "random" in what else MiB
    raw = make_raw(size, step)
    with cowengine.Volume.create(str(volume_path), size) as volume:
        workload.fill(volume.pwrite, size, step)
        if "snapshot" in what:
            volume.snapshot("read")
            for offset in workload.offsets(size, size // BLOCK // 8):
                volume.pwrite(workload.block, offset)
    rounds, count = (scale(200, 1), scale(1024, 16)) if "random" in what else (scale(40, 1), size // MiB)

    def run() -> list[tuple[float, float]]:
        command = [program, what, volume_path, raw.path, str(rounds), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment())
        assert done.returncode == 0, done.stderr
        return [(float(cow), float(raw)) for cow, raw in map(str.split, done.stdout.splitlines())]

    compare.of_program(run, goal=goal)


def test_c_random_4k_reads(program, compare, workload, volume_path, make_raw, scale):
    compare_in_c(program, compare, workload, volume_path, make_raw, scale, "random")


def test_c_random_4k_snapshot_reads(program, compare, workload, volume_path, make_raw, scale):
    compare_in_c(program, compare, workload, volume_path, make_raw, scale, "random-snapshot")


def test_c_sequential_1m_reads(program, compare, workload, volume_path, make_raw, scale):
    compare_in_c(program, compare, workload, volume_path, make_raw, scale, "sequential", goal=GOAL)


def test_c_sequential_1m_snapshot_reads(program, compare, workload, volume_path, make_raw, scale):
    compare_in_c(program, compare, workload, volume_path, make_raw, scale, "sequential-snapshot", goal=GOAL)
