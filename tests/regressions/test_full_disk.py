"""What a full file system once broke."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest
from small_disk_table import SmallDisk

from cowengine import Volume
from cowengine.core.iotable import IOTable
from cowengine.errors import NoSpaceError

BLOCK = 4096


@pytest.mark.parametrize("pages", [400, 700])
@pytest.mark.parametrize("others_take_the_rest", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_all_snapshots_can_be_deleted_when_the_disk_is_full(
    tmp_path: Path, pages: int, others_take_the_rest: bool, seed: int
) -> None:
    """Each delete took room in the log, and the checkpoint that empties it wanted new pages although free slots were
    there: deleting ended with "the commit log is full", and reopening did not help.
    """
    table, chance = SmallDisk(), random.Random(seed)
    volume = Volume.create(tmp_path / "v", 256 * BLOCK, log_size=16384, background=False, io=table)
    table.free = pages
    snapshots = []
    with pytest.raises(NoSpaceError):
        while True:
            for _ in range(chance.randint(1, 30)):
                volume.pwrite(bytes([len(snapshots) % 250 + 1]) * BLOCK, chance.randrange(256) * BLOCK)
            snapshots.append(volume.snapshot(f"s{len(snapshots)}"))
    if others_take_the_rest:
        table.free = 0
    live = volume.pread(256 * BLOCK, 0)
    chance.shuffle(snapshots)
    for snapshot in snapshots:
        snapshot.delete()
    assert volume.snapshots() == []
    assert volume.pread(256 * BLOCK, 0) == live
    assert volume.check().problems == []
    volume.close()


class FullButForTheLog(IOTable):
    """No write behind the log succeeds."""

    full_from = 1 << 62

    def pwrite(self, fd: int, data: Any, offset: int) -> None:
        if offset >= self.full_from:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().pwrite(fd, data, offset)


def test_close_says_so_when_it_cannot_commit_what_is_open(tmp_path: Path) -> None:
    """The log was full, no checkpoint could empty it, and close took that for "everything is in the log": the open
    batch was dropped without an error.
    """
    table = FullButForTheLog()
    path = tmp_path / "v"
    volume = Volume.create(path, 64 * BLOCK, log_size=16384, background=False, io=table)
    volume.pwrite(b"a" * (60 * BLOCK), 0)
    snapshots = [volume.snapshot(f"s{number}") for number in range(40)]
    table.full_from = 2 * BLOCK + 16384
    with pytest.raises(NoSpaceError):
        for block in range(50):
            volume.discard(block * BLOCK, BLOCK)
            volume.flush()
    with pytest.raises(NoSpaceError):
        for snapshot in snapshots:
            volume.engine.delete(snapshot.id)
    volume.discard(55 * BLOCK, BLOCK)
    try:
        volume.close()
    except NoSpaceError:
        return
    with Volume.open(path, background=False) as again:
        assert again.pread(BLOCK, 55 * BLOCK) == bytes(BLOCK), "closed without an error, and a discard is lost"
