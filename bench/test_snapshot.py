"""Durable snapshots, and the first writes after one. The raw side pays the same barrier."""

from __future__ import annotations

import itertools
import os

import cowengine

MiB = 1 << 20
BLOCK = 4096


def test_durable_snapshot(compare, workload, make_raw, volume_path, scale):
    """A snapshot with nothing unflushed; raw: overwrite 4 KiB and fdatasync."""
    size = scale(256, 8) * MiB
    raw = make_raw(MiB)
    names = map(str, itertools.count())
    with cowengine.Volume.create(str(volume_path), size) as volume:
        workload.fill(volume.pwrite, size, BLOCK)
        volume.flush()
        compare(lambda: volume.snapshot(next(names)), raw.write_durably, rounds=scale(1000, 1))


def test_durable_snapshot_of_256_scattered_writes(compare, workload, make_raw, volume_path, scale):
    """A snapshot right after 256 scattered 4 KiB writes; raw: fdatasync after the same writes."""
    size = scale(256, 8) * MiB
    raw = make_raw(size, BLOCK)
    names = map(str, itertools.count())

    with cowengine.Volume.create(str(volume_path), size) as volume:
        workload.fill(volume.pwrite, size, BLOCK)
        volume.flush()
        compare(
            lambda: volume.snapshot(next(names)),
            lambda: os.fdatasync(raw.fd),
            before_cow=lambda: [volume.pwrite(workload.block, offset) for offset in workload.offsets(size, 256)],
            before_raw=lambda: [os.pwrite(raw.fd, workload.block, offset) for offset in workload.offsets(size, 256)],
            rounds=scale(100, 1),
        )


def test_durable_write(compare, workload, make_raw, volume_path, scale):
    """One 4 KiB overwrite in place and a flush; raw: one 4 KiB overwrite and fdatasync."""
    compare_durable_writes(compare, workload, make_raw, volume_path, scale, held=False)


def test_durable_write_of_a_block_that_a_snapshot_holds(compare, workload, make_raw, volume_path, scale):
    """The same, each time to a block that is redirected by it: the data, a barrier, the record, a barrier."""
    compare_durable_writes(compare, workload, make_raw, volume_path, scale, held=True)


def compare_durable_writes(compare, workload, make_raw, volume_path, scale, *, held):
    """Single 4 KiB writes, each to another block and each followed by a flush."""
    size = scale(64, 8) * MiB
    raw = make_raw(size, BLOCK)
    rounds = scale(1000, 1)
    offsets = iter(workload.offsets(size, 2 * rounds))
    raw_offsets = iter(workload.offsets(size, 2 * rounds))

    with cowengine.Volume.create(str(volume_path), size) as volume:
        workload.fill(volume.pwrite, size, BLOCK)
        volume.snapshot("held") if held else volume.flush()

        def write() -> None:
            volume.pwrite(workload.block, next(offsets))
            volume.flush()

        def write_raw() -> None:
            os.pwrite(raw.fd, workload.block, next(raw_offsets))
            os.fdatasync(raw.fd)

        compare(write, write_raw, rounds=rounds)


def test_first_write_after_snapshot(compare, workload, make_raw, volume_path, scale):
    """64 scattered 4 KiB writes to blocks that a snapshot holds; raw: the same writes after an fdatasync."""
    size = scale(256, 8) * MiB
    count = 64
    raw = make_raw(size, BLOCK)
    names = map(str, itertools.count())
    with cowengine.Volume.create(str(volume_path), size) as volume:
        workload.fill(volume.pwrite, size, BLOCK)
        rounds = scale(200, 1)
        plan = iter([workload.offsets(size, count) for _ in range(2 * rounds)])
        plan_raw = iter([workload.offsets(size, count) for _ in range(2 * rounds)])

        def write() -> None:
            for offset in next(plan):
                volume.pwrite(workload.block, offset)

        def write_raw() -> None:
            for offset in next(plan_raw):
                os.pwrite(raw.fd, workload.block, offset)

        compare(
            write,
            write_raw,
            before_cow=lambda: volume.snapshot(next(names)),
            before_raw=lambda: os.fdatasync(raw.fd),
            rounds=rounds,
            operations=count,
        )
