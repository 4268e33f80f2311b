"""Writes that nobody flushes while they are timed: what the data path costs beside the system call. Rows 7 and 8."""

from __future__ import annotations

import os
from itertools import count

import pytest
from race import Lane
from workload import BLOCK, KiB, MiB


def random_writes(disk, workload, size, step, writes):
    """Each round so many, at other places; flushed before the next, or the kernel's write-back meets whom it likes."""
    offsets, data, pwrite = [], workload.mebibyte[:step], disk.pwrite

    def prepare() -> None:
        disk.flush()
        offsets[:] = workload.offsets(size, writes, step)

    def write() -> None:
        for offset in offsets:
            pwrite(data, offset)

    return Lane(write, prepare, writes)


def random_writes_raw(raw, workload, size, step, writes):
    """The same by the system call."""
    offsets, data, pwrite, fd = [], workload.mebibyte[:step], os.pwrite, raw.fd
    workload.fill(raw.pwrite, size, step)

    def prepare() -> None:
        raw.flush()
        offsets[:] = workload.offsets(size, writes, step)

    def write() -> None:
        for offset in offsets:
            pwrite(fd, data, offset)

    return Lane(write, prepare, writes)


@pytest.mark.parametrize(("step", "goal"), [(4 * KiB, 1.2), (64 * KiB, 1.05)], ids=["4k", "64k"])
def test_steady_random_writes(race, scale, step, goal):
    """In place: no snapshot holds the blocks."""
    size, writes = scale(256, 8, quick=16) * MiB, scale(4096, 64, quick=1024) * 4 * KiB // step

    def steady(disk, workload):
        workload.fill(disk.pwrite, size, step)
        return random_writes(disk, workload, size, step, writes)

    race.against(lambda raw, workload: random_writes_raw(raw, workload, size, step, writes), size)
    race.enter(steady, size, goal=goal)
    race.run("7", f"steady random writes of {step // KiB} KiB", rounds=200)


def test_steady_random_writes_of_a_snapshotted_volume(race, scale):
    """A snapshot holds every block; half were redirected once before, the others are during the measurement."""
    size, writes = scale(256, 8, quick=16) * MiB, scale(1024, 16, quick=256)

    def steady(disk, workload):
        workload.fill(disk.pwrite, size, BLOCK)
        disk.snapshot("held")
        for offset in workload.offsets(size, size // BLOCK // 2):
            disk.pwrite(workload.block, offset)
        return random_writes(disk, workload, size, BLOCK, writes)

    race.against(lambda raw, workload: random_writes_raw(raw, workload, size, BLOCK, writes), size)
    race.enter(steady, size, among=[race.subject("cowengine")])
    race.run("", "steady random writes of 4 KiB of a snapshotted volume", rounds=100)


@pytest.mark.parametrize("flushed", [False, True], ids=["buffered", "flushed"])
@pytest.mark.parametrize("held", [False, True], ids=["before", "right-after-a-snapshot"])
def test_sequential_writes(race, scale, held, flushed):
    """Front to back, 1 MiB at a time, in place or all redirected; raw: in place."""
    size = scale(64, 8, quick=16) * MiB

    def sequential(disk, workload):
        workload.fill(disk.pwrite, size)
        names, pwrite, data = map(str, count()), disk.pwrite, workload.mebibyte

        def write() -> None:
            for offset in range(0, size, MiB):
                pwrite(data, offset)
            if flushed:
                disk.flush()

        return Lane(write, (lambda: disk.snapshot(next(names))) if held else disk.flush, size // MiB)

    def base(raw, workload):
        workload.fill(raw.pwrite, size)
        fd, data, pwrite = raw.fd, workload.mebibyte, os.pwrite

        def write() -> None:
            for offset in range(0, size, MiB):
                pwrite(fd, data, offset)
            if flushed:
                os.fdatasync(fd)

        return Lane(write, raw.flush, size // MiB)

    race.against(base, size)
    race.enter(sequential, size, goal=0.95)
    when = "right after a snapshot" if held else "before a snapshot"
    race.run("8", f"sequential 1 MiB writes {when}{', flushed' if flushed else ''}", rounds=30, rate=True)
