"""A step of reclaim in parts: what ends it, what is written between two parts, and runs as a record has them."""

from __future__ import annotations

import struct
import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_path import BLOCK, Path

from cowengine.core.reclaiming import reclaim
from cowengine.core.roots import Root
from cowengine.core.slotmap import merged
from cowengine.errors import PoisonedError, StorageError

PAIR = struct.Struct("<QQ")
LEAVES, LEAF = 8, 256


def packed(runs: list[tuple[int, int]]) -> bytes:
    return b"".join(PAIR.pack(*run) for run in runs)


def redirected(blocks_a_leaf: int = 2, **options: int) -> tuple[Path, Root]:
    """A volume, and a snapshot that alone has every other one of the first blocks of each leaf."""
    made = Path(LEAVES * LEAF, **options)
    for byte in (b"a", b"b"):
        for leaf in reversed(range(LEAVES)):  # so that no two blocks follow each other in the file
            for block in reversed(range(blocks_a_leaf)):
                made.write(leaf * LEAF + 2 * block, byte=byte)
        if byte == b"a":
            dead = made.snapshot()
    made.commit()
    return made, dead


@pytest.mark.parametrize(
    ("budget", "parts", "runs", "leaves"),
    [(1, 1, 99, 1), (1, 3, 99, 3), (2, 3, 99, 6), (2, 4, 99, 8), (64, 1, 99, 8), (1, 8, 4, 2)],
)
def test_a_step_has_so_many_parts_of_so_many_leaves_and_frees_so_many_runs(
    budget: int, parts: int, runs: int, leaves: int
) -> None:
    made, dead = redirected()
    cursor, at_end, (_, freed, *_) = reclaim(made.path, dead, made.live, 0, 0, budget, parts, runs)
    assert len(freed) == 2 * leaves * PAIR.size
    assert (not at_end and leaves * LEAF - LEAF < cursor <= leaves * LEAF) or (at_end and leaves == LEAVES)
    rest, steps = 0, 0
    while not at_end:
        cursor, at_end, (_, freed, *_) = reclaim(made.path, dead, made.live, 0, cursor, budget, parts, runs)
        rest, steps = rest + len(freed), steps + 1
    assert rest == 2 * (LEAVES - leaves) * PAIR.size and steps <= LEAVES // leaves


def test_a_step_that_has_to_read_nodes_ends_early() -> None:
    """It holds the commit lock; those in memory take microseconds."""
    made, dead = redirected()
    made.write_nodes(dead)
    made.forget(dead)
    cursor, at_end, (_, freed, *_) = reclaim(made.path, dead, made.live, 0, 0, 1, 8)
    assert not at_end and 0 < len(freed) < 2 * LEAVES * PAIR.size
    made.path.extents(None, 0, LEAVES * LEAF, 99)
    made.path.extents(dead, 0, LEAVES * LEAF, 99)
    _, at_end, (_, more, *_) = reclaim(made.path, dead, made.live, 0, cursor, 1, 8)
    assert at_end and len(freed) + len(more) == 2 * LEAVES * PAIR.size


def test_a_full_batch_ends_a_step_between_its_parts() -> None:
    made, dead = redirected(20, batch_bytes=600)
    cursor = freed = 0
    at_end = False
    while not at_end:
        before = cursor
        cursor, at_end, (_, runs, *_) = reclaim(made.path, dead, made.live, 0, cursor, 1, 8)
        freed += len(runs) // PAIR.size
        assert at_end or cursor > before
        assert len(runs) <= 600
    assert freed == 20 * LEAVES


def test_what_cannot_be_read_in_a_later_part_is_an_error() -> None:
    made, dead = redirected()
    nodes = made.write_nodes(dead)
    made.forget(dead)
    made.path.place(0)
    made.path.place(0, dead)
    made.disk.broken = {*nodes}
    with pytest.raises(StorageError):
        reclaim(made.path, dead, made.live, 0, 0, 1, 8)


def test_a_poisoned_volume_frees_nothing() -> None:
    made, dead = redirected()
    made.path.poison()
    with pytest.raises(PoisonedError):
        reclaim(made.path, dead, made.live, 0, 0, 1, 8)


def test_what_is_written_between_two_parts_is_freed_once_and_stays() -> None:
    """Writers go on during a step: what they replace is freed by them or by it, behind or before its cursor."""
    made = Path(LEAVES * LEAF, batch_bytes=1 << 22, runway=((1_000, 60_000),))
    blocks = range(0, LEAVES * LEAF, 2)
    for block in blocks:
        made.write(block, byte=b"a")
    freed_before = 0
    for turn in range(20):
        dead = made.snapshot()
        made.live.set_holder(turn + 1, 0, 0)  # those before it are given back
        for block in blocks[: len(blocks) // 2]:
            made.write(block, byte=b"b")
        made.commit()
        end, written = threading.Event(), [0]

        def write(begun: threading.Event, end: threading.Event = end, written: list[int] = written) -> None:
            while not end.is_set():
                made.write(blocks[written[0] % len(blocks)], byte=b"c")
                written[0] += 1
                begun.set()

        begun = threading.Event()
        thread = threading.Thread(target=write, args=(begun,))
        thread.start()
        begun.wait()
        cursor, at_end, freed = 0, False, b""
        while not at_end:
            cursor, at_end, (deltas, more, *_) = reclaim(made.path, dead, made.live, 0, cursor, 1, 8)
            made.path.account(deltas, more)
            freed += more
        end.set()
        thread.join()
        deltas, more, *_ = made.path.take_batch([])
        made.path.account(deltas, more)
        freed += more
        all_slots = [slot + i for slot, count in PAIR.iter_unpack(freed) for i in range(count)]
        assert len(all_slots) == len(set(all_slots)), "freed twice"
        made.path.slots.release_packed(merged(freed))
        live = {made.path.place(block)[0] for block in blocks}
        assert live.isdisjoint(all_slots) and len(live) == len(blocks)
        assert all(made.path.pread(1, block * BLOCK) in {b"a", b"b", b"c"} for block in blocks)
        freed_before += len(all_slots)
        # Nothing is left of the snapshot: what is used is what the live volume maps.
        assert len(made.path.slots.used_slots([(1_000, 60_000)])) == len(blocks)
    assert freed_before > 0


# -- runs as a record has them -----------------------------------------------------------------------------------------
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 3)), max_size=60), st.booleans())
def test_runs_are_merged(found: list[tuple[int, int]], ascending: bool) -> None:
    taken: set[int] = set()
    runs = []
    for slot, count in sorted(found) if ascending else found:
        slots = set(range(slot, slot + count))
        if not slots & taken:
            taken |= slots
            runs.append((slot, count))
    result = [*PAIR.iter_unpack(merged(packed(runs)))]
    assert {slot + i for slot, count in result for i in range(count)} == taken
    assert all(slot + count < after for (slot, count), (after, _) in pairwise(result))


def test_many_runs_are_released_and_freed() -> None:
    """More than under one hold of the mutex."""
    path = Path(runway=()).path
    runs = [(2_000 + 2 * i, 1) for i in range(5_000)]
    path.slots.mark_used(runs)
    path.account(b"", packed(runs))
    assert path.slots.used_slots([(2_000, 10_000)]) == [] and path.slots.count_busy(0, 1 << 17) == 5_000
    path.slots.release_packed(packed(runs))
    assert path.slots.count_busy(0, 1 << 17) == 0
    path.slots.release_packed(b"")
    assert merged(b"") == b""
