"""Row 15: what the map and the log cost in bytes."""

from __future__ import annotations

import os
import random

import pytest
from big_maps import MARK, Making, MapOnly, making
from workload import BLOCK, SEED, GiB, MiB, TiB

import cowengine

WRITES = 100  # before each snapshot


def test_bytes_logged_for_a_first_write(benchmark, race, scale):
    """Scattered first writes of blocks that a snapshot holds, 256 a flush: bytes of the log for each."""
    flushes, size = scale(100, 4), 256 * MiB
    volume = cowengine.Volume.create(race.field.folders["cowengine"] / "logged", size, io=Making(), background=False)
    with volume:
        race.workload.fill(volume.pwrite, size)
        volume.snapshot("held")
        offsets = race.workload.each_once(size)
        log = volume.engine.log

        def logged() -> int:
            total = 0
            for _ in range(flushes):
                before = log.position
                for _ in range(256):
                    volume.pwrite(MARK, next(offsets))
                volume.flush()
                total += log.position - before
            return total

        found = benchmark.pedantic(logged) / (256 * flushes)
    os.unlink(volume.path)
    race.figure("15", "bytes logged for a scattered first write", found, "bytes", variant="256 a flush", goal=64)


@pytest.mark.parametrize(("size", "goal"), [(GiB, 1.3), (TiB, 1.6)], ids=["1 GiB", "1 TiB"])
def test_file_size(benchmark, race, scale, big_maps, size, goal):
    """10,000 snapshots with 100 scattered writes before each: bytes of the file over bytes of all their blocks.

    The blocks themselves are not written but counted: what the file takes on the disk is all the rest. At 1 TiB only
    the first 2,500 snapshots are taken, as all of them write 14 GB of nodes.
    """
    snapshots = scale(10_000 if size == GiB else 2500, 20, quick=100)
    path = big_maps.path()
    cowengine.Volume.create(path, size, io=Making(), background=False).close()
    blocks = benchmark.pedantic(grow, args=(path, size, snapshots))
    ratio = 1 + os.stat(path).st_blocks * 512 / (blocks * BLOCK)
    os.unlink(path)
    what = f"file size over data, {snapshots:,} snapshots of {WRITES} scattered writes"
    race.figure("15", what, ratio, "x", variant=f"{size // GiB:,} GiB", goal=goal)


def grow(path, size, snapshots):
    """Takes the snapshots; how many blocks they hold. The log, written in advance, counts as part of the file."""
    generator = random.Random(f"{SEED} {size}")
    blocks = 0
    with making(path, MapOnly()) as volume:
        for number in range(snapshots):
            chosen = {generator.randrange(size // BLOCK) for _ in range(WRITES)}
            for block in chosen:
                volume.pwrite(MARK, block * BLOCK)
            volume.snapshot(str(number))
            blocks += len(chosen)
    return blocks
