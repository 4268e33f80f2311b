"""What lies near each other in the file is read by one call: contents, calls, unreadable places between."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path as FilePath

import numpy
import pytest
from kernel_path import BLOCK, Path

import cowengine
from cowengine.core.gather import gather
from cowengine.core.roots import Root
from cowengine.core.sealing import enter_seals, make_seals
from cowengine.errors import CorruptionError, StorageError

BLOCKS = 600
MIB = 1 << 20
OLD, NEW = b"o" * BLOCK, b"n" * BLOCK


def moved(*blocks: int) -> tuple[Path, Root]:
    """256 blocks written in a row, of which some were written again after a snapshot, and a snapshot of that."""
    made = Path(BLOCKS)
    made.write(0, 256, OLD[:1])
    made.snapshot()
    for block in blocks:
        made.write(block, 1, NEW[:1])
    return made, made.snapshot()


def seal(made: Path, snapshot: Root, count: int) -> None:
    enter_seals(made.path, snapshot, make_seals(made.path, snapshot, 0, count)[2])


def counted(made: Path, read: Callable[[], object]) -> list[int]:
    """Where each of the reads of a call begins."""
    calls: list[int] = []
    made.disk.reading = calls.append
    read()
    made.disk.reading = lambda slot: None
    return calls


@pytest.mark.parametrize("sealed", [0, 100, BLOCKS])
@pytest.mark.parametrize("seed", range(4))
def test_any_layout_reads_as_block_by_block(seed: int, sealed: int) -> None:
    """Overwritten and discarded at random, in three generations; the ends of the ranges lie anywhere."""
    made, chance = Path(BLOCKS), random.Random(seed)
    made.write(0, BLOCKS, b"0")
    for generation in range(3):
        snapshot = made.snapshot()
        for _ in range(chance.choice((5, 40, 150))):
            first, count = chance.randrange(BLOCKS), chance.choice((1, 1, 1, 2, 3, 9))
            end = min(first + count, BLOCKS)
            if chance.random() < 0.3:
                made.path.discard(first, end)
            else:
                made.write(first, end - first, bytes([65 + 20 * generation + chance.randrange(20)]))
    snapshot = made.snapshot()
    blocks = [made.path.pread(BLOCK, block * BLOCK, snapshot) for block in range(BLOCKS)]
    whole = b"".join(blocks)
    assert len({*blocks}) > 5
    if sealed:
        seal(made, snapshot, sealed)
    for _ in range(60):
        begin, end = sorted(chance.randrange(BLOCKS * BLOCK + 1) for _ in range(2))
        assert made.path.pread(end - begin, begin, snapshot) == whole[begin:end]
        assert made.path.pread(end - begin, begin) == whole[begin:end]
    order = chance.sample(range(BLOCKS), 300)
    extents = numpy.array([(block * BLOCK, BLOCK) for block in order], dtype=numpy.uint64)
    buffer = bytearray(300 * BLOCK)
    assert gather(made.path, buffer, extents, BLOCKS * BLOCK, snapshot) == len(buffer)
    assert buffer == b"".join(blocks[block] for block in order)


def test_what_lies_between_moved_blocks_is_read_by_one_call() -> None:
    made, snapshot = moved(200, 10, 50, 90, 91)
    first, new = (made.path.place(block, snapshot)[0] for block in (0, 200))
    found = bytearray(256 * BLOCK)
    calls = counted(made, lambda: made.path.pread_into(found, 0, len(found), snapshot))
    # Two blocks are too wide a gap. Moved blocks are near each other as well, where they moved one after the other:
    # 50 comes behind 10, 90 behind that.
    assert calls == [first, new + 1, first + 92, new]
    assert [found[at * BLOCK : (at + 1) * BLOCK] for at in (9, 10, 11, 50, 89, 91, 200)] == [
        OLD, NEW, OLD, NEW, OLD, NEW, NEW,
    ]  # fmt: skip


def test_sealed_blocks_are_read_by_as_much_as_is_verified_at_once() -> None:
    made, snapshot = moved(*range(250, 0, -10))
    calls = counted(made, lambda: made.path.pread(MIB, 0, snapshot))
    assert len(calls) == 1 + 25
    seal(made, snapshot, 256)
    assert len(counted(made, lambda: made.path.pread(MIB, 0, snapshot))) <= 6 + 25
    assert made.path.pread(MIB - 9, 5, snapshot) == made.path.pread(MIB, 0, snapshot)[5:-4]


@pytest.mark.parametrize("sealed", [False, True])
def test_what_nobody_wants_need_not_be_readable(sealed: bool) -> None:
    made, snapshot = moved(30, 60)
    if sealed:
        seal(made, snapshot, 256)
    whole = made.path.pread(100 * BLOCK, 0, snapshot)
    assert whole[30 * BLOCK : 31 * BLOCK] == NEW
    first = made.path.place(0, snapshot)[0]
    made.disk.broken = {first + 30, first + 60}
    found: list[bytes] = []
    calls = counted(made, lambda: found.append(made.path.pread(100 * BLOCK, 0, snapshot)))
    assert found == [whole]
    assert len(calls) == 1 + 5  # it is tried once
    made.path.shut()


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("broken", [0, 29, 30, 31, 59, 60, 99])
def test_what_is_wanted_must_be_readable(broken: int, sealed: bool) -> None:
    """And no byte of what was passed over comes to light."""
    made, snapshot = moved(30, 60)
    if sealed:
        seal(made, snapshot, 256)
    made.disk.broken = {made.path.place(broken, snapshot)[0]}
    found = bytearray(100 * BLOCK)
    with pytest.raises(StorageError):
        made.path.pread_into(found, 0, len(found), snapshot)
    assert OLD[:1] not in found[30 * BLOCK : 31 * BLOCK] + found[60 * BLOCK : 61 * BLOCK]
    made.disk.broken.clear()
    assert made.path.pread_into(found, 0, len(found), snapshot) == len(found)
    assert found[30 * BLOCK : 31 * BLOCK] == NEW


def test_damage_is_found_in_what_was_read_together() -> None:
    made, snapshot = moved(30, 60)
    seal(made, snapshot, 256)
    slot = made.path.place(45, snapshot)[0]
    made.disk.slots[slot] = b"d" + made.disk.slots[slot][1:]
    with pytest.raises(CorruptionError, match=str(45 * BLOCK)):
        made.path.pread(MIB, 0, snapshot)
    assert made.path.pread(40 * BLOCK, 0, snapshot)[-1:] == OLD[:1]


def system_calls() -> int:
    """Read calls of this process so far."""
    return int(FilePath("/proc/self/io").read_text().split("syscr:")[1].split()[0])


@pytest.mark.parametrize("sealed", [False, True])
def test_a_volume_asks_the_system_once_for_the_blocks_that_did_not_move(tmp_path: FilePath, sealed: bool) -> None:
    with cowengine.Volume.create(tmp_path / "volume", MIB) as made:
        made.pwrite(os.urandom(MIB), 0)
    with cowengine.Volume.open(tmp_path / "volume", background=False) as volume:
        model = bytearray(volume.pread(MIB, 0))
        volume.snapshot("before")
        for block in range(250, 0, -10):
            model[block * BLOCK : (block + 1) * BLOCK] = NEW
            volume.pwrite(NEW, block * BLOCK)
        snapshot = volume.snapshot("after")
        if sealed:
            volume.seal()
        assert snapshot.pread(MIB, 0) == volume.pread(MIB, 0) == model
        nothing = -system_calls() + system_calls()
        before = system_calls()
        snapshot.pread(MIB, 0)
        assert system_calls() - before - nothing <= (6 if sealed else 1) + 25
        volume.flush()
        with open(volume.path, "rb") as file:  # from the disk, where it is one
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert snapshot.pread(MIB - 7, 3) == model[3:-4]
