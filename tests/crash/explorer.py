"""The crash explorer: a workload on a disk in memory, reopened from every crash image worth looking at.

At each barrier, and at the end, the images are: nothing pending arrived, all of it, every prefix, all but one, every
subset if there are few, seeded samples if there are many, and samples torn at 512 bytes. Each distinct image is
opened (which is a recovery), compared with what the user was told (crash_oracle), and checked. From a sample of them
the history goes on: the recovery itself is recorded and cut, more steps run, and their images are looked at in turn;
also after a kill, where the page cache survives and the power goes later, and after a barrier that fails. One of the
two superblock slots may also rot while nobody writes it.

    python tests/crash/explorer.py --states 200000 --seed 1
    python tests/crash/explorer.py --task random:17          # that history again, alone
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count, product
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "model")]

from crash_oracle import Violation  # noqa: E402
from crash_workload import (  # noqa: E402
    GEOMETRIES,
    WIDE,
    Runner,
    Step,
    determinism,
    exhaustive_steps,
    random_steps,
    shrink,
)
from memory_disk import Change, Durable, Event, Instant, MemoryDisk, Write, instants, sector_count  # noqa: E402
from set_workload import StoreRunner, random_set_steps  # noqa: E402

from cowengine.core.checksum import xxh64  # noqa: E402
from cowengine.errors import CowEngineError  # noqa: E402

SLOT = 4096
WIDE_ONE_IN = 16
SETS_ONE_IN = 60  # as many random histories on one volume for one on a store
VIOLATIONS_MAX = 20  # a sweep ends with this many
Keeps = Callable[[Durable, Sequence[Event]], Callable[[int], bool]]  # which barriers of a journal work
Choice = tuple[int | None, ...]  # per pending change: 0 lost, None arrived, else the sectors of a write that arrived


@dataclass(frozen=True)
class Plan:
    """How much is looked at. `images` per barrier; the other fields are probabilities per image or per barrier."""

    images: int = 40
    nested: float = 0.04
    kills: float = 0.15
    rot: float = 0.25
    depth: int = 2
    enough: int = 100  # violations, then the exploring ends


@dataclass
class Tally:
    states: set[int] = field(default_factory=set)
    recoveries: int = 0
    barriers: int = 0
    kills: int = 0
    failed_barriers: int = 0
    rotten: int = 0
    violations: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.states |= other.states
        self.violations += other.violations
        for name in ("recoveries", "barriers", "kills", "failed_barriers", "rotten"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


# -- images -----------------------------------------------------------------------------------------------------------
def choices(pending: list[Change], rng: random.Random, budget: int) -> Iterator[Choice]:
    """At most about `budget` ways in which the pending changes may have arrived, the telling ones first."""
    n = len(pending)
    yield (0,) * n
    if n == 0:
        return
    if 2**n <= budget // 2:
        yield from product((0, None), repeat=n)
    else:
        yield (None,) * n
        simple = [(None,) * k + (0,) * (n - k) for k in range(1, n)]
        simple += [(None,) * k + (0,) + (None,) * (n - k - 1) for k in range(n)]
        simple += [(0,) * k + (None,) + (0,) * (n - k - 1) for k in range(n)]
        yield from simple if len(simple) <= budget // 2 else rng.sample(simple, budget // 2)
    for _ in range(budget // 2):
        yield tuple(arrival(change, rng) for change in pending)


def arrival(change: Change, rng: random.Random) -> int | None:
    pick = rng.randrange(3)
    if pick < 2 or not isinstance(change, Write) or (sectors := sector_count(change)) == 1:
        return 0 if pick == 0 else None
    mask = rng.getrandbits(sectors) if rng.random() < 0.5 else (1 << rng.randrange(1, sectors)) - 1
    return mask or 1


def build(instant: Instant, choice: Choice) -> Durable:
    image = instant.durable.copy()
    for change, arrived in zip(instant.pending, choice, strict=True):
        if arrived != 0:
            image.apply(change, arrived)
    return image


def fingerprint(image: Durable) -> int:
    key = 0
    for path, content in image.reachable():
        key = xxh64(path.encode(), xxh64(content, key))
    return key


# -- exploring --------------------------------------------------------------------------------------------------------
class Explorer:
    def __init__(self, seed: int, plan: Plan, describe: str, keeps: Keeps | None = None) -> None:
        self.rng = random.Random(seed)
        self.plan = plan
        self.describe = describe
        self.tally = Tally()
        self.keeps = keeps
        self.seen: set[tuple[int, int]] = set()

    def explore(self, runner: Runner | StoreRunner, depth: int = 0, trail: str = "") -> None:
        """Every crash of the journal that the runner's disk holds."""
        disk = runner.disk
        plan = self.plan
        keeps = self.keeps(disk.start, disk.journal) if self.keeps else lambda _: True
        for instant in instants(disk.start, disk.journal, keeps):
            if len(self.tally.violations) >= plan.enough:
                return
            if instant.note is None:
                continue
            self.tally.barriers += 1
            here = f"{trail} / barrier at {instant.position}"
            for choice in choices(instant.pending, self.rng, plan.images >> 2 * depth):
                if len(self.tally.violations) < plan.enough:
                    self.image(runner, instant, choice, depth, here)
            if depth < plan.depth and self.rng.random() < plan.kills:
                self.kill(runner, instant, depth, here)
            if not instant.pending and self.rng.random() < plan.rot:
                self.rot(runner, instant, here)

    def image(self, runner: Runner | StoreRunner, instant: Instant, choice: Choice, depth: int, trail: str) -> None:
        image = build(instant, choice)
        key = fingerprint(image)
        self.tally.states.add(key)
        if (key, id(instant.note)) in self.seen:
            return
        self.seen.add((key, id(instant.note)))
        here = f"{trail}, arrived {choice}"
        nested = depth < self.plan.depth and self.rng.random() < self.plan.nested
        saved = image.copy() if nested else None
        self.guard(here, lambda: self.reopen(runner, MemoryDisk(image, recorded=False), instant.note))
        if saved is not None:
            self.go_on(runner, MemoryDisk(saved), instant.note, depth, here)

    def kill(self, runner: Runner | StoreRunner, instant: Instant, depth: int, trail: str) -> None:
        """The process dies, the page cache lives on, and the history with it."""
        self.tally.kills += 1
        disk = MemoryDisk(instant.durable.copy(), instant.pending, instant.cached)
        self.go_on(runner, disk, instant.note, depth, f"{trail}, killed")

    def rot(self, runner: Runner | StoreRunner, instant: Instant, trail: str) -> None:
        """One superblock slot becomes unreadable on a quiet disk: the other one leads to the same commit."""
        slot = self.rng.randrange(2)
        if runner.rot_path is None:
            return
        image = instant.durable.copy()
        content = image.files[image.entries[runner.rot_path]]
        if not all(is_superblock(content[n * SLOT : (n + 1) * SLOT]) for n in range(2)):
            return  # one of them is torn already
        content[slot * SLOT + 100] ^= 0xFF
        self.tally.rotten += 1
        self.tally.states.add(fingerprint(image))
        self.guard(
            f"{trail}, superblock slot {slot} rotten",
            lambda: self.reopen(
                runner, MemoryDisk(image, recorded=False), instant.note, (("checkpoint",), ("write", 3, 2))
            ),
        )

    def reopen(
        self, runner: Runner | StoreRunner, disk: MemoryDisk, expected: Any, further: tuple[Step, ...] = ()
    ) -> None:
        """Recovers and compares; with further steps once more behind them."""
        self.tally.recoveries += 1
        later = runner.successor(disk)
        try:
            later.open()
            found = later.look(expected, extents=bool(further) or self.tally.recoveries % 4 == 0)
            if further:
                later.resume(expected, found)
                later.run(further)
                later.look(later.expectation())
        finally:
            abandon(later)

    def go_on(self, runner: Runner | StoreRunner, disk: MemoryDisk, expected: Any, depth: int, trail: str) -> None:
        """Opens on a recorded disk, runs a few steps more, and looks at the crashes of all that."""
        steps = runner.random_steps(self.rng, self.rng.randrange(7))
        fails = self.rng.randrange(8) if self.rng.random() < 0.3 else None
        later = runner.successor(disk)
        here = f"{trail}; then {'' if fails is None else f'barrier {fails} fails, '}{steps}"

        def history() -> None:
            disk.note(expected)
            disk.fail_barrier = fails
            disk.fate = lambda: self.rng.randrange(3)
            try:
                later.open()
                if disk.faults and later.opens_in_spite_of_faults:
                    return
                found = later.look(expected)
            except (CowEngineError, OSError):
                if not disk.faults:
                    raise
                return
            if disk.faults:
                raise Violation("an open or check succeeded although a barrier failed in it")
            later.resume(expected, found)
            later.run(steps)

        if self.guard(here, history):
            self.tally.failed_barriers += disk.faults
            self.explore(later, depth + 1, here)
        abandon(later)

    def guard(self, trail: str, action: Callable[[], None]) -> bool:
        try:
            action()
        except Exception as error:  # whatever comes out of it is a violation
            where = traceback.extract_tb(error.__traceback__)[-1]
            self.tally.violations.append(
                f"{type(error).__name__}: {error} ({where.name}:{where.lineno})\n  {self.describe}{trail}"
            )
            return False
        return True


def abandon(runner: Runner | StoreRunner) -> None:
    """The end of a process: nothing it does from now on reaches its disk."""
    runner.disk.power_off()
    with suppress(OSError):
        runner.close()


def is_superblock(slot: bytearray) -> bool:
    return len(slot) == SLOT and xxh64(bytes(slot[: SLOT - 8])) == int.from_bytes(slot[SLOT - 8 :], "little")


# -- tasks ------------------------------------------------------------------------------------------------------------
SHORT = list(exhaustive_steps(2))


def make_task(name: str) -> tuple[Runner | StoreRunner, tuple[Step, ...]]:
    """What runs what in a task, which is `exhaustive:N`, `random:N` or `set:N`; N is the seed of everything in it."""
    kind, number = name.split(":")
    rng = random.Random(int(number))
    if kind == "set":
        return StoreRunner(MemoryDisk()), random_set_steps(rng, rng.choice((6, 10, 16)))
    if kind == "exhaustive":
        return Runner(MemoryDisk(), GEOMETRIES[0]), SHORT[int(number)]
    runner = Runner(MemoryDisk(), WIDE if int(number) % WIDE_ONE_IN == 0 else rng.choice(GEOMETRIES))
    runner.intruder = random.Random(int(number)) if int(number) % 2 else None
    return runner, random_steps(rng, rng.choice((10, 20, 40)))


def run_task(name: str, plan: Plan | None = None, keeps: Keeps | None = None) -> Tally:
    kind, seed = name.split(":")
    with determinism(0 if kind == "exhaustive" else int(seed)):
        runner, steps = make_task(name)
        explorer = Explorer(int(seed), plan or Plan(), f"task {name}, steps {steps}", keeps)

        def history() -> None:
            runner.create()
            runner.run(steps)

        if explorer.guard("", history):
            explorer.explore(runner)
        abandon(runner)
    return explorer.tally


def tasks(seed: int, exhaustive: bool = True) -> Iterator[str]:
    if exhaustive:
        yield from (f"exhaustive:{n}" for n in range(len(SHORT)))
    for number in count(seed):
        yield f"random:{number}"
        if number % SETS_ONE_IN == 0:
            yield f"set:{number}"


def sweep(states: int, seed: int, workers: int, seconds: float | None = None, progress: bool = False) -> Tally:
    """Runs tasks until that many distinct states were seen, the time is up, or enough violations were found."""
    total, started, told = Tally(), time.monotonic(), 0
    ahead = threading.Semaphore(4 * workers)  # the pool would take an endless list of tasks as fast as it can
    done = threading.Event()

    def feed() -> Iterator[str]:
        for name in tasks(seed):
            ahead.acquire()
            if done.is_set():
                return
            yield name

    with multiprocessing.get_context("fork").Pool(workers) as pool:
        for tally in pool.imap_unordered(run_task, feed()):
            total.add(tally)
            ahead.release()
            elapsed = time.monotonic() - started
            if progress and len(total.states) // 10000 > told:
                told = len(total.states) // 10000
                print(summary(total, elapsed), flush=True)
            late = seconds is not None and elapsed > seconds
            if late or len(total.states) >= states or len(total.violations) >= VIOLATIONS_MAX:
                break
        done.set()
        ahead.release()
        pool.terminate()
    return total


def summary(tally: Tally, seconds: float) -> str:
    return (
        f"{len(tally.states):,} distinct states, {tally.recoveries:,} recoveries, {tally.barriers:,} barriers, "
        f"{tally.kills:,} kills, {tally.failed_barriers:,} failed barriers, {tally.rotten:,} rotten superblocks, "
        f"{len(tally.violations)} violations, {seconds:.0f} s, {len(tally.states) / max(seconds, 0.001):.0f} states/s"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Explores crash states of the engine.")
    parser.add_argument("--states", type=int, default=20000, help="distinct states to look at")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--task", help="run this one task again, such as random:17")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # every torn superblock is worth a warning
    shrink()
    started = time.monotonic()
    if arguments.task:
        tally = run_task(arguments.task)
    else:
        tally = sweep(arguments.states, arguments.seed, arguments.workers, progress=True)
    for violation in tally.violations[:5]:
        print(violation, "\n")
    print(f"seed {arguments.seed}: {summary(tally, time.monotonic() - started)}")
    return 1 if tally.violations else 0


if __name__ == "__main__":
    sys.exit(main())
