"""What a process and its volume have grown to, and whether that goes on: numbers, sampled, and a line through them.

Whatever a correct engine keeps comes to an end in the first half of a run: caches are full, threads have their stacks,
the file has its runway. A line is fitted through the second half; what it rises by there is held against a bound of
so much for the noise and so much for a million steps.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cowengine.engine.engine import Engine

MIB = 1 << 20
PAGE = os.sysconf("SC_PAGE_SIZE")
Numbers = dict[str, int]


class Bound(NamedTuple):
    """What a number may rise by over half a run."""

    noise: int
    a_million: int  # for each million steps, on top of it

    def over(self, steps: int) -> float:
        return self.noise + self.a_million * steps / 1e6


BOUNDS = {
    "descriptors": Bound(0, 0),
    "threads": Bound(3, 0),  # those of the background come and go
    "resident bytes": Bound(MIB, 4 * MIB),
    "heap bytes": Bound(MIB // 2, MIB),  # single samples meet a checkpoint or the sealer, a MiB above the others
    "Python blocks": Bound(4000, 4000),
    "busy slots": Bound(300, 600),
    "allocated bytes": Bound(6 * MIB, 4 * MIB),
    "file bytes": Bound(24 * MIB, 4 * MIB),  # holes mostly: free slots are left behind rather than looked for
    "log bytes": Bound(MIB // 2, 0),
    "bytes read by an open": Bound(MIB // 4, MIB),
    "bytes read by a reader": Bound(MIB // 2, MIB),  # of what the log holds just then, too
}
OF_A_CONTAINER = Bound(300, 1000)


class MallInfo(ctypes.Structure):
    """What glibc says of its heap."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )]  # fmt: skip


def heap_bytes() -> int:
    """What malloc has given out, exactly; 0 where nobody knows."""
    tell = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if tell is None:
        return 0
    tell.restype = MallInfo
    info = tell()
    return int(info.uordblks + info.hblkhd)


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))


def threads() -> int:
    """How many this process has."""
    return threading.active_count()


def resident_bytes() -> int:
    """Memory of this process that is its own: not the pages of files."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))


def of_process() -> Numbers:
    """Of the whole process, behind a collection of garbage."""
    gc.collect()
    return {
        "descriptors": descriptors(),
        "threads": threads(),
        "resident bytes": resident_bytes(),
        "heap bytes": heap_bytes(),
        "Python blocks": sys.getallocatedblocks(),
    }


def of_engine(engine: Engine) -> Numbers:
    """Of an open volume: its file, its slots, and everything in which its objects keep things."""
    with engine.lock:
        about = os.fstat(engine.fd)
        return {
            "allocated bytes": about.st_blocks * 512,
            "file bytes": about.st_size,
            "log bytes": engine.log.used,
            "busy slots": engine.path.slots.count_busy(0, about.st_size // 4096 + 1),
            **dict(containers(engine)),
        }


def containers(root: Any) -> Iterator[tuple[str, int]]:
    """(name, length) of all that has a length in the objects of the engine that an object leads to."""
    seen, todo = {id(root)}, deque([("engine", root)])
    while todo:
        name, thing = todo.popleft()
        for part, value in sorted(getattr(thing, "__dict__", {}).items()):
            if id(value) in seen:
                continue
            seen.add(id(value))
            if type(value).__module__.startswith("cowengine"):
                todo.append((f"{name}.{part}", value))
            if hasattr(value, "__len__") and not isinstance(value, str | bytes | tuple):
                yield f"{name}.{part}", len(value)


@dataclass
class Growth:
    """Samples of a run: numbers by name, behind so many steps."""

    steps: list[int] = field(default_factory=list)
    numbers: dict[str, array[int]] = field(default_factory=dict)  # arrays, so as not to count themselves

    def add(self, steps: int, numbers: Numbers) -> None:
        """The same names each time; one that is new was 0 before."""
        for name in numbers.keys() - self.numbers.keys():
            self.numbers[name] = array("q", bytes(8 * len(self.steps)))
        self.steps.append(steps)
        for name, values in self.numbers.items():
            values.append(numbers.get(name, 0))

    def __str__(self) -> str:
        half = len(self.steps) // 2
        return "\n".join(
            f"{name:46} first {values[0]:>12,} middle {values[half]:>12,} last {values[-1]:>12,} "
            f"most {max(values):>12,} rise {self.rise(name):>12,.0f}"
            for name, values in sorted(self.numbers.items())
        )

    def rise(self, name: str) -> float:
        """What the line through the second half of a number's samples rises by, from its begin to the end."""
        half = len(self.steps) // 2
        return rise(self.steps[half:], self.numbers[name][half:])

    def violations(self) -> list[str]:
        """Numbers that went on growing."""
        half = len(self.steps) // 2
        span = self.steps[-1] - self.steps[half]
        found = []
        for name, values in self.numbers.items():
            bound, grown = BOUNDS.get(name, OF_A_CONTAINER).over(span), self.rise(name)
            if grown > bound:
                found.append(
                    f"{name}: grew by {grown:,.0f} over {span:,} steps, {bound:,.0f} are allowed; "
                    f"{values[half]:,} in the middle, {values[-1]:,} at the end"
                )
        return found


def rise(steps: Sequence[int], values: Sequence[int]) -> float:
    """Of the line of least squares, from the first step to the last."""
    middle, mean = sum(steps) / len(steps), sum(values) / len(values)
    spread = sum((at - middle) ** 2 for at in steps)
    if not spread:
        return 0.0
    slope = sum((at - middle) * (value - mean) for at, value in zip(steps, values, strict=True)) / spread
    return slope * (steps[-1] - steps[0])
