"""Rolling back, and making a clone: each is a commit, whatever the size of the volume. No row of the table of goals."""

from __future__ import annotations

from itertools import count

import pytest
from barrier import overwritten
from race import Lane
from workload import GiB, MiB, TiB

BLOCKS = 256
SIZES = (GiB, TiB)


@pytest.mark.parametrize("what", ["rollback", "clone"])
def test_going_back(race, what):
    """256 scattered blocks are rolled back, or cloned; raw: overwrite 4 KiB and fdatasync."""
    race.against(overwritten, MiB)
    for size in SIZES:
        disk = race.disk(race.subject("cowengine"), size)
        lane = (rollback if what == "rollback" else clone)(disk.volume, race.workload.again())
        race.enter_lane(lane, f"{size // GiB:,} GiB", at={"volume size": size})
    race.run("", f"{what} of {BLOCKS} scattered blocks", rounds=100, durable=True)


def write(volume, workload):
    for offset in workload.offsets(volume.size, BLOCKS):
        volume.pwrite(workload.block, offset)
    volume.flush()


def rollback(volume, workload):
    names = map(str, count())
    snapshots = []

    def prepare() -> None:
        snapshots.append(volume.snapshot(next(names)))
        write(volume, workload)

    return Lane(lambda: volume.rollback(snapshots.pop()), prepare)


def clone(volume, workload):
    write(volume, workload)
    snapshot, names, clones = volume.snapshot("cloned"), map(str, count()), []

    def prepare() -> None:
        while clones:
            made = clones.pop()
            made.close()
            volume.delete_head(made.head)

    return Lane(lambda: clones.append(snapshot.clone(next(names))), prepare)
