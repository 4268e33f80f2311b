"""One of the two superblock slots becomes unreadable: the other leads to the same state, and the volume goes on."""

from __future__ import annotations

import logging
from contextlib import suppress

import pytest
from crash_workload import PATH
from memory_disk import MemoryDisk

from cowengine import Volume
from cowengine.engine import allocator

BLOCK = 4096
BLOCKS = 64


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "cowengine")


def lived_in() -> tuple[MemoryDisk, bytes]:
    """A volume with checkpoints and, behind the last one, a record that frees nodes which that checkpoint wrote."""
    disk = MemoryDisk()
    volume = Volume.create(PATH, BLOCKS * BLOCK, log_size=16384, io=disk, background=False)
    for number in range(4):
        volume.pwrite(bytes([number + 1]) * BLOCK, number * 5 * BLOCK)
        volume.snapshot(f"s{number}")
    volume.engine.checkpoint()
    for number in range(2):
        volume.pwrite(bytes([number + 101]) * 3 * BLOCK, number * 7 * BLOCK)
        volume.get_snapshot(f"s{number}").delete()
    volume.flush()
    content = volume.pread(BLOCKS * BLOCK, 0)
    disk.power_off()
    with suppress(OSError):
        volume.close()
    return disk, content


@pytest.mark.parametrize("slot", [0, 1])
@pytest.mark.parametrize("runway", [2, allocator.RUNWAY_SLOTS])
def test_the_other_slot_leads_to_the_same_state_and_stays_sound(
    slot: int, runway: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocator, "RUNWAY_SLOTS", runway)
    old, content = lived_in()
    inode = old.cache.entries[PATH]
    old.cache.files[inode][slot * 4096 + 100] ^= 0xFF
    disk = MemoryDisk(old.cache)
    with Volume.open(PATH, io=disk, background=False) as volume:
        assert volume.check().problems == []
        for number in range(6):
            volume.engine.checkpoint()
            assert volume.check().problems == []
            assert volume.pread(BLOCKS * BLOCK, 0) == content
            names = ["s2", "s3", *(f"t{n}" for n in range(number))]
            assert [snapshot.name for snapshot in volume.snapshots()] == names
            volume.snapshot(f"t{number}")
            volume.pwrite(content[: 9 * BLOCK], 0)
    with Volume.open(PATH, io=disk, background=False) as volume:
        assert volume.pread(BLOCKS * BLOCK, 0) == content
        assert volume.check().problems == []
