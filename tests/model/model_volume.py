"""What a volume should do, in the simplest way: whole contents copied at each snapshot, one birth number per block.

The independent oracle of the model test, the crash explorer and the kill test. Imports nothing of cowengine. Fast
enough for volumes of some dozens of blocks, and meant for no more.

A block *changed* between two versions exactly if their births differ: each write, discard or zeroing of a block gives
it the epoch of its head, every snapshot and rollback begins a new epoch, and an epoch is never used twice.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

Rows = list[tuple[int, int]]


@dataclass(frozen=True)
class ModelSnapshot:
    """A frozen version. `births[b]` is 0 for a block never touched; `line` are the epochs of its ancestors.

    Of an anchor the content is kept here to compare with; the volume has given it up.
    """

    name: str
    content: bytes
    births: tuple[int, ...]
    mapped: tuple[bool, ...]
    automatic: bool = False
    hold_reason: str | None = None
    retain_until: datetime.datetime | None = None  # far behind the end of any history
    epoch: int = 0
    line: tuple[int, ...] = ()
    anchor: bool = False

    @property
    def size(self) -> int:
        return len(self.content)

    def birth(self, block: int) -> int:
        return self.births[block] if block < len(self.births) else 0

    def renamed(self, name: str) -> ModelSnapshot:
        return replace(self, name=name)


class Shared:
    """What the heads of one file have in common."""

    def __init__(self) -> None:
        self.epoch = 1  # the largest given out
        self.snapshots: list[ModelSnapshot] = []
        self.heads: list[ModelVolume] = []  # the live volume first


class ModelVolume:
    """A head: the live volume, or a clone."""

    def __init__(self, size: int, block_size: int, shared: Shared | None = None) -> None:
        self.name = "live"
        self.origin: str | None = None
        self.shared = shared or Shared()
        if shared is None:
            self.shared.heads.append(self)
        self.size = size
        self.block_size = block_size
        self.block_count = -(-size // block_size)
        self.content = bytearray(size)
        self.births = [0] * self.block_count
        self.mapped = [False] * self.block_count
        self.epoch = 1
        self.line: tuple[int, ...] = ()  # epochs of the snapshots that the head stands on

    def copy(self) -> ModelVolume:
        """Of a volume without clones."""
        other = ModelVolume(self.size, self.block_size)
        other.content[:] = self.content
        other.births, other.mapped = list(self.births), list(self.mapped)
        other.epoch, other.line, other.snapshots = self.epoch, self.line, list(self.snapshots)
        other.shared.epoch = self.shared.epoch
        return other

    # -- clones -----------------------------------------------------------------------------------------------------
    def clone(self, name: str, origin: str) -> ModelVolume:
        """A further head that begins as a snapshot; snapshots and the counter of epochs are common to all heads."""
        target = self.find(origin)
        other = ModelVolume(target.size, self.block_size, self.shared)
        other.name, other.origin = name, origin
        other.content[:] = target.content
        other.births, other.mapped = list(target.births), list(target.mapped)
        other.line = (*target.line, target.epoch)
        other.begin_epoch()
        self.shared.heads.append(other)
        return other

    def delete_head(self, name: str) -> None:
        self.shared.heads = [head for head in self.shared.heads if head.name != name]

    def clone_on(self, name: str) -> ModelVolume | None:
        """A clone that holds a snapshot, because it was made of it or rolled back to it last."""
        return next((head for head in self.shared.heads if head.origin == name), None)

    @property
    def clones(self) -> list[ModelVolume]:
        return self.shared.heads[1:]

    @property
    def snapshots(self) -> list[ModelSnapshot]:
        return self.shared.snapshots

    @snapshots.setter
    def snapshots(self, snapshots: list[ModelSnapshot]) -> None:
        self.shared.snapshots = snapshots

    def begin_epoch(self) -> None:
        """The next epoch that no head has or had."""
        self.shared.epoch += 1
        self.epoch = self.shared.epoch

    # -- writing ----------------------------------------------------------------------------------------------------
    def blocks(self, offset: int, length: int) -> range:
        """The blocks that a range touches."""
        if length == 0:
            return range(0)
        return range(offset // self.block_size, (offset + length - 1) // self.block_size + 1)

    def whole_blocks(self, offset: int, length: int) -> range:
        """The blocks that lie in a range as a whole; the last one ends with the volume."""
        first = -(-offset // self.block_size)
        end = self.block_count if offset + length == self.size else (offset + length) // self.block_size
        return range(first, max(first, end))

    def pwrite(self, data: bytes, offset: int) -> None:
        self.content[offset : offset + len(data)] = data
        for block in self.blocks(offset, len(data)):
            self._touch(block, True)

    def discard(self, offset: int, length: int) -> None:
        for block in self.whole_blocks(offset, length):
            self._zero(block)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Whole blocks become holes; what is left at the ends is written."""
        self.content[offset : offset + length] = bytes(length)
        whole = self.whole_blocks(offset, length)
        for block in self.blocks(offset, length):
            self._touch(block, block not in whole)

    def resize(self, size: int) -> None:
        """Blocks gained or lost get the epoch, like a discard; bytes cut off within the last block become zeros."""
        if size == self.size:
            return
        first, end = sorted((self.block_count, -(-size // self.block_size)))
        if size < self.size:
            self.begin_epoch()
            block = size // self.block_size
            if any(self.content[size : self.span(block)[1]]):
                self._touch(block, True)
            del self.content[size:]
        else:
            self.content += bytes(size - self.size)
        self.births += [0] * (end - len(self.births))
        self.mapped += [False] * (end - len(self.mapped))
        self._set_size(size)
        for block in range(first, end):
            self._touch(block, False)

    def _set_size(self, size: int) -> None:
        self.size, self.block_count = size, -(-size // self.block_size)

    def _zero(self, block: int) -> None:
        start, end = self.span(block)
        self.content[start:end] = bytes(end - start)
        self._touch(block, False)

    def _touch(self, block: int, mapped: bool) -> None:
        self.births[block] = self.epoch
        self.mapped[block] = mapped

    def span(self, block: int) -> tuple[int, int]:
        return block * self.block_size, min((block + 1) * self.block_size, self.size)

    # -- snapshots --------------------------------------------------------------------------------------------------
    def live(self, name: str = "live", automatic: bool = False) -> ModelSnapshot:
        return replace(self.live_now(name, automatic), content=bytes(self.content))

    def live_now(self, name: str = "live", automatic: bool = False) -> ModelSnapshot:
        """As `live`, for one look: its content is not copied, and changes with the volume."""
        births, mapped = tuple(self.births), tuple(self.mapped)
        return ModelSnapshot(name, self.content, births, mapped, automatic, epoch=self.epoch, line=self.line)

    def snapshot(self, name: str, automatic: bool = False) -> ModelSnapshot:
        taken = self.live(name, automatic)
        self.snapshots.append(taken)
        self.line += (self.epoch,)
        self.begin_epoch()
        return taken

    def find(self, name: str) -> ModelSnapshot:
        return next(snapshot for snapshot in self.snapshots if snapshot.name == name)

    def delete(self, name: str) -> None:
        self.snapshots.remove(self.find(name))

    def hold(self, name: str, reason: str | None) -> None:
        """Holds a snapshot for a reason; releases it for none."""
        self.snapshots = [replace(each, hold_reason=reason) if each.name == name else each for each in self.snapshots]

    def retain(self, name: str, until: datetime.datetime) -> None:
        self.snapshots = [replace(each, retain_until=until) if each.name == name else each for each in self.snapshots]

    def anchor(self, name: str) -> None:
        """Gives up the data of a snapshot."""
        number = self.snapshots.index(self.find(name))
        self.snapshots[number] = replace(self.snapshots[number], anchor=True)

    def rollback(self, name: str, automatic_name: str) -> ModelSnapshot:
        """Keeps what is replaced as an automatic snapshot; the live volume then is what `name` holds."""
        target = self.find(name)
        kept = self.snapshot(automatic_name, automatic=True)
        self.content[:] = target.content
        self.births, self.mapped = list(target.births), list(target.mapped)
        self.line = (*target.line, target.epoch)
        self._set_size(target.size)
        self.begin_epoch()
        self.origin = name if self.origin is not None else None
        return kept

    # -- extents ----------------------------------------------------------------------------------------------------
    def rows(self, blocks: Iterable[int], size: int, start: int = 0, length: int | None = None) -> Rows:
        """Blocks, ascending, as (offset, length) rows: adjacent ones joined, whole blocks clipped to the size.

        A range picks the blocks that it touches.
        """
        end = size if length is None else min(size, start + length)
        found: Rows = []
        for block in blocks:
            first, last = block * self.block_size, min((block + 1) * self.block_size, size)
            if last <= start or first >= end or end <= start:
                continue
            if found and found[-1][0] + found[-1][1] == first:
                found[-1] = (found[-1][0], last - found[-1][0])
            else:
                found.append((first, last - first))
        return found

    def changed_blocks(self, base: ModelSnapshot, target: ModelSnapshot) -> Iterator[int]:
        """Blocks of the target that the base has not, in part or as a whole, or that were born at another time."""
        for block in range(-(-target.size // self.block_size)):
            end = min((block + 1) * self.block_size, target.size)
            if base.birth(block) != target.birth(block) or base.size < end:
                yield block

    @staticmethod
    def comparable(base: ModelSnapshot, target: ModelSnapshot) -> bool:
        """Whether it can be known what changed: an anchor is compared only with what stands on it."""
        if base.anchor:
            return not target.anchor and base.epoch in target.line
        return not target.anchor or target.epoch in base.line

    def changed_extents(
        self, base: ModelSnapshot, target: ModelSnapshot, start: int = 0, length: int | None = None
    ) -> Rows:
        return self.rows(self.changed_blocks(base, target), target.size, start, length)

    def allocated_extents(self, version: ModelSnapshot, start: int = 0, length: int | None = None) -> Rows:
        blocks = range(-(-version.size // self.block_size))
        return self.rows((block for block in blocks if version.mapped[block]), version.size, start, length)
