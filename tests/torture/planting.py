"""Planting a defect in the real engine while a `with` block runs, and what a planted bug is.

A bug replaces functions, methods or constants of the engine, puts a subclass in the place of the data path, or lets the
disk ignore barriers. Nothing in the product knows of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from barriers import without
from crash_explorer import Keeps

from cowengine.core.datapath import DataPath
from cowengine.engine import engine

Trace = tuple[Any, ...]  # the steps of a history, as its harness prints them


@dataclass(frozen=True)
class Played:
    """What came of a history: what it broke, if anything, and what that took, in the harness's own unit."""

    violation: str | None
    effort: int = 0


class Hunt(Protocol):
    """How to look for a bug: a harness with the smallest workload that meets it. Histories follow from their number."""

    harness: str

    def trace(self, number: int) -> Trace:
        """The steps of a history."""

    def play(self, number: int, trace: Trace, keeps: Keeps | None, effort: int = 0) -> Played:
        """Plays a history, or what is left of its steps. `keeps` is as the explorer has it; `effort` ends it early: it
        is what an earlier play took until something was broken (0: all that the hunt thinks worth it).
        """


@dataclass(frozen=True)
class Bug:
    """A defect that can be switched on."""

    name: str
    rule: str  # what it breaks: see docs/invariants.md
    what: str
    hunt: Hunt = field(repr=False)
    plant: Callable[[Plant], None] | None = field(default=None, repr=False)
    barrier: str | None = None  # this kind of barrier does nothing

    @property
    def keeps(self) -> Keeps | None:
        """Which barriers of a journal work; None: all of them."""
        return without(self.barrier) if self.barrier else None

    @contextmanager
    def planted(self) -> Iterator[None]:
        """The engine has the bug meanwhile."""
        with ExitStack() as stack:
            if self.plant is not None:
                self.plant(Plant(stack))
            yield


BUGS: dict[str, Bug] = {}


def bug(rule: str, hunt: Hunt, what: str) -> Callable[[Callable[[Plant], None]], Callable[[Plant], None]]:
    """Registers what the function plants, under its name."""

    def register(plant: Callable[[Plant], None]) -> Callable[[Plant], None]:
        add(Bug(plant.__name__.replace("_", "-"), rule, what, hunt, plant))
        return plant

    return register


def add(one: Bug) -> None:
    """Registers a bug."""
    assert one.name not in BUGS, f"two bugs are called {one.name}"
    BUGS[one.name] = one


class Plant:
    """Replaces parts of the engine until its stack ends."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def value(self, owner: Any, name: str, value: Any) -> None:
        """A constant, or what stands for a whole class."""
        self._stack.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, value)

    def method(self, owner: type, name: str) -> Callable[[Callable[..., Any]], None]:
        """A method of a class; the decorated function gets the original as its first argument."""

        def replace(wrong: Callable[..., Any]) -> None:
            original = getattr(owner, name)

            def method(self: Any, *args: Any, **kwargs: Any) -> Any:
                return wrong(original, self, *args, **kwargs)

            self.value(owner, name, method)

        return replace

    def function(self, module: Any, name: str) -> Callable[[Callable[..., Any]], None]:
        """A function, in every module of the engine that has it; the wrong one gets the original as first argument."""

        def replace(wrong: Callable[..., Any]) -> None:
            original = getattr(module, name)

            def function(*args: Any, **kwargs: Any) -> Any:
                return wrong(original, *args, **kwargs)

            for each in [each for key, each in sys.modules.items() if key.startswith("cowengine.")]:
                if getattr(each, name, None) is original:
                    self.value(each, name, function)

        return replace

    def data_path(self, wrong: type[DataPath]) -> None:
        """A subclass of the data path with methods that do something else, for all volumes opened from now on."""
        self.value(engine, "DataPath", wrong)
