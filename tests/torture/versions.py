"""What a volume, its clones and its snapshots hold, by brute force: each version has all of its bytes and births.

Bytes are kept a block at a time, as numbers that equal blocks share: two versions are compared byte for byte by
comparing these. A birth is the epoch of the last write to a block. Nothing of cowengine is used here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

BLOCK = 4096
ZEROS = bytes(BLOCK)


class Pool:
    """Blocks of bytes by number, each once; block 0 is zeros."""

    def __init__(self) -> None:
        self.blocks = [ZEROS]
        self._numbers = {ZEROS: 0}

    def number(self, block: bytes) -> int:
        number = self._numbers.setdefault(block, len(self.blocks))
        if number == len(self.blocks):
            self.blocks.append(block)
        return number


@dataclass
class Version:
    """A snapshot, or the state of a head; what lies behind the size is zeros."""

    name: str
    size: int
    content: Any  # number in the pool, by block
    births: Any  # epoch, by block
    epoch: int
    line: tuple[int, ...]  # epochs of the snapshots that it stands on
    anchor: bool = False

    @property
    def block_count(self) -> int:
        return -(-self.size // BLOCK)

    def answers(self, base: Version) -> bool:
        """Whether it can be known what changed since the base: an anchor tells only of what stands on it."""
        if base.anchor:
            return not self.anchor and base.epoch in self.line
        return not self.anchor or self.epoch in base.line

    def written_since(self, base: Version) -> Any:
        """Blocks that were written between the two, or that the base has not as a whole."""
        count = self.block_count
        written = self.births[:count] != padded(base.births, count)
        written[min(count, base.size // BLOCK) :] |= base.size < self.size
        return np.flatnonzero(written)

    def differing_from(self, base: Version) -> Any:
        """Blocks that have bytes which the base has not, or not like that."""
        count = self.block_count
        differing = self.content[:count] != padded(base.content, count)
        differing[base.block_count :] = True
        return np.flatnonzero(differing)

    def read(self, pool: Pool, offset: int, length: int) -> bytes:
        first, end = offset // BLOCK, -(-(offset + length) // BLOCK)
        found = b"".join(pool.blocks[number] for number in self.content[first:end])
        return found[offset - first * BLOCK :][:length]


def padded(values: Any, count: int) -> Any:
    return values[:count] if len(values) >= count else np.pad(values, (0, count - len(values)))


@dataclass
class Versions:
    """All of one file: heads by name, the live volume first; snapshots by name, oldest first."""

    pool: Pool = field(default_factory=Pool)
    epoch: int = 1  # the largest given out
    heads: dict[str, Version] = field(default_factory=dict)
    snapshots: dict[str, Version] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)  # of the clones

    def create(self, size: int) -> None:
        count = -(-size // BLOCK)
        blank = np.zeros(count, np.uint32)
        self.heads["live"] = Version("live", size, blank, blank.copy(), 1, ())

    def begin_epoch(self, head: Version) -> None:
        self.epoch += 1
        head.epoch = self.epoch

    # -- writing ------------------------------------------------------------------------------------------------------
    def write(self, head: Version, data: bytes, offset: int) -> None:
        at = offset
        while at < offset + len(data):
            block, begin = divmod(at, BLOCK)
            part = data[at - offset :][: BLOCK - begin]
            old = self.pool.blocks[head.content[block]]
            head.content[block] = self.pool.number(old[:begin] + part + old[begin + len(part) :])
            head.births[block] = head.epoch
            at += len(part)

    def discard(self, head: Version, offset: int, length: int) -> None:
        """Only whole blocks go; the last one ends with the volume."""
        first = -(-offset // BLOCK)
        end = head.block_count if offset + length == head.size else (offset + length) // BLOCK
        if first < end:
            head.content[first:end] = 0
            head.births[first:end] = head.epoch

    def resize(self, head: Version, size: int) -> None:
        """Blocks gained or lost get the epoch, like a discard, and so does one that loses bytes which are not zero."""
        if size == head.size:
            return
        if size < head.size:
            self.begin_epoch(head)
            if size % BLOCK:
                rest = head.read(self.pool, size, min(head.size, -(-size // BLOCK) * BLOCK) - size)
                if any(rest):
                    self.write(head, bytes(len(rest)), size)
        kept, end = sorted((head.block_count, -(-size // BLOCK)))
        head.births, head.content = padded(head.births, max(end, len(head.births))), padded(head.content, end).copy()
        head.births = head.births.copy()
        head.births[kept:end] = head.epoch
        head.content[kept:] = 0
        head.size = size

    # -- snapshots and clones -----------------------------------------------------------------------------------------
    def snapshot(self, head: Version, name: str) -> None:
        self.snapshots[name] = Version(name, head.size, head.content.copy(), head.births.copy(), head.epoch, head.line)
        head.line += (head.epoch,)
        self.begin_epoch(head)

    def rollback(self, head: Version, target: Version, kept: str) -> None:
        """What is replaced is kept as a snapshot."""
        self.snapshot(head, kept)
        self._become(head, target)
        if head.name in self.origins:
            self.origins[head.name] = target.name

    def clone(self, name: str, origin: Version) -> None:
        head = self.heads[name] = Version(name, 0, None, None, 0, ())
        self._become(head, origin)
        self.origins[name] = origin.name

    def _become(self, head: Version, target: Version) -> None:
        head.size, head.line = target.size, (*target.line, target.epoch)
        head.content, head.births = target.content.copy(), target.births.copy()
        self.begin_epoch(head)

    def delete_head(self, name: str) -> None:
        del self.heads[name], self.origins[name]
