"""The harnesses that look for planted bugs, each with a workload small enough to find one in a moment.

A hunt knows histories by their number; what happens in one follows from it. `Crashes` and `SetCrashes` are the crash
explorer on a diet: only those operations that a bug needs, so that it meets them within a few steps.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from adopt_explorer import PATH as IMAGE
from adopt_explorer import RAW, VOLUME, AdoptExplorer, Score, flatten
from crash_explorer import Explorer, Keeps, Plan, abandon
from crash_reads import Node
from crash_workload import GEOMETRIES, SMALL, WIDE, Runner, determinism, random_step
from memory_disk import MemoryDisk
from planting import Played, Trace
from set_workload import VOLUMES, StoreRunner

from cowengine import Volume

ONCE = Plan(images=24, nested=0, kills=0, rot=0, enough=1)
AGAIN = Plan(images=24, nested=0.2, kills=0, rot=0, depth=1, enough=1)  # further steps behind the crash, cut in turn
KILLED = Plan(images=16, nested=0, kills=1.0, rot=0, depth=1, enough=1)
# Crashes behind which a superblock rots: the explorer does that on a quiet disk, as an open begins with.
ROTTEN = Plan(images=4, nested=0.5, kills=0, rot=1.0, depth=1, enough=1)
QUIET = Plan(images=4, nested=0, kills=0, rot=0, enough=1)  # for what shows without a crash as well
RECOVERIES = 400  # of one history; then the next one is more likely to meet the bug
Constants = tuple[tuple[Any, str, Any], ...]


@contextmanager
def constants(values: Constants) -> Iterator[None]:
    """The engine has these constants meanwhile."""
    before = [(module, name, getattr(module, name)) for module, name, _ in values]
    try:
        for module, name, value in values:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


@dataclass(frozen=True)
class Crashes:
    """The crash explorer on one volume. `diet`: operations by weight, `length` of them behind the `beginning`."""

    diet: tuple[tuple[str, int], ...]
    length: int = 8
    plan: Plan = ONCE
    beginning: Trace = ()
    wide: bool = False  # two leaves of the map: a reclaim takes several steps
    adopted: bool = False  # two home regions
    intruder: bool = False  # another thread writes while a barrier runs
    fails: bool = False  # one of the barriers of the history fails
    recoveries: int = RECOVERIES
    small: Constants = field(default=(), repr=False)
    harness: str = "crash explorer"

    def trace(self, number: int) -> Trace:
        rng = random.Random(number)
        names = rng.choices([name for name, _ in self.diet], [weight for _, weight in self.diet], k=self.length)
        return (*self.beginning, *(random_step(rng, name) for name in names))

    def play(self, number: int, trace: Trace, keeps: Keeps | None, effort: int = 0) -> Played:
        geometry = WIDE if self.wide else GEOMETRIES[-1] if self.adopted else GEOMETRIES[number % 3]
        with constants(SMALL + self.small), determinism(number):
            runner, rng = Runner(MemoryDisk(), geometry), random.Random(number)
            runner.intruder = rng if self.intruder else None
            explorer = Bounded(number, self.plan, keeps, effort or self.recoveries)

            def history() -> None:
                runner.create()
                if self.fails:
                    runner.disk.fail_barrier = rng.randrange(2 * len(trace) + 1)
                    runner.disk.fate = lambda: rng.randrange(3)
                runner.run(trace)

            return explored(explorer, runner, history)


@dataclass(frozen=True)
class SetCrashes:
    """The crash explorer on a store with three volumes. `diet`: what is done with one of them, besides sets."""

    diet: tuple[tuple[str, int], ...] = (("write", 3), ("flush", 1))
    sets: tuple[tuple[str, int], ...] = (("set", 2),)
    length: int = 6
    plan: Plan = ONCE
    harness: str = "crash explorer on a store"

    def trace(self, number: int) -> Trace:
        rng = random.Random(number)
        options = [*self.diet, *self.sets]
        names = rng.choices([name for name, _ in options], [weight for _, weight in options], k=self.length)
        of_sets = [name for name, _ in self.sets]
        return tuple(self._step(rng, name, name in of_sets) for name in names)

    def _step(self, rng: random.Random, name: str, of_sets: bool) -> tuple[Any, ...]:
        if not of_sets:
            return ("single", rng.choice(list(VOLUMES)), *random_step(rng, name))
        return (name,) if name == "reopen" else (name, rng.randrange(8))

    def play(self, number: int, trace: Trace, keeps: Keeps | None, effort: int = 0) -> Played:
        with constants(SMALL), determinism(number):
            runner = StoreRunner(MemoryDisk())

            def history() -> None:
                runner.create()
                runner.run(trace)

            explorer = Bounded(number, self.plan, keeps, effort or RECOVERIES)
            return explored(explorer, runner, history)


class Bounded(Explorer):
    """An explorer that looks at nothing more after so many recoveries."""

    def __init__(self, seed: int, plan: Plan, keeps: Keeps | None, recoveries_max: int) -> None:
        super().__init__(seed, plan, "", keeps)
        self.recoveries_max = recoveries_max

    def image(self, *args: Any, **kwargs: Any) -> Node | None:
        return super().image(*args, **kwargs) if self.tally.recoveries < self.recoveries_max else None

    def kill(self, *args: Any, **kwargs: Any) -> None:
        if self.tally.recoveries < self.recoveries_max:
            super().kill(*args, **kwargs)


def explored(explorer: Bounded, runner: Runner | StoreRunner, history: Any) -> Played:
    """The first violation in a history and its crashes."""
    try:
        if explorer.guard("", history):
            explorer.explore(runner)
    finally:
        abandon(runner)
    tally = explorer.tally
    return Played(tally.violations[0] if tally.violations else None, max(1, tally.recoveries))


class BoundedAdoption(AdoptExplorer):
    """An explorer of adoptions that looks at nothing more after so many images, or a violation."""

    looks, looks_max = 0, 0

    def look(self, *args: Any, **kwargs: Any) -> None:
        if self.looks < self.looks_max and not self.score.violations:
            self.looks += 1
            super().look(*args, **kwargs)


@dataclass(frozen=True)
class Adoptions:
    """The explorer of what one way does: "adopt", "flatten" in place, or "copy", if blocks lie elsewhere by then."""

    way: str
    images: int = 12
    looks: int = 300
    harness: str = "adopt explorer"

    def trace(self, number: int) -> Trace:
        return ()

    def play(self, number: int, trace: Trace, keeps: Keeps | None, effort: int = 0) -> Played:
        score = Score()
        with constants(SMALL), determinism(number):
            explorer = BoundedAdoption(number, score, self.images)
            explorer.looks_max = effort or self.looks
            disk = explorer.disk_with(explorer.data)
            if self.way == "adopt":
                explorer.history(disk, lambda disk: explorer.adopt(disk).close(), VOLUME, "adopt")
            else:
                explorer.change(explorer.adopt(disk))
                if self.way == "copy":
                    explorer.move(Volume.open(IMAGE, io=disk, background=False))
                content = disk.cache.files[disk.cache.entries[IMAGE]]
                explorer.history(explorer.disk_with(content), flatten, RAW, self.way)
        return Played(score.violations[0] if score.violations else None, explorer.looks)
