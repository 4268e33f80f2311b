"""Seeds of the checksums (docs/format.md section 8): they bind bytes to their volume, tree and place."""

from __future__ import annotations

from cowengine.format.layout import MASK64


def fold_of(volume_uuid: bytes) -> int:
    """The first 8 bytes of the uuid as an integer: part of every seed but the superblock's, which is 0."""
    return int.from_bytes(volume_uuid[:8], "little")


def node_seed(fold: int, tree: int, level: int, index: int) -> int:
    """Seed of a tree node; `index` is the key of its first entry divided by the keys it spans."""
    return (fold + (tree << 56) + (level << 48) + index) & MASK64


def record_seed(fold: int, sequence: int) -> int:
    """Seed of the log record with this sequence."""
    return (fold + sequence) & MASK64


def blob_seed(fold: int, snapshot_id: int) -> int:
    """Seed of the metadata blob of the snapshot with this id."""
    return (fold + snapshot_id) & MASK64


def check_seed(fold: int, slot: int) -> int:
    """Seed of the check in a one-barrier record over the block that begins at `slot`."""
    return (fold + slot) & MASK64
