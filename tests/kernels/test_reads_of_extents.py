"""Reads and lists of extents on the kernels: parts of sealed blocks, more extents than fit, ends and failures."""

from __future__ import annotations

import random

import pytest
from kernel_path import BLOCK, RUNWAY, Path, pairs
from scarce_memory import ScarceMemory

from cowengine.core.roots import Root
from cowengine.core.sealing import enter_seals, make_seals
from cowengine.errors import ClosedError, NotFoundError, StorageError

FIRST = RUNWAY[0][0]


def half_sealed() -> tuple[Path, Root]:
    """A snapshot of eight blocks in one run, of which the first four are sealed."""
    made = Path(1200)
    for block in range(8):
        made.write(block, 1, bytes([65 + block]))
    snapshot = made.snapshot()
    _, _, seals = make_seals(made.path, snapshot, 0, 4)
    enter_seals(made.path, snapshot, seals)
    assert len(seals) == 4
    return made, snapshot


WHOLE = b"".join(bytes([65 + block]) * BLOCK for block in range(8))


@pytest.mark.parametrize("first", [0, 5, 4095, 3 * BLOCK + 7, 4 * BLOCK + 9])
@pytest.mark.parametrize("end", [8, 3 * BLOCK + 9, 5 * BLOCK + 11, 8 * BLOCK])
def test_parts_of_sealed_blocks_and_of_others(first: int, end: int) -> None:
    made, snapshot = half_sealed()
    assert made.path.pread(max(end - first, 0), first, snapshot) == WHOLE[first:end]
    rest = 1200 * BLOCK - first  # more than is looked up at once
    assert made.path.pread(rest, first, snapshot) == WHOLE[first:].ljust(rest, b"\0")


def test_a_part_of_a_sealed_block_needs_memory_for_the_whole() -> None:
    made, snapshot = half_sealed()
    with ScarceMemory(("readpath",), 1), pytest.raises(MemoryError):
        made.path.pread(10, 5, snapshot)
    assert made.path.pread(10, 5, snapshot) == b"A" * 10


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("broken", range(3))
def test_what_cannot_be_read_is_told_whichever_it_is(broken: int, sealed: bool) -> None:
    made = Path()
    for block in (2, 0, 1):  # none lies behind the one before
        made.write(block)
    snapshot = made.snapshot()
    if sealed:
        enter_seals(made.path, snapshot, make_seals(made.path, snapshot, 0, 3)[2])
    made.disk.broken = {made.path.place(broken, snapshot)[0]}
    with pytest.raises(StorageError):
        made.path.pread(3 * BLOCK - 5, 5, snapshot)
    made.disk.broken.clear()
    assert made.path.pread(3 * BLOCK - 5, 5, snapshot) == b"x" * (3 * BLOCK - 5)
    made.path.shut()  # nobody is taken for a reader any more


def test_a_map_that_cannot_be_read_is_told_by_a_read() -> None:
    made = Path()
    made.write(3)
    made.lose_map()
    with pytest.raises(StorageError):
        made.path.pread(1, 0)
    made.disk.broken.clear()
    assert made.path.pread(1, 3 * BLOCK) == b"x"


def test_an_era_does_not_end_while_a_read_of_it_is_under_way() -> None:
    made = Path()
    made.write(0)
    eras: list[int] = []
    made.disk.reading = lambda slot: eras.extend(made.path.turn_era() for _ in range(3))
    assert made.path.pread(1, 0) == b"x"
    assert eras == [3, 3, 3]
    assert [made.path.turn_era() for _ in range(2)] == [4, 5]


def test_a_buffer_is_filled_as_far_as_it_goes_and_memory_is_trimmed() -> None:
    made = Path()
    made.write(0, 2)
    trimmed: list[int] = []
    buffer = bytearray(10)
    assert made.path.pread_into(buffer, 5, 4) == 4 and buffer == b"xxxx" + bytes(6)
    made.path.bound(0, lambda: trimmed.append(1))
    assert made.path.pread_into(buffer, 5, 400, made.live) == 10 and buffer == b"x" * 10
    assert made.path.pread(3, 0) == b"xxx"
    made.path.extents(None, 0, 9, 9)
    assert len(trimmed) == 3


def test_what_has_ended_is_not_looked_at() -> None:
    made, snapshot = half_sealed()
    snapshot.retire()
    for look in (
        lambda root: made.path.place(0, root),
        lambda root: made.path.extents(root, 0, 9, 9),
        lambda root: made.path.pread(5, 0, root),
    ):
        with pytest.raises(NotFoundError):
            look(snapshot)
    made.path.shut()
    for look in (made.path.place, lambda block: made.path.extents(None, block, 9, 9)):
        with pytest.raises(ClosedError):
            look(0)


@pytest.mark.parametrize("most", [0, 1, 2, 4095, 4096, 4097, 4500, 9999])
def test_more_extents_than_are_collected_at_once(most: int) -> None:
    made = many()
    expected = [(2 * i, 1) for i in range(4500)]
    assert pairs(made.path.extents(None, 0, 10_000, most)) == expected[:most]
    assert pairs(made.path.extents(None, 3, 10_000, most, born_after=0)) == expected[2 : 2 + most]


def test_a_map_without_anything_young_is_not_walked() -> None:
    made = many()
    assert pairs(made.path.extents(None, 0, 10_000, 9, born_after=1 << 40)) == []


@pytest.mark.parametrize("seed", range(4))
def test_what_was_born_after_an_epoch_is_what_was_changed_since(seed: int) -> None:
    """Runs and single blocks, written and discarded in several epochs, against a list of all blocks."""
    blocks, chance = 100_000, random.Random(seed)
    made = Path(blocks, runway=((1_000, 90_000),))
    changed, epochs = [0] * blocks, [made.path.map.epoch - 1]
    for _ in range(4):
        for _ in range(chance.choice((3, 40, 400))):
            first = min(chance.randrange(blocks), chance.randrange(blocks))
            end = min(first + chance.choice((1, 1, 1, 2, 7, 8, 9, 300)), blocks)
            if chance.random() < 0.3:
                made.path.discard(first, end)
            else:
                made.write(first, end - first)
            changed[first:end] = [made.path.map.epoch] * (end - first)
        epochs.append(made.path.map.epoch)
        snapshot = made.snapshot()
    for epoch in epochs:
        for _ in range(20):
            first, end = sorted(chance.randrange(blocks + 1) for _ in range(2))
            most = chance.choice((1, 5, blocks))
            expected = runs([block for block in range(first, end) if changed[block] > epoch])
            assert pairs(made.path.extents(snapshot, first, end, most, born_after=epoch)) == expected[:most]


def runs(blocks: list[int]) -> list[tuple[int, int]]:
    """Ascending numbers as (first, count)."""
    found: list[tuple[int, int]] = []
    for block in blocks:
        if found and sum(found[-1]) == block:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((block, 1))
    return found


MADE: list[Path] = []


def many() -> Path:
    """A volume of which every other block is mapped; made once, and only looked at."""
    if not MADE:
        made = Path(10_000)
        for block in range(0, 9000, 2):
            made.write(block)
        MADE.append(made)
    return MADE[0]
