"""Changed extents against a comparison byte by byte: all pairs of snapshots, anchors, clones and the live volume.

A history writes, discards, rewrites, resizes (over every level of the map), takes snapshots, deletes them step by
step, gives their data up, rolls back, clones and reopens, on a disk in memory. Now and then all versions are compared
with all snapshots: every byte that differs has to lie in an extent, and every extent has to be there for a write of
each of its blocks between the two (versions.py knows both by brute force). Each pair is asked for as a whole, and for a
range that is aligned to nothing, some of them page by page.

    python -P tests/torture/diff_pairs.py --seconds 60 --seed 1
    python -P tests/torture/diff_pairs.py --planted epoch          # an off-by-one, to see it being found
"""

from __future__ import annotations

import os
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / folder) for folder in ("torture", "crash")]

import numpy as np  # noqa: E402
from memory_disk import MemoryDisk  # noqa: E402
from row import Tally, harness_parser, tell  # noqa: E402
from versions import BLOCK, Version, Versions  # noqa: E402

import cowengine.snapshot  # noqa: E402
import cowengine.volume  # noqa: E402
from cowengine import Volume  # noqa: E402
from cowengine.engine import reclaim  # noqa: E402
from cowengine.errors import FullBackupRequired  # noqa: E402
from cowengine.extents import collect  # noqa: E402

PATH = "/disk/volume"
LEAF, LEVEL = 256, 256 * 128  # blocks in a leaf of the map, and in a node above it
SMALL = [1, 8, LEAF - 1, LEAF, LEAF + 1, 2 * LEAF + 3]  # sizes in blocks
LARGE = [*SMALL, LEVEL - 1, LEVEL, LEVEL + 1, LEVEL + LEAF + 5]
EDGES = [0, LEAF, 2 * LEAF, LEVEL, LEVEL + LEAF]  # writes fall near these blocks
SNAPSHOTS_MAX, CLONES_MAX = 40, 3
ROUNDS, STEPS_A_ROUND = 6, 60
SHORTEN_SECONDS = 10.0
HISTORIES_A_SEED = 1_000_000
VIOLATIONS_MAX = 3

Step = tuple[str, int]  # what, and the seed of its details


class Difference(Exception):
    """The list is not what the bytes and births say."""


class History:
    """One file and what is known of it. A step takes what it needs from its own seed and from what is there."""

    def __init__(self, large: bool, adopted: bool, chosen: random.Random) -> None:
        self.disk = MemoryDisk(recorded=False)
        self.sizes = SMALL if adopted or not large else LARGE
        self.options: dict[str, Any] = {"io": self.disk, "background": False}
        self.known = Versions()
        self.random = chosen
        self.pairs = self.serial = 0
        self.told: list[str] = []
        size = self.size()
        self.known.create(size)
        if adopted:
            self.volume = self.adopted(size)
        else:
            self.volume = Volume.create(PATH, size, block_size=BLOCK, log_size=16384, **self.options)
        self.handles = {"live": self.volume}
        self.tell(f"{'adopt' if adopted else 'create'} {size}")

    def adopted(self, size: int) -> Volume:
        image = self.disk.open(PATH, os.O_RDWR | os.O_CREAT)
        self.disk.truncate(image, size)
        self.disk.pwrite(image, b"image", 0)
        self.disk.close(image)
        head = self.known.heads["live"]
        self.known.write(head, b"image", 0)
        head.births[:] = 0
        return Volume.adopt(PATH, block_size=BLOCK, log_size=16384, **self.options)

    def close(self) -> None:
        self.volume.close()

    def play(self, step: Step) -> None:
        """One step. Raises Difference, or whatever the engine raises."""
        what, seed = step
        self.random = random.Random(seed)
        STEPS[what](self)

    def tell(self, text: str) -> None:
        self.told.append(text)

    # -- choices ------------------------------------------------------------------------------------------------------
    def size(self) -> int:
        """Around the sizes at which the map gets a further node or level, often with a part of a block at the end."""
        return self.random.choice(self.sizes) * BLOCK - 512 * self.random.choice([0, 0, 1, 7])

    def head(self) -> Version:
        return self.random.choice([*self.known.heads.values()])

    def place(self, size: int) -> tuple[int, int]:
        """A range of some blocks near an edge of the map, or near the end; half of them begin or end within a block."""
        length = self.random.choice([1, 511, BLOCK, BLOCK, BLOCK + 1, 3 * BLOCK, 5 * BLOCK + 700])
        near = self.random.choice([*(edge for edge in EDGES if edge * BLOCK < size), size // BLOCK])
        offset = max(0, (near + self.random.randint(-3, 3)) * BLOCK + self.random.choice([0, 0, 1, 2048, 4095]))
        offset = min(offset, size - 1)
        return offset, min(length, size - offset)

    def readable(self) -> list[Version]:
        return [version for version in self.known.snapshots.values() if not version.anchor]

    def free(self) -> list[Version]:
        """Snapshots on which no clone stands."""
        return [each for each in self.known.snapshots.values() if each.name not in self.known.origins.values()]

    # -- writing ------------------------------------------------------------------------------------------------------
    def write(self) -> None:
        head = self.head()
        offset, length = self.place(head.size)
        data = bytes([self.random.randint(1, 3)]) * length  # so that what is written is often there already
        self.handles[head.name].pwrite(data, offset)
        self.known.write(head, data, offset)
        self.tell(f"{head.name}: write {length} at {offset}")

    def rewrite(self) -> None:
        """The same data once more: a write like any other."""
        head = self.head()
        offset, length = self.place(head.size)
        data = head.read(self.known.pool, offset, length)
        self.handles[head.name].pwrite(data, offset)
        self.known.write(head, data, offset)
        self.tell(f"{head.name}: rewrite {length} at {offset}")

    def discard(self) -> None:
        head = self.head()
        offset, length = self.place(head.size)
        length = min(head.size - offset, length * self.random.choice([1, 1, LEAF]))
        self.handles[head.name].discard(offset, length)
        self.known.discard(head, offset, length)
        self.tell(f"{head.name}: discard {length} at {offset}")

    def resize(self) -> None:
        head, size = self.head(), self.size()
        self.handles[head.name].resize(size)
        self.known.resize(head, size)
        self.tell(f"{head.name}: resize to {size}")

    def commit(self) -> None:
        if self.random.randrange(2):
            self.volume.engine.checkpoint()
            self.tell("checkpoint")
        else:
            self.volume.flush()
            self.tell("flush")

    # -- versions -----------------------------------------------------------------------------------------------------
    def snapshot(self) -> None:
        if len(self.known.snapshots) < SNAPSHOTS_MAX:
            head, name = self.head(), self.name("s")
            self.handles[head.name].snapshot(name)
            self.known.snapshot(head, name)
            self.tell(f"{head.name}: snapshot {name}")

    def name(self, kind: str) -> str:
        self.serial += 1
        return f"{kind}{self.serial}"

    def delete(self) -> None:
        """Gives its blocks back in steps, of which only some are taken here."""
        if free := self.free():
            chosen = self.random.choice(free)
            self.volume.engine.delete(self.volume.get_snapshot(chosen.name).id)
            del self.known.snapshots[chosen.name]
            self.tell(f"delete {chosen.name}, {self.reclaim()} steps")

    def anchor(self) -> None:
        if free := [version for version in self.free() if not version.anchor]:
            chosen = self.random.choice(free)
            self.volume.engine.to_anchor(self.volume.get_snapshot(chosen.name).id)
            chosen.anchor = True
            self.tell(f"anchor {chosen.name}, {self.reclaim()} steps")

    def reclaim(self) -> int:
        steps = self.random.choice([0, 0, 1, 3, 200])
        for done in range(steps):
            if not reclaim.reclaim_step(self.volume.engine):
                return done
        return steps

    def rollback(self) -> None:
        if readable := self.readable():
            head, target = self.head(), self.random.choice(readable)
            kept = self.handles[head.name].rollback(target.name).name
            self.known.rollback(head, target, kept)
            self.tell(f"{head.name}: rollback to {target.name}, before that {kept}")

    def clone(self) -> None:
        readable = self.readable()
        if readable and len(self.known.origins) < CLONES_MAX:
            origin, name = self.random.choice(readable), self.name("c")
            self.handles[name] = self.volume.get_snapshot(origin.name).clone(name)
            self.known.clone(name, origin)
            self.tell(f"clone {name} of {origin.name}")

    def delete_head(self) -> None:
        if self.known.origins:
            name = self.random.choice([*self.known.origins])
            self.handles.pop(name).close()
            self.volume.delete_head(name)
            self.known.delete_head(name)
            self.tell(f"delete clone {name}")

    def reopen(self) -> None:
        self.volume.close()
        self.volume = Volume.open(PATH, **self.options)
        clones = {name: self.volume.open_head(name) for name in self.known.origins}
        self.handles = {"live": self.volume, **clones}
        self.tell("reopen")

    # -- comparing ----------------------------------------------------------------------------------------------------
    def compare(self) -> None:
        """Everything with every snapshot."""
        shown = {snapshot.name: snapshot for snapshot in self.volume.snapshots()}
        if list(shown) != list(self.known.snapshots):
            raise Difference(f"snapshots {list(shown)} instead of {list(self.known.snapshots)}")
        self.tell("compare all")
        targets = [(shown[name], version) for name, version in self.known.snapshots.items()]
        targets += [(self.handles[name], version) for name, version in self.known.heads.items()]
        for target, new in targets:
            self.read(target, new)
            for name, base in shown.items():
                self.pair(target, new, base, self.known.snapshots[name])
                self.pairs += 1

    def read(self, target: Any, version: Version) -> None:
        """What is known here is what is there."""
        if not version.anchor:
            offset, length = self.place(version.size)
            if target.pread(length, offset) != version.read(self.known.pool, offset, length):
                raise Difference(f"{version.name}: wrong bytes in {length} at {offset}")

    def pair(self, target: Any, new: Version, base: Any, old: Version) -> None:
        if not new.answers(old):
            try:
                target.changed_extents(base)
            except FullBackupRequired:
                return
            raise Difference(f"{old.name} to {new.name}: a list, where nobody can know")
        written, differing = new.written_since(old), new.differing_from(old)
        self.range_of(target, new, base, old, written, differing, (0, new.size), None)
        offset, _ = self.place(new.size)
        length = min(new.size - offset, self.random.choice([0, 1, 4096, 40_000, 2_000_000, new.size]))
        pages = self.random.choice([None, None, None, 1, 2, 5])
        self.range_of(target, new, base, old, written, differing, (offset, length), pages)

    def range_of(
        self, target: Any, new: Version, base: Any, old: Version, written: Any, differing: Any,
        place: tuple[int, int], page: int | None,
    ) -> None:  # fmt: skip
        """The answer for one range, against both lists of blocks."""
        offset, length = place
        found = np.concatenate([*pages_of(target, base, offset, length, page)])
        first, end = (offset // BLOCK, -(-(offset + length) // BLOCK)) if length else (0, 0)
        listed = np.zeros(new.block_count, bool)
        for at, covered in found.tolist():
            listed[at // BLOCK : -(-(at + covered) // BLOCK)] = True
        differing = differing[(differing >= first) & (differing < end)]
        written = written[(written >= first) & (written < end)]
        where = f"{old.name} to {new.name}, {length} bytes at {offset}" + (f" by {page} rows" if page else "")
        if not listed[differing].all():
            raise Difference(f"{where}: bytes of block {differing[~listed[differing]][0]} differ, it is not listed")
        wanted = rows(written, new.size)
        if page is None and not np.array_equal(found, wanted):
            raise Difference(f"{where}: {clipped(found)} instead of {clipped(wanted)}")
        if not np.array_equal(np.flatnonzero(listed), written) or int(found[:, 1].sum()) != int(wanted[:, 1].sum()):
            raise Difference(f"{where}: {clipped(found)}, where {clipped(wanted)} was written")


STEPS: dict[str, Callable[[History], None]] = {
    "write": History.write, "rewrite": History.rewrite, "discard": History.discard, "resize": History.resize,
    "commit": History.commit, "snapshot": History.snapshot, "delete": History.delete, "anchor": History.anchor,
    "rollback": History.rollback, "clone": History.clone, "delete head": History.delete_head, "reopen": History.reopen,
    "compare": History.compare,
}  # fmt: skip
OFTEN = ["write"] * 8 + ["snapshot"] * 8 + ["rewrite", "discard", "discard", "resize", "commit"]
SELDOM = ["delete", "anchor", "rollback", "clone", "delete head", "reopen"]


def pages_of(target: Any, base: Any, offset: int, length: int, most: int | None) -> Iterator[Any]:
    """The answers that somebody gets who asks for so many rows at a time."""
    end = offset + length
    while True:
        part = target.changed_extents(base, offset, end - offset, most)
        if most is not None and len(part) > most:
            raise Difference(f"{len(part)} rows, where {most} were asked for")
        if len(part) and int(part[0, 0]) < offset // BLOCK * BLOCK:
            raise Difference(f"the rows from {offset} on begin at {part[0, 0]}")
        yield part
        if most is None or len(part) < most:
            return
        offset = int(part[-1].sum())
        if offset >= end:
            return


def rows(blocks: Any, size: int) -> Any:
    """Blocks as rows (offset, length), as few as possible; the last one ends with the version."""
    if not len(blocks):
        return np.empty((0, 2), np.uint64)
    gaps = np.flatnonzero(np.diff(blocks) > 1)
    firsts, lasts = blocks[np.r_[0, gaps + 1]], blocks[np.r_[gaps, len(blocks) - 1]]
    ends = np.minimum((lasts + 1) * BLOCK, size)
    return np.column_stack((firsts * BLOCK, ends - firsts * BLOCK)).astype(np.uint64)


def clipped(found: Any) -> str:
    return f"{found[:8].tolist()}{' ...' if len(found) > 8 else ''}"


# -- histories --------------------------------------------------------------------------------------------------------
def steps_of(seed: int) -> list[Step]:
    """The steps of a history: many of those that make versions, a few of the others, then all are compared."""
    chosen = random.Random(seed)
    steps: list[Step] = []
    for _ in range(ROUNDS):
        what = chosen.choices(OFTEN, k=STEPS_A_ROUND) + chosen.choices(SELDOM, k=6)
        chosen.shuffle(what)
        steps += [(name, chosen.randrange(1 << 32)) for name in [*what, "compare"]]
    return steps


def run(seed: int, steps: list[Step], late: float) -> tuple[int, str, int]:
    """Plays a history; how many pairs were compared, the story if it went wrong, and how many steps that took."""
    chosen = random.Random(seed)
    history = History(large=chosen.random() < 0.6, adopted=chosen.random() < 0.25, chosen=chosen)
    played, wrong = 0, ""
    try:
        for step in steps:
            if time.monotonic() > late:
                break
            history.play(step)
            played += 1
        history.close()
    except Difference as difference:
        wrong = f"  {difference}"
    except Exception:
        wrong = traceback.format_exc()
    return history.pairs, "\n".join([*history.told, wrong]) if wrong else "", played + 1


def shortest(seed: int, steps: list[Step], trace: str) -> str:
    """The story of the shortest history found that goes wrong: pieces are left out as long as it still does."""
    late, piece = time.monotonic() + SHORTEN_SECONDS, len(steps) // 2
    while piece and time.monotonic() < late:
        at = 0
        while at < len(steps) and time.monotonic() < late:
            fewer = steps[:at] + steps[at + piece :]
            _, found, taken = run(seed, fewer, late)
            if found:
                steps, trace = fewer[:taken], found
            else:
                at += piece
        piece //= 2
    return trace


def histories(seed: int, only: int | None) -> Iterable[int]:
    """Those of a seed, which no other seed has."""
    return count(seed * HISTORIES_A_SEED) if only is None else [only]


def work(numbers: Iterable[int], seconds: float) -> Tally:
    tally, late, played = Tally(), time.monotonic() + seconds, 0
    for number in numbers:
        if time.monotonic() > late or len(tally.violations) == VIOLATIONS_MAX:
            break
        steps = steps_of(number)
        pairs, trace, taken = run(number, steps, late)
        tally.count += pairs
        played += 1
        if trace:
            trace = shortest(number, steps[:taken], trace)
            tally.violation(f"history {number} (again, alone: --history {number}):\n{trace}")
    tally.more = f"{played} histories"
    return tally


# -- planted ----------------------------------------------------------------------------------------------------------
def planted_epoch() -> None:
    """What was born right after the base counts as old."""
    walk = cowengine.snapshot._walk
    cowengine.snapshot._walk = lambda engine, number, after: walk(engine, number, after and after + 1)


def planted_start() -> None:
    """The block in which a range begins is left out if the range begins within it."""

    def late(walks: Any, size: int, block: int, start: int, length: int | None, most: int | None) -> Any:
        begin = min(-(-start // block) * block, size)
        return collect(walks, size, block, begin, None if length is None else max(0, start + length - begin), most)

    cowengine.snapshot.collect = cowengine.volume.collect = late


def planted_page() -> None:
    """The last row of a full page is a block too long."""

    def long(walks: Any, size: int, block: int, start: int, length: int | None, most: int | None) -> Any:
        found = collect(walks, size, block, start, length, most)
        if most is not None and len(found) == most > 1:
            found[-1, 1] += block
        return found

    cowengine.snapshot.collect = cowengine.volume.collect = long


PLANTED = {"epoch": planted_epoch, "start": planted_start, "page": planted_page}


def main() -> int:
    parser = harness_parser("Compares lists of changes with the bytes of all pairs of versions.", seconds=60)
    parser.add_argument("--history", type=int, help="only this one, as a violation names it")
    parser.add_argument("--planted", choices=PLANTED, help="an off-by-one that has to be found")
    arguments = parser.parse_args()
    if arguments.planted:
        PLANTED[arguments.planted]()
    reclaim.LEAVES_A_STEP = reclaim.PARTS_A_STEP = 1  # so that there are deletes in progress, so little done
    tally = work(histories(arguments.seed, arguments.history), arguments.seconds)
    return tell(tally, arguments, "pairs compared")


if __name__ == "__main__":
    sys.exit(main())
