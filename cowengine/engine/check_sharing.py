"""The checker's look at neighbours in the lineage: what one has from before its ancestor, the ancestor has, too (I45).

The free rule and lists of changes rest on it: a block that is older than the ancestor and yet not in it would be given
back while somebody reads it. Maps are compared side by side from their roots down; equal pointers end the way, so it
costs what differs.

Threads   no state.
"""

from __future__ import annotations

from collections.abc import Iterator

from cowengine.engine.check_trees import Extent, Problems, Trees
from cowengine.engine.intervals import Run, merge, subtract
from cowengine.format import (
    FANOUT,
    LINEAGE_EMPTY,
    NO_CURSOR,
    POINTER_HOLE,
    POINTER_NODE,
    POINTER_RUN,
    TREE_MAP,
    LineageRecord,
    Pointer,
    hole,
    span,
)


def check_sharing(trees: Trees, lineage: dict[int, LineageRecord], block_bytes: int, problems: Problems) -> None:
    """Adds a problem for each head or snapshot that has what its ancestor should have and has not."""
    for number, record in lineage.items():
        above = _holder(lineage, record)
        if above is None or record.flags & LINEAGE_EMPTY:
            continue
        low, passed, end = _cursor(record), _cursor(above), -(-record.size // block_bytes)
        parts = [(above, max(low, passed), end)]
        before = _holder(lineage, above)
        if before is not None and passed > low:  # what lies there is given back already, or shared with the one before
            parts.append((before, max(low, _cursor(before)), min(passed, end)))
        for other, first, stop in parts:
            run = next(strays(trees, record.root, other.root, other.epoch, first, stop), None)
            if run is not None:
                problems.add(
                    f"{'snapshot' if number else 'head'} {number} maps blocks {run[0]} to {run[1] - 1}, which are "
                    f"older than snapshot {other.id} that it stands on, and that one does not have them so"
                )


def _holder(lineage: dict[int, LineageRecord], record: LineageRecord) -> LineageRecord | None:
    """The nearest ancestor that holds data (I26). Epochs fall on the way, or it leads nowhere."""
    above = lineage.get(record.parent)
    epoch = record.epoch
    while above is not None and above.epoch < epoch and above.flags & LINEAGE_EMPTY:
        epoch = above.epoch
        above = lineage.get(above.parent)
    return above if above is not None and above.epoch < epoch else None


def _cursor(record: LineageRecord) -> int:
    return 0 if record.cursor == NO_CURSOR else record.cursor


def strays(trees: Trees, mine: Pointer, above: Pointer, epoch: int, first: int, end: int) -> Iterator[Run]:
    """Blocks in [first, end) that `mine` maps, born up to `epoch`, and that `above` maps otherwise or not at all."""
    stack = [(mine, above, 0)]
    while stack:
        one, other, index = stack.pop()
        keys = span(TREE_MAP, one.level)
        if one == other or one.kind == POINTER_HOLE or index * keys >= end or (index + 1) * keys <= first:
            continue
        node = trees.map_node(one, index) if one.kind == POINTER_NODE and one.level else None
        if node is not None and one.level > other.level:  # the volume has grown since
            stack += [(child, hole() if number else other, number) for number, child in node.children]
        elif node is not None and one.level == other.level and other.kind == POINTER_NODE:
            beside = trees.map_node(other, index)
            others = dict(beside.children) if beside is not None else {}
            absent = hole(one.level - 1)
            stack += [(child, others.get(number, absent), index * FANOUT + number) for number, child in node.children]
        else:
            yield from _strays_below(trees, (one, index), (other, index), epoch, (first, end))


def _strays_below(
    trees: Trees, one: tuple[Pointer, int], other: tuple[Pointer, int], epoch: int, part: Run
) -> Iterator[Run]:
    """`strays` of what cannot be taken apart side by side: all extents of one against all of the other."""
    held: dict[tuple[int, int], list[Run]] = {}
    for slot, block, count, birth in _extents(trees, *other, part):
        held.setdefault((slot - block * trees.block_slots, birth), []).append((block, block + count))
    for slot, block, count, birth in _extents(trees, *one, part):
        if birth <= epoch:
            same = held.get((slot - block * trees.block_slots, birth), [])
            clipped = (max(block, part[0]), min(block + count, part[1]))
            yield from subtract([clipped] if clipped[0] < clipped[1] else [], merge(same))


def _extents(trees: Trees, pointer: Pointer, index: int, part: Run) -> Iterator[Extent]:
    """What is mapped below a pointer, as far as it may lie in a part of the blocks."""
    stack = [(pointer, index)]
    while stack:
        top, place = stack.pop()
        keys = span(TREE_MAP, top.level)
        if top.kind == POINTER_HOLE or place * keys >= part[1] or (place + 1) * keys <= part[0]:
            continue
        if top.kind == POINTER_RUN:
            yield top.slot, place * keys, keys, top.birth
            continue
        node = trees.map_node(top, place)
        if node is not None:
            yield from node.extents
            stack += [(child, place * FANOUT + number) for number, child in node.children]
