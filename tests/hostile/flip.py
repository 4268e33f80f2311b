"""Flips bits in the metadata of a volume, one at a time, and reads all of it: a typed error, or what was there before.

    python tests/hostile/flip.py snapshots             every bit, lowest priority
    python tests/hostile/flip.py snapshots --sample 5000 --seed 3

The metadata is every slot that holds no block: superblocks, log, nodes of all trees, metadata of snapshots.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from hostile_image import SLOT, Image
from hostile_steps import work_folder
from hostile_volumes import VOLUMES, build

from cowengine import Snapshot, Volume
from cowengine.core.iotable import IOTable
from cowengine.errors import CorruptionError, CowEngineError, FormatError

Contents = dict[str, object]


def contents(path: Path, io: IOTable | None = None, *, read_only: bool = True) -> tuple[Contents, list[CowEngineError]]:
    """What an open shows, piece by piece, and the errors in place of the pieces that cannot be shown."""
    shown: Contents = {}
    errors: list[CowEngineError] = []

    def note(what: str, source: Volume | Snapshot) -> None:
        for offset in range(0, source.size, 16 * SLOT):
            with caught(errors):
                shown[f"{what} {offset}"] = source.pread(min(16 * SLOT, source.size - offset), offset)

    with caught(errors), Volume.open(path, read_only=read_only, background=False, io=io) as volume:
        snapshots = volume.snapshots()
        shown["list"] = [(snapshot.name, snapshot.id, snapshot.is_anchor) for snapshot in snapshots]
        note("live", volume)
        for number, snapshot in enumerate(snapshots):
            if snapshot.is_anchor:
                continue
            note(snapshot.name, snapshot)
            with caught(errors):
                shown[snapshot.name + " metadata"] = snapshot.metadata
            for base in snapshots[:number]:
                if not base.is_anchor:
                    with caught(errors):
                        shown[f"{snapshot.name} since {base.name}"] = snapshot.changed_extents(base).tolist()
    return shown, errors


@contextlib.contextmanager
def caught(errors: list[CowEngineError]) -> Iterator[None]:
    """Notes a typed error of damage; every other exception goes on."""
    try:
        yield
    except (CorruptionError, FormatError) as error:
        errors.append(error)


class Original:
    """One of VOLUMES in a file of its own, and what it holds."""

    def __init__(self, name: str) -> None:
        self.data = build(name)
        self._stack = contextlib.ExitStack()
        self.path = self._stack.enter_context(work_folder()) / "v"
        self.path.write_bytes(self.data)
        self.contents, errors = contents(self.path)
        assert not errors

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def bits(self) -> list[int]:
        """Numbers of all bits of the metadata, ascending."""
        image = Image(self.data)
        slots = sorted({0, 1, *range(2, 2 + image.u64(image.superblock + 104)), *image.metadata_slots()})
        return [bit for slot in slots for bit in range(slot * SLOT * 8, (slot + 1) * SLOT * 8)]

    def sample(self, count: int, seed: int) -> list[int]:
        """Some of them; half of them where the bytes are not zero."""
        rng = random.Random(seed)
        bits = self.bits()
        full = [bit for bit in bits if self.data[bit >> 3]]
        return rng.sample(bits, count // 2) + rng.sample(full, count // 2)


def flip(original: Original, bit: int) -> bool:
    """Flips a bit, reads everything, and flips it back; whether it was noticed. AssertionError if other bytes show."""
    fd = os.open(original.path, os.O_RDWR)
    try:
        os.pwrite(fd, bytes([original.data[bit >> 3] ^ 1 << (bit & 7)]), bit >> 3)
        shown, errors = contents(original.path)
        os.pwrite(fd, original.data[bit >> 3 : (bit >> 3) + 1], bit >> 3)
    finally:
        os.close(fd)
    for what, value in shown.items():
        assert value == original.contents.get(what), f"bit {bit & 7} of byte {bit >> 3:#x}: {what} is another"
    assert errors or shown.keys() == original.contents.keys(), (
        f"bit {bit & 7} of byte {bit >> 3:#x}: something is missing"
    )
    return bool(errors)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", choices=sorted(VOLUMES))
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.nice(19)
    with Original(options.volume) as original:
        bits = original.bits() if options.sample is None else original.sample(options.sample, options.seed)
        noticed = sum(flip(original, bit) for bit in bits)
        print(f"{options.volume}: {len(bits)} bits flipped, {noticed} noticed, the others without effect")
    return 0


if __name__ == "__main__":
    sys.exit(main())
