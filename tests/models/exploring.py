"""What the models share: seeded choices, histories with their traces, and the search for one that fails.

A model is an object with a name, its rules, and `play`, which makes up one history from the choices it is given and
raises `Violation` where a promise is broken. A *mutant* is the model with one rule dropped or read too loosely; it
is named after what it does wrong. With nothing dropped no history may fail; with a rule dropped some history must.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Protocol

#: A number from 0 to below the argument. All that a model does at random goes through it.
Choose = Callable[[int], int]

#: A thread: it yields where another may run, and what it yields says when it may go on (None: at once).
Steps = Generator[Callable[[], bool] | None, None, None]


class Violation(Exception):
    """A promise is broken."""


@dataclass(frozen=True)
class Rule:
    """What a mutant drops: the number in docs/invariants.md, and the rule in a few words."""

    number: str
    text: str


class Model(Protocol):
    """One aspect of the engine, small enough to be tried out in all its turns."""

    name: str
    rules: dict[str, Rule]

    def play(self, choose: Choose, dropped: str, trace: list[str]) -> None:
        """One history. Each operation that is tried goes into `trace`."""


@dataclass
class Fault:
    """A history that failed."""

    seed: int
    trace: list[str]
    what: str


@dataclass
class Tally:
    """What a run of many histories came to."""

    histories: int = 0
    steps: int = 0
    faults: list[Fault] = field(default_factory=list)

    @property
    def shortest(self) -> Fault:
        """The fault with the fewest steps; of two, the one found first."""
        return min(self.faults, key=lambda fault: len(fault.trace))


def chooser(seed: int) -> Choose:
    """Choices that follow from a seed, the same in every version of Python."""
    source = random.Random(seed)
    return lambda count: int(source.random() * count)


def history(model: Model, seed: int, dropped: str = "") -> tuple[list[str], Fault | None]:
    """The trace of one history, and its fault if it has one."""
    trace: list[str] = []
    try:
        model.play(chooser(seed), dropped, trace)
    except Violation as violation:
        return trace, Fault(seed, trace, str(violation))
    return trace, None


def explore(model: Model, seeds: Iterable[int], dropped: str = "", enough: int = 1 << 60) -> Tally:
    """Plays the histories of some seeds, until `enough` of them have failed."""
    tally = Tally()
    for seed in seeds:
        trace, fault = history(model, seed, dropped)
        tally.histories += 1
        tally.steps += len(trace)
        if fault is not None:
            tally.faults.append(fault)
            if len(tally.faults) == enough:
                break
    return tally


def pick(choose: Choose, options: str) -> str:
    """One of the words of a string; a word that stands there twice is twice as likely."""
    words = options.split()
    return words[choose(len(words))]


def take_turns(choose: Choose, threads: list[Steps], tick: Callable[[], None]) -> None:
    """Runs threads step by step until all are done. In half of the histories one often goes on for several steps."""
    steady, last = choose(2), None
    waiting: list[tuple[Steps, Callable[[], bool] | None]] = [(thread, None) for thread in threads]
    while waiting:
        ready = [n for n, (_, may_go_on) in enumerate(waiting) if may_go_on is None or may_go_on()]
        if not ready:
            raise Violation("every thread waits for another")
        again = [n for n in ready if waiting[n][0] is last] if steady and choose(8) else []
        chosen = (again or ready)[choose(len(again or ready))]
        last = waiting[chosen][0]
        tick()
        try:
            waiting[chosen] = (last, next(last))
        except StopIteration:
            del waiting[chosen]
