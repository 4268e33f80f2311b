"""The trees of a volume file as they lie on the disk, for the checker: every node is read once and verified.

Uses the format and an I/O table only, nothing of the core's in-memory structures: a bug there can't hide itself here.

Threads   an object belongs to one thread.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field

from cowengine.core.checksum import xxh64
from cowengine.core.iotable import IOTable
from cowengine.engine.intervals import Intervals, Run
from cowengine.errors import CorruptionError
from cowengine.format import (
    BITS_PER_LEAF,
    ENTRY_MAPPED,
    EPOCH_MAX,
    FANOUT,
    LINEAGE_BYTES,
    POINTER_BYTES,
    POINTER_HOLE,
    POINTER_NODE,
    POINTER_RUN,
    RECORDS_PER_LEAF,
    SLOT_BITS,
    SLOT_BYTES,
    SLOT_MASK,
    TREE_FREE_MAP,
    TREE_LINEAGE,
    TREE_MAP,
    TREE_NAMES,
    TREE_SEALS,
    LineageRecord,
    Pointer,
    decode_lineage,
    hole,
    node_seed,
    span,
)

WORDS = {
    TREE_MAP: "map",
    TREE_LINEAGE: "lineage",
    TREE_FREE_MAP: "free map",
    TREE_SEALS: "seals",
    TREE_NAMES: "names",
}
PROBLEMS_MAX = 200

OTHER, FREE_MAP, NAMES, SEALS = "", WORDS[TREE_FREE_MAP], WORDS[TREE_NAMES], WORDS[TREE_SEALS]
"""What a problem is of: a table that can be made anew from the rest of the file, or anything else."""
_PARTS = {TREE_FREE_MAP: FREE_MAP, TREE_NAMES: NAMES, TREE_SEALS: SEALS}

Extent = tuple[int, int, int, int]
"""(slot, block, block_count, birth): consecutive blocks in consecutive slots."""
Place = tuple[int, int, int]
"""(tree, level, index) of a node."""


class Problems(list[str]):
    """The problems found, at most PROBLEMS_MAX of them: a damaged file of any size gives a report of bounded size.

    `parts` says what they are of, those that are not listed included; `first` has the first one of each part.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[str, str] = {}
        self.parts: Counter[str] = Counter()

    def add(self, problem: str, part: str = OTHER) -> None:
        """Note one more."""
        self.first.setdefault(part, problem)
        self.parts[part] += 1
        if len(self) < PROBLEMS_MAX:
            self.append(problem)
        elif len(self) == PROBLEMS_MAX:
            self.append(f"more than {PROBLEMS_MAX} problems; the rest is not listed")


@dataclass(slots=True)
class MapNode:
    """A verified node of the map: extents if it is a leaf, else its children that are not never-written holes."""

    birth: int
    extents: list[Extent] = field(default_factory=list)
    children: list[tuple[int, Pointer]] = field(default_factory=list)


class Trees:
    """Reads nodes of one volume.

    `nodes` are the slots met on the way and what they hold, in that order; `whole` the (pointer, index) of what
    `collect` has added with all that is below, and need not visit again. With `go_on` a node that the disk does not
    give is one more problem; else that raises OSError.
    """

    def __init__(
        self, io: IOTable, fd: int, fold: int, block_slots: int, problems: Problems, *, go_on: bool = False
    ) -> None:  # fmt: skip
        self.io = io
        self.fd = fd
        self.fold = fold
        self.block_slots = block_slots
        self.problems = problems
        self.go_on = go_on
        self.damaged = False
        self.damaged_trees: set[int] = set()
        self.nodes: dict[int, Place] = {}
        self.whole: set[tuple[Pointer, int]] = set()
        self._pointers: dict[bytes, Pointer] = {}
        self._map_nodes: dict[tuple[int, int, int, int], MapNode | None] = {}

    def problem(self, text: str, tree: int = TREE_MAP) -> None:
        """Note that something in a tree can't be read: what lies below is unknown, so nothing can be called leaked."""
        self.damaged = True
        self.damaged_trees.add(tree)
        self.problems.add(text, _PARTS.get(tree, OTHER))

    def read(self, tree: int, pointer: Pointer, index: int) -> bytes | None:
        """The 4,096 bytes of a node; None, with a problem, if they are not what the pointer says."""
        what = f"{WORDS[tree]} node of level {pointer.level}, index {index}, in slot {pointer.slot}"
        place = (tree, pointer.level, index)
        if self.nodes.setdefault(pointer.slot, place) != place:
            self.problem(f"{what}: that slot is also node {self.nodes[pointer.slot]}")
        try:
            data = self.io.pread(self.fd, SLOT_BYTES, pointer.slot * SLOT_BYTES)
        except OSError as error:
            if not self.go_on:
                raise
            self.problem(f"{what}: it cannot be read: {error.strerror}", tree)
            return None
        if len(data) != SLOT_BYTES:
            self.problem(f"{what}: beyond the end of the file", tree)
            return None
        if xxh64(data, node_seed(self.fold, tree, pointer.level, index)) != pointer.checksum:
            self.problem(f"{what}: the checksum is wrong", tree)
            return None
        return data

    def children(self, tree: int, data: bytes, level: int, what: str) -> list[tuple[int, Pointer]]:
        """The pointers of an interior node that are not never-written holes, each with its number."""
        found = []
        absent = hole(level - 1).encode()
        for number in range(FANOUT):
            raw = data[number * POINTER_BYTES : (number + 1) * POINTER_BYTES]
            if raw == absent:
                continue
            pointer = self._pointers.get(raw)
            if pointer is None:
                try:
                    pointer = self._pointers[raw] = Pointer.decode(raw)
                except CorruptionError as error:
                    self.problem(f"{what}, child {number}: {error}", tree)
                    continue
            if pointer.level != level - 1:
                self.problem(f"{what}, child {number}: level {pointer.level} instead of {level - 1}", tree)
            elif tree != TREE_MAP and (pointer.birth or pointer.kind == POINTER_RUN):
                self.problem(f"{what}, child {number}: a birth or a run outside the map", tree)
            else:
                found.append((number, pointer))
        return found

    def leaves(self, tree: int, root: Pointer) -> list[tuple[int, bytes]]:
        """(index, bytes) of all leaves of a tree that is not the map, ascending."""
        found: list[tuple[int, bytes]] = []
        stack = [(root, 0)]
        while stack:
            pointer, index = stack.pop()
            data = self.read(tree, pointer, index) if pointer.kind == POINTER_NODE else None
            if data is None:
                continue
            if pointer.level == 0:
                found.append((index, data))
                continue
            what = f"{WORDS[tree]} node in slot {pointer.slot}"
            below = self.children(tree, data, pointer.level, what)
            stack += [(child, index * FANOUT + number) for number, child in reversed(below)]
        return found

    def lineage(self, root: Pointer) -> dict[int, LineageRecord]:
        """All heads and snapshots in the lineage table."""
        records: dict[int, LineageRecord] = {}
        for index, data in self.leaves(TREE_LINEAGE, root):
            for number in range(RECORDS_PER_LEAF):
                expected = index * RECORDS_PER_LEAF + number
                try:
                    record = decode_lineage(data[number * LINEAGE_BYTES : (number + 1) * LINEAGE_BYTES])
                except CorruptionError as error:
                    self.problem(f"lineage record at place {expected}: {error}")
                    continue
                if record is not None and record.id != expected:
                    self.problem(f"lineage record {record.id} lies at place {expected}")
                elif record is not None:
                    records[expected] = record
        return records

    def used_slots(self, root: Pointer) -> list[Run]:
        """Runs of slots that the free map marks, ascending; runs may touch where leaves meet."""
        import numpy as np

        runs: list[Run] = []
        edges = np.zeros(BITS_PER_LEAF + 2, dtype=np.int8)
        for index, data in self.leaves(TREE_FREE_MAP, root):
            edges[1:-1] = np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little")
            turns = (np.flatnonzero(edges[1:] != edges[:-1]) + index * BITS_PER_LEAF).tolist()
            runs += zip(turns[::2], turns[1::2], strict=True)
        return runs

    def map_node(self, pointer: Pointer, index: int) -> MapNode | None:
        """The node of the map that `pointer` names; None, with a problem, if it is damaged."""
        key = (pointer.slot, pointer.level, index, pointer.checksum)
        if key in self._map_nodes:
            node = self._map_nodes[key]
        else:
            node = self._map_nodes[key] = self.read_map_node(pointer, index)
        self.nodes.setdefault(pointer.slot, (TREE_MAP, pointer.level, index))
        if node is not None and node.birth != pointer.birth:
            self.problems.add(
                f"map node of level {pointer.level}, index {index}, in slot {pointer.slot}: its pointer says birth "
                f"{pointer.birth}, the largest below is {node.birth}"
            )
        return node

    def read_map_node(self, pointer: Pointer, index: int) -> MapNode | None:
        """As `map_node`, and keeps nothing."""
        data = self.read(TREE_MAP, pointer, index)
        if data is None:
            return None
        what = f"map node in slot {pointer.slot}"
        if pointer.level == 0:
            return self._decode_leaf(data, index, what)
        children = self.children(TREE_MAP, data, pointer.level, what)
        return MapNode(max((child.birth for _, child in children), default=0), [], children)

    def _decode_leaf(self, data: bytes, index: int, what: str) -> MapNode | None:
        import numpy as np

        numbers = np.frombuffer(data, dtype="<u8")
        targets, births = numbers[::2], numbers[1::2]
        mapped = targets >> SLOT_BITS == ENTRY_MAPPED << 8
        slots = targets & SLOT_MASK
        birth = int(births.max())
        legal = mapped & (slots >= 2) & (births >= 1) | (targets == 0)
        if birth > EPOCH_MAX or not legal.all():
            self.problem(f"{what}: entry {int(np.argmin(legal))} is impossible")
            return None
        blocks = mapped.nonzero()[0]
        slots, births = slots[blocks].astype(np.int64), births[blocks]
        shifts = slots - blocks * self.block_slots
        turn = (blocks[1:] - blocks[:-1] != 1) | (shifts[1:] != shifts[:-1]) | (births[1:] != births[:-1])
        edges = [0, *(turn.nonzero()[0] + 1).tolist(), len(blocks)] if len(blocks) else []
        slot, block, born = slots.tolist(), (blocks + index * len(targets)).tolist(), births.tolist()
        return MapNode(birth, [(slot[i], block[i], j - i, born[i]) for i, j in itertools.pairwise(edges)])

    def collect(self, root: Pointer, visible: Intervals, out: set[Extent]) -> None:
        """Add to `out` the extents below `root` whose blocks are visible, without those in `whole`; adds to `whole`."""
        stack = [(root, 0, False)]
        while stack:
            pointer, index, whole = stack.pop()
            if pointer.kind == POINTER_HOLE:
                continue
            keys = span(TREE_MAP, pointer.level)
            first = index * keys
            if not whole:
                low, high = visible.overlap(first, first + keys)
                if low >= high:
                    continue
                whole = visible.covers(first, first + keys)
            if pointer.kind == POINTER_RUN:
                self._clip([(pointer.slot, first, keys, pointer.birth)], visible, out)
                continue
            if whole and (pointer, index) in self.whole:
                continue
            node = self.map_node(pointer, index)
            if node is None:
                continue
            base = index * FANOUT
            if whole:
                self.whole.add((pointer, index))
                out.update(node.extents)
                children = [(c, base + n, True) for n, c in node.children if (c, base + n) not in self.whole]
            else:
                self._clip(node.extents, visible, out)
                children = [(child, base + number, False) for number, child in node.children]
            stack += children

    def _clip(self, extents: list[Extent], visible: Intervals, out: set[Extent]) -> None:
        for slot, block, count, birth in extents:
            low, high = visible.overlap(block, block + count)
            for begin, end in zip(visible.starts[low:high], visible.ends[low:high], strict=True):
                first, last = max(begin, block), min(end, block + count)
                out.add((slot + (first - block) * self.block_slots, first, last - first, birth))
