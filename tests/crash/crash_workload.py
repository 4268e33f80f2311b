"""Seeded workloads on one volume, each step announced to the oracle before it runs and acknowledged after it returned.

A step is a tuple of a name and small numbers, so that a failing history prints as a line and can be typed in again.
Numbers are taken modulo what there is (blocks, snapshots), so every step fits every state.
"""

from __future__ import annotations

import os
import random
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from crash_oracle import (
    HOLD_REASON,
    SECTOR,
    Expectation,
    Found,
    Judge,
    Operation,
    Oracle,
    Shown,
    Violation,
    compare,
    judges,
    plain_buffer,
    show,
)
from memory_disk import MemoryDisk

from cowengine import Volume
from cowengine.engine import allocator, engine, hashindex, homes, names, reclaim, sealing
from cowengine.errors import BusyError, PoisonedError

PATH = "/disk/volume"

# So that freed slots are reused within a few steps, where normally the file first grows by some megabytes and a reserve
# takes the first ones; that a reclaim commits behind two leaves; that a few snapshots have an index of many
# buckets; and that the table of home regions gets full.
SMALL = (
    (allocator, "RUNWAY_SLOTS", 2),
    (allocator, "REUSE_SHARE", 64),
    (engine, "RESERVE_SLOTS_SMALL", 2),
    (names, "KEPT_FROM", 1),
    (hashindex, "LOAD", 2),
    (reclaim, "LEAVES_A_STEP", 1),
    (reclaim, "PARTS_A_STEP", 2),
    (homes, "AHEAD", 0),
)


def shrink() -> None:
    """Sets what SMALL says, for the rest of the process; the tests of this folder have a fixture that takes it back."""
    for module, name, value in SMALL:
        setattr(module, name, value)


Step = tuple[Any, ...]


@dataclass(frozen=True)
class Geometry:
    size: int
    block_size: int = 4096
    log_size: int = 16384
    adopted: bool = False  # begins as a raw image: two home regions, the first one last in the file
    barriers: int = 1  # of a commit that places data, at least


GEOMETRIES = (
    Geometry(49152),
    Geometry(12 * 4096 - 1536),
    Geometry(24 * 4096, barriers=2),
    Geometry(5 * 16384 + 512, 16384),
    Geometry(16 * 4096 - 512, adopted=True),
)
WIDE = Geometry(280 * 4096)  # two leaves of the map, so that a reclaim takes several steps; its images cost more

# Every workload begins with this: data at home and redirected, a hole, a snapshot, and something not flushed.
PRELUDE: tuple[Step, ...] = (("write", 0, 4), ("flush",), ("snapshot",), ("write", 1, 1), ("write", 6, 1))
# Or with this: a clone that has bytes of its own, its origin, a snapshot above it and an anchor, all of it sealed.
PRELUDE_OF_CLONES: tuple[Step, ...] = (
    ("write", 0, 4), ("snapshot",), ("write", 2, 1), ("snapshot",), ("make_clone", 1), ("clone_write", 0, 1),
    ("write", 6, 1), ("snapshot",), ("anchor", 0), ("seal",), ("write", 1, 1),
)  # fmt: skip
ALPHABET: tuple[Step, ...] = (
    ("write", 1, 1), ("write", 2, 3), ("write", 9, 1), ("partial", 4000, 700), ("discard", 0, 2), ("zero", 2560, 9000),
    ("flush",), ("snapshot",), ("delete", 0), ("rollback", 0), ("anchor", 0), ("reclaim",), ("checkpoint",),
    ("reopen",), ("compact",), ("seal",), ("seal_in_memory",), ("hold", 0), ("release", 0), ("give_up", 0),
    ("policy",), ("resize", 8), ("resize", 130), ("make_clone", 0), ("clone_write", 0, 1), ("clone_discard", 0, 0),
    ("clone_snapshot", 0, 0), ("clone_rollback", 0, 0), ("clone_resize", 0, 20), ("delete_head", 0),
)  # fmt: skip
WEIGHTS = {
    "write": 24, "partial": 10, "discard": 4, "zero": 4, "flush": 12, "snapshot": 14, "delete": 8, "rollback": 3,
    "anchor": 5, "reclaim": 5, "checkpoint": 4, "reopen": 3, "compact": 3, "seal": 3,
    "seal_in_memory": 8,
    "hold": 4, "release": 2, "give_up": 2, "policy": 2, "resize": 6,
    "make_clone": 6, "clone_write": 12, "clone_discard": 2, "clone_snapshot": 5, "clone_rollback": 2,
    "clone_resize": 2, "delete_head": 3,
}  # fmt: skip


def sequence(alphabet: Sequence[Step], number: int) -> tuple[Step, ...]:
    """The sequence of that number of all there are of steps of an alphabet: the empty one is 0, short ones first."""
    length = 0
    while number >= len(alphabet) ** length:
        number -= len(alphabet) ** length
        length += 1
    steps = []
    for _ in range(length):
        number, place = divmod(number, len(alphabet))
        steps.append(alphabet[place])
    return tuple(steps)


def sequence_count(alphabet: Sequence[Step], depth: int) -> int:
    """How many sequences of at most `depth` steps there are."""
    return sum(len(alphabet) ** length for length in range(depth + 1))


def random_steps(rng: random.Random, count: int) -> tuple[Step, ...]:
    names = rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=count)
    return tuple(random_step(rng, name) for name in names)


def random_step(rng: random.Random, name: str) -> Step:
    if name in ("write", "discard"):
        return (name, rng.randrange(1 << 12), rng.choice((1, 1, 1, 2, 3, 8)))
    if name in ("partial", "zero"):
        return (name, rng.randrange(1 << 21), rng.choice((1, 100, 512, 700, 4096, 5000, 12288)))
    if name in ("delete", "rollback", "hold", "release", "anchor", "give_up", "make_clone", "delete_head"):
        return (name, rng.randrange(8))
    if name.startswith("clone_"):
        return (name, rng.randrange(8), rng.randrange(1 << 12))
    if name == "resize":
        return (name, rng.randrange(1 << 12))
    return (name,)


@contextmanager
def determinism(seed: int) -> Iterator[None]:
    """Salts, tags, ids and times follow from the seed, so that a history can be run again, its states compared."""
    rng, clock = random.Random(seed), iter(range(1 << 60, 1 << 62, 1000))
    urandom, time_ns = os.urandom, time.time_ns
    os.urandom, time.time_ns = rng.randbytes, lambda: next(clock)
    try:
        yield
    finally:
        os.urandom, time.time_ns = urandom, time_ns


class Runner:
    """A process that works on the volume. It notes an expectation in the disk's journal before and after each step."""

    rot_path: str | None = PATH  # the file of which one superblock slot may rot
    opens_in_spite_of_faults = False

    def __init__(self, disk: Any, geometry: Geometry, serial: int = 0) -> None:
        """On a `MemoryDisk`; or, for real files, with a `path` and `io` of its own, and `disk` to take its notes."""
        self.disk = disk
        self.io: Any = disk
        self.path = PATH
        self.background = False
        self.perform: Callable[[Callable[[], Any]], Any] = lambda action: action()
        self.geometry = geometry
        self.serial = serial
        self.volume: Any = None
        self.poisoned = False
        self.intruder: random.Random | None = None  # if set, another thread writes during some barriers
        self.current = ""
        self.buffer = plain_buffer  # see `show`

    @cached_property
    def oracle(self) -> Oracle:
        """Of a new volume; whoever goes on after a crash sets it to what was found."""
        return Oracle(self.geometry.size, self.geometry.block_size)

    def engines(self) -> list[Any]:
        """What the process would take with it."""
        return [] if self.volume is None else [self.volume.engine]

    def create(self) -> None:
        geometry = self.geometry
        settings: dict[str, Any] = {"block_size": geometry.block_size, "log_size": geometry.log_size}
        settings |= {"io": self.io, "background": False}
        if geometry.adopted:
            image = self.io.open(self.path, os.O_RDWR | os.O_CREAT)
            self.io.truncate(image, geometry.size)
            self.io.close(image)
            self.volume = Volume.adopt(self.path, **settings)
        else:
            self.volume = Volume.create(self.path, geometry.size, barriers=geometry.barriers, **settings)
        self.disk.note(self.oracle.expectation())

    def open(self) -> None:
        self.volume = Volume.open(self.path, io=self.io, background=self.background, barriers=self.geometry.barriers)

    def close(self) -> None:
        if self.volume is not None:
            self.volume.close()

    def successor(self, disk: Any) -> Runner:
        """Another process on what became of the disk; it opens and looks before it works."""
        other = Runner(disk, self.geometry, self.serial)
        other.intruder = self.intruder
        other.path = self.path
        if self.io is not self.disk:
            other.io = self.io
        return other

    def look(self, expected: Expectation, extents: bool = True) -> Found:
        """Compares the open volume with what may be found, and checks it."""
        return self.compare(self.show(extents), expected)

    def show(self, extents: bool = True) -> Shown:
        """All that the open volume shows; it is checked, and every sealed block verified."""
        shown = show(self.volume, extents, self.buffer)
        report = self.volume.check()
        if not report.ok:
            raise Violation(f"check: {report.problems[:3]}")
        report = self.volume.verify()
        if not report.ok:
            raise Violation(f"a good block is called damaged: {report.problems[:3]}")
        return shown

    @staticmethod
    def once_opened(expected: Expectation) -> Expectation:
        """What may be found when an open has begun, or a superblock is unreadable."""
        return replace(expected, closed=False)

    def compare(self, shown: Shown, expected: Expectation) -> Found:
        """What was shown agrees with one of the commits that may be found."""
        return compare(shown, expected)

    def judges(self, shown: Shown, expected: Expectation, found: Found) -> list[Judge]:
        """Per buffer of `show`, what is wrong with some blocks of it, where all the rest agrees with what was found."""
        return judges(shown, expected, found)

    def resume(self, expected: Expectation, found: Found) -> None:
        """Goes on from what was found, and notes that it was."""
        self.oracle = Oracle.resume(expected, found)
        self.disk.note(self.oracle.expectation())

    def expectation(self) -> Expectation:
        return self.oracle.expectation()

    def random_steps(self, rng: random.Random, count: int) -> tuple[Step, ...]:
        return random_steps(rng, count)

    def run(self, steps: tuple[Step, ...]) -> None:
        """Ends early when an injected fault has poisoned the volume."""
        for step in steps:
            self.step(step)
            if self.poisoned:
                return

    def step(self, step: Step) -> None:
        operation = self.operation(step)
        if operation is None:
            return
        self.disk.note(self.oracle.begin(operation))
        self.current = operation[0]
        self.disk.before_barrier = self._intrude if self.intruder is not None else None
        faults = self.disk.faults
        try:
            result = self.perform(lambda: self.call(operation))
        except OSError as error:
            if self.disk.faults == faults:
                raise Violation(f"{operation[0]} failed: {error!r}") from error
            self._require_poisoned()
            return
        if self.disk.faults != faults:
            raise Violation(f"{operation[0]} succeeded although a barrier failed in it")
        self.disk.note(self.oracle.acknowledge(result))

    def call(self, operation: Operation) -> Any:
        """Asks the volume; the Snapshot that it returned, if it did."""
        return getattr(self, "_" + operation[0])(*operation[1:])

    def _intrude(self, _inode: int) -> None:
        """Inside a barrier: another thread writes, and its write returns before the barrier does.

        Not while a snapshot or rollback is taken, as the write may then come before or after it.
        """
        rng = self.intruder
        if (
            rng is None
            or self.current not in ("flush", "delete", "anchor", "reclaim", "checkpoint")
            or rng.random() < 0.7
        ):
            return
        self.disk.before_barrier = None
        operation = self.operation(random_step(rng, rng.choice(("write", "partial"))))
        if operation is not None:
            self.disk.note(self.oracle.intrude(operation))
            thread = threading.Thread(target=self.call, args=(operation,), daemon=True)
            thread.start()
            thread.join(10)
            if thread.is_alive():
                raise Violation(f"a write waits for the barrier of a {self.current}")

    def _require_poisoned(self) -> None:
        """After a failed barrier nothing that promises durability may succeed."""
        self.poisoned = True
        for what in (self.volume.flush, lambda: self.volume.snapshot("poisoned"), lambda: self.volume.pwrite(b"x", 0)):
            try:
                what()
            except (PoisonedError, ValueError):
                continue
            raise Violation("a call succeeded after a failed barrier")

    def operation(self, step: Step) -> Operation | None:
        """The step in bytes and names, as oracle and volume take it; None if it cannot be done."""
        name, *numbers = step
        size, block_size = self.oracle.model.size, self.geometry.block_size
        if name in ("write", "discard", "partial", "zero"):
            unit = block_size if name in ("write", "discard") else 1
            offset = numbers[0] * unit % size
            length = min(numbers[1] * unit, size - offset)
            if name in ("write", "partial"):
                return ("write", self._fill(length, offset), offset)
            return (name, offset, length)
        if name in ("make_clone", "delete_head") or name.startswith("clone_"):
            return self._clone_operation(name, *numbers)
        if name in ("delete", "rollback", "hold", "release", "anchor", "give_up"):
            snapshots = [each for each in self.oracle.model.snapshots if name == "delete" or not each.anchor]
            if not snapshots or (name == "rollback" and len(self.oracle.model.snapshots) > 5):
                return None
            chosen = snapshots[numbers[0] % len(snapshots)]
            if name in ("delete", "anchor", "give_up") and self.oracle.model.clone_on(chosen.name):
                return None
            if name in ("hold", "release") or (name in ("delete", "anchor", "give_up") and chosen.hold_reason):
                name = "release" if chosen.hold_reason else "hold"  # the other one would do nothing
            return (name, chosen.name)
        if name == "resize":
            wanted = SECTOR * (1 + numbers[0] % (self.geometry.size * 2 // SECTOR))
            return (name, wanted if numbers[0] % 3 else -(-wanted // block_size) * block_size)
        if name == "snapshot":
            if len(self.oracle.model.snapshots) > 5:
                return None
            self.serial += 1
            return ("snapshot", f"s{self.serial}")
        if name == "policy":
            self.serial += 1
            return (name, self.serial)
        return (name,)

    def _clone_operation(self, name: str, *numbers: int) -> Operation | None:
        model, block_size = self.oracle.model, self.geometry.block_size
        readable = [each for each in model.snapshots if not each.anchor]
        full = len(model.snapshots) > 5
        self.serial += 1
        if name == "make_clone":
            if not readable or len(model.clones) > 1:
                return None
            return (name, readable[numbers[0] % len(readable)].name, f"c{self.serial}")
        if not model.clones or (full and name in ("clone_snapshot", "clone_rollback")):
            return None
        clone = model.clones[numbers[0] % len(model.clones)]
        if name == "delete_head":
            return (name, clone.name)
        if name == "clone_snapshot":
            return (name, clone.name, f"s{self.serial}")
        if name == "clone_rollback":
            return (name, clone.name, readable[numbers[1] % len(readable)].name) if readable else None
        if name == "clone_resize":
            return (name, clone.name, SECTOR * (1 + numbers[1] % (self.geometry.size * 2 // SECTOR)))
        offset = numbers[1] * block_size % clone.size
        length = min((1 + numbers[1] % 3) * block_size, clone.size - offset)
        if name == "clone_write":
            return (name, clone.name, self._fill(length, offset), offset)
        return (name, clone.name, offset, length)

    def _fill(self, length: int, offset: int) -> bytes:
        """Bytes that say which write they belong to and which sector they are meant for."""
        self.serial += 1
        first = offset // SECTOR
        parts = [
            struct.pack("<II", self.serial, first + i) * (SECTOR // 8)
            for i in range((offset + length - 1) // SECTOR - first + 1)
        ]
        return b"".join(parts)[offset % SECTOR :][:length]

    # -- the steps --------------------------------------------------------------------------------------------------
    def _write(self, data: bytes, offset: int) -> None:
        self.volume.pwrite(data, offset)

    def _discard(self, offset: int, length: int) -> None:
        self.volume.discard(offset, length)

    def _zero(self, offset: int, length: int) -> None:
        self.volume.write_zeroes(offset, length)

    def _flush(self) -> None:
        self.volume.flush()

    def _snapshot(self, name: str) -> Any:
        return self.volume.snapshot(name)

    def _delete(self, name: str) -> None:
        self.volume.get_snapshot(name).delete()

    def _give_up(self, name: str) -> None:
        """As if the file system were full."""
        engine = self.volume.engine
        engine.delete(self.volume.get_snapshot(name).id, give_up=True)
        engine.reclaim()

    def _policy(self, keep_newest: int) -> None:
        self.volume.policy(keep_newest=keep_newest)

    def _hold(self, name: str) -> None:
        snapshot = self.volume.get_snapshot(name)
        snapshot.hold(HOLD_REASON)
        try:
            snapshot.delete()
        except BusyError:
            return
        raise Violation(f"{name} is held and could be deleted")

    def _release(self, name: str) -> None:
        self.volume.get_snapshot(name).release()

    def _anchor(self, name: str) -> None:
        self.volume.get_snapshot(name).to_anchor()

    def _rollback(self, name: str) -> Any:
        return self.volume.rollback(self.volume.get_snapshot(name))

    def _resize(self, size: int) -> None:
        self.volume.resize(size)

    def _make_clone(self, origin: str, name: str) -> None:
        snapshot = self.volume.get_snapshot(origin)
        snapshot.clone(name).close()
        try:
            snapshot.delete()
        except BusyError:
            return
        raise Violation(f"{origin} is the origin of a clone and could be deleted")

    def _clone_write(self, name: str, data: bytes, offset: int) -> None:
        with self.volume.open_head(name) as clone:
            clone.pwrite(data, offset)

    def _clone_discard(self, name: str, offset: int, length: int) -> None:
        with self.volume.open_head(name) as clone:
            clone.discard(offset, length)

    def _clone_snapshot(self, name: str, snapshot: str) -> Any:
        with self.volume.open_head(name) as clone:
            return clone.snapshot(snapshot)

    def _clone_rollback(self, name: str, snapshot: str) -> Any:
        with self.volume.open_head(name) as clone:
            return clone.rollback(snapshot)

    def _clone_resize(self, name: str, size: int) -> None:
        with self.volume.open_head(name) as clone:
            clone.resize(size)

    def _delete_head(self, name: str) -> None:
        self.volume.delete_head(name)

    def _reclaim(self) -> None:
        self.volume.reclaim()

    def _checkpoint(self) -> None:
        self.volume.engine.checkpoint()

    def _compact(self) -> None:
        self.volume.compact()

    def _seal(self) -> None:
        self.volume.seal()
        self.volume.flush()

    def _seal_in_memory(self) -> None:
        """As the sealer in the background: seals and flags wait for the next checkpoint."""
        engine = self.volume.engine
        number = sealing.oldest_unsealed(engine, set())
        if number is not None:
            sealing.step(engine, sealing.walk_of(engine, number))

    def _reopen(self) -> None:
        self.volume.close()
        if isinstance(self.disk, MemoryDisk):
            now = self.oracle.expectation()
            self.disk.note(replace(now, closed=True))
            self.disk.sync_directory(os.path.dirname(PATH))  # a moment at which the power may go
            self.disk.note(now)
        self.open()
