"""The two bitmaps of slots: runs across leaves and at the end, what cannot be read, and want of memory."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from kernel_path import Path
from scarce_memory import ScarceMemory

from cowengine import format as f
from cowengine.core.pagedtable import PagedTable
from cowengine.core.slotmap import SlotMap
from cowengine.errors import CorruptionError, StorageError

LEAF = 1 << 15  # slots of a leaf
END = 4 * LEAF
BROKEN = 9


@pytest.fixture
def slots() -> SlotMap:
    return Path(runway=()).path.slots


def test_a_run_across_leaves_is_used_and_given_back(slots: SlotMap) -> None:
    run = (LEAF - 10, LEAF + 20)  # in three leaves
    slots.mark_used([run])
    assert slots.count_busy(0, END) == run[1] == len(slots.used_slots([(LEAF - 12, LEAF + 24)]))
    assert slots.used_slots([(3 * LEAF, 9)]) == []
    slots.mark_used([run], False)
    assert slots.used_slots([run]) == []
    assert slots.count_busy(0, END) == run[1]  # until it is released
    slots.release([run])
    assert slots.count_busy(0, END) == 0


def test_a_free_run_ends_where_its_leaf_ends(slots: SlotMap) -> None:
    assert slots.find_free(LEAF - 4, END, 16) == (LEAF - 4, 4)
    assert slots.find_free(LEAF - 4, END, 16, 8) == (LEAF, 16)
    slots.mark_busy(LEAF - 70, 70)
    assert slots.find_free(LEAF - 70, END, 16, take=True) == (LEAF, 16)
    assert slots.find_free(LEAF - 4, END, 16, take=True) == (LEAF + 16, 16)
    assert slots.find_free(LEAF - 4, LEAF, 16, take=True) is None


def test_leaves_far_behind_the_others_are_found(slots: SlotMap) -> None:
    slots.bound(400 * LEAF, [])
    for leaf in (0, 64, 130, 300):  # the array of leaves doubles, or is as long as it has to be
        slots.mark_busy(leaf * LEAF, leaf + 1)
    assert [slots.count_busy(leaf * LEAF, (leaf + 1) * LEAF) for leaf in (0, 64, 130, 300)] == [1, 65, 131, 301]


@pytest.mark.parametrize("run", [(END, 1), (END - 1, 2), (2**64 - 1, 2)])
def test_slots_behind_the_end_are_refused(slots: SlotMap, run: tuple[int, int]) -> None:
    with pytest.raises(CorruptionError):
        slots.mark_used([run])
    with pytest.raises(CorruptionError):
        slots.used_slots([run])
    assert slots.count_busy(0, END) == 0


def test_the_end_only_grows(slots: SlotMap) -> None:
    slots.reach(END - 5)
    assert slots.end == END
    slots.mark_busy(END - 1, 3)
    assert slots.end == END + 2
    slots.reach(END + 9)
    assert slots.end == END + 9


def test_windows_are_taken_whole_and_within_the_file(slots: SlotMap) -> None:
    slots.bound(104, [])
    slots.mark_busy(20, 1)
    # Window 0 begins too early, 1 is free, 2 is not, 3 is covered, 4 and 5 are free, 6 is not all there.
    slots.mark_busy(36, 1)
    slots.release([(20, 1)])
    runs = [(3, 1), (18, 1), (20, 2), (33, 2), (48, 16), (70, 20), (97, 2)]
    assert slots.take_windows(runs, 16) == [(16, 16), (64, 16), (80, 16)]
    assert slots.count_busy(0, 104) == 49


def test_what_is_busy_as_it_is_used_needs_no_memory(slots: SlotMap) -> None:
    slots.mark_used([(5, 3)])
    slots.mark_busy(2 * LEAF, 1)
    assert slots.find_free(LEAF, 2 * LEAF, 1) == (LEAF, 1)  # nothing is used there
    assert slots.busy_count == 3
    slots.unload()
    assert slots.busy_count == 1 and slots.count_busy(0, END) == 4


def written() -> Path:
    """Slots 0 to 7 are used, and slot LEAF, as nodes say; that of slot LEAF lies in slot BROKEN."""
    made = Path(runway=())
    leaves = [made.put_node(8, 0, b"\xff", birth=0, tree=f.TREE_FREE_MAP)]
    leaves += [made.put_node(BROKEN, 0, b"\1", birth=0, tree=f.TREE_FREE_MAP, index=1)]
    children = b"".join(each.encode() for each in [*leaves, *[f.hole()] * (f.FANOUT - 2)])
    table = PagedTable(made.path, made.path.slots.used)
    table.pointer = made.put_node(7, 1, children, birth=0, tree=f.TREE_FREE_MAP).encode()
    return made


@pytest.fixture
def path() -> Path:
    return written()


ACROSS = (LEAF - 3, 4)
CALLS: dict[str, Callable[[SlotMap], object]] = {
    "find_free": lambda slots: slots.find_free(LEAF, 2 * LEAF, 1),
    "count_busy": lambda slots: slots.count_busy(0, 2 * LEAF),
    "mark_busy": lambda slots: slots.mark_busy(*ACROSS),
    "release": lambda slots: slots.release([(LEAF, 1)]),
    "release_packed": lambda slots: slots.release_packed(struct.pack("<4Q", LEAF, 1, LEAF, 1)),
    "mark_used": lambda slots: slots.mark_used([(9, 1), ACROSS]),
    "mark_unused": lambda slots: slots.mark_used([(LEAF, 1), (3, 1)], False),
    "used_slots": lambda slots: slots.used_slots([(0, 9), ACROSS]),
    "take_windows": lambda slots: slots.take_windows([(20, 1), (LEAF + 20, 1), (LEAF + 90, 1)], 0),
    "far": lambda slots: slots.mark_busy(3 * LEAF, 1),
}
READING = CALLS.keys() - {"far"}


@pytest.mark.parametrize("name", sorted(READING))
def test_a_leaf_that_cannot_be_read_is_told_and_read_again(path: Path, name: str) -> None:
    slots = path.path.slots
    path.disk.broken.add(BROKEN)
    with pytest.raises(StorageError):
        CALLS[name](slots)
    path.disk.broken.clear()
    assert slots.count_busy(0, END) >= 9  # what was used never looked free
    CALLS[name](slots)
    assert slots.used_slots([(6, 2)]) == [(6, 1), (7, 1)]


def test_what_cannot_be_read_is_told_whatever_can_be_read_behind_it(path: Path) -> None:
    path.disk.broken.add(BROKEN)
    with pytest.raises(StorageError):
        path.path.slots.used_slots([(LEAF, 1), (3, 1)])


def test_a_leaf_that_cannot_be_read_again_is_changed_by_nobody(path: Path) -> None:
    slots = path.path.slots
    assert slots.count_busy(0, END) == 9
    PagedTable(path.path, slots.used).unload()
    path.disk.broken.add(BROKEN)
    for change in (lambda: slots.unload(), lambda: slots.mark_used([(LEAF + 1, 1)])):
        with pytest.raises(StorageError):
            change()
    assert slots.find_free(LEAF, END, 1) == (LEAF + 2, 1)  # what should have been used is not given out
    path.disk.broken.clear()
    assert slots.used_slots([(LEAF, 3)]) == [(LEAF, 1)]
    slots.unload()
    assert slots.count_busy(0, END) == 10


@pytest.mark.parametrize("name", CALLS)
def test_want_of_memory_is_told_and_nothing_used_looks_free(name: str) -> None:
    failures = 0
    while True:
        slots = written().path.slots
        with ScarceMemory(("slotmap", "radix"), failures + 1):
            try:
                CALLS[name](slots)
                break
            except MemoryError:
                failures += 1
        assert slots.count_busy(0, END) >= 9
        CALLS[name](slots)
    assert failures >= 2
