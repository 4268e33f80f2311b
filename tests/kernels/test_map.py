"""The block map: what a change frees, what a walk finds from anywhere, what is unshared, damage and want of memory."""

from __future__ import annotations

import pytest
from kernel_path import BLOCK, NODES, RUNWAY, Path, pairs
from scarce_memory import ScarceMemory

from cowengine import format as f
from cowengine.core.reclaiming import reclaim, replay_reclaim
from cowengine.errors import CorruptionError, OutOfRangeError, StorageError

LEAF = 256  # blocks of a leaf
FIRST = RUNWAY[0][0]  # the slot that the first write gets


def run_pointer(blocks: int = 1024) -> Path:
    """A volume whose blocks 0 to 255 are one run pointer, born in epoch 1."""
    made = Path(blocks)
    made.write(0, LEAF)
    made.commit()
    made.write_nodes()
    return made


# -- the free rule -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("holder", "freed"),
    [
        ((0, 0, 0), [(FIRST, 256)]),  # no ancestor
        ((1, 0, 0), []),  # the nearest one has it all
        ((0, 0, 100), [(FIRST, 256)]),  # whatever the cursor
        ((1, 0, 100), [(FIRST, 100)]),  # what the reclaim has passed is held by the one before, who has nothing
        ((1, 1, 100), []),
        ((1, 0, 256), [(FIRST, 256)]),
        ((1, 0, 9999), [(FIRST, 256)]),
        ((0, 1, 100), [(FIRST + 100, 156)]),
    ],
)
def test_a_run_is_freed_as_the_free_rule_says_left_and_right_of_the_cursor(
    holder: tuple[int, int, int], freed: list[tuple[int, int]]
) -> None:
    made = run_pointer()
    made.live.set_holder(*holder)
    assert made.path.discard(0, LEAF)
    assert made.freed() == freed
    assert made.path.place(0) == (0, LEAF)


def test_a_run_that_memory_is_wanted_for_is_freed_whole_or_not_at_all() -> None:
    made = Path()
    made.write(0, LEAF)
    made.write(256, 126)
    made.commit()
    made.write_nodes()
    made.live.set_holder(0, 0, 100)
    for block in range(256, 382, 2):  # 63 runs: in the array there is room for one more
        assert made.path.discard(block, block + 1)
    made.live.set_holder(1, 0, 100)
    with ScarceMemory(("radix",)) as memory:
        made.path.place(0)
        assert memory.count == 0
        memory.at = 1
        with pytest.raises(MemoryError):
            made.path.discard(0, LEAF)
    assert len(made.freed()) == 63
    assert made.path.place(0) == (FIRST, LEAF)
    assert made.path.discard(0, LEAF)
    assert made.freed() == [(FIRST, 100)]


def test_blocks_are_freed_as_far_as_the_batch_has_room() -> None:
    made = Path(batch_bytes=2048)
    for block in range(700, 300, -1):  # no slot lies behind that of the block before
        made.write(block)
    made.commit()
    made.commits = 0
    assert made.path.discard(256, 800)
    assert made.commits == 3
    assert made.path.place(256) == (0, 256)


# -- looking -----------------------------------------------------------------------------------------------------------
def test_a_walk_begins_and_ends_anywhere() -> None:
    made = run_pointer(4 * LEAF)
    made.write(300, 3)
    made.write(511, 2)
    whole = [(0, 256), (300, 3), (511, 2)]
    assert pairs(made.path.extents(None, 0, 1024, 99)) == whole
    assert pairs(made.path.extents(None, 100, 302, 99)) == [(100, 156), (300, 2)]
    assert pairs(made.path.extents(None, 301, 512, 99)) == [(301, 2), (511, 1)]
    assert pairs(made.path.extents(None, 301, 512, 1)) == [(301, 2)]
    assert pairs(made.path.extents(None, 5, 5, 99)) == []
    assert pairs(made.path.extents(None, 1 << 40, 1 << 41, 99)) == []
    assert pairs(made.path.extents(None, 0, 1024, 99, born_after=1)) == []
    assert pairs(made.path.extents(None, 9, 1024, 99, born_after=0)) == [(9, 247), (300, 3), (511, 2)]


def test_a_node_that_cannot_be_read_is_told_and_what_lies_beside_it_is_found() -> None:
    made = Path()
    made.write(3)
    made.write(300)
    made.commit()
    nodes = made.write_nodes()
    made.forget()
    for broken in nodes:
        made.disk.broken = {broken}
        with pytest.raises(StorageError):
            made.path.extents(None, 0, 1024, 99)
        with pytest.raises(StorageError):
            [made.path.place(block) for block in (3, 300)]
        made.forget()
    made.disk.broken = {nodes[1]}
    assert made.path.place(3)[0] == FIRST or made.path.place(300)[0] == FIRST + 1
    made.disk.broken.clear()
    assert pairs(made.path.extents(None, 0, 1024, 99)) == [(3, 1), (300, 1)]


# -- what only a deleted snapshot has ----------------------------------------------------------------------------------
def test_a_reclaim_goes_on_within_a_leaf_and_ends_once() -> None:
    made = Path()
    made.write(0, 400)
    dead = made.snapshot()
    made.write(0, 400, b"y")
    made.commit()
    cursor, at_end, (_, freed, *_) = reclaim(made.path, dead, made.live, 0, 0, 1)
    assert (cursor, at_end, pairs(freed)) == (256, False, [(FIRST, 256)])
    cursor, at_end, (_, freed, *_) = reclaim(made.path, dead, made.live, 0, cursor, 64)
    assert at_end and pairs(freed) == [(FIRST + 256, 144)]
    _, at_end, (_, freed, *_) = reclaim(made.path, dead, made.live, 0, cursor, 64)
    assert at_end and not freed


def test_a_reclaim_beside_a_full_batch_goes_on_behind_it() -> None:
    made = Path(batch_bytes=600)
    made.write(0, 40)
    dead = made.snapshot()
    made.write(0, 40, b"y")
    for block in range(100, 110, 2):
        made.write(block)
    cursor, at_end, (deltas, freed, *_) = reclaim(made.path, dead, made.live, 0, 0, 64)
    assert (cursor, at_end, freed) == (0, False, b"") and deltas
    _, at_end, (_, freed, *_) = reclaim(made.path, dead, made.live, 0, cursor, 64)
    assert at_end and pairs(freed) == [(FIRST, 40)]


@pytest.mark.parametrize("blocks", [1024, 128 * LEAF * 3])
def test_what_nobody_has_below_or_above_goes_whole(blocks: int) -> None:
    made = Path(blocks, runway=((1_000, 60_000),))
    made.write(0, 128 * LEAF if blocks > 1024 else LEAF)  # a run pointer
    made.write(blocks - 300, 3)
    made.commit()
    first = made.snapshot()
    made.write_nodes(first)
    mapped = sum(count for _, count in pairs(made.path.extents(first, 0, blocks, 99)))
    cursor, at_end, freed = 0, False, []
    while not at_end:
        cursor, at_end, (_, runs, *_) = reclaim(made.path, first, None, 0, cursor, 3)
        freed += pairs(runs)
    assert sum(count for _, count in freed) == mapped
    assert reclaim(made.path, first, None, 1, 0, 99)[1:] == (True, made.path.take_batch([]))  # older: somebody has it


def test_beside_a_map_of_holes_all_is_unshared() -> None:
    made = Path()
    made.write(0, 8)
    dead = made.snapshot()
    _, at_end, (_, freed, *_) = reclaim(made.path, dead, made.path.root_at(f.hole(1).encode()), 0, 0, 64)
    assert at_end and pairs(freed) == [(FIRST, 8)]


def test_what_the_one_that_stands_on_it_shares_stays() -> None:
    made = Path()
    made.write(0, 8)
    made.write(300, 8)
    dead = made.snapshot()
    made.write(303, 1, b"y")
    made.path.discard(305, 306)
    kept = made.snapshot()
    made.write_nodes(dead, kept)
    made.forget(dead, kept)
    again = made.path.root_at(dead.pointer)  # the same nodes, read twice
    assert made.path.pread(BLOCK, 300 * BLOCK, again) == b"x" * BLOCK
    _, at_end, (_, freed, *_) = reclaim(made.path, dead, again, 0, 0, 64)
    assert at_end and not freed
    _, at_end, (_, freed, *_) = reclaim(made.path, dead, kept, 0, 0, 64)
    assert at_end and pairs(freed) == [(FIRST + 11, 1), (FIRST + 13, 1)]


def test_a_replayed_reclaim_stops_where_the_record_says() -> None:
    made = Path()
    made.write(0, 400)
    dead = made.snapshot()
    made.write(0, 400, b"y")
    for before, end in ((0, 100), (100, 256), (256, 300), (300, 1 << 30)):
        replay_reclaim(made.path, dead, made.live, 0, before, end)
    assert made.freed() == []
    assert made.path.place(0, dead) == (FIRST, 256)


@pytest.mark.parametrize("how", ["node", "discarded"])
def test_a_reclaim_beside_a_head_that_has_grown_by_a_level(how: str) -> None:
    made = Path(LEAF)
    made.write(0, 3)
    dead = made.snapshot()
    made.live.resize(128 * LEAF * BLOCK, made.live.epoch)
    if how == "node":
        made.write(2, 1, b"y")
        expected = [(FIRST + 2, 1)]
    else:
        made.path.discard(0, 128 * LEAF)
        expected = [(FIRST, 3)]
    made.commit()
    made.write_nodes(dead)
    made.forget(dead)
    top = made.next_node - 1
    if how == "node":
        made.disk.broken = {top}
        with pytest.raises(StorageError):
            reclaim(made.path, dead, made.live, 0, 0, 64)
        made.disk.broken.clear()
    _, at_end, (_, freed, *_) = reclaim(made.path, dead, made.live, 0, 0, 64)
    assert at_end and pairs(freed) == expected


def test_what_cannot_be_read_is_told_by_a_reclaim_and_read_again() -> None:
    made = Path()
    made.write(0, 400)
    dead = made.snapshot()
    made.write(0, 400, b"y")
    made.commit()
    for broken in made.write_nodes(dead):
        made.forget(dead)
        made.disk.broken = {broken}
        with pytest.raises(StorageError):
            reclaim(made.path, dead, made.live, 0, 0, 64)
        assert made.freed() in ([], [(FIRST, 256)])  # of the leaf before
    made.disk.broken.clear()
    _, at_end, (_, freed, *_) = reclaim(made.path, dead, made.live, 0, 0, 64)
    assert at_end and pairs(freed) == [(FIRST, 400)]


def test_a_head_that_is_lower_than_what_it_stands_on_is_damage() -> None:
    made = Path()
    made.write(0, 3)
    dead = made.snapshot()
    lower = made.path.root_at(f.hole(0).encode())
    with pytest.raises(CorruptionError):
        reclaim(made.path, dead, lower, 0, 0, 64)


def test_nothing_is_reclaimed_for_want_of_memory_but_what_is_told() -> None:
    """What a step that failed has freed is in no record, and the engine poisons the volume; what it read is right."""
    failures = 0
    while True:
        made = Path()
        for block in range(0, 400, 2):
            made.write(block)
        dead = made.snapshot()
        for block in range(0, 400, 2):
            made.write(block, byte=b"y")
        made.commit()
        made.write_nodes(dead)
        with ScarceMemory(("radix",), failures + 1):
            try:
                _, at_end, (_, freed, *_) = reclaim(made.path, dead, made.live, 0, 0, 64)
                break
            except MemoryError:
                failures += 1
        freed_once = [slot for slot, _ in made.freed()]
        assert len(freed_once) == len({*freed_once}) < 200
        assert made.path.pread(BLOCK, 0, dead) == b"x" * BLOCK
    assert at_end and sum(count for _, count in pairs(freed)) == 200 and failures >= 2


def test_a_root_that_goes_for_want_of_memory_stays_until_the_end() -> None:
    made = Path()
    made.write(0, 3)
    roots = [made.snapshot() for _ in range(2)]
    made.write(0, 3, b"y")
    nodes = made.path.map.node_count
    with ScarceMemory(("blockmap",), 1) as memory:
        del roots[0]
        assert memory.count == 1
    made.commit()
    assert made.path.map.node_count == nodes
    assert made.path.place(0) == (FIRST + 3, 3)


def test_the_bounds_of_the_volume() -> None:
    made = Path(4)
    with pytest.raises(OutOfRangeError):
        made.path.pread(5 * BLOCK, 0)
    assert made.path.pread(4 * BLOCK, 0) == bytes(4 * BLOCK)
    assert NODES > FIRST
