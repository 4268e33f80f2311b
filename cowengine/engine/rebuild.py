"""Opening a volume whose free map or table of seals is damaged: both are made anew from what the rest of it says.

Before anything is written the whole file is verified, and refused if anything else is wrong. The new tables stand in
memory until a checkpoint writes them, to slots that the old ones do not lead to: until then the file is as it was.

Threads   an object belongs to one open.
"""

from __future__ import annotations

from cowengine.core.iotable import IOTable
from cowengine.engine.check import Check, examine
from cowengine.engine.check_trees import FREE_MAP, NAMES, OTHER, SEALS, Problems, Trees
from cowengine.engine.engine import Engine
from cowengine.engine.intervals import Run, merge, subtract
from cowengine.errors import CorruptionError
from cowengine.format import SEALS_PER_LEAF, TREE_FREE_MAP, TREE_SEALS, hole, level_for

SAYING = {
    FREE_MAP: "the free map was written anew from what is in use",
    SEALS: "what has no seal any more is sealed anew, as it reads now",
    NAMES: "the index was written anew from the lineage",
}


def require_repairable(problems: Problems, name: str) -> None:
    """Raises CorruptionError if anything is wrong that nobody can put right without guessing."""
    if OTHER in problems.parts:
        raise CorruptionError(
            f"{problems.parts[OTHER]} problems cannot be repaired without guessing, the first: {problems.first[OTHER]}"
            "; nothing was changed. Restore a backup, or take out what can be read: docs/repair.md",
            name,
        )


def told(problems: Problems, parts: tuple[str, ...]) -> list[str]:
    """What was found of some parts, and what becomes of it: one line each."""
    return [
        f"{problems.parts[part]} problems of the {part}, the first: {problems.first[part]}: {SAYING[part]}"
        for part in parts
        if part in problems.parts
    ]


class Rebuilding:
    """One open with what it found, and what was done, in words."""

    def __init__(self) -> None:
        self.repaired: list[str] = []
        self._tables: set[str] = set()
        self._check: Check | None = None

    def examine(self, io: IOTable, fd: int, name: str) -> None:
        """Verifies the file before anything is written. Raises CorruptionError if it is not for repair."""
        problems, check, _ = examine(io, fd, name)
        require_repairable(problems, name)
        assert check is not None, "without a superblock there is no open"
        self._check = check
        if check.other is None:
            self.repaired.append("one superblock was damaged or torn: it was written anew from the other one")
        if check.taken or check.ends_late or TREE_FREE_MAP in check.trees.damaged_trees:
            self._tables.add(FREE_MAP)
        if TREE_SEALS in check.trees.damaged_trees:
            self._tables.add(SEALS)
        self.repaired += told(problems, tuple(sorted(self._tables)))

    def before_replay(self, engine: Engine) -> None:
        """Replaces the checkpoint's tables by what of them is sound: nothing of the free map, leaves of the seals."""
        if FREE_MAP in self._tables:
            engine.free_map.pointer = hole(level_for(TREE_FREE_MAP, 1)).encode()
        if SEALS in self._tables:
            engine.seals.pointer = hole(level_for(TREE_SEALS, 1)).encode()
            trees = Trees(engine.io, engine.fd, engine.fold, 1, Problems())
            for index, leaf in trees.leaves(TREE_SEALS, engine.superblock.seal_root):
                engine.seals.write(index * SEALS_PER_LEAF, 0, leaf)

    def after_replay(self, engine: Engine) -> None:
        """What is in use behind the last record is marked; what the next checkpoint replaces is known to it."""
        check = self._check
        assert check is not None
        if FREE_MAP in self._tables:
            engine.path.slots.mark_used(as_runs(check.in_use))
            freed = merge((slot, slot + count) for record in check.records for slot, count in record.freed_nodes)
            nodes = merge((slot, slot + 1) for slot in check.nodes)
            engine.superseded += as_runs(subtract(nodes, subtract(nodes, freed)))
        for tree, table in ((TREE_FREE_MAP, FREE_MAP), (TREE_SEALS, SEALS)):
            if table in self._tables:
                engine.superseded += [(slot, 1) for slot, place in check.nodes.items() if place[0] == tree]


def as_runs(ranges: list[Run]) -> list[Run]:
    """[begin, end) as (slot, count)."""
    return [(begin, end - begin) for begin, end in ranges]
