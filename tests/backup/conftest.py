"""A volume with a history whose bytes are known independently of it, and ways to look at what a restore left."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from cowengine.volume import Volume


class Origin:
    """A volume beside a plain bytearray that gets the same writes; `expected` has the bytes at each snapshot."""

    def __init__(self, path: Path, size: int, block_size: int, seed: int) -> None:
        self.volume = Volume.create(str(path), size, block_size=block_size)
        self.live = bytearray(size)
        self.expected: dict[str, bytes] = {}
        self.snapshots: dict[str, Any] = {}
        self.random = random.Random(seed)

    def write(self, offset: int, data: bytes) -> None:
        self.volume.pwrite(data, offset)
        self.live[offset : offset + len(data)] = data

    def discard(self, offset: int, length: int) -> None:
        """Whole blocks only, so that what it does to the bytes needs no second implementation."""
        assert offset % self.volume.block_size == 0 and length % self.volume.block_size == 0
        self.volume.discard(offset, length)
        self.live[offset : offset + length] = bytes(length)

    def scribble(self, count: int = 12) -> None:
        """Random writes of compressible, random and zero bytes, and discards."""
        size, block_size = len(self.live), self.volume.block_size
        for _ in range(count):
            length = self.random.choice((1, 512, 4096, 70_000, 300_000))
            offset = self.random.randrange(size)
            length = min(length, size - offset)
            kind = self.random.randrange(4)
            if kind == 0:
                self.write(offset, bytes(length))
            elif kind == 1:
                self.write(offset, (b"cowengine" * length)[:length])
            elif kind == 2:
                self.write(offset, self.random.randbytes(length))
            elif size >= block_size:
                first = offset // block_size * block_size
                whole = min(block_size * self.random.randint(1, 8), (size - first) // block_size * block_size)
                if whole > 0:
                    self.discard(first, whole)

    def snapshot(self, name: str) -> Any:
        self.snapshots[name] = self.volume.snapshot(name)
        self.expected[name] = bytes(self.live)
        return self.snapshots[name]


@pytest.fixture
def make_origin(tmp_path: Path) -> Any:
    made: list[Origin] = []

    def make(size: int = 1 << 20, block_size: int = 4096, seed: int = 1) -> Origin:
        made.append(Origin(tmp_path / f"origin-{len(made)}.cow", size, block_size, seed))
        return made[-1]

    yield make
    for origin in made:
        origin.volume.close()


@pytest.fixture
def origin(make_origin: Any) -> Origin:
    return make_origin()


def complete_looking(folder: Path) -> list[str]:
    """What a user would take for a finished backup or a finished restore."""
    if not folder.exists():
        return []
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if (path.name == "manifest.json" or path.suffix == ".raw")
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
