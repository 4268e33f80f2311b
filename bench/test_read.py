"""Reads of the live volume and of snapshots, from the page cache, so that the disk hides nothing."""

from __future__ import annotations

import itertools
import os
import time

import pytest

import cowengine

MiB = 1 << 20
BLOCK = 4096
# The goal is a rate of at least 0.9 of a raw read: a time of at most 1 / 0.9.
GOAL = 1 / 0.9


@pytest.fixture
def volume(workload, volume_path, scale, request):
    """A volume written once, front to back, in the steps that the test reads in."""
    size = scale(256, 8) * MiB
    with cowengine.Volume.create(str(volume_path), size) as made:
        workload.fill(made.pwrite, size, BLOCK if "random" in request.node.name else MiB)
        made.flush()
        yield made


def compare_random(compare, workload, view, size, raw, scale):
    """Rounds of 1024 random 4 KiB reads."""
    count = scale(1024, 16)
    plan = itertools.cycle([workload.offsets(size, count) for _ in range(20)])
    plan_raw = itertools.cycle([workload.offsets(size, count) for _ in range(20)])
    pread, fd, os_pread = view.pread, raw.fd, os.pread

    def read() -> None:
        for offset in next(plan):
            pread(BLOCK, offset)

    def read_raw() -> None:
        for offset in next(plan_raw):
            os_pread(fd, BLOCK, offset)

    compare(read, read_raw, rounds=scale(100, 1), operations=count)


def compare_sequential(compare, view, size, raw, scale, *, goal=None, note=""):
    """The whole size front to back, 1 MiB at a time, into a buffer that is there."""
    buffer = bytearray(MiB)
    pread_into, fd, os_preadv = view.pread_into, raw.fd, os.preadv

    def read() -> None:
        for offset in range(0, size, MiB):
            pread_into(buffer, offset)

    def read_raw() -> None:
        for offset in range(0, size, MiB):
            os_preadv(fd, [buffer], offset)

    compare(read, read_raw, rounds=scale(40, 1), operations=size // MiB, goal=goal, note=note)


def test_random_4k_reads(compare, workload, volume, make_raw, scale):
    compare_random(compare, workload, volume, volume.size, make_raw(volume.size, BLOCK), scale)


def test_random_4k_snapshot_reads(compare, workload, volume, make_raw, scale):
    snapshot = volume.snapshot("read")
    for offset in workload.offsets(volume.size, volume.size // BLOCK // 8):
        volume.pwrite(workload.block, offset)
    volume.flush()
    compare_random(compare, workload, snapshot, volume.size, make_raw(volume.size, BLOCK), scale)


def test_sequential_1m_reads(compare, volume, make_raw, scale):
    compare_sequential(compare, volume, volume.size, make_raw(volume.size), scale, goal=GOAL)


def test_sequential_1m_snapshot_reads(compare, workload, volume, make_raw, scale):
    """An eighth of the live blocks has moved away since; the snapshot's lie where they lay."""
    snapshot = volume.snapshot("read")
    for offset in workload.offsets(volume.size, volume.size // BLOCK // 8):
        volume.pwrite(workload.block, offset)
    volume.flush()
    compare_sequential(compare, snapshot, volume.size, make_raw(volume.size), scale, goal=GOAL)


def test_sequential_1m_reads_of_scattered_blocks(compare, workload, volume, make_raw, scale):
    """An eighth of the blocks was redirected, at random: the price of not copying out."""
    volume.snapshot("held")
    for offset in workload.offsets(volume.size, volume.size // BLOCK // 8):
        volume.pwrite(workload.block, offset)
    volume.flush()
    compare_sequential(compare, volume, volume.size, make_raw(volume.size), scale)


@pytest.mark.parametrize("compacted", [False, True], ids=["aged", "compacted"])
def test_sequential_1m_reads_after_snapshots_and_deletes(compare, workload, volume, make_raw, scale, compacted):
    """1,000 rounds of a snapshot, 64 scattered writes and a delete; then as it is, or after compaction."""
    for number in range(scale(1000, 10)):
        snapshot = volume.snapshot(str(number))
        for offset in workload.offsets(volume.size, 64):
            volume.pwrite(workload.block, offset)
        snapshot.delete()
    note = ""
    if compacted:
        began = time.perf_counter()
        moved = volume.compact().moved_bytes
        note = f"{moved // MiB} MiB moved in {time.perf_counter() - began:.2f} s"
    compare_sequential(compare, volume, volume.size, make_raw(volume.size), scale, note=note)


@pytest.fixture
def sealed(workload, directory, scale):
    """The same as `volume`, once with a snapshot that is sealed, and once with one that is not."""
    size = scale(128, 8) * MiB
    made = [cowengine.Volume.create(str(directory / name), size, background=False) for name in ("sealed", "open")]
    for volume in made:
        workload.fill(volume.pwrite, size, MiB)
        volume.snapshot("read")
    made[0].seal()
    yield made
    for volume in made:
        volume.close()
        os.unlink(volume.path)


def test_random_4k_reads_of_sealed_blocks(compare, workload, sealed, scale):
    """Against the same reads of blocks that are not sealed."""
    one, other = sealed
    count = scale(1024, 16)
    plans = [itertools.cycle([workload.offsets(one.size, count) for _ in range(20)]) for _ in sealed]

    def read() -> None:
        for offset in next(plans[0]):
            one.pread(BLOCK, offset)

    def read_unsealed() -> None:
        for offset in next(plans[1]):
            other.pread(BLOCK, offset)

    compare(read, read_unsealed, rounds=scale(100, 1), operations=count, goal=1.15)


def test_sequential_1m_reads_of_sealed_blocks(compare, sealed, scale):
    """Against the same reads of blocks that are not sealed."""
    one, other = sealed
    buffer = bytearray(MiB)

    def read() -> None:
        for offset in range(0, one.size, MiB):
            one.pread_into(buffer, offset)

    def read_unsealed() -> None:
        for offset in range(0, other.size, MiB):
            other.pread_into(buffer, offset)

    compare(read, read_unsealed, rounds=scale(40, 1), operations=one.size // MiB, goal=1 / 0.8)


def test_verify_of_a_snapshot(compare, sealed, make_raw, scale):
    """Every block from the disk, against a raw file of that size from the disk, front to back, 1 MiB at a time."""
    volume, buffer, raw = sealed[0], bytearray(MiB), make_raw(sealed[0].size)
    snapshot, size, fd = volume.get_snapshot("read"), volume.size, raw.fd

    def verify() -> None:
        assert snapshot.verify().counts["verified"] == size // BLOCK

    def read_raw() -> None:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        for offset in range(0, size, MiB):
            os.preadv(fd, [buffer], offset)

    compare(verify, read_raw, rounds=scale(20, 1), operations=size // MiB, goal=GOAL)
