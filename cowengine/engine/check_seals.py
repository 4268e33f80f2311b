"""The seals, for the checker: each is of a block that a snapshot froze, and a sealed snapshot has them all.

Does not look at data: `Snapshot.verify` does.

Threads   no state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cowengine.engine.check_trees import SEALS, Extent, Problems, Trees
from cowengine.engine.intervals import Intervals
from cowengine.format import (
    LINEAGE_ANCHOR,
    LINEAGE_DELETED,
    LINEAGE_SEALED,
    LINEAGE_SNAPSHOT,
    SEALS_PER_LEAF,
    SLOTS_MAX,
    TREE_SEALS,
    LineageRecord,
    Pointer,
    Record,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Slots = NDArray[np.int64]

_UNREADABLE = LINEAGE_DELETED | LINEAGE_ANCHOR


def sealed_slots(trees: Trees, root: Pointer) -> Slots:
    """The slots that have a seal, ascending."""
    import numpy as np

    parts = [np.zeros(0, dtype=np.int64)]
    for index, data in trees.leaves(TREE_SEALS, root):
        parts.append(np.flatnonzero(np.frombuffer(data, dtype="<u4")) + index * SEALS_PER_LEAF)
    return np.concatenate(parts)


def after_records(slots: Slots, records: list[Record]) -> Slots:
    """What is left when the seals of freed slots have ended (SE3)."""
    import numpy as np

    left = np.ones(len(slots), dtype=bool)
    for record in records:
        for slot, count in record.freed:
            first, end = np.searchsorted(slots, (slot, slot + count))
            left[first:end] = False
    return slots[left]


def check_seals(
    slots: Slots, extents: list[Extent], block_slots: int, frozen: int, where: str, problems: Problems
) -> list[int]:
    """Each seal is of a block that begins there, and that a snapshot froze: one born in `frozen` or before (SE1).

    Returns the slots of those that are not.
    """
    if not len(slots):
        return []
    stale: list[int] = _beside(slots, [extent for extent in extents if extent[3] <= frozen], block_slots).tolist()
    for slot in stale:
        problems.add(f"{where}: slot {slot} has a seal, and no block that a snapshot has frozen begins there", SEALS)
    return stale


def check_sealed(
    trees: Trees, lineage: dict[int, LineageRecord], slots: Slots, sealed_below: int, problems: Problems
) -> list[int]:
    """Each block that a sealed snapshot has, and its nearest readable ancestor has not, is sealed (I41).

    Returns the ids of snapshots that are not what they, or the superblock, say.
    """
    import numpy as np

    wrong: list[int] = []

    nodes, whole, trees.whole = dict(trees.nodes), trees.whole, set()
    for record in sorted(lineage.values(), key=lambda record: record.epoch):
        if record.kind != LINEAGE_SNAPSHOT or record.flags & _UNREADABLE:
            continue
        if not record.flags & LINEAGE_SEALED:
            if record.id < sealed_below:
                problems.add(
                    f"checkpoint: snapshot {record.id} is not sealed, and all below {sealed_below} should be",
                    SEALS,
                )
                wrong.append(record.id)
            continue
        found: set[Extent] = set()
        trees.collect(record.root, Intervals([(0, SLOTS_MAX)]), found)
        before = _readable_before(lineage, record)
        for slot, block, count, birth in found:
            expected = slot + np.arange(count) * trees.block_slots
            if birth > before and not _are_all_in(expected, slots):
                problems.add(
                    f"checkpoint: snapshot {record.id} is sealed, and of its blocks {block} to {block + count - 1} in "
                    f"slot {slot} not all have a seal",
                    SEALS,
                )
                wrong.append(record.id)
    trees.nodes, trees.whole = nodes, whole
    return wrong


def _are_all_in(some: Slots, slots: Slots) -> bool:
    import numpy as np

    return len(slots) > 0 and bool((slots[np.minimum(np.searchsorted(slots, some), len(slots) - 1)] == some).all())


def _readable_before(lineage: dict[int, LineageRecord], record: LineageRecord) -> int:
    """The epoch of the nearest ancestor that can be read, or 0."""
    above = lineage.get(record.parent)
    while above is not None and above.flags & _UNREADABLE:
        above = lineage.get(above.parent)
    return 0 if above is None else above.epoch


def _beside(slots: Slots, extents: list[Extent], block_slots: int) -> Slots:
    """Those of some slots in which no block of these extents begins."""
    import numpy as np

    left = np.ones(len(slots), dtype=bool)
    for slot, _, count, _ in extents:
        first, end = np.searchsorted(slots, (slot, slot + count * block_slots))
        left[first:end] &= (slots[first:end] - slot) % block_slots != 0
    return slots[left]
