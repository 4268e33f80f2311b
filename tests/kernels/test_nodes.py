"""Nodes of trees: what a hostile file could say in one, what cannot be read or written, and want of memory."""

from __future__ import annotations

import struct

import pytest
from kernel_path import BLOCK, SLOTS, Path
from scarce_memory import ScarceMemory

from cowengine import format as f
from cowengine.core.pagedtable import PagedTable, name_table
from cowengine.core.roots import Root
from cowengine.errors import CorruptionError, StorageError

RUN, NODE, HOLE = f.POINTER_RUN, f.POINTER_NODE, f.POINTER_HOLE
SPAN = 256  # slots of a run in an interior node of level 1


def target(kind: int, level: int, slot: int) -> int:
    return kind << 56 | level << 48 | slot


def pointer(kind: int, level: int, slot: int, birth: int = 1, reserved: int = 0) -> bytes:
    return struct.pack("<QQQQ", target(kind, level, slot), birth, 0, reserved)


def entry(kind: int, level: int, slot: int, birth: int = 1) -> bytes:
    return struct.pack("<QQ", target(kind, level, slot), birth)


HOLES = [pointer(HOLE, 0, 0, 0)] * f.FANOUT
SOUND_POINTERS = [pointer(HOLE, 0, 0, 9), pointer(RUN, 0, 50), pointer(RUN, 0, SLOTS - SPAN), pointer(NODE, 0, 5)]
BAD_POINTERS = {
    "kind": pointer(3, 0, 50),
    "born-behind-its-node": pointer(RUN, 0, 50, birth=10),
    "level-too-high": pointer(RUN, 1, 50),
    "reserved": pointer(RUN, 0, 50, reserved=1),
    "hole-with-slot": pointer(HOLE, 0, 50),
    "run-without-slot": pointer(RUN, 0, 0),
    "node-behind-the-end": pointer(NODE, 0, SLOTS),
    "run-across-the-end": pointer(RUN, 0, SLOTS - SPAN + 1),
}
SOUND_ENTRIES = [entry(HOLE, 0, 0, 9), entry(RUN, 0, 50), entry(RUN, 0, SLOTS - 1)]
BAD_ENTRIES = {
    "kind": entry(NODE, 0, 50),
    "level": entry(RUN, 1, 50),
    "born-behind-its-node": entry(RUN, 0, 50, birth=10),
    "hole-with-slot": entry(HOLE, 0, 50),
    "mapped-without-slot": entry(RUN, 0, 0),
    "behind-the-end": entry(RUN, 0, SLOTS),
}


@pytest.mark.parametrize("bad", [None, *BAD_POINTERS])
def test_what_an_interior_node_may_say(bad: str | None) -> None:
    made = Path()
    parts = [*SOUND_POINTERS, *([BAD_POINTERS[bad]] if bad else []), *HOLES][: f.FANOUT]
    root = made.path.root_at(made.put_node(4, 1, b"".join(parts)).encode())
    if bad is None:
        assert made.path.place(SPAN, root) == (50, SPAN)
        return
    with pytest.raises(CorruptionError) as told:
        made.path.place(0, root)
    assert told.value.file_offset == 4 * BLOCK


@pytest.mark.parametrize("bad", [None, *BAD_ENTRIES])
def test_what_a_leaf_may_say(bad: str | None) -> None:
    made = Path()
    parts = [*SOUND_ENTRIES, *([BAD_ENTRIES[bad]] if bad else [])]
    root = made.path.root_at(made.put_node(4, 0, b"".join(parts)).encode())
    if bad is None:
        assert made.path.place(1, root) == (50, 1)
        return
    with pytest.raises(CorruptionError):
        made.path.place(0, root)


@pytest.mark.parametrize("slot", [0, SLOTS, SLOTS + 5])
def test_a_root_that_leads_out_of_the_file(slot: int) -> None:
    made = Path()
    with pytest.raises(CorruptionError):
        made.path.place(0, made.path.root_at(pointer(NODE, 1, slot)))


def test_no_runs_in_a_tree_of_another_kind() -> None:
    made = Path(runway=())
    table = PagedTable(made.path, made.path.slots.used)
    parts = [pointer(RUN, 0, 50, 0), *HOLES[1:]]
    table.pointer = made.put_node(4, 1, b"".join(parts), birth=0, tree=f.TREE_FREE_MAP).encode()
    with pytest.raises(CorruptionError):
        made.path.slots.find_free(0, 99, 1)


# -- tables ------------------------------------------------------------------------------------------------------------
FAR = 130 * f.FANOUT * f.KEYS_PER_LEAF[f.TREE_NAMES]  # a key in another branch of a tree of level 3


def names() -> tuple[Path, PagedTable]:
    """A table of names with two leaves, three levels below its root, written and not in memory."""
    made = Path()
    table = name_table(made.path, 99)
    assert table.next(0) is None
    table.write(FAR, 0, b"far")
    table.write(5, 7, b"near")
    assert table.flush([(200, 99)]) != []
    table.unload()
    return made, table


def test_the_next_leaf_is_found_however_far_it_is() -> None:
    _, table = names()
    assert [table.next(key) for key in (0, 9999, FAR, FAR + 9999, 1 << 60)] == [0, FAR, FAR, None, None]
    leaf = table.read(FAR)
    assert leaf is not None and leaf.startswith(b"far")


def test_a_table_whose_nodes_cannot_be_read_says_so_and_goes_on() -> None:
    told = []
    for slot in range(200, 210):
        for call in (PagedTable.next, PagedTable.read, lambda table, key: table.write(key, 0, b"far")):
            made, table = names()
            made.disk.broken = {slot}
            try:
                call(table, FAR)
            except StorageError:
                told.append(slot)
            made.disk.broken.clear()
            table.write(FAR, 0, b"far")
            leaf = table.read(FAR)
            assert leaf is not None and leaf.startswith(b"far") and table.next(9999) == FAR
    # Of seven nodes, three lead to the one leaf only; the leaf itself is not needed to tell that it is there.
    assert len(told) == 3 * 3 + 2


def test_a_table_without_memory_is_as_it_was() -> None:
    failures = 0
    while True:
        _, table = names()
        with ScarceMemory(("radix",), failures + 1):
            try:
                table.write(FAR * 128, 0, b"further")  # the tree grows for it
                break
            except MemoryError:
                failures += 1
        leaf = table.read(FAR)
        assert leaf is not None and leaf.startswith(b"far")
        assert table.read(FAR * 128) in (None, bytes(BLOCK))
    assert failures > 4
    assert table.next(FAR + 9999) == FAR * 128


# -- growing, writing --------------------------------------------------------------------------------------------------
def test_a_head_that_was_discarded_whole_grows() -> None:
    made = Path(256)
    made.write(0, 256)
    made.path.discard(0, 256)
    made.live.resize(512 * BLOCK, 1)
    made.write(300)
    assert [count for _, count in (made.path.place(0), made.path.place(256))] == [256, 44]


def test_a_head_without_memory_to_grow_keeps_its_size() -> None:
    made = Path(256)
    made.write(0, 3)
    with ScarceMemory(("radix",), 1), pytest.raises(MemoryError):
        made.live.resize(512 * BLOCK, 1)
    assert made.path.place(0)[1] == 3
    made.live.resize(512 * BLOCK, 1)
    made.write(511)


def test_nodes_are_written_only_where_there_are_slots_for_all() -> None:
    made = Path()
    made.write(3)
    made.write(300)
    with pytest.raises(AssertionError):
        made.path.flush_map([made.live], [(90_000, 2)])
    assert 90_000 not in made.disk.slots


def replaced() -> tuple[Path, Root]:
    """A root that was kept as a checkpoint does, and whose nodes were replaced before it wrote them."""
    made = Path()
    for block in range(0, 512, 2):
        made.write(block)
    deltas, freed, *_, (root,) = made.path.take_batch([made.live])
    made.path.account(deltas, freed)
    made.write(5)
    made.write(301)
    return made, root


def test_a_node_that_was_replaced_before_it_was_written_is_no_longer_needed_then() -> None:
    made, root = replaced()
    nodes = made.write_nodes(root)
    *_, superseded, _ = made.path.take_batch([made.live])
    assert superseded == [(nodes[0], 3)]
    assert made.path.pread(2 * BLOCK, 4 * BLOCK, root) == b"x" * BLOCK + bytes(BLOCK)


def test_nodes_that_were_replaced_are_not_written_without_memory() -> None:
    failures = 0
    while True:
        made, root = replaced()
        with ScarceMemory(("radix", "nodewriter"), failures + 1):
            try:
                made.write_nodes(root)
                break
            except MemoryError:
                failures += 1
    assert failures >= 3


def test_nodes_are_not_written_without_memory() -> None:
    failures = 0
    while True:
        made = Path(256 * 100)
        for block in range(0, 256 * 100, 300):
            made.write(block)
        made.snapshot()
        made.write(5, 1, b"y")
        with ScarceMemory(("radix", "nodewriter"), failures + 1):
            try:
                made.write_nodes()
                break
            except MemoryError:
                failures += 1
        assert not [slot for slot in made.disk.slots if slot >= 100_000]
    assert failures >= 3
    made.forget()
    assert made.path.pread(BLOCK, 300 * BLOCK) == b"x" * BLOCK
