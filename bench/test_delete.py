"""Row 12: deleting a snapshot, until it is gone, until its blocks can be used again, and the punching apart."""

from __future__ import annotations

import time
from collections import defaultdict
from itertools import count

import pytest
from barrier import overwritten
from race import Lane
from result import median
from subjects.cowengine_volume import VolumeDisk
from workload import BLOCK, MiB

import cowengine
from cowengine.core.iotable import KERNEL, IOTable
from cowengine.engine.reclaim import punch, reclaim_step


class PunchClock(IOTable):
    """The kernel's calls; says how long the punching took, by the length of the runs."""

    def __init__(self) -> None:
        self.by_blocks: dict[int, list[float]] = defaultdict(list)

    def punch(self, fd: int, offset: int, length: int) -> None:
        """One run."""
        began = time.perf_counter()
        super().punch(fd, offset, length)
        self.by_blocks[length // BLOCK].append(time.perf_counter() - began)


def test_delete_until_gone(race, scale):
    """A snapshot that alone holds 256 blocks; raw: overwrite 4 KiB and fdatasync. Peers' deletes end when they end."""
    size = scale(256, 2, quick=16) * MiB

    def one_more(disk, workload):
        """Takes a snapshot that alone holds 256 scattered blocks."""
        workload.fill(disk.pwrite, size, BLOCK)
        names = map(str, count())

        def take() -> str:
            disk.snapshot(name := next(names))
            for offset in workload.offsets(size, 256):
                disk.pwrite(workload.block, offset)
            disk.flush()
            return name

        return take

    def whole(disk, workload):
        take, names = one_more(disk, workload), []
        return Lane(lambda: disk.delete(names.pop()), lambda: names.append(take()))

    def until_gone(disk, workload):
        """What `Snapshot.delete` does first: the snapshot is gone, durably. It then gives the space back."""
        take, engine, numbers = one_more(disk, workload), disk.volume.engine, []

        def prepare() -> None:
            engine.reclaim()
            numbers.append(disk.volume.get_snapshot(take()).id)

        return Lane(lambda: engine.delete(numbers.pop()), prepare)

    race.against(overwritten, MiB)
    race.enter(until_gone, size, "until logically gone", goal=1.15, among=[race.subject("cowengine")])
    race.enter(whole, size, "until the call returns")
    race.run("12", "delete a snapshot that alone holds 256 scattered blocks", rounds=300, durable=True)


@pytest.mark.parametrize("shape", ["scattered", "in runs"])
def test_delete_until_free(race, scale, shape):
    """From the call until the blocks that a snapshot alone held can be placed again; raw: punch as many in one run.

    Full: 16,384 blocks, one in eight at random, or 64 runs of 1 MiB. All can be placed again before the first of them
    is punched; what follows, with all that is done between two punches, is told apart.
    """
    blocks = scale(16384, 256, quick=2048)
    size, table = 8 * blocks * BLOCK, PunchClock()
    volume = cowengine.Volume.create(race.field.folders["cowengine"] / "deleted from", size, io=table)
    race.disks.callback(VolumeDisk(volume).close)
    names, freeing, punching = map(str, count()), [], []
    workload = race.workload
    workload.fill(volume.pwrite, size, BLOCK)

    def prepare() -> None:
        volume.snapshot(next(names))
        step = BLOCK if shape == "scattered" else MiB
        for offset in workload.offsets(size, blocks * BLOCK // step, step):
            volume.pwrite(workload.mebibyte[:step], offset)
        volume.flush()

    def delete() -> None:
        """As `Snapshot.delete`."""
        (only,) = volume.snapshots()
        began = time.perf_counter()
        volume.engine.delete(only.id)
        while reclaim_step(volume.engine):
            pass
        freed = time.perf_counter()
        punch(volume.engine)
        freeing.append(freed - began)
        punching.append(time.perf_counter() - freed)

    race.against(lambda raw, workload: punching_all(raw, workload, blocks * BLOCK), blocks * BLOCK)
    race.enter_lane(Lane(delete, prepare, blocks))
    what = f"delete a snapshot that alone holds {blocks:,} blocks {shape}, per block"
    race.run("12", what, rounds=20)
    rate = blocks / median(freeing)
    race.figure("12", what, rate, "blocks/s", variant="until free, before punching", goal=500_000, rate=True)
    race.figure("12", what, median(punching) / blocks, "s", variant="punching behind it, per block")
    for length, number, seconds in by_length(table):
        race.figure("12", what, seconds, "s", variant=f"punching {length}, per run ({number:,} runs)")


def punching_all(raw, workload, size):
    """One punch over a file that was written, and fdatasync."""

    def fill() -> None:
        workload.fill(raw.pwrite, size)
        raw.flush()

    def punch() -> None:
        KERNEL.punch(raw.fd, 0, size)
        raw.flush()

    return Lane(punch, fill, size // BLOCK)


def by_length(table):
    """The punched runs by classes of length: how many, and the median time of one."""
    classes = {
        "a block": range(1, 2),
        "2 to 15 blocks": range(2, 16),
        "16 to 255 blocks": range(16, 256),
        "256 blocks and more": range(256, 1 << 40),
    }
    for name, lengths in classes.items():
        times = [each for length, found in table.by_blocks.items() if length in lengths for each in found]
        if times:
            yield name, len(times), median(times)
