"""Writes that nobody flushes: what the data path costs beside the system call it must make anyway."""

from __future__ import annotations

import itertools
import os

import cowengine

MiB = 1 << 20
BLOCK = 4096


def compare_writes(compare, workload, volume, raw, size, scale, *, goal=None):
    """Rounds of 1024 random 4 KiB overwrites, each side its own seeded offsets."""
    count = scale(1024, 16)
    rounds = scale(100, 1)
    plan = itertools.cycle([workload.offsets(size, count) for _ in range(20)])
    plan_raw = itertools.cycle([workload.offsets(size, count) for _ in range(20)])
    block, pwrite, fd, os_pwrite = workload.block, volume.pwrite, raw.fd, os.pwrite

    def write() -> None:
        for offset in next(plan):
            pwrite(block, offset)

    def write_raw() -> None:
        for offset in next(plan_raw):
            os_pwrite(fd, block, offset)

    compare(write, write_raw, rounds=rounds, operations=count, goal=goal)


def test_steady_random_4k_writes(compare, workload, make_raw, volume_path, scale):
    """In place: no snapshot holds the blocks."""
    size = scale(256, 8) * MiB
    raw = make_raw(size, BLOCK)
    with cowengine.Volume.create(str(volume_path), size) as volume:
        workload.fill(volume.pwrite, size, BLOCK)
        volume.flush()
        compare_writes(compare, workload, volume, raw, size, scale, goal=1.4)


def test_steady_random_4k_writes_of_a_snapshotted_volume(compare, workload, make_raw, volume_path, scale):
    """A snapshot holds every block; most were redirected once before, the others are during the measurement."""
    size = scale(256, 8) * MiB
    raw = make_raw(size, BLOCK)
    with cowengine.Volume.create(str(volume_path), size) as volume:
        workload.fill(volume.pwrite, size, BLOCK)
        volume.snapshot("held")
        for offset in workload.offsets(size, size // BLOCK // 2):
            volume.pwrite(workload.block, offset)
        volume.flush()
        compare_writes(compare, workload, volume, raw, size, scale)


def test_sequential_1m_writes(compare, workload, make_raw, volume_path, scale):
    """Overwriting what is there, 1 MiB at a time, front to back."""
    size = scale(256, 8) * MiB
    raw = make_raw(size)
    with cowengine.Volume.create(str(volume_path), size) as volume:
        workload.fill(volume.pwrite, size)
        volume.flush()
        piece = 32 * MiB if scale.full else size
        starts = itertools.cycle(range(0, size, piece))
        starts_raw = itertools.cycle(range(0, size, piece))

        def write() -> None:
            start = next(starts)
            for offset in range(start, start + piece, MiB):
                volume.pwrite(workload.mebibyte, offset)

        def write_raw() -> None:
            start = next(starts_raw)
            for offset in range(start, start + piece, MiB):
                os.pwrite(raw.fd, workload.mebibyte, offset)

        compare(write, write_raw, rounds=scale(40, 1), operations=piece // MiB)


def test_sequential_1m_writes_right_after_a_snapshot(compare, workload, make_raw, volume_path, scale):
    """All redirected; raw: the same overwrite in place."""
    size = scale(64, 8) * MiB
    raw = make_raw(size)
    names = map(str, itertools.count())
    with cowengine.Volume.create(str(volume_path), size) as volume:
        workload.fill(volume.pwrite, size)

        def snapshot_again() -> None:
            # One snapshot back at most, so that the file does not grow without end.
            for old in volume.snapshots():
                old.delete()
            volume.reclaim()
            volume.snapshot(next(names))

        compare(
            lambda: [volume.pwrite(workload.mebibyte, offset) for offset in range(0, size, MiB)],
            lambda: [os.pwrite(raw.fd, workload.mebibyte, offset) for offset in range(0, size, MiB)],
            before_cow=snapshot_again,
            before_raw=lambda: os.fdatasync(raw.fd),
            rounds=scale(20, 1),
            operations=size // MiB,
        )
