"""The seals of a file that may be damaged, one look-up at a time: what a block must be, as far as anybody knows.

Threads   an object belongs to one thread.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from cowengine.core.checksum import seal_of
from cowengine.engine.check_trees import Problems, Trees
from cowengine.engine.intervals import merge, subtract
from cowengine.format import (
    ENTRY_MAPPED,
    FANOUT,
    POINTER_NODE,
    SEALS_PER_LEAF,
    TREE_SEALS,
    Pointer,
    Record,
    iter_deltas,
)

LEAVES_MAX = 64  # kept at a time
_SEAL = struct.Struct("<I")

VERIFIED, UNSEALED, DAMAGED = "verified", "unsealed", "damaged"


class Seals:
    """The table of seals as of a checkpoint, without those that the records behind it end (SE3)."""

    def __init__(self, trees: Trees, root: Pointer, records: Iterable[Record]) -> None:
        self._trees = trees
        self._root = root
        ended = []
        for record in records:
            ended += [(slot, slot + count) for slot, count in record.freed]
            for _, count, kind, slot, _, _ in iter_deltas(record.deltas):
                if kind == ENTRY_MAPPED:
                    ended.append((slot, slot + count * trees.block_slots))
        self._ended = merge(ended)
        self._leaves: dict[int, bytes] = {}

    def verdict(self, block: bytes, slot: int) -> str:
        """VERIFIED, DAMAGED, or UNSEALED: nobody sealed it, or its seal cannot be read."""
        seal = self._seal(slot)
        if not seal:
            return UNSEALED
        return VERIFIED if seal_of(block, slot) == seal else DAMAGED

    def _seal(self, slot: int) -> int:
        leaf = self._leaf(slot // SEALS_PER_LEAF)
        seal: int = _SEAL.unpack_from(leaf, slot % SEALS_PER_LEAF * _SEAL.size)[0] if leaf else 0
        return seal if seal and subtract([(slot, slot + 1)], self._ended) else 0

    def _leaf(self, index: int) -> bytes:
        if index not in self._leaves:
            while len(self._leaves) >= LEAVES_MAX:
                del self._leaves[next(iter(self._leaves))]
            self._leaves[index] = self._read(index)
        return self._leaves[index]

    def _read(self, index: int) -> bytes:
        """A leaf; empty if there is none, or it cannot be read."""
        pointer, trees = self._root, self._trees
        if index >= FANOUT**pointer.level:
            return b""
        while pointer.kind == POINTER_NODE:
            trees.problems, trees.nodes = Problems(), {}
            data = trees.read(TREE_SEALS, pointer, index // FANOUT**pointer.level)
            if data is None or pointer.level == 0:
                return data or b""
            number = index // FANOUT ** (pointer.level - 1) % FANOUT
            children = trees.children(TREE_SEALS, data, pointer.level, "seals")
            below = dict(children).get(number)
            if below is None:
                return b""
            pointer = below
        return b""
