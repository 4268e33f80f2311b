"""The data path: where blocks are placed, what is given back, fences and ends beside writes, and want of memory."""

from __future__ import annotations

import struct
import threading
import time

import pytest
from kernel_path import BLOCK, FOLD, RUNWAY, SLOTS, Disk, Path, pairs
from kernel_threads import ENDED, FLIGHTS, asleep, in_thread, once, until_it_ends
from scarce_memory import ScarceMemory

from cowengine import format as f
from cowengine.core.datapath import DataPath
from cowengine.core.pagedtable import PagedTable
from cowengine.core.reclaiming import reclaim
from cowengine.errors import ClosedError, PoisonedError, StorageError

LEAF = 1 << 15  # slots of a leaf of the free map
FIRST = RUNWAY[0][0]


# -- places ------------------------------------------------------------------------------------------------------------
def test_blocks_go_to_their_homes_where_these_are_free() -> None:
    home = LEAF - 8
    made = Path(regions=((100, home, 50),))
    made.path.slots.mark_busy(home + 30, 1)
    made.path.slots.mark_busy(home + 20, 1)
    made.write(5)
    made.write(100, 16)  # across the end of a leaf
    made.write(120)
    made.write(130, 2)
    made.write(119)
    made.path.set_regions([(600, 3 * LEAF - 5, 20)])
    made.path.slots.mark_busy(3 * LEAF - 3, 1)
    made.write(600, 20)  # busy in the first of two leaves
    assert (made.path.place(600), made.path.place(602)) == ((3 * LEAF - 5, 2), (FIRST + 4, 18))
    places = [made.path.place(block)[0] for block in (5, 100, 115, 120, 130, 131, 119)]
    assert places == [FIRST, home, home + 15, FIRST + 1, FIRST + 2, FIRST + 3, home + 19]


def test_homes_whose_leaf_of_the_free_map_cannot_be_read() -> None:
    home = 3 * LEAF - 8
    made = Path(regions=((0, home, 50),))
    leaf = made.put_node(7, 0, b"", birth=0, tree=f.TREE_FREE_MAP, index=3)
    children = [f.hole()] * f.FANOUT
    children[3] = leaf
    table = PagedTable(made.path, made.path.slots.used)
    table.pointer = made.put_node(
        8, 1, b"".join(each.encode() for each in children), birth=0, tree=f.TREE_FREE_MAP
    ).encode()
    made.disk.broken = {7}
    with pytest.raises(StorageError):
        made.write(0, 16)
    assert made.path.place(0)[0] == 0
    made.disk.broken.clear()
    made.write(0, 16)
    assert made.path.place(0) == (home, 16)


def test_a_map_that_cannot_be_read_gives_back_what_was_placed() -> None:
    made = Path()
    made.write(250, 12)
    made.snapshot()
    _, right = sorted(made.write_nodes())[:2]
    made.forget()
    before = made.path.runway_slots(), made.path.blocks_placed
    made.disk.broken = {right}
    with pytest.raises(StorageError):
        made.write(252, 8, b"y")
    assert (made.path.runway_slots(), made.path.blocks_placed) == before
    made.disk.broken.clear()
    assert made.path.pread(12 * BLOCK, 250 * BLOCK) == b"x" * 12 * BLOCK


@pytest.mark.parametrize("fill", [False, True])
def test_a_failed_write_gives_its_slots_back_to_the_runway_or_if_that_is_full_to_all(fill: bool) -> None:
    made = Path(runway=((500, 2), (600, 2)))
    more = [(700 + 10 * i, 2) for i in range(9)]

    def fail() -> None:
        for run in more if fill else ():
            made.path.slots.mark_busy(*run)
        assert made.path.add_runway([*more] if fill else []) == more[7 if fill else 9 :]
        raise OSError(5, "planted")

    once(made, fail)
    with pytest.raises(StorageError):
        made.write(0, 4)
    assert made.path.slots.count_busy(500, 700) == (0 if fill else 4)
    assert made.path.runway_slots() == (14 if fill else 4)


def test_the_pieces_of_a_write_are_bounded_by_the_batch_or_for_good() -> None:
    for batch in (2048, 1 << 20):
        made = Path(batch_bytes=batch)
        made.write(0, 1000)
        assert made.path.place(0)[1] == 256
        assert made.path.pread(1000 * BLOCK, 0) == b"x" * 1000 * BLOCK
    assert DataPath(Disk(), 0, FOLD, 12, 100, None, None).batch_fill() == (0, 100)  # type: ignore[arg-type]


def test_a_write_beyond_the_end_is_refused() -> None:
    made = Path(4)
    assert made.path.pwrite(bytes(5 * BLOCK), 0) == -1
    assert made.path.pwrite(bytes(BLOCK), 3 * BLOCK + 1) == -1
    assert made.path.pwrite(bytes(BLOCK), 3 * BLOCK) == BLOCK


def test_a_write_to_what_becomes_smaller_meanwhile_is_refused_in_the_middle() -> None:
    made = Path()
    once(made, lambda: made.live.set_size(10 * BLOCK))
    assert made.path.pwrite(bytes(600 * BLOCK), 0) == -1
    assert made.path.pwrite(bytes(10 * BLOCK), 0) == 10 * BLOCK


def test_a_part_of_a_block_whose_seal_cannot_be_read_is_not_written() -> None:
    made = Path()
    made.write(0, 4)
    made.snapshot()
    before = made.path.runway_slots()
    PagedTable(made.path, made.path.seals.tree).pointer = made.put_node(9, 0, b"", tree=f.TREE_SEALS).encode()
    made.disk.broken = {9}
    with pytest.raises(StorageError):
        made.path.pwrite(b"z" * BLOCK, 100)
    assert made.path.runway_slots() == before
    made.disk.broken.clear()
    made.path.pwrite(b"z" * BLOCK, 100)
    assert made.path.pread(2 * BLOCK, 0) == b"x" * 100 + b"z" * BLOCK + b"x" * (BLOCK - 100)


def test_a_failed_write_that_took_all_of_the_runway_gives_it_back() -> None:
    made = Path(runway=((500, 2),))

    def fail() -> None:
        raise OSError(5, "planted")

    once(made, fail)
    with pytest.raises(StorageError):
        made.write(0, 4)
    assert made.path.runway_slots() == 2


# -- discards ----------------------------------------------------------------------------------------------------------
def test_a_discard_of_what_is_not_there_any_more() -> None:
    made = Path(8)
    made.write(0, 8)
    assert not made.path.discard(0, 1, size=5)
    assert not made.path.discard(0, 9)
    assert not made.path.discard(0, 9, size=8 * BLOCK)
    assert made.path.discard(0, 1, size=8 * BLOCK)
    assert pairs(made.path.extents(None, 0, 8, 9)) == [(1, 7)]
    made.live.close()
    with pytest.raises(ClosedError):
        made.path.discard(1, 2)


@pytest.mark.parametrize("batch", [*range(232, 264, 8), *range(400, 520, 8)])
def test_a_discard_goes_on_behind_a_commit_however_full_the_batch_is(batch: int) -> None:
    made = Path(batch_bytes=batch)
    made.write(0, 512)
    made.commit()
    made.write_nodes()
    for block in range(520, 528, 2):
        made.write(block)
    assert made.path.discard(0, 1024)
    made.commit()
    assert pairs(made.path.extents(None, 0, 1024, 9)) == []
    made.live.set_holder(0, 0, 0)
    assert made.path.place(0)[0] == 0


def test_a_discard_without_memory_is_done_as_far_as_it_is_told_or_poisons() -> None:
    failures = poisoned = 0
    while True:
        made = Path()
        for block in range(700, 444, -1):  # as many deltas as the batch has memory for
            made.write(block)
        with ScarceMemory(("radix", "batch"), failures + 1):
            try:
                made.path.discard(290, 710)
                break
            except (MemoryError, PoisonedError):
                failures += 1
        try:
            left = sum(count for _, count in pairs(made.path.extents(None, 0, 1024, 999)))
            deltas, freed, *_ = made.path.take_batch([])
        except PoisonedError:
            poisoned += 1
            continue
        assert sum(count for _, count in pairs(freed)) == 256 - left
        assert deltas
    assert failures >= 4 and poisoned >= 1


# -- want of memory, states --------------------------------------------------------------------------------------------
def test_a_write_without_memory_is_not_done_or_poisons() -> None:
    failures = poisoned = 0
    while True:
        made = Path()
        made.write(0, 512)
        made.snapshot()
        with ScarceMemory(("radix", "batch", "datapath"), failures + 1):
            try:
                assert made.path.pwrite(b"z" * 3 * BLOCK, 254 * BLOCK + 5) == 3 * BLOCK
                break
            except MemoryError:
                failures += 1
        try:
            assert made.path.pread(BLOCK, 256 * BLOCK) == b"x" * BLOCK
            made.commit()
        except PoisonedError:
            poisoned += 1
    assert failures > poisoned >= 3
    assert made.path.pread(BLOCK, 256 * BLOCK) == b"z" * BLOCK


def test_a_poisoned_volume_takes_no_batch_and_publishes_nothing() -> None:
    made = Path()
    made.write(0)
    once(made, made.path.poison)
    with pytest.raises(PoisonedError):
        made.write(1)
    with pytest.raises(PoisonedError):
        made.path.take_batch([])
    with pytest.raises(PoisonedError):
        reclaim(made.path, made.live, None, 0, 0, 9)
    made.path.poison()
    made.path.shut()
    made.path.poison()
    with pytest.raises(ClosedError):
        made.write(1)


def test_what_a_record_says_is_taken_in_or_told() -> None:
    made = Path(runway=())
    leaf = made.put_node(7, 0, b"", birth=0, tree=f.TREE_FREE_MAP)
    PagedTable(made.path, made.path.slots.used).pointer = leaf.encode()
    made.disk.broken = {7}

    deltas = b"".join(f.encode_delta(block, 1, f.POINTER_RUN, slot, 1) for block, slot in ((0, 50), (1, 60)))
    freed = struct.pack("<QQQQ", 50, 1, 60, 1)
    with pytest.raises(StorageError):
        made.path.account(deltas, freed)
    made.disk.broken.clear()
    made.path.account(deltas, b"")
    assert made.path.slots.used_slots([(40, 30)]) == [(50, 1), (60, 1)]


def test_a_record_that_says_what_cannot_be() -> None:
    made = Path()
    good, bad = (f.encode_delta(first, 10, f.POINTER_RUN, 50, 1) for first in (1014, 1015))
    assert not made.path.replay(bad)
    assert not made.path.replay(f.encode_delta(1024, 1, f.POINTER_RUN, 50, 1))
    assert not made.path.replay(f.encode_delta(0, 1, f.POINTER_RUN, 50, 1, head=7))
    assert made.path.replay(good)
    assert made.path.place(1014) == (50, 10)
    assert made.path.replay(f.encode_delta(1014, 2, f.POINTER_HOLE, 0, 2))
    assert made.path.place(1014) == (0, 2)


def test_a_record_is_not_replayed_over_what_cannot_be_read() -> None:
    made = Path()
    made.write(3)
    made.lose_map()
    deltas = b"".join(f.encode_delta(block, 1, f.POINTER_RUN, 50 + block, 2) for block in (4, 5))
    with pytest.raises(StorageError):
        made.path.replay(deltas)
    made.disk.broken.clear()
    assert made.path.replay(deltas)
    assert made.path.place(4) == (54, 2)


def test_seals_that_cannot_be_read_keep_what_a_record_frees() -> None:
    made = Path()
    made.write(0, 4)
    made.commit()
    PagedTable(made.path, made.path.seals.tree).pointer = made.put_node(9, 0, b"", tree=f.TREE_SEALS).encode()
    made.disk.broken = {9}
    runs = [(FIRST, 1), (FIRST + 2, 1)]
    with pytest.raises(StorageError):
        made.path.free_runs(runs)
    with pytest.raises(StorageError):
        made.path.account(b"", struct.pack("<QQQQ", *runs[0], *runs[1]))
    made.disk.broken.clear()
    made.path.free_runs(runs)
    assert made.path.slots.used_slots([(FIRST, 4)]) == [(FIRST + 1, 1), (FIRST + 3, 1)]


def test_of_several_maps_none_is_written_behind_one_that_finds_no_slot() -> None:
    made = Path()
    made.write(3)
    snapshot = made.snapshot()
    made.write(3, 1, b"y")
    with pytest.raises(AssertionError):
        made.path.flush_map([snapshot, made.live], [])
    assert made.path.pread(BLOCK, 3 * BLOCK, snapshot) == b"x" * BLOCK


# -- beside writes in flight -------------------------------------------------------------------------------------------
def test_a_write_that_is_in_flight_when_the_volume_is_closed_is_waited_for() -> None:
    made = Path()
    made.write(0)
    made.path.fence()  # the write will wait for the end of the fence, too
    threads: list[threading.Thread] = []

    def close() -> None:
        threads.append(in_thread(made.path.shut))
        until_it_ends(made)

    once(made, close)
    with pytest.raises(ClosedError):
        made.write(1)
    threads[0].join()
    assert made.path.runway_slots() == RUNWAY[0][1] - 1  # what it was to have was given back


def test_a_read_that_is_under_way_when_the_volume_is_closed_is_waited_for() -> None:
    made = Path()
    made.write(0)
    threads: list[threading.Thread] = []

    def close(slot: int) -> None:
        threads.append(in_thread(made.path.shut))
        until_it_ends(made)
        time.sleep(0.05)  # it looks again and again
        assert threads[0].is_alive()

    made.disk.reading = close
    assert made.path.pread(BLOCK, 0) == b"x" * BLOCK
    threads[0].join()


@pytest.mark.parametrize("end", ["poison", "shut"])
def test_who_waits_for_writes_in_flight_is_woken_at_the_end(end: str) -> None:
    made = Path()
    made.write(0)
    threads: list[threading.Thread] = []

    def wait_and_end() -> None:
        made.path.fence()
        threads.append(in_thread(lambda: made.path.take_batch([made.live])))
        threads.append(in_thread(lambda: made.path.pause((made.live,))))
        threads.append(in_thread(lambda: made.path.discard(0, 3)))
        threads.append(in_thread(lambda: made.write(1)))
        for thread in threads:
            asleep(thread)
        ends = in_thread(getattr(made.path, end))
        for thread in threads:
            thread.join()  # woken while the write is still in flight
        threads.append(ends)

    once(made, wait_and_end)
    with pytest.raises(ENDED):
        made.write(1)
    threads[-1].join()


def test_a_write_of_the_next_epoch_is_published_behind_the_snapshot() -> None:
    made = Path()
    made.write(0)
    made.path.fence()
    late = in_thread(lambda: made.write(0, 1, b"y"))
    asleep(late)
    *_, (root,) = made.path.take_batch([made.live])
    late.join()
    assert made.path.pread(1, 0, root) + made.path.pread(1, 0) == b"xy"


def test_a_write_to_what_is_being_written_comes_after_it() -> None:
    made = Path()
    threads: list[threading.Thread] = []

    def write() -> None:
        threads.append(in_thread(lambda: made.write(1, 2, b"z")))
        asleep(threads[0])

    once(made, write)
    made.write(0, 2, b"y")
    threads[0].join()
    assert made.path.pread(3 * BLOCK, 0) == b"y" * BLOCK + b"z" * 2 * BLOCK


def test_a_discard_waits_for_the_end_of_a_fence() -> None:
    made = Path()
    made.write(0, 3)
    made.path.fence()
    late = in_thread(lambda: made.path.discard(0, 1))
    asleep(late)
    *_, (root,) = made.path.take_batch([made.live])
    late.join()
    assert (made.path.place(0)[0], made.path.place(0, root)[0]) == (0, FIRST)


def test_a_discard_of_what_is_being_written_comes_after_it() -> None:
    made = Path()
    threads: list[threading.Thread] = []

    def discard() -> None:
        threads.append(in_thread(lambda: made.path.discard(0, 3)))
        asleep(threads[0])

    once(made, discard)
    made.write(1)
    threads[0].join()
    assert pairs(made.path.extents(None, 0, 9, 9)) == []


def test_a_head_that_is_closed_waits_for_its_writes() -> None:
    made = Path()
    threads: list[threading.Thread] = []

    def close() -> None:
        threads.append(in_thread(made.live.close))
        while made.live.is_open:
            time.sleep(0.001)

    once(made, close)
    made.write(1)
    threads[0].join()
    with pytest.raises(ClosedError):
        made.write(2)


def test_a_pause_and_a_fence_wait_for_writes_in_flight() -> None:
    made = Path()
    done: list[str] = []
    threads: list[threading.Thread] = []

    def begin() -> None:
        threads.append(in_thread(lambda: (made.snapshot(), done.append("snapshot"))))
        asleep(threads[0])
        threads.append(in_thread(lambda: (made.path.pause((made.live,)), done.append("pause"))))
        asleep(threads[1])
        assert done == []

    once(made, begin)
    made.write(1)
    for thread in threads:
        thread.join()
    assert sorted(done) == ["pause", "snapshot"]
    late = in_thread(lambda: made.write(2))
    asleep(late)
    assert made.path.place(2)[0] == 0
    made.path.resume((made.live,))
    late.join()
    assert made.path.place(2)[0] != 0


def test_a_read_that_is_under_way_is_waited_for() -> None:
    made = Path()
    made.write(0)
    threads: list[threading.Thread] = []

    def close(slot: int) -> None:
        made.disk.reading = lambda slot: None
        threads.append(in_thread(made.path.shut))
        until_it_ends(made)
        asleep_or_yielding = threads[0].is_alive()
        assert asleep_or_yielding

    made.disk.reading = close
    assert made.path.pread(BLOCK, 0) == b"x" * BLOCK
    threads[0].join()


def test_more_writes_than_can_be_in_flight_at_once() -> None:
    made = Path()
    gate, inside = threading.Event(), threading.Semaphore(0)

    def writing(slot: int) -> None:
        inside.release()
        gate.wait()

    made.disk.writing = writing
    threads = [in_thread(lambda block=block: made.write(block)) for block in range(FLIGHTS)]
    for _ in threads:
        inside.acquire()
    late = in_thread(lambda: made.write(FLIGHTS))
    asleep(late)
    assert late.is_alive() and not inside.acquire(blocking=False)
    gate.set()
    for thread in (*threads, late):
        thread.join()
    assert sum(count for _, count in pairs(made.path.extents(None, 0, 1024, 99))) == FLIGHTS + 1
    assert SLOTS > FLIGHTS


def test_a_head_with_nothing_to_be_synced_gives_its_root_without_a_batch() -> None:
    """Else it says so, and does nothing: the batch is still to be taken."""
    made = Path()
    made.write(0)
    made.path.fence()
    assert made.path.take_quiet(made.live, made.path.data_writes) is None  # it places something
    made.path.take_batch([made.live])
    made.path.fence()
    assert made.path.take_quiet(made.live, made.path.data_writes - 1) is None  # written, and not synced
    found = made.path.take_quiet(made.live, made.path.data_writes)
    assert found is not None
    made.write(0, 1, b"y")  # the fence is over
    assert made.path.pread(1, 0, found[0]) + made.path.pread(1, 0) == b"xy"


def test_the_root_of_a_head_waits_for_what_is_being_written() -> None:
    made = Path()
    made.write(0)
    made.path.take_batch([])
    found: list[object] = []

    def fence() -> None:
        made.path.fence()
        found.append(made.path.take_quiet(made.live, made.path.data_writes))

    once(made, fence)
    made.write(0, 1, b"y")  # in place
    assert found == [None]
    made.path.poison()
    assert made.path.take_quiet(made.live, made.path.data_writes) is None


def test_a_root_is_taken_in_the_instant_in_which_its_epoch_ends() -> None:
    """Not while a write is under way, for that belongs to the epoch that ends."""
    made = Path()
    made.write(0)
    made.path.take_batch([])
    found: list[object] = []
    once(made, lambda: found.append(made.path.take_quiet(made.live, made.path.data_writes, False)))
    epoch = made.live.epoch
    made.write(0, 1, b"y")  # in place
    assert found == [None] and made.live.epoch == epoch
    taken = made.path.take_quiet(made.live, made.path.data_writes, False)
    assert taken is not None and made.live.epoch == epoch + 1
    made.write(0, 1, b"z")
    assert made.path.pread(1, 0, taken[0]) + made.path.pread(1, 0) == b"yz"


def test_only_a_head_that_exists_and_is_open_may_be_changed() -> None:
    made = Path()
    other = made.path.add_head(1)
    assert made.path.may_change(made.live) and not made.path.may_change(other)  # not open yet
    other.open()
    assert made.path.may_change(other)
    other.close()
    made.path.drop_head(other)
    other.open()  # nobody has it any more
    assert not made.path.may_change(other)
    made.path.read_only = True
    assert not made.path.may_change(made.live)
    made.path.read_only = False
    made.path.poison()
    assert not made.path.may_change(made.live)
