"""Of a file that may be damaged anywhere: the newest state that its checksums vouch for, and what its maps still say.

A *way* is one superblock with its checkpoint and the records that follow. Both ways of a sound file lead to the same
state (I12), so what is damaged on one may be whole on the other. A way that ends early is an older state; then
records are lost, and with them what they freed: blocks of that state may have been given to others since.

Reads only; goes by the checker's code and shares nothing with the engine in memory.

Threads   no state of its own. The file stands still.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from cowengine.core.iotable import IOTable
from cowengine.engine.check_log import Chain, read_chain, valid_superblocks
from cowengine.engine.check_replay import Member, Replay
from cowengine.engine.check_trees import Problems, Trees
from cowengine.engine.intervals import Run
from cowengine.errors import CorruptionError, NotFoundError
from cowengine.format import (
    FANOUT,
    POINTER_HOLE,
    POINTER_RUN,
    SLOT_SHIFT,
    TREE_MAP,
    LineageRecord,
    Pointer,
    Record,
    RegionEvent,
    Superblock,
    fold_of,
    span,
)


class Piece(NamedTuple):
    """Blocks [first, end) and the slot where they lie in a row; or why nobody knows what they are."""

    first: int
    end: int
    slot: int
    why: str = ""


class Way:
    """One superblock, and how far the records behind it lead."""

    def __init__(self, io: IOTable, fd: int, sb: Superblock) -> None:
        self.sb = sb
        self.block_slots = 1 << (sb.block_shift - SLOT_SHIFT)
        self.trees = Trees(io, fd, fold_of(sb.volume_uuid), self.block_slots, Problems(), go_on=True)
        self.lineage = self.trees.lineage(sb.lineage_root)
        self.lineage_damage = list(self.trees.problems)
        self.problems = Problems()
        try:
            chain = read_chain(io, fd, sb, self.problems)
        except OSError as error:
            self.problems.add(f"the log cannot be read: {error.strerror}")
            chain = Chain([], sb.base_checksum, 0)
        self.checksum = chain.checksum
        self.records = chain.records
        if chain.records and 0 not in self.lineage:
            self.problems.add("the live head cannot be read, and so no record be applied")
            self.records = []
        self.replay = self._replayed()
        self.sequence = sb.base_sequence + len(self.records)

    def _replayed(self) -> Replay:
        """The state behind the records, or behind the last of them that makes sense here."""
        while True:
            problems = Problems()
            replay = Replay(self.lineage, self.sb.next_id, self.block_slots, self._home_shifts(), problems)
            for number, record in enumerate(self.records):
                replay.apply(record)
                if problems:
                    self.problems.add(problems[0])
                    self.records = self.records[:number]
                    break
            else:
                return replay

    def _home_shifts(self) -> set[int]:
        regions = [(region.first_block, region.slot) for region in self.sb.regions]
        events = (event for record in self.records for event in record.events)
        regions += [(event.first_block, event.slot) for event in events if isinstance(event, RegionEvent)]
        return {slot - first_block * self.block_slots for first_block, slot in regions}

    def find(self, wanted: Callable[[LineageRecord], bool]) -> Member | None:
        """The first head or snapshot that is `wanted`."""
        return next((member for member in self.replay.members.values() if wanted(member.record)), None)

    def map(self, member: Member, runs: list[Run]) -> Iterator[Piece]:
        """What is mapped in runs of blocks, ascending, and where that cannot be read. What is left out is a hole."""
        for begin, end, slot in member.line.pieces(member.time, runs, self.block_slots):
            if slot is None:
                yield from self._below(member.line.root, begin, end)
            elif slot:
                yield Piece(begin, end, slot)

    def _below(self, root: Pointer, first: int, end: int) -> Iterator[Piece]:
        stack = [(root, 0)]
        while stack:
            pointer, index = stack.pop()
            keys = span(TREE_MAP, pointer.level)
            low, high = max(first, index * keys), min(end, (index + 1) * keys)
            if low >= high or pointer.kind == POINTER_HOLE:
                continue
            if pointer.kind == POINTER_RUN:
                yield Piece(low, high, pointer.slot + (low - index * keys) * self.block_slots)
                continue
            trees = self.trees
            trees.damaged, trees.problems, trees.nodes = False, Problems(), {}
            node = trees.read_map_node(pointer, index)
            if node is None or trees.damaged:
                yield Piece(low, high, 0, trees.problems[0])
                continue
            for slot, block, count, _ in node.extents:
                begin, stop = max(block, low), min(block + count, high)
                if begin < stop:
                    yield Piece(begin, stop, slot + (begin - block) * self.block_slots)
            stack += [(child, index * FANOUT + number) for number, child in reversed(node.children)]


class State(NamedTuple):
    """A head or snapshot in the newest state in which it can be found."""

    ways: list[tuple[Way, Member]]
    """All that lead to this state; the first one says which."""
    lost: str
    """What shows that records behind this state are lost; empty if none are."""

    @property
    def records(self) -> list[Record]:
        """Those behind the first way's checkpoint."""
        return self.ways[0][0].records

    def map(self) -> Iterator[Piece]:
        """All that is mapped. What one way cannot tell is taken from the next."""
        _, member = self.ways[0]
        runs = [(0, -(-member.record.size >> self.ways[0][0].sb.block_shift))]
        for number, (way, member) in enumerate(self.ways):
            damaged: list[Run] = []
            for piece in way.map(member, runs):
                if piece.why and number + 1 < len(self.ways):
                    damaged.append((piece.first, piece.end))
                else:
                    yield piece
            runs = damaged


def newest_state(io: IOTable, fd: int, name: str, wanted: Callable[[LineageRecord], bool], what: str) -> State:
    """The newest state in which there is `what`, the head or snapshot that is `wanted`.

    Raises NotFoundError; CorruptionError if it may be there and cannot be found; FormatError, UnsupportedVersionError.
    """
    problems = Problems()
    superblocks = valid_superblocks(io, fd, name, problems)
    if not superblocks:
        raise CorruptionError(f"{problems[0]}: nothing else says what lies where in the file", name)
    ways = sorted((Way(io, fd, sb) for sb in superblocks), key=lambda way: -way.sequence)
    damage = [problem for way in ways for problem in way.lineage_damage]
    found = [(way, member) for way in ways if (member := way.find(wanted)) is not None]
    newest = ways[0]
    if not found or (found[0][0] is not newest and not newest.lineage_damage):
        if not damage:
            raise NotFoundError(f"there is no {what}", name)
        raise CorruptionError(f"{what} cannot be found: {damage[0]}", name)
    first = found[0][0]
    same = [(way, member) for way, member in found if _is_same(way, first)]
    tip = max(newest.sequence, *(sb.tip_sequence for sb in superblocks))
    lost = "; ".join([*first.problems[:1], *problems[:1]])
    if first.sequence < tip and not lost:
        lost = f"the newest state, that of record {tip}, does not show it: {damage[0] if damage else ''}"
    return State(same, lost)


def _is_same(way: Way, first: Way) -> bool:
    whole = not way.problems and not first.problems
    return way is first or (whole and way.sequence == first.sequence and way.checksum == first.checksum)
