"""Volumes with large maps, made in seconds: what no snapshot, list of changes or open may depend on.

While one is made there are no barriers, and blocks that are MARK are not written; the file is sparse then, the map is
real. Everything that is measured runs on the kernel's own I/O table, after a sync.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from unsynced import Unsynced, synced
from workload import BLOCK, SEED

import cowengine

MARK = b"a block that is mapped and not written".ljust(BLOCK, b"\0")
START = MARK[:40]
ZEROS = bytes(1 << 20)


class Making(Unsynced):
    """Nor are the bytes of blocks written that are MARK."""

    def __init__(self) -> None:
        self.end = 0  # of what would have been written
        self.extents: list[tuple[int, int]] | None = None  # bytes of data in an image, descending; None: all of it

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        """What is not MARK."""
        if data[: len(START)] == START:
            self.end = max(self.end, offset + len(data))
        else:
            super().pwrite(fd, data, offset)

    def next_data(self, fd: int, offset: int) -> tuple[int, int] | None:
        """What adopting takes for data: the file has none."""
        if self.extents is None:
            return (offset, self.size(fd)) if offset < self.size(fd) else None
        while self.extents and self.extents[-1][0] < offset:
            self.extents.pop()
        return self.extents[-1] if self.extents else None

    def close(self, fd: int) -> None:
        """The file reaches as far as it would have."""
        if self.size(fd) < self.end:
            self.truncate(fd, self.end)
        super().close(fd)


class MapOnly(Making):
    """Nor are zeros written, with which space is prepared: what the file system counts is the map, and the log."""

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        """What is neither MARK nor zeros."""
        if data[:8] != ZEROS[:8] or data != ZEROS[: len(data)]:
            super().pwrite(fd, data, offset)


def mapped(path: Path, size: int, blocks: Sequence[int] | None = None) -> Path:
    """A volume of `size` bytes that was adopted from an image of which all blocks, or some, have data."""
    table = Making()
    if blocks is not None:
        table.extents = [(block * BLOCK, (block + 1) * BLOCK) for block in sorted(blocks, reverse=True)]
    with open(path, "xb") as image:
        image.truncate(size)
    cowengine.Volume.adopt(path, raw=True, io=table, background=False).close()
    synced(path)
    return path


def scattered(path: Path, span: int, blocks: int) -> Path:
    """Redirects so many single blocks of the first `span` bytes of a volume: a snapshot holds what was there."""
    with making(path) as volume:
        volume.snapshot("before the scattered blocks")
        # In ascending order each node of the map is written once; where the blocks lie is scattered all the same.
        for block in sorted(sample(span, blocks)):
            volume.pwrite(MARK, block * BLOCK)
    synced(path)
    return path


def with_snapshots(path: Path, span: int, snapshots: int) -> Path:
    """Takes so many snapshots, with a random 4 KiB write in the first `span` bytes before every eighth."""
    randomness = random.Random(f"{SEED} snapshots")
    with making(path) as volume:
        for number in range(snapshots):
            if number % 8 == 0:
                volume.pwrite(MARK, randomness.randrange(span // BLOCK) * BLOCK)
            volume.snapshot(f"snapshot {number}")
    synced(path)
    return path


def sample(span: int, blocks: int) -> list[int]:
    """So many blocks of the first `span` bytes, at random."""
    return random.Random(f"{SEED} {span}").sample(range(span // BLOCK), blocks)


def making(path: Path, table: Making | None = None) -> cowengine.Volume:
    """Opens a volume to be worked on without barriers."""
    return cowengine.Volume.open(path, io=table or Making(), background=False)


class BigMaps:
    """The volumes that several rows measure on, made when one asks for them and kept for the session.

    Rows may write to them and take snapshots: a few thousand more change nothing.
    """

    def __init__(self, folder: Path, sizes: dict[str, int]) -> None:
        """`sizes`: "mapped" and "span" in bytes, "blocks" and "snapshots" as numbers."""
        self.folder = folder
        self.sizes = sizes
        self._all: Path | None = None
        self._numbers = count()

    @property
    def what(self) -> str:
        """What the volume with everything has."""
        return f"{self.sizes['blocks']:,} scattered blocks and {self.sizes['snapshots']:,} snapshots"

    def path(self) -> Path:
        """Of a new volume."""
        return self.folder / f"big-{next(self._numbers)}"

    def all_together(self) -> Path:
        """Fully mapped, many scattered blocks, many snapshots."""
        if self._all is None:
            span = self.sizes["span"]
            path = mapped(self.path(), self.sizes["mapped"])
            scattered(path, span, self.sizes["blocks"])
            self._all = with_snapshots(path, span, self.sizes["snapshots"])
        return self._all
