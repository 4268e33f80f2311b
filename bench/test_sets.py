"""Row 14: snapshot sets, one point in time over many volumes."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest
from barrier import overwritten
from race import Lane
from workload import BLOCK, MiB

import cowengine

SIZE = 16 * MiB
NUMBERS = (1, 8, 64)
WRITES = 16


@pytest.fixture
def store(race):
    """An empty store."""
    folder = race.field.folders["cowengine"] / "store"
    with cowengine.Store.create(folder) as made:
        yield made
    shutil.rmtree(folder)


def test_sets_with_nothing_unflushed(race, scale, store):
    """One barrier of the store log, for any number of volumes; raw: overwrite 4 KiB and fdatasync."""
    race.against(overwritten, MiB)
    for number in scale(NUMBERS, (1, 3), quick=NUMBERS):
        volumes, names = volumes_of(store, number, race.workload.again()), map(str, count())

        def take(volumes=volumes, names=names, number=number) -> None:
            store.snapshot(volumes, f"{number} volumes, {next(names)}")

        race.enter_lane(Lane(take), titled(number), goal=1.5)
    race.run("14", "snapshot set, nothing unflushed", rounds=300, durable=True)


def test_sets_with_unflushed_writes(race, scale, store):
    """16 scattered writes on each volume; raw: after the same writes fdatasync of as many files in parallel, and then
    one barrier.
    """
    with ThreadPoolExecutor(max_workers=max(NUMBERS)) as pool:
        for number in scale(NUMBERS, (1, 3), quick=NUMBERS):
            files = [race.raw(SIZE) for _ in range(number)]
            race.against(synced_in_parallel(pool, files, race.workload.again()))
            race.enter_lane(after_writes(store, number, race.workload.again()), titled(number), goal=1.2)
        race.run("14", f"snapshot set, {WRITES} scattered writes on each volume", rounds=100, durable=True)


def titled(number):
    return f"{number} volume{'s' if number > 1 else ''}"


def volumes_of(store, number, workload):
    """Names of so many new volumes, written in full."""
    names = [f"{number}-{each}" for each in range(number)]
    for name in names:
        volume = store.create_volume(name, SIZE)
        workload.fill(volume.pwrite, SIZE, BLOCK)
        volume.flush()
    return names


def after_writes(store, number, workload):
    """Sets, each after scattered writes on all members, which the set before holds."""
    volumes, names = volumes_of(store, number, workload), map(str, count())
    opened = [store.open_volume(name) for name in volumes]
    store.snapshot(volumes, f"{number} volumes")

    def write() -> None:
        for volume in opened:
            for offset in workload.offsets(SIZE, WRITES):
                volume.pwrite(workload.block, offset)

    return Lane(lambda: store.snapshot(volumes, f"{number} volumes, {next(names)}"), write)


def synced_in_parallel(pool, files, workload):
    """fdatasync of all files at once, each by a thread that is there, and then a barrier of its own."""
    for file in files:
        workload.fill(file.pwrite, SIZE, BLOCK)
        file.flush()

    def write() -> None:
        for file in files:
            for offset in workload.offsets(SIZE, WRITES):
                file.pwrite(workload.block, offset)

    def sync() -> None:
        list(pool.map(os.fdatasync, [file.fd for file in files]))
        files[0].pwrite(workload.block, 0)
        files[0].flush()

    return Lane(sync, write)
