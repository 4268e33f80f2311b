"""What reclaim once got wrong."""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from cowengine import Volume
from cowengine.core.iotable import IOTable
from cowengine.engine import reclaim

BLOCK = 4096


def test_a_step_that_stops_at_a_full_record_frees_no_block_twice(tmp_path: Path) -> None:
    """The step ended when its record had no room for another run, and left the cursor on the block it had just freed.

    The next step freed that block's slot again, when it might have had a new owner: two owners of one slot.
    """
    blocks = list(range(256))
    with Volume.create(tmp_path / "v", 256 * BLOCK, log_size=16384, background=False) as volume:
        volume.pwrite(b"\1" * (256 * BLOCK), 0)
        volume.snapshot("kept")
        random.Random(1).shuffle(blocks)
        for block in blocks:  # scattered, so that no two freed slots form one run
            volume.pwrite(b"\2" * BLOCK, block * BLOCK)
        doomed = volume.snapshot("doomed")
        for block in range(256):
            volume.pwrite(b"\3" * BLOCK, block * BLOCK)
        doomed.delete()
        assert volume.check().problems == []


def test_a_flush_that_begins_during_a_step_of_reclaim_is_not_taken_for_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step took the open batch first and counted its commit afterwards.

    A write and a flush in between counted on that commit, which did not have the write: flush returned, and a crash
    lost what it had promised.
    """
    path = tmp_path / "v"
    volume = Volume.create(path, 64 * BLOCK, log_size=16384, background=False)
    volume.pwrite(b"a" * BLOCK, 0)
    snapshot = volume.snapshot("doomed")
    volume.pwrite(b"b" * BLOCK, 0)
    volume.flush()
    volume.engine.delete(snapshot.id)
    written, threads = threading.Event(), []

    def write_and_flush() -> None:
        volume.pwrite(b"c" * BLOCK, 5 * BLOCK)
        written.set()
        volume.flush()

    def event(number: int) -> Any:
        # Between the moment at which the step took the batch and its record.
        threads.append(threading.Thread(target=write_and_flush))
        threads[0].start()
        written.wait()
        threads[0].join(0.2)  # it waits for the step
        return real(number)

    real = reclaim.ReclaimedEvent
    monkeypatch.setattr(reclaim, "ReclaimedEvent", event)
    assert reclaim.reclaim_step(volume.engine)
    threads[0].join()
    shutil.copy(path, tmp_path / "crashed")
    volume.close()
    with Volume.open(tmp_path / "crashed", background=False) as crashed:
        assert crashed.pread(BLOCK, 5 * BLOCK) == b"c" * BLOCK, "flush returned, and the write is lost"


def test_nodes_of_a_snapshot_whose_reclaim_began_before_it_was_ever_written_do_not_leak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps passed nodes that had no slot yet; the checkpoint of the close then gave them slots.

    Only the handle knew that nobody needed them, and the next one found them marked as used for ever.
    """
    monkeypatch.setattr(reclaim, "PARTS_A_STEP", 1)
    path = tmp_path / "v"
    size = 256 * 130 * BLOCK
    with Volume.create(path, size, log_size=1 << 20, background=False) as volume:
        for leaf in range(130):
            volume.pwrite(b"a" * BLOCK, (leaf * 256 + 3) * BLOCK)
        snapshot = volume.snapshot("s")
        for leaf in range(130):
            volume.pwrite(b"b" * BLOCK, (leaf * 256 + 3) * BLOCK)
        volume.engine.delete(snapshot.id)
        assert reclaim.reclaim_step(volume.engine)
        assert volume.stats()["reclaims_pending"] == 1
    with Volume.open(path, background=False) as volume:
        volume.reclaim()
        for _ in range(3):  # until no superblock leads to them any more
            volume.engine.checkpoint()
        assert volume.check().problems == []


class NoNewPages(IOTable):
    """A file system that is full from some moment on: only what was written before can be written again."""

    full = False

    def __init__(self) -> None:
        self.pages: set[int] = set()

    def pwrite(self, fd: int, data: Any, offset: int) -> None:
        pages = set(range(offset // BLOCK, -(-(offset + len(data)) // BLOCK)))
        if self.full and not pages <= self.pages:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.pages |= pages
        super().pwrite(fd, data, offset)

    def punch(self, fd: int, offset: int, length: int) -> None:
        super().punch(fd, offset, length)
        self.pages -= set(range(offset // BLOCK, (offset + length) // BLOCK))


@pytest.mark.parametrize("child", ["live", "snapshot", "none"])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_crash_within_the_reclaim_of_a_snapshot_that_was_never_written_leaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, child: str, steps: int
) -> None:
    """On a full disk a snapshot may be reclaimed before any checkpoint wrote it.

    After a crash its map was built again from the log, with the nodes that the steps had passed; the next checkpoint
    wrote them, and nothing gave them back.
    """
    monkeypatch.setattr(reclaim, "LEAVES_A_STEP", 8)
    monkeypatch.setattr(reclaim, "PARTS_A_STEP", 1)
    table, path = NoNewPages(), tmp_path / "v"
    volume = Volume.create(path, 256 * 130 * BLOCK, log_size=1 << 20, background=False, io=table)
    if child == "none":
        volume.snapshot("empty")
    for leaf in range(130):
        volume.pwrite(b"a" * BLOCK, (leaf * 256 + 3) * BLOCK)
    snapshot = volume.snapshot("s")
    for leaf in range(0, 130, 2):
        volume.pwrite(b"b" * BLOCK, (leaf * 256 + 3) * BLOCK)
    if child == "snapshot":
        volume.snapshot("next")
    table.full = True
    if child == "none":
        volume.rollback("empty").delete()
    volume.engine.delete(snapshot.id)
    for _ in range(steps):
        assert reclaim.reclaim_step(volume.engine)
    assert snapshot.id in volume.engine.lineage.fresh, "a checkpoint found room, so this tests nothing"
    volume.engine.abandon()  # the process is gone
    with Volume.open(path, background=False) as volume:
        assert volume.stats()["reclaims_pending"] == 1
        volume.engine.checkpoint()
        assert volume.check().problems == []
        volume.reclaim()
        for _ in range(3):  # until no superblock leads to them any more
            volume.engine.checkpoint()
        assert volume.check().problems == []
