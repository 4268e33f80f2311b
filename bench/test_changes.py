"""Row 11: the list of what changed, on volumes of any size with all blocks mapped."""

from __future__ import annotations

import os

import pytest
from big_maps import MARK, making, mapped
from on_xfs import xfs_folder
from race import Lane
from subjects.cowengine_volume import VolumeDisk
from unsynced import synced
from workload import BLOCK, GiB, MiB, TiB

import cowengine

GOALS = {"clustered": 100e-9, "scattered": 1.5e-6}
RUN = 250
CACHE = 256 * MiB  # the map of 10,000 blocks far apart takes more than the 64 MiB of the default


@pytest.mark.parametrize("shape", ["clustered", "scattered"])
def test_changed_extents(race, scale, big_maps, shape):
    """10,000 changed blocks: in runs of 250, or each on its own. Raw: reading them, as a backup does with the list."""
    what, changes = f"changed extents, {shape}, per block", scale(10_000, RUN, quick=10_000)
    race.against(lambda raw, workload: reading(raw, workload, changes), changes * BLOCK)
    for size in scale([GiB, 64 * GiB, TiB, 15 * TiB], [GiB], quick=[GiB, TiB]):
        enter(race, mapped(big_maps.path(), size), size, shape, changes)
    folder, lacking = xfs_folder(race)
    if folder is not None and scale.kind == "full":
        enter(race, mapped(folder / f"volume-{shape}", 16 * TiB), 16 * TiB, shape, changes)
    peers = [each for each in race.racers() if each.name != "cowengine"]
    few = max(changes // 10, RUN)  # the ratio is of a block, and some need minutes to remove so many
    race.enter(lambda disk, workload: listing(disk, plan(GiB, shape, few, workload)), GiB, "1 GiB", among=peers)
    race.run("11", what, rounds=200, absolute=True)
    if lacking:
        note = f"ext4 has no file of that size, and {lacking}"
        race.figure("11", what, None, "s", variant=f"{16 * TiB // GiB:,} GiB", note=note)


def enter(race, path, size, shape, count):
    """A volume with all blocks mapped, so many of which were changed between two snapshots."""
    blocks = plan(size, shape, count, race.workload.again())
    with making(path) as volume:
        volume.snapshot("base")
        for offset in blocks:
            volume.pwrite(MARK, offset)
        target = volume.snapshot("target")
        assert int(target.changed_extents("base")[:, 1].sum()) == count * BLOCK
    synced(path)
    disk = VolumeDisk(cowengine.Volume.open(path, cache_size=CACHE, background=False))
    race.disks.callback(disk.close)
    lane = Lane(lambda: disk.changed("base", "target"), operations=count)
    race.enter_lane(lane, f"{size // GiB:,} GiB", goal=GOALS[shape], at={"volume size": size})


def plan(size, shape, count, workload):
    """Offsets of the blocks to be changed."""
    if shape == "scattered":
        return workload.offsets(size, count)
    starts = workload.offsets(size, count // RUN, RUN * BLOCK)
    return [start + number * BLOCK for start in starts for number in range(RUN)]


def listing(disk, blocks):
    """A peer's volume, written in part only: what is not mapped costs it least."""
    disk.snapshot("base")
    for offset in blocks:
        disk.pwrite(MARK, offset)
    disk.snapshot("target")
    disk.changed("base", "target")
    return Lane(lambda: disk.changed("base", "target"), operations=len(blocks))


def reading(raw, workload, count):
    """Reads so many blocks."""
    workload.fill(raw.pwrite, count * BLOCK, BLOCK)
    fd, pread, offsets = raw.fd, os.pread, range(0, count * BLOCK, BLOCK)
    return Lane(lambda: [pread(fd, BLOCK, offset) for offset in offsets], operations=count)
