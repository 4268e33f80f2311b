"""What is freed bit by bit gives its space back to the file system, too."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cowengine import Volume
from cowengine.core.iotable import IOTable
from cowengine.engine import reclaim

MIB = 1 << 20
BLOCK = 4096


def taken(path: Path) -> int:
    return os.stat(path).st_blocks * 512


@pytest.mark.parametrize("adopted", [False, True])
def test_blocks_discarded_one_by_one_give_back_what_they_took(tmp_path: Path, adopted: bool) -> None:
    path = tmp_path / "v"
    if adopted:
        path.write_bytes(random.Random(1).randbytes(8 * MIB))
    with Volume.adopt(path) if adopted else Volume.create(path, 8 * MIB) as volume:
        volume.pwrite(os.urandom(8 * MIB), 0)
        volume.flush()
        before = taken(path)
        order = list(range(0, 8 * MIB, BLOCK))
        random.Random(2).shuffle(order)
        for offset in order:
            volume.discard(offset, BLOCK)
        for _ in range(3):  # a freed slot waits until no read can need it
            volume.flush()
        assert before - taken(path) > 7 * MIB
        assert volume.pread(MIB, 3 * MIB) == bytes(MIB) and volume.check().ok
    with Volume.open(path) as volume:
        assert volume.check().ok


def test_what_compaction_leaves_is_given_back(tmp_path: Path) -> None:
    path, rng = tmp_path / "v", random.Random(3)
    with Volume.create(path, 64 * MIB) as volume:
        volume.pwrite(os.urandom(4 * MIB), 0)
        volume.flush()
        before = taken(path)
        for number in range(50):
            snapshot = volume.snapshot(f"s{number}")
            for _ in range(32):
                volume.pwrite(os.urandom(BLOCK), rng.randrange(4 * MIB // BLOCK) * BLOCK)
            snapshot.delete()
        volume.compact()
        for _ in range(3):
            volume.flush()
        assert taken(path) - before < 4 * MIB  # runways and nodes
        assert volume.check().ok


def test_a_file_system_that_was_full_gets_every_free_slot_and_the_log_stays(tmp_path: Path) -> None:
    path, copy = tmp_path / "v", tmp_path / "crashed"
    with Volume.create(path, 8 * MIB, background=False) as volume:
        volume.pwrite(content := os.urandom(8 * MIB), 0)
        volume.snapshot("first")
        for offset in range(0, 8 * MIB, 2 * BLOCK):
            volume.discard(offset, BLOCK)
        volume.get_snapshot("first").delete()
        for offset in range(BLOCK, 8 * MIB, 4 * BLOCK):
            volume.discard(offset, BLOCK)
        for _ in range(3):
            volume.flush()
        before = taken(path)
        assert volume.engine.allocator.tighten()
        assert before - taken(path) >= 2 * MIB - 64 * BLOCK
        volume.snapshot("second")
        shutil.copy(path, copy)
        assert volume.check().ok
    with Volume.open(copy) as volume:
        assert [snapshot.name for snapshot in volume.snapshots()] == ["second"]
        kept = range(3 * BLOCK, 8 * MIB, 4 * BLOCK)
        assert all(volume.pread(BLOCK, offset) == content[offset : offset + BLOCK] for offset in kept)
        assert volume.check().ok


def test_nothing_that_is_written_meanwhile_is_punched(tmp_path: Path) -> None:
    """Two threads discard and write neighbouring blocks while a third gives all free slots back again and again."""
    with Volume.create(tmp_path / "v", 4 * MIB, background=False) as volume:
        end, wrong = threading.Event(), []

        def work(parity: int) -> None:
            rng = random.Random(parity)
            while not end.is_set():
                offset = (2 * rng.randrange(4 * MIB // BLOCK // 2) + parity) * BLOCK
                data = rng.randbytes(16) * (BLOCK // 16)
                volume.pwrite(data, offset)
                if volume.pread(BLOCK, offset) != data:
                    wrong.append(offset)
                if rng.random() < 0.5:
                    volume.discard(offset, BLOCK)
                if rng.random() < 0.05:
                    volume.flush()

        threads = [threading.Thread(target=work, args=(parity,)) for parity in (0, 1)]
        for thread in threads:
            thread.start()
        for _ in range(300):
            volume.engine.allocator._punch_free()
        end.set()
        for thread in threads:
            thread.join()
        assert not wrong
        assert volume.check().ok


class Punches(IOTable):
    """Does something before each punch."""

    def __init__(self) -> None:
        self.before: Callable[[], object] = list

    def punch(self, fd: int, offset: int, length: int) -> None:
        self.before()
        super().punch(fd, offset, length)


def scattered(path: Path, table: IOTable) -> tuple[Volume, dict[int, bytes]]:
    """A volume with a deleted snapshot of which every other block is to be given back; and what it holds by then."""
    volume = Volume.create(path, 8 * MIB, background=False, io=table)
    volume.pwrite(os.urandom(8 * MIB), 0)
    volume.snapshot("s")
    held = {offset: os.urandom(BLOCK) for offset in range(0, 8 * MIB, 2 * BLOCK)}
    for offset, block in held.items():
        volume.pwrite(block, offset)
    volume.flush()
    volume.engine.delete(volume.get_snapshot("s").id)
    return volume, held


@pytest.mark.parametrize("most", [reclaim.UNPUNCHED_MAX, 1])
def test_a_delete_frees_all_blocks_and_punches_then(tmp_path: Path, monkeypatch: Any, most: int) -> None:
    """A punch costs as much as a barrier, and there may be one for each block. They are noted up to a number only."""
    monkeypatch.setattr(reclaim, "UNPUNCHED_MAX", most)
    monkeypatch.setattr(reclaim, "LEAVES_A_STEP", 1)
    monkeypatch.setattr(reclaim, "PARTS_A_STEP", 1)
    table, left = Punches(), list[int]()
    volume, held = scattered(tmp_path / "v", table)
    table.before = lambda: left.append(reclaim.pending(volume.engine))
    with volume:
        before = taken(tmp_path / "v")
        volume.reclaim()
        assert len(left) == len(held) and (set(left) == {0}) == (most > 1)
        assert before - taken(tmp_path / "v") >= len(held) * BLOCK - 64 * BLOCK
        assert all(volume.pread(BLOCK, offset) == block for offset, block in held.items()) and volume.check().ok


def test_what_is_in_use_again_is_not_punched(tmp_path: Path, monkeypatch: Any) -> None:
    """Compaction brings blocks home between the step that freed their homes and the punch."""
    volume, held = scattered(tmp_path / "v", Punches())
    punch, moved = reclaim.punch, list[int]()

    def later(engine: Any, least: int = 1) -> None:
        moved.append(volume.compact().moved_bytes if least == 1 and not any(moved) else 0)
        punch(engine, least)

    monkeypatch.setattr(reclaim, "punch", later)
    with volume:
        volume.reclaim()
        assert max(moved) > MIB
        assert all(volume.pread(BLOCK, offset) == block for offset, block in held.items()) and volume.check().ok


def test_nobody_is_given_what_is_being_punched(tmp_path: Path) -> None:
    """I46: at each punch all of its slots are out of circulation."""

    class Looks(Punches):
        def punch(self, fd: int, offset: int, length: int) -> None:
            first, count = offset // BLOCK, length // BLOCK
            busy.append(volume.engine.path.slots.count_busy(first, first + count) == count)
            super().punch(fd, offset, length)

    busy: list[bool] = []
    volume, held = scattered(tmp_path / "v", Looks())
    with volume:
        volume.reclaim()
        assert len(busy) >= len(held) and all(busy)
