"""Crashes in adopting a raw image, undoing that and flattening the file itself: the image or the volume is left.

Each history runs on the memory disk; at each of its barriers some of the ways are built in which the pending changes
may have reached the disk. A second process then opens what is there as a volume, or else makes it the raw image again
or adopts it anew; either way it must have the bytes of before, exactly. Those second processes are cut in turn, also
after a kill, where the page cache lives on, and with a barrier that fails.

    python tests/crash/adopt_explorer.py --histories 200 --seed 1
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "model")]

from crash_images import build, choices, fingerprint  # noqa: E402
from crash_oracle import Violation  # noqa: E402
from crash_workload import determinism, shrink  # noqa: E402
from memory_disk import DIRECTORY, Durable, MemoryDisk, instants  # noqa: E402

from cowengine import Volume  # noqa: E402
from cowengine.errors import CowEngineError  # noqa: E402

PATH = "/disk/image"
INTENT = PATH + ".adopting"
LOG = 16384
BLOCK = 4096
SIZES = (512, 5 * BLOCK + 512, 6 * BLOCK, 12 * BLOCK, 40 * BLOCK - 1536)
VOLUME, RAW = "volume", "raw image"


@dataclass
class Score:
    states: set[int] = field(default_factory=set)
    volumes: int = 0
    images: int = 0
    refused: int = 0  # barriers that failed
    barriers: int = 0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{len(self.states):,} distinct states: {self.volumes:,} times a volume, {self.images:,} times an image, "
            f"{self.refused:,} barriers failed, {len(self.violations)} violations"
        )


class AdoptExplorer:
    """One history: a raw image with some holes, what is done with it, and all its crashes."""

    def __init__(self, seed: int, score: Score, images: int = 24) -> None:
        self.rng = random.Random(seed)
        self.score = score
        self.images = images
        self.block_size = self.rng.choice((BLOCK, BLOCK, 4 * BLOCK))
        self.data = bytearray(self.rng.choice(SIZES))
        for page in range(0, len(self.data), BLOCK):
            if self.rng.random() < 0.7:
                self.data[page : page + BLOCK] = self.rng.randbytes(min(BLOCK, len(self.data) - page))
        self.seen: set[tuple[int, str | None]] = set()
        self.describe = f"task adopt:{seed}, {len(self.data)} bytes, blocks of {self.block_size}"

    def adopt(self, disk: MemoryDisk) -> Volume:
        return Volume.adopt(PATH, block_size=self.block_size, log_size=LOG, raw=True, io=disk, background=False)

    def run(self) -> None:
        """Adopts and flattens again; every crash of both."""
        self.history(self.disk_with(self.data), lambda disk: self.adopt(disk).close(), VOLUME, "adopt")
        disk = self.disk_with(self.data)
        self.change(self.adopt(disk))
        volume_file = disk.cache.files[disk.cache.entries[PATH]]
        self.history(self.disk_with(volume_file), flatten, RAW, "flatten")
        disk = self.disk_with(volume_file)
        self.move(Volume.open(PATH, io=disk, background=False))
        volume_file = disk.cache.files[disk.cache.entries[PATH]]
        self.history(self.disk_with(volume_file), flatten, RAW, "flatten by a copy")

    @staticmethod
    def disk_with(content: bytearray) -> MemoryDisk:
        return MemoryDisk(Durable({1: bytearray(content)}, {"/": DIRECTORY, "/disk": DIRECTORY, PATH: 1}))

    def change(self, volume: Volume) -> None:
        """Some bytes of the volume, and of what is expected."""
        self.rewrite(volume)
        block = self.rng.randrange(len(self.data)) // self.block_size * self.block_size
        length = min(self.block_size, len(self.data) - block)
        if length == self.block_size:
            volume.discard(block, length)
            self.data[block : block + length] = bytes(length)
        volume.close()

    def rewrite(self, volume: Volume) -> None:
        for _ in range(self.rng.randrange(4)):
            start = self.rng.randrange(len(self.data))
            part = self.rng.randbytes(min(self.rng.choice((1, 600, 9000)), len(self.data) - start))
            volume.pwrite(part, start)
            self.data[start : start + len(part)] = part

    def move(self, volume: Volume) -> None:
        """Blocks lie elsewhere than in the raw image: the volume has grown, or was written after a snapshot."""
        with volume:
            if self.rng.random() < 0.5:
                grown = self.rng.randrange(1, 12 * BLOCK // 512) * 512
                volume.resize(len(self.data) + grown)
                self.data += bytes(grown)
            else:
                snapshot = volume.snapshot("displaces")
                part = self.rng.randbytes(len(self.data) // 2)
                volume.pwrite(part, len(self.data) - len(part))
                self.data[len(self.data) - len(part) :] = part
                snapshot.delete()
                volume.reclaim()
            self.rewrite(volume)

    def history(self, disk: MemoryDisk, work: Callable[[MemoryDisk], object], result: str, trail: str) -> None:
        """Runs something, perhaps with a barrier that fails, and looks at the crashes of it."""
        self.may_fail(disk, 0.3)
        try:
            work(disk)
            disk.note(result)
        except (CowEngineError, OSError):
            if not disk.faults:
                raise
        self.explore(disk, 0, trail)

    def may_fail(self, disk: MemoryDisk, share: float) -> None:
        disk.fail_barrier = self.rng.randrange(10) if self.rng.random() < share else None
        disk.fate = lambda: self.rng.randrange(3)

    def explore(self, disk: MemoryDisk, depth: int, trail: str) -> None:
        """Every crash of the journal that a disk holds."""
        self.score.refused += disk.faults
        for instant in instants(disk.start, disk.journal):
            self.score.barriers += 1
            here = f"{trail} / barrier at {instant.position}"
            for choice in choices(instant.pending, self.rng, self.images >> 2 * depth):
                image = build(instant, choice)
                key = fingerprint(image)
                self.score.states.add(key)
                if (key, instant.note) in self.seen:
                    continue
                self.seen.add((key, instant.note))
                self.look(MemoryDisk(image), instant.note, depth, f"{here}, arrived {choice}")
            if self.rng.random() < 0.3:
                killed = MemoryDisk(instant.durable.copy(), instant.pending, instant.cached)
                self.look(killed, instant.note, depth, f"{here}, killed")

    def look(self, disk: MemoryDisk, expected: str | None, depth: int, trail: str) -> None:
        """A second process; at times its own crashes, too."""
        nested = depth == 0 and self.rng.random() < 0.25
        self.may_fail(disk, 0.3 if nested else 0)
        try:
            found = self.settle(disk)
            if expected not in (None, found):
                self.score.violations.append(f"{self.describe}, {trail}: a {found}, but was acknowledged as {expected}")
        except Exception as error:  # whatever comes out of it is a violation
            if not disk.faults:
                self.score.violations.append(f"{self.describe}, {trail}: {error!r}")
        if nested:
            disk.fail_barrier = None
            self.explore(disk, 1, f"{trail}; then")

    def settle(self, disk: MemoryDisk) -> str:
        """What the file was; it is made usable and compared: a volume, the raw image, or the image adopted anew."""
        try:
            volume = Volume.open(PATH, io=disk, background=False)
        except CowEngineError:
            if disk.faults:
                raise
        else:
            self.compare(volume)
            disk.note(VOLUME)
            self.score.volumes += 1
            if disk.is_file(INTENT):
                raise Violation("an intent file is still there")
            if self.rng.random() < 0.2:
                disk.note(None)
                flatten(disk)
                disk.note(RAW)
                self.require_image(disk)
            return VOLUME
        self.score.images += 1
        if self.rng.random() < 0.5:
            self.compare(self.adopt(disk))
            disk.note(VOLUME)
        else:
            undone = disk.is_file(INTENT)
            if undone:
                Volume.undo_adoption(PATH, io=disk)
            self.require_image(disk)
            if undone:  # else only the page cache may have it, as nobody promised more
                disk.note(RAW)
        return RAW

    def require_image(self, disk: MemoryDisk) -> None:
        if disk.cache.files[disk.cache.entries[PATH]] != self.data:
            raise Violation("the raw image is not what it was")
        if disk.is_file(INTENT):
            raise Violation("the intent file is still there")

    def compare(self, volume: Volume) -> None:
        try:
            if volume.pread(volume.size, 0) != self.data:
                raise Violation("the volume is not what the image was")
            report = volume.check()
            if not report.ok:
                raise Violation(f"check: {report.problems[:3]}")
        finally:
            volume.close()


def flatten(disk: MemoryDisk) -> None:
    volume = Volume.open(PATH, io=disk, background=False)
    try:
        volume.flatten()
    finally:
        volume.close()


def explore_many(histories: int, seed: int) -> Score:
    score = Score()
    for number in range(seed, seed + histories):
        with determinism(number):
            AdoptExplorer(number, score).run()
        if score.violations:
            break
    return score


def main() -> int:
    parser = argparse.ArgumentParser(description="Explores crashes of adopting and flattening.")
    parser.add_argument("--histories", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # every torn superblock is worth a warning
    shrink()
    started = time.monotonic()
    score = explore_many(arguments.histories, arguments.seed)
    print(*score.violations[:5], sep="\n")
    print(f"seed {arguments.seed}: {score}, {time.monotonic() - started:.0f} s")
    return 1 if score.violations else 0


if __name__ == "__main__":
    sys.exit(main())
