"""What only one snapshot reaches: beside maps of other heights, in steps while others change, and with nodes shared."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from kernel_path import BLOCK, Path

from cowengine import format as f
from cowengine.core.exclusive import ExclusiveWalk
from cowengine.core.roots import Root
from cowengine.errors import ClosedError, CorruptionError, StorageError

LEAF = 256  # blocks of a leaf


def exclusive(made: Path, mine: Root, others: Sequence[Root], before: int = 0, nodes: int = 100) -> tuple[int, int]:
    walk = ExclusiveWalk(made.path, mine, [*others], before)
    while not walk.step(nodes):
        pass
    counts = walk.block_count, walk.node_count
    assert walk.step(nodes) and (walk.block_count, walk.node_count) == counts  # it stays at its end
    return counts


def grown(blocks: int) -> tuple[Path, Root]:
    """A snapshot of 256 blocks, and a live volume that was grown since and has other blocks in three places."""
    made = Path(LEAF)
    made.write(0, 8)
    small = made.snapshot()
    made.live.resize(blocks * BLOCK, made.live.epoch)
    made.write(2, 3, b"y")
    made.write(blocks - 1)
    made.commit()
    made.write_nodes(small)
    return made, small


@pytest.mark.parametrize("blocks", [LEAF * 2, LEAF * 128 * 2, LEAF * 128 * 128 * 2])
def test_beside_a_map_that_has_grown_what_lies_in_its_first_child_counts(blocks: int) -> None:
    made, small = grown(blocks)
    for _ in range(2):
        assert exclusive(made, small, [made.live]) == (3, 1)
        made.forget(small)
    nodes = made.path.map.node_count
    assert exclusive(made, small, [made.live]) == (3, 1)
    made.forget(small)
    assert made.path.map.node_count == nodes


def test_beside_a_map_that_has_grown_and_was_discarded_all_counts() -> None:
    made, small = grown(LEAF * 128 * 2)
    made.path.discard(0, LEAF * 128 * 2)
    assert exclusive(made, small, [made.live]) == (8, 1)
    hole = made.path.root_at(f.hole(3).encode())
    assert exclusive(made, small, [hole]) == (8, 1)


def test_a_node_above_that_cannot_be_read_is_told() -> None:
    made, small = grown(LEAF * 128 * 2)
    made.forget(small)
    made.disk.broken = {*range(made.next_node - 4, made.next_node)}
    walk = ExclusiveWalk(made.path, small, [made.live, made.live], 0)
    with pytest.raises(StorageError):
        walk.step(100)
    made.disk.broken.clear()
    assert walk.step(100) and walk.block_count == 3


@pytest.mark.parametrize("before", [0, 1, 2])
def test_what_an_ancestor_has_is_not_exclusive(before: int) -> None:
    made = Path()
    made.write(0, 3)
    made.snapshot()
    made.write(2, 3, b"y")
    made.write(600, 2)
    second = made.snapshot()
    assert exclusive(made, second, [], before)[0] == {0: 7, 1: 5, 2: 0}[before]


def test_a_node_that_cannot_be_read_within_a_walk_is_read_again() -> None:
    made = Path()
    made.write(0, 8)
    made.write(300, 8)
    first = made.snapshot()
    made.write(3, 1, b"y")
    made.write(303, 1, b"y")
    made.commit()
    for broken in made.write_nodes(first):
        made.forget(first)
        made.disk.broken = {broken}
        walk = ExclusiveWalk(made.path, first, [made.live], 0)
        with pytest.raises(StorageError):
            walk.step(100)
        made.disk.broken.clear()
        assert walk.step(100) and (walk.block_count, walk.node_count) == (2, 3)


def test_a_map_beside_that_is_lower_is_damage() -> None:
    made, small = grown(LEAF * 2)
    with pytest.raises(CorruptionError):
        exclusive(made, made.live, [small])


def test_beside_a_map_of_holes_all_counts() -> None:
    made = Path()
    made.write(0, 8)
    made.write(300, 2)
    assert exclusive(made, made.snapshot(), [made.path.root_at(f.hole(1).encode())]) == (10, 0)


def test_a_closed_volume_is_not_looked_at() -> None:
    made, small = grown(LEAF * 2)
    walk = ExclusiveWalk(made.path, small, [made.live], 0)
    made.path.shut()
    with pytest.raises(ClosedError):
        walk.step(100)


def runs(*, discard_between: bool) -> tuple[int, int]:
    """A snapshot of 32,768 blocks in one run beside a head that has some blocks less, in steps of three nodes.

    In one case the head discards all when a part of it has been passed.
    """
    made = Path(LEAF * 128 * 2, runway=((1_000, 50_000),))
    made.write(0, LEAF * 128)
    made.commit()
    made.write_nodes()
    first = made.snapshot()
    made.path.discard(3 * LEAF, 3 * LEAF + 1)
    made.path.discard(5 * LEAF, 5 * LEAF + 1)
    made.path.discard(9 * LEAF, 10 * LEAF)
    made.commit()
    walk = ExclusiveWalk(made.path, first, [made.live], 0)
    while not walk.step(3):
        if discard_between and walk.block_count:
            made.path.discard(0, LEAF * 128)
    return walk.block_count, walk.node_count


def test_a_run_beside_nodes_is_looked_at_leaf_by_leaf() -> None:
    assert runs(discard_between=False) == (2 + LEAF, 1)


def test_what_becomes_exclusive_meanwhile_counts_from_where_the_walk_is() -> None:
    blocks, _ = runs(discard_between=True)
    assert blocks == LEAF * 128 - 5 * LEAF + 1


def test_a_node_that_two_others_share_is_in_memory_once() -> None:
    """A regression: it was read for each of them, and the first copy stayed until the volume was closed."""
    made = Path(LEAF * 128 * 2)
    made.write(0, 8)
    made.write(300, 2)
    first, second, third = (made.snapshot() for _ in range(3))
    made.write(3, 1, b"y")
    made.write(301, 1, b"y")
    made.commit()
    made.write_nodes(first, second, third)
    third.unload()  # what is below their root, which the others still have
    assert exclusive(made, made.live, [first, second]) == (2, 4)
    made.forget(first, second)
    assert made.path.map.node_count == 0


def test_a_node_that_two_others_share_below_a_root_that_has_grown_is_in_memory_once() -> None:
    made = Path(LEAF)
    made.write(0, 8)
    small = made.snapshot()
    made.live.resize(LEAF * 128 * 2 * BLOCK, made.live.epoch)
    made.write(2, 3, b"y")
    first, second, third = (made.snapshot() for _ in range(3))
    made.write_nodes(small, first, second, third)
    third.unload()
    made.forget()
    assert exclusive(made, small, [first, second]) == (3, 1)
    made.forget(small, first, second)
    assert made.path.map.node_count == 0
