"""What nobody can know of the bytes of a head until somebody looks, and what a look at it settles.

A write or discard that failed, or that no barrier had covered when its process was gone, leaves each sector old or new,
and each block born when it was or now. A write that failed may end in the middle of a sector, too. Everything else must
be what the model says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from model_volume import ModelSnapshot, ModelVolume

from cowengine.extents import collect
from cowengine.snapshot import head_walk

SECTOR = 512

Block = tuple[int, bool]  # when it was born, and whether it is mapped
Differences = Sequence[tuple[ModelSnapshot, set[int]]]  # from what, and the blocks


@dataclass(frozen=True)
class View:
    """A range of a head at one moment, in whole sectors and blocks."""

    offset: int
    content: bytes
    blocks: dict[int, Block]

    @classmethod
    def of(cls, head: ModelVolume, offset: int, length: int) -> View:
        start = offset // SECTOR * SECTOR
        end = -(-(offset + length) // SECTOR) * SECTOR
        blocks = {block: (head.births[block], head.mapped[block]) for block in head.blocks(offset, length)}
        return cls(start, bytes(head.content[start:end]), blocks)


@dataclass(frozen=True)
class Change:
    """What a write or discard did to a head, or may have done if it failed."""

    head: str
    old: View
    new: View
    failed: bool


@dataclass
class Possible:
    """What the sectors and blocks of one head may be, beside what the model says."""

    sectors: dict[int, set[bytes]] = field(default_factory=dict)
    torn: dict[int, list[tuple[bytes, bytes]]] = field(default_factory=dict)
    blocks: dict[int, list[Block]] = field(default_factory=dict)

    @classmethod
    def after(cls, changes: Iterable[Change], head: str) -> Possible:
        """If any of these changes may have been lost, in part or as a whole."""
        found = cls()
        for change in (change for change in changes if change.head == head):
            for at in range(0, len(change.old.content), SECTOR):
                old, new = change.old.content[at : at + SECTOR], change.new.content[at : at + SECTOR]
                sector = (change.old.offset + at) // SECTOR
                found.sectors.setdefault(sector, set()).update((old, new))
                if change.failed:
                    found.torn.setdefault(sector, []).append((old, new))
            for view in (change.old, change.new):
                for block, state in view.blocks.items():
                    found.blocks.setdefault(block, []).append(state)
        return found

    def may_hold(self, sector: int, part: bytes) -> bool:
        """Whether a sector may hold these bytes, which the model does not expect."""
        return part in self.sectors.get(sector, ()) or any(
            part[:cut] == new[:cut] and part[cut:] == old[cut:]
            for old, new in self.torn.get(sector, ())
            for cut in range(len(part))
        )


def blocks_of(found: Any, block_size: int) -> set[int]:
    """The blocks of some rows of extents."""
    rows = [(int(offset), int(length)) for offset, length in found]
    return {block for at, length in rows for block in range(at // block_size, -(-(at + length) // block_size))}


def settle(head: ModelVolume, shown: Any, possible: Possible, snapshots: Sequence[ModelSnapshot]) -> str | None:
    """Makes the model's head what an open one shows, where that is possible; else says what is wrong."""
    if shown.size != head.size:
        return f"{head.name} has {shown.size} bytes, expected {head.size}"
    content = shown.pread(head.size, 0)
    if content != head.content:
        for at in range(0, head.size, SECTOR):
            part = content[at : at + SECTOR]
            if part != head.content[at : at + SECTOR] and not possible.may_hold(at // SECTOR, part):
                return f"sector {at // SECTOR} of {head.name} holds {part[:8].hex()}.., which nobody wrote there"
    mapped = blocks_of(shown.allocated_extents(), head.block_size)
    bases = [base for base in snapshots if head.comparable(base, head.live())]
    changed = [(base, blocks_of(shown.changed_extents(base.name), head.block_size)) for base in bases]
    born = [(base, born_since(shown, base)) for base in snapshots if base.epoch in head.line]
    for block in range(head.block_count):
        candidates = [(head.births[block], head.mapped[block]), *possible.blocks.get(block, ())]
        fitting = (each for each in candidates if fits(head, block, each, block in mapped, changed, born))
        found = next(fitting, None)
        if found is None:
            since = [base.name for base, blocks in changed if block in blocks]
            state = "mapped" if block in mapped else "a hole"
            return f"block {block} of {head.name} is {state} and changed since {since}, expected one of {candidates}"
        head.births[block], head.mapped[block] = found
    head.content[:] = content
    return None


def born_since(shown: Any, base: ModelSnapshot) -> set[int]:
    """The blocks of a head that were born behind a snapshot it stands on.

    A list of changes cannot tell it of the block in which a smaller snapshot ends: it always has that one.
    """
    walk = head_walk(shown.engine, shown._head_id, shown.get_snapshot(base.name).epoch)
    return blocks_of(collect([walk], shown.size, shown.block_size, 0, None, None), shown.block_size)


def fits(
    head: ModelVolume, block: int, state: Block, is_mapped: bool, changed: Differences, born: Differences
) -> bool:  # fmt: skip
    """Whether a block may be in this state, by what is mapped, by the lists of changes and by the births."""
    birth, mapped = state
    end = head.span(block)[1]
    lists = [(base.birth(block) != birth or base.size < end, block in blocks) for base, blocks in changed]
    lists += [(birth > base.epoch, block in blocks) for base, blocks in born]
    return mapped == is_mapped and all(wanted == found for wanted, found in lists)
