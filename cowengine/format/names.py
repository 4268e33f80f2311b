"""The index of names (docs/format.md section 4): how its keys are hashed, and which leaf holds what. No I/O."""

from __future__ import annotations

from collections.abc import Iterator

from cowengine.core.keys import number_key, text_key
from cowengine.format.layout import (
    COUNTS_PER_LEAF,
    FANOUT,
    IDS_PER_COUNT,
    NAME_ENTRIES_PER_LEAF,
    NAME_ENTRY,
    NAME_ENTRY_BYTES,
    NONE_ID,
    struct_of,
)

KIND_NAME, KIND_EPOCH, KIND_PARENT = 1 << 56, 2 << 56, 3 << 56  # as they stand in an entry
KIND_MASK = 0xFF << 56
PENDING_BIT = 0x80
IDS_PER_COUNT_LEAF = IDS_PER_COUNT * COUNTS_PER_LEAF
_BUCKETS_A_GROUP = FANOUT - 1  # leaves that an interior node leads to; the first of them holds counts
_PAGE_SHIFT = 21
_LEAF_BYTES = NAME_ENTRIES_PER_LEAF * NAME_ENTRY_BYTES
_NO_HASH = bytes(8)

ENTRY = struct_of(NAME_ENTRY, NAME_ENTRY_BYTES)


def name_hash(fold: int, name: str) -> int:
    """Of a snapshot's name."""
    return text_key(fold, 1, name)


def epoch_hash(fold: int, epoch: int) -> int:
    """Of a snapshot's epoch."""
    return number_key(fold, 2, epoch)


def parent_hash(fold: int, parent: int) -> int:
    """Of what heads and snapshots stand on."""
    return number_key(fold, 3, parent)


def has_parent_entry(number: int, parent: int) -> bool:
    """Whether a head or snapshot stands on what nobody expects it to stand on."""
    return number != 0 and parent not in (NONE_ID, number - 1)


def bucket_of(hashed: int, buckets: int) -> int:
    """The bucket that a hash belongs to, of so many."""
    mask = (1 << buckets.bit_length()) - 1
    bucket = hashed & mask
    return bucket if bucket < buckets else hashed & (mask >> 1)


def next_to_split(buckets: int) -> int:
    """The bucket that gives a part of its entries to bucket number `buckets`, which is new."""
    return buckets - (1 << (buckets.bit_length() - 1))


def bucket_leaf(bucket: int, page: int = 0) -> int:
    """The leaf that is a page of a bucket."""
    return bucket + bucket // _BUCKETS_A_GROUP + 1 + (page << _PAGE_SHIFT)


def bucket_of_leaf(leaf: int) -> tuple[int, int] | None:
    """The bucket and the number of its page that a leaf is; None for one of counts."""
    page, first = leaf >> _PAGE_SHIFT, leaf & ((1 << _PAGE_SHIFT) - 1)
    if first % FANOUT == 0:
        return None
    return first - first // FANOUT - 1, page


def count_leaf(number: int) -> int:
    """The leaf with the counts of ids from `number * IDS_PER_COUNT_LEAF` on."""
    return number * FANOUT


def entries_used(page: bytes) -> int:
    """How many entries a page of a bucket has. They stand at its front."""
    low, high = 0, NAME_ENTRIES_PER_LEAF
    while low < high:
        middle = (low + high) // 2
        if page.startswith(_NO_HASH, middle * NAME_ENTRY_BYTES):
            high = middle
        else:
            low = middle + 1
    return low


def is_full(page: bytes) -> bool:
    """Whether a page of a bucket has no room, so that the bucket may have a further one."""
    return not page.startswith(_NO_HASH, _LEAF_BYTES - NAME_ENTRY_BYTES)


def iter_entries(page: bytes) -> Iterator[tuple[int, int]]:
    """(hash, place) of the entries of a page."""
    return ENTRY.iter_unpack(page[: entries_used(page) * NAME_ENTRY_BYTES])
