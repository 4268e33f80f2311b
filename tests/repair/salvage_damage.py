"""Real volume files, where each structure of them lies, and what they hold: what salvage is measured against."""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

from hostile_image import SLOT, Image
from hostile_volumes import build

from cowengine import Volume

UNIT = 512  # of the log


class Original(NamedTuple):
    """A volume file, and the bytes of its live volume ("") and of each readable snapshot."""

    data: bytes
    shown: dict[str, bytes]


def original(name: str, folder: Path) -> Original:
    """One of hostile_volumes."""
    data = build(name)
    path = folder / "original"
    path.write_bytes(data)
    return Original(data, contents(path))


def contents(path: Path) -> dict[str, bytes]:
    """What an undamaged file shows."""
    with Volume.open(path, read_only=True, background=False) as volume:
        shown = {"": volume.pread(volume.size, 0)}
        for snapshot in volume.snapshots():
            if not snapshot.is_anchor:
                shown[snapshot.name] = snapshot.pread(snapshot.size, 0)
    return shown


def structures(data: bytes) -> dict[str, list[int]]:
    """Byte offsets of the superblocks, of what is written of the log, and of the nodes and metadata, by kind."""
    image = Image(data)
    log_first, log_slots = image.u64(image.superblock + 96), image.u64(image.superblock + 104)
    log = range(log_first * SLOT, (log_first + log_slots) * SLOT, UNIT)
    found = {
        "superblock": [0, SLOT],
        "log": [at for at in log if any(data[at : at + UNIT])],
        "metadata": sorted(slot * SLOT for slot in image.metadata_slots()),
    }
    for tree in (1, 2, 3, 4, 5):
        nodes = (node for root, above in image._roots() for node in image.walk(root, above))
        found[f"tree {tree}"] = sorted({slot * SLOT for slot, place in nodes if place.tree == tree})
    return found


def flipped(data: bytes, at: int, rng: random.Random, within: int = UNIT) -> bytes:
    """The file with one bit changed, in the sector, or so many bytes of it, at a place."""
    damaged = bytearray(data)
    damaged[at + rng.randrange(within)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def wrong_bytes(image: bytes, truth: list[bytes], lost: list[tuple[int, int, str]], block: int = SLOT) -> list[int]:
    """Blocks of an image, outside of what is told as lost, that none of the true contents has there."""
    holes = {at // block for offset, length, _ in lost for at in range(offset, offset + length, block)}
    return [
        at for at in range(0, len(image), block)
        if at // block not in holes and all(image[at : at + block] != true[at : at + block] for true in truth)
    ]  # fmt: skip
