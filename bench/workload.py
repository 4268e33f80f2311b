"""What a benchmark writes and where: seeded, so that each one repeats itself exactly, the same for every subject."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import cycle

SEED = 20240229
BLOCK = 4096
KiB, MiB, GiB, TiB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


class Workload:
    """Seeded data and offsets; the seed is the benchmark's name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.random = random.Random(f"{SEED} {name}")
        self.block = self.random.randbytes(BLOCK)
        self.mebibyte = self.random.randbytes(MiB)

    def again(self) -> Workload:
        """The same from its beginning: each subject has one of its own."""
        return Workload(self.name)

    def offsets(self, size: int, count: int, step: int = BLOCK) -> list[int]:
        """`count` multiples of `step` below `size`, at random, each at most once."""
        return [number * step for number in self.random.sample(range(size // step), count)]

    def each_once(self, size: int) -> Iterator[int]:
        """The offset of every block, in random order, again and again."""
        return cycle(self.offsets(size, size // BLOCK))

    def fill(self, pwrite: Callable[[bytes, int], object], size: int, step: int = MiB) -> None:
        """Write every byte from 0 to `size`, a multiple of `step`, in writes of `step` bytes.

        The page cache remembers the step: on ext4 a 4 KiB overwrite of what came in 1 MiB writes takes ten times as
        long as of what came in 4 KiB writes. So all subjects are filled alike, and for 4 KiB workloads in 4 KiB steps.
        """
        for offset in range(0, size, step):
            pwrite(self.mebibyte[:step], offset)
