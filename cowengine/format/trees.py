"""Pointers of the trees, and the arithmetic of their shape (docs/format.md section 4)."""

from __future__ import annotations

from typing import NamedTuple

from cowengine.errors import CorruptionError
from cowengine.format.layout import (
    BITS_PER_LEAF,
    EPOCH_MAX,
    FANOUT_SHIFT,
    LEAF_ENTRIES,
    LEVEL_MAX,
    NAME_ENTRIES_PER_LEAF,
    POINTER,
    POINTER_BYTES,
    POINTER_HOLE,
    POINTER_NODE,
    POINTER_RUN,
    RECORDS_PER_LEAF,
    SEALS_PER_LEAF,
    SLOT_MASK,
    TREE_FREE_MAP,
    TREE_LINEAGE,
    TREE_MAP,
    TREE_NAMES,
    TREE_SEALS,
    struct_of,
)

_POINTER = struct_of(POINTER, POINTER_BYTES)
_NO_TAIL = bytes(8)

KEYS_PER_LEAF = {
    TREE_MAP: LEAF_ENTRIES,
    TREE_LINEAGE: RECORDS_PER_LEAF,
    TREE_FREE_MAP: BITS_PER_LEAF,
    TREE_SEALS: SEALS_PER_LEAF,
    TREE_NAMES: NAME_ENTRIES_PER_LEAF,
}


class Pointer(NamedTuple):
    """What an interior node, a lineage record or the superblock says about a subtree."""

    kind: int
    slot: int
    level: int
    birth: int
    checksum: int

    def encode(self) -> bytes:
        """The 32 bytes of this pointer."""
        return _POINTER.pack(self.slot | self.level << 48 | self.kind << 56, self.birth, self.checksum)

    @classmethod
    def decode(cls, data: bytes) -> Pointer:
        """The pointer in these 32 bytes. Raises CorruptionError if they are not one."""
        if len(data) != POINTER_BYTES:
            raise CorruptionError(f"pointer: {len(data)} bytes instead of {POINTER_BYTES}")
        target, birth, checksum = _POINTER.unpack(data)
        pointer = cls(target >> 56, target & SLOT_MASK, target >> 48 & 0xFF, birth, checksum)
        problem = "reserved bytes are not zero" if data[24:] != _NO_TAIL else pointer.problem()
        if problem:
            raise CorruptionError(f"pointer: {problem}")
        return pointer

    def problem(self) -> str | None:
        """What makes this pointer impossible in any tree; None if nothing does."""
        if self.kind > POINTER_NODE:
            return f"unknown kind {self.kind}"
        if self.level > LEVEL_MAX:
            return f"level {self.level} above {LEVEL_MAX}"
        if self.birth > EPOCH_MAX:
            return f"birth {self.birth} beyond 48 bits"
        if self.kind == POINTER_HOLE and self.slot:
            return f"a hole with slot {self.slot}"
        if self.kind != POINTER_NODE and self.checksum:
            return "a checksum without a child"
        if self.kind != POINTER_HOLE and self.slot < 2:
            return f"a child in superblock slot {self.slot}"
        if self.kind == POINTER_RUN and not self.birth:
            return "a run without a birth"
        return None


HOLE = Pointer(POINTER_HOLE, 0, 0, 0, 0)


def hole(level: int = 0, birth: int = 0) -> Pointer:
    """A pointer under which nothing is mapped: never written (birth 0), or discarded in that epoch."""
    return Pointer(POINTER_HOLE, 0, level, birth, 0)


def span(tree: int, level: int) -> int:
    """Keys that a node of this level covers."""
    return KEYS_PER_LEAF[tree] << FANOUT_SHIFT * level


def level_for(tree: int, key_count: int) -> int:
    """The level of the lowest root that covers keys 0 to key_count - 1."""
    level = 0
    while span(tree, level) < key_count:
        level += 1
    return level
