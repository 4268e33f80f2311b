"""Checks the index of names against the lineage records, both ways (I43; docs/format.md section 4).

Shares the places and hashes of the format with the engine, nothing else.

Threads   no state.
"""

from __future__ import annotations

from collections import Counter

from cowengine.engine.check_trees import NAMES, Problems, Trees
from cowengine.format import (
    LINEAGE_ANCHOR,
    LINEAGE_DELETED,
    LINEAGE_EMPTY,
    LINEAGE_HEAD,
    NONE_ID,
    POINTER_NODE,
    TREE_NAMES,
    LineageRecord,
    Superblock,
)
from cowengine.format.layout import COUNTS_PER_LEAF, IDS_PER_COUNT, NAME_ENTRY_BYTES
from cowengine.format.names import (
    KIND_EPOCH,
    KIND_MASK,
    KIND_NAME,
    KIND_PARENT,
    PENDING_BIT,
    bucket_leaf,
    bucket_of,
    bucket_of_leaf,
    count_leaf,
    entries_used,
    epoch_hash,
    has_parent_entry,
    is_full,
    iter_entries,
    name_hash,
    parent_hash,
)


def check_names(trees: Trees, sb: Superblock, lineage: dict[int, LineageRecord], problems: Problems) -> None:
    """Verifies the index that a superblock leads to; notes its nodes in `trees`."""
    if sb.name_root.kind != POINTER_NODE:
        return
    leaves = dict(trees.leaves(TREE_NAMES, sb.name_root))
    found: Counter[tuple[int, int]] = Counter()
    for leaf, page in leaves.items():
        if bucket_of_leaf(leaf) is not None:
            problem = _bucket_problem(leaf, page, sb.name_buckets, leaves)
            if problem:
                problems.add(f"index of names, leaf {leaf}: {problem}", NAMES)
            found.update(iter_entries(page))
    expected = _entries(trees.fold, lineage)
    for hashed, place in expected - found:
        problems.add(f"index of names: the entry of {_shown(place)}, hash {hashed:#x}, is missing", NAMES)
    for hashed, place in found - expected:
        problems.add(
            f"index of names: the entry of {_shown(place)}, hash {hashed:#x}, is of nothing that is there", NAMES
        )
    if sum(found.values()) != sb.name_entries:
        problems.add(f"index of names: {sum(found.values())} entries, and name_entries says {sb.name_entries}", NAMES)
    _check_counts(leaves, lineage, problems)
    if sb.linear and not _is_linear(lineage):
        problems.add("index of names: the superblock calls the lineage linear, and it is not", NAMES)


def _shown(place: int) -> str:
    return f"kind {place >> 56} of snapshot or head {place & ~KIND_MASK}"


def _entries(fold: int, lineage: dict[int, LineageRecord]) -> Counter[tuple[int, int]]:
    expected: Counter[tuple[int, int]] = Counter()
    for number, record in lineage.items():
        if has_parent_entry(number, record.parent):
            expected[parent_hash(fold, record.parent), KIND_PARENT | number] += 1
        if record.kind != LINEAGE_HEAD and not record.flags & LINEAGE_DELETED:
            expected[name_hash(fold, record.name), KIND_NAME | number] += 1
            expected[epoch_hash(fold, record.epoch), KIND_EPOCH | number] += 1
    return expected


def _bucket_problem(leaf: int, page: bytes, buckets: int, leaves: dict[int, bytes]) -> str | None:
    place = bucket_of_leaf(leaf)
    assert place is not None
    bucket, number = place
    used = entries_used(page)
    if page.count(0, used * NAME_ENTRY_BYTES) != len(page) - used * NAME_ENTRY_BYTES:
        return "something stands behind its last entry"
    if any(bucket_of(hashed, buckets) != bucket for hashed, _ in iter_entries(page)):
        return f"an entry does not belong into bucket {bucket} of {buckets}"
    if used and number and not is_full(leaves.get(bucket_leaf(bucket, number - 1), bytes(len(page)))):
        return f"page {number} of bucket {bucket}, and the one before it is not full"
    return None


def _check_counts(leaves: dict[int, bytes], lineage: dict[int, LineageRecord], problems: Problems) -> None:
    counts: dict[int, bytearray] = {}
    for number, record in lineage.items():
        if record.kind == LINEAGE_HEAD:
            continue
        group = number // IDS_PER_COUNT
        page = counts.setdefault(count_leaf(group // COUNTS_PER_LEAF), bytearray(COUNTS_PER_LEAF))
        page[group % COUNTS_PER_LEAF] += not record.flags & LINEAGE_DELETED
        given_up = record.flags & LINEAGE_DELETED or record.flags & (LINEAGE_ANCHOR | LINEAGE_EMPTY) == LINEAGE_ANCHOR
        if given_up:
            page[group % COUNTS_PER_LEAF] |= PENDING_BIT
    stored = {leaf for leaf in leaves if bucket_of_leaf(leaf) is None}
    for leaf in sorted(stored | set(counts)):
        one, other = leaves.get(leaf, bytes(COUNTS_PER_LEAF)), counts.get(leaf, bytearray(COUNTS_PER_LEAF))
        if one != other:
            at = next(at for at in range(COUNTS_PER_LEAF) if one[at] != other[at])
            problems.add(
                f"index of names, counts in leaf {leaf}, byte {at}: {one[at]:#x} instead of {other[at]:#x}", NAMES
            )


def _is_linear(lineage: dict[int, LineageRecord]) -> bool:
    above = NONE_ID
    for number, record in sorted(lineage.items()):
        if record.kind == LINEAGE_HEAD:
            continue
        if record.parent != above:
            return False
        above = number
    return [record.parent for record in lineage.values() if record.kind == LINEAGE_HEAD] == [above]
