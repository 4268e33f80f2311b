"""Moves of blocks to their homes: what may be moved, what is in the way, what cannot be read, and want of memory."""

from __future__ import annotations

import threading

import pytest
from kernel_path import BLOCK, RUNWAY, Path, pairs
from kernel_threads import FLIGHTS, asleep, in_thread, once
from scarce_memory import ScarceMemory

from cowengine import format as f
from cowengine.core.compact import move_home
from cowengine.core.pagedtable import PagedTable
from cowengine.core.reclaiming import reclaim
from cowengine.errors import ClosedError, PoisonedError, StorageError

HOME = 50_000
FIRST = RUNWAY[0][0]


def displaced(blocks: int = 1024, *, pieces: int = 1) -> Path:
    """Eight blocks that lie on the runway, in one run or in several, and whose homes are free again."""
    made = Path(blocks, regions=((0, HOME, blocks),))
    made.write(0, 8)
    snapshot = made.snapshot()
    for piece in range(pieces):
        made.write(8 - 8 // pieces * (piece + 1), 8 // pieces, b"y")
    made.commit()
    _, at_end, (_, freed, *_) = reclaim(made.path, snapshot, made.live, 0, 0, 99)
    assert at_end
    made.path.account(b"", freed)
    made.path.slots.release(pairs(freed))
    made.live.set_holder(0, 0, 0)
    return made


def require_whole(made: Path) -> None:
    assert made.path.pread(8 * BLOCK, 0) == b"y" * 8 * BLOCK


def test_blocks_go_home_at_one_go() -> None:
    made = displaced(pieces=2)
    assert made.path.place(0) == (FIRST + 4, 4)
    assert move_home(made.path, 0) == (8, 8, False, [])
    assert made.path.place(0) == (HOME, 8)
    require_whole(made)
    assert move_home(made.path, 8) == (1024, 0, False, [])


def test_a_small_volume_ends_before_its_map_does() -> None:
    made = displaced(10)
    assert move_home(made.path, 0)[:2] == (8, 8)
    assert move_home(made.path, 8) == (10, 0, False, [])


@pytest.mark.parametrize(("holder", "moved"), [((2, 0, 4), 4), ((2, 0, 100), 8), ((2, 2, 4), 0), ((0, 2, 4), 4)])
def test_what_a_snapshot_has_stays_left_and_right_of_the_cursor(holder: tuple[int, int, int], moved: int) -> None:
    made = displaced()
    made.live.set_holder(*holder)
    total = position = 0
    while position < 1024:
        position, count, _, _ = move_home(made.path, position)
        total += count
    assert total == moved
    require_whole(made)


def test_a_block_that_is_being_written_stays() -> None:
    made = displaced()
    told: list[object] = []
    once(made, lambda: told.append(move_home(made.path, 0)))
    made.write(3, 1, b"y")
    assert told == [(8, 4, False, [])]
    assert (made.path.place(3)[0], made.path.place(4)[0]) == (FIRST + 3, HOME + 4)
    require_whole(made)


@pytest.mark.parametrize("why", ["paused", "fenced", "full"])
def test_a_move_waits_for_its_turn(why: str) -> None:
    made = displaced()
    gate, inside = threading.Event(), threading.Semaphore(0)
    writers = []
    if why == "paused":
        made.path.pause((made.live,))
    elif why == "fenced":
        made.path.fence()
    else:
        made.disk.writing = lambda slot: (inside.release(), gate.wait())
        writers = [in_thread(lambda block=block: made.write(block)) for block in range(100, 100 + FLIGHTS)]
        for _ in writers:
            inside.acquire()
    mover = in_thread(lambda: move_home(made.path, 0))
    asleep(mover)
    assert made.path.place(0) == (FIRST, 8)
    gate.set()
    made.path.resume((made.live,))
    if why == "fenced":
        made.path.take_batch([made.live])  # from now on a snapshot has the blocks
    for thread in (mover, *writers):
        thread.join()
    assert made.path.place(0) == (FIRST if why == "fenced" else HOME, 8)


def test_a_closed_head_moves_nothing() -> None:
    made = displaced()
    made.live.close()
    with pytest.raises(ClosedError):
        move_home(made.path, 0)


@pytest.mark.parametrize("what", ["map", "free-map", "seals"])
def test_what_cannot_be_read_is_told_and_nothing_is_moved(what: str) -> None:
    made = displaced()
    slots = made.path.slots
    if what == "map":
        nodes = made.write_nodes()
        made.forget()
        made.disk.broken = {*nodes}
    elif what == "free-map":
        table = PagedTable(made.path, slots.used)
        table.flush([(300, 9)])
        table.unload()
        slots.forget_busy()
        made.disk.broken = {*range(300, 309)}
    else:
        PagedTable(made.path, made.path.seals.tree).pointer = made.put_node(9, 0, b"", tree=f.TREE_SEALS).encode()
        made.disk.broken = {9}
    with pytest.raises(StorageError):
        move_home(made.path, 0)
    made.disk.broken.clear()
    assert slots.count_busy(HOME, HOME + 8) == 0 and made.path.place(0) == (FIRST, 8)
    assert move_home(made.path, 0)[:2] == (8, 8)
    require_whole(made)


def test_a_move_that_the_end_overtakes_gives_the_homes_back() -> None:
    made = displaced()
    once(made, made.path.poison)
    with pytest.raises(PoisonedError):
        move_home(made.path, 0)
    assert made.path.slots.count_busy(HOME, HOME + 8) == 0


def test_a_move_without_memory_is_not_done_or_poisons() -> None:
    failures = poisoned = 0
    while True:
        made = displaced(pieces=4)
        made.write_nodes()
        made.commit()
        made.snapshot()
        made.live.set_holder(0, 0, 0)
        with ScarceMemory(("compact", "radix", "batch"), failures + 1):
            try:
                assert move_home(made.path, 0)[:2] == (8, 8)
                break
            except MemoryError:
                failures += 1
        try:
            require_whole(made)
            assert made.path.place(0)[0] != HOME
        except PoisonedError:
            poisoned += 1
    assert failures > poisoned >= 1
    require_whole(made)
