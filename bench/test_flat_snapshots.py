"""Row 3: a durable snapshot costs the same whatever the volume holds. It also gives the plots by size and by number."""

from __future__ import annotations

from itertools import count

from barrier import overwritten
from big_maps import mapped, scattered, with_snapshots
from race import Lane
from result import median
from subjects.cowengine_volume import VolumeDisk
from workload import BLOCK, GiB, MiB, TiB

import cowengine


def test_snapshots_are_flat(race, scale, big_maps):
    """Row 1 on volumes that hold nothing, much, and all of it; all are open at once and measured in turns.

    Compared is each volume's median ratio to the barriers beside its snapshots, so that no slow moment counts. There is
    no background work: sealing 1 TiB would go on for half an hour beside all others.
    """
    entries = list(volumes(big_maps, scale))
    race.against(overwritten, MiB)
    for path, variant, at, _ in entries:
        disk = VolumeDisk(cowengine.Volume.open(path, background=False))
        race.disks.callback(disk.volume.close if path == big_maps.all_together() else disk.close)
        race.enter_lane(snapshot(disk, race.workload.again()), variant, at=at)
    race.run("3", "durable snapshot", rounds=500, durable=True)
    judged = [race.rounds(variant).values() for _, variant, _, is_judged in entries if is_judged]
    ratios = [median([seconds / barrier for seconds, barrier in pairs]) for pairs in judged]
    race.figure("3", "durable snapshot", max(ratios) / min(ratios), "x", variant="max/min of the five", goal=1.2)


def volumes(big_maps, scale):
    """(path, variant, place in plots, whether it is one of the five of the row) of each."""
    whole, span, blocks, snapshots = (big_maps.sizes[name] for name in ("mapped", "span", "blocks", "snapshots"))

    def mapped_volume(size):
        return mapped(big_maps.path(), size), f"{size // GiB:,} GiB mapped", {"volume size": size}

    def with_many(number):
        path = big_maps.path()
        cowengine.Volume.create(path, GiB).close()
        return with_snapshots(path, GiB, number), f"{number:,} snapshots", {"snapshots": number}

    yield with_many(0)[0], "empty", {"snapshots": 0}, True
    yield *mapped_volume(whole), True
    yield scattered(mapped(big_maps.path(), span), span, blocks), f"{blocks:,} scattered blocks", {}, True
    yield *with_many(snapshots), True
    yield big_maps.all_together(), "all of these", {}, True
    for size in scale([GiB, 64 * GiB, 15 * TiB], [], quick=[GiB]):
        yield *mapped_volume(size), False
    for number in scale([1000, 10_000], [], quick=[1000]):
        yield *with_many(number), False


def snapshot(disk, workload):
    """As row 1: nothing is unflushed, a write and a flush after the snapshot before."""
    size, names = disk.volume.size, (f"measured {number}" for number in count())

    def prepare() -> None:
        disk.pwrite(workload.block, workload.random.randrange(size // BLOCK) * BLOCK)
        disk.flush()

    return Lane(lambda: disk.snapshot(next(names)), prepare)
