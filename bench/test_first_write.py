"""First writes of blocks that a snapshot holds: rows 5 and 6; and durable writes in place."""

from __future__ import annotations

import os
from itertools import count

import pytest
from on_xfs import xfs_folder
from race import Lane
from workload import BLOCK, MiB


def test_first_writes_after_a_snapshot(race, scale):
    """4,096 random 4 KiB writes of blocks that a snapshot just made holds, and a flush; raw: in place, fdatasync."""
    size, writes = scale(256, 8, quick=32) * MiB, scale(4096, 256, quick=256)

    def base(raw, workload):
        workload.fill(raw.pwrite, size, BLOCK)
        offsets, block, pwrite, fd = [], workload.block, os.pwrite, raw.fd

        def prepare() -> None:
            raw.flush()
            offsets[:] = workload.offsets(size, writes)

        def write() -> None:
            for offset in offsets:
                pwrite(fd, block, offset)
            os.fdatasync(fd)

        return Lane(write, prepare, writes)

    def first_writes(disk, workload):
        workload.fill(disk.pwrite, size, BLOCK)
        offsets, block, pwrite, names = [], workload.block, disk.pwrite, map(str, count())

        def prepare() -> None:
            disk.snapshot(next(names))
            offsets[:] = workload.offsets(size, writes)

        def write() -> None:
            for offset in offsets:
                pwrite(block, offset)
            disk.flush()

        return Lane(write, prepare, writes)

    race.against(base, size)
    race.enter(first_writes, size, goal=0.5)
    folder, lacking = xfs_folder(race)
    if folder is not None:
        race.against(base(race.raw(size, folder), race.workload.again()))
        disk = race.disk(race.subject("cowengine"), size, folder)
        race.enter_lane(first_writes(disk, race.workload.again()), "on XFS")
    what = "first write of a block after a snapshot, fdatasync at the end"
    race.run("5", what, rounds=50, durable=True)
    if lacking:
        race.figure("5", what, None, "s", variant="on XFS", note=lacking)


@pytest.mark.parametrize("held", [True, False], ids=["after-a-snapshot", "in-place"])
def test_durable_writes(race, scale, held):
    """Single 4 KiB writes, each to another block and each followed by a flush."""
    size = scale(64, 8, quick=16) * MiB

    def durable_write(disk, workload):
        workload.fill(disk.pwrite, size, BLOCK)
        disk.snapshot("held") if held else disk.flush()
        offsets = workload.each_once(size)

        def write() -> None:
            disk.pwrite(workload.block, next(offsets))
            disk.flush()

        return Lane(write)

    def base(raw, workload):
        workload.fill(raw.pwrite, size, BLOCK)
        offsets = workload.each_once(size)

        def write() -> None:
            os.pwrite(raw.fd, workload.block, next(offsets))
            os.fdatasync(raw.fd)

        return Lane(write)

    race.against(base, size)
    race.enter(durable_write, size, goal=1.15 if held else None, among=race.racers()[: None if held else 1])
    row, what = ("6", "first write of a block after a snapshot") if held else ("", "write in place")
    race.run(row, f"{what}, each flushed", rounds=1000, durable=True)
