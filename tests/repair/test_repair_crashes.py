"""Every crash of a repair leaves what was there before it, or what it makes of it: never less."""

from __future__ import annotations

import logging
import random
from contextlib import suppress
from pathlib import Path

import pytest
from crash_images import build, choices, fingerprint
from memory_disk import DIRECTORY, Durable, MemoryDisk, instants
from salvage_damage import contents, flipped, original, structures

from cowengine import CowEngineError, Volume

PATH = "/disk/v"


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "cowengine")


def disk_with(content: bytes | bytearray) -> MemoryDisk:
    return MemoryDisk(Durable({1: bytearray(content)}, {"/": DIRECTORY, "/disk": DIRECTORY, PATH: 1}))


@pytest.mark.parametrize(("name", "kind"), [
    ("logged", "tree 3"), ("half_reclaimed", "tree 3"), ("sealed", "tree 4"), ("named", "tree 5"),
    ("logged", "superblock"),
])  # fmt: skip
def test_every_crash_can_be_repaired_again(tmp_path: Path, name: str, kind: str) -> None:
    sound, rng = original(name, tmp_path), random.Random(name + kind)
    disk = disk_with(flipped(sound.data, structures(sound.data)[kind][0], rng))
    report = Volume.repair(PATH, io=disk)
    assert report.ok
    assert report.repaired
    seen: set[int] = set()
    for instant in instants(disk.start, disk.journal):
        for choice in choices(instant.pending, rng, 6):
            image = build(instant, choice)
            key = fingerprint(image)
            if key in seen:
                continue
            seen.add(key)
            again = MemoryDisk(image)
            assert Volume.repair(PATH, io=again).ok
            left = again.cache.files[again.cache.entries[PATH]]
            (tmp_path / "left").write_bytes(left)
            assert contents(tmp_path / "left") == sound.shown
    assert len(seen) > 10


def test_a_barrier_of_a_repair_that_fails_is_told_and_costs_nothing(tmp_path: Path) -> None:
    sound, rng = original("logged", tmp_path), random.Random(1)
    damaged = flipped(sound.data, structures(sound.data)["tree 3"][0], rng)
    barriers = 0
    while True:
        disk = disk_with(damaged)
        disk.fail_barrier = barriers
        with suppress(CowEngineError):
            Volume.repair(PATH, io=disk)
            if not disk.faults:
                break
            pytest.fail("a barrier failed and nobody was told")
        barriers += 1
        again = disk_with(disk.cache.files[disk.cache.entries[PATH]])
        assert Volume.repair(PATH, io=again).ok
        (tmp_path / "left").write_bytes(again.cache.files[again.cache.entries[PATH]])
        assert contents(tmp_path / "left") == sound.shown
    assert barriers > 5
