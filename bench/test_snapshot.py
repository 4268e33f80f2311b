"""Durable snapshots: rows 1 and 2. The raw side pays the same barrier."""

from __future__ import annotations

from functools import partial
from itertools import count

from barrier import overwritten
from race import Lane
from workload import BLOCK, MiB


def changed(disk, workload, size, step):
    """Snapshots with nothing unflushed; before each a 4 KiB write and a flush."""
    workload.fill(disk.pwrite, size, step)
    offsets, names = workload.each_once(size), map(str, count())

    def prepare() -> None:
        disk.pwrite(workload.block, next(offsets))
        disk.flush()

    return Lane(lambda: disk.snapshot(next(names)), prepare)


def test_durable_snapshot(race, scale):
    """A snapshot with nothing unflushed; raw: one 4 KiB overwrite and fdatasync."""
    size = scale(256, 8, quick=16) * MiB
    race.against(partial(overwritten, size=size), size)
    race.enter(partial(changed, size=size, step=BLOCK), size, goal=1.15)
    race.run("1", "durable snapshot, nothing unflushed", rounds=1000, durable=True)


def test_durable_snapshot_by_volume_size(race, scale):
    """The same on volumes of other sizes, written in full."""
    race.against(overwritten, MiB)
    for mebibytes in scale((64, 256, 1024), (2, 4), quick=(8, 32, 128)):
        size = mebibytes * MiB
        lane = partial(changed, size=size, step=MiB)
        race.enter(lane, size, f"{mebibytes:,} MiB", at={"volume size": size})
    race.run("1", "durable snapshot of a volume written in full", rounds=100, durable=True)


def test_durable_snapshot_of_256_scattered_writes(race, scale):
    """A snapshot right after 256 scattered 4 KiB writes, first ones after the snapshot before; raw: fdatasync after the
    same writes.
    """
    size = scale(256, 8, quick=16) * MiB

    def scattered(disk, workload):
        workload.fill(disk.pwrite, size, BLOCK)
        disk.flush()
        return lambda: [disk.pwrite(workload.block, offset) for offset in workload.offsets(size, 256)]

    race.against(lambda raw, workload: Lane(raw.flush, scattered(raw, workload)), size)
    race.enter(lambda disk, workload: snapshots(disk, scattered(disk, workload)), size, goal=0.5)
    race.run("2", "durable snapshot, 256 scattered writes unflushed", rounds=200, durable=True)


def test_durable_snapshot_of_256_scattered_writes_in_place(race, scale):
    """The same where nothing is redirected: all blocks were written, in random order, since the snapshot before.

    So they lie scattered in the file as well, and 256 of them are written again. Raw: the same writes, fdatasync.
    """
    size = scale(16, 8, quick=4) * MiB

    def in_place(disk, workload):
        workload.fill(disk.pwrite, size, BLOCK)

        def write() -> None:
            for offset in workload.offsets(size, size // BLOCK):
                disk.pwrite(workload.block, offset)
            disk.flush()
            for offset in workload.offsets(size, 256):
                disk.pwrite(workload.block, offset)

        return write

    race.against(lambda raw, workload: Lane(raw.flush, in_place(raw, workload)), size)
    race.enter(lambda disk, workload: snapshots(disk, in_place(disk, workload)), size, goal=1.15)
    race.run("2", "durable snapshot, 256 scattered writes in place unflushed", rounds=100, durable=True)


def snapshots(disk, prepare):
    """Takes one snapshot after the other."""
    names = map(str, count())
    disk.snapshot("first")
    return Lane(lambda: disk.snapshot(next(names)), prepare)
