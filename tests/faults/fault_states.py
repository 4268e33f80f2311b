"""A case of several files: what a new process finds is the state before a step or the one behind it, whole.

A store or a target of backups is opened and shown as a whole; the step is played once without a fault to learn the
state behind it. Everything before the step is durable.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from crash_images import fingerprint
from crash_oracle import Violation
from crash_workload import determinism
from fault_cases import SEED, now_left_by, require_nothing_left, require_told, typed
from faulty_disk import Fault, FaultyDisk
from memory_disk import DIRECTORY, Durable, MemoryDisk

from cowengine.errors import CowEngineError, ExistsError, NotFoundError, OutOfRangeError, PoisonedError

IDENTITY = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # in the name of a file; a second try has another
DONE_ALREADY = (ExistsError, NotFoundError, OutOfRangeError)  # what the same call says behind one that came to its end


@dataclass(frozen=True)
class World:
    """How something of several files is opened, closed and shown."""

    open: Callable[[MemoryDisk], Any]
    close: Callable[[Any], None]
    show: Callable[[MemoryDisk], Any]  # opens it anew, looks at everything, closes it; Violation if something is wrong


@dataclass(frozen=True)
class StateCase:
    """A step on what `world` opens."""

    name: str
    world: World = field(repr=False)
    start: Durable = field(repr=False)
    step: Callable[[Any], Any] = field(repr=False)
    may_leave: tuple[str, ...] = ()  # is in the names of files that an error may leave
    states: list[tuple[Any, list[str]]] = field(default_factory=list, repr=False)  # before and behind, with the files
    shown: dict[int, tuple[Any, list[str]]] = field(default_factory=dict, repr=False)

    def play(self, fault: Fault | None) -> list[str]:
        with determinism(SEED):
            disk = FaultyDisk(self.start)
            what = self.world.open(disk)
            if fault is None:
                self.states.append(self._shown(MemoryDisk(self.start)))
            disk.watch(fault)
            error, _ = typed(lambda: self.step(what))
            calls = list(disk.calls)
            require_told(disk, error, fault)
            error = self._go_on(disk, what, fault, error)
            failed, _ = typed(lambda: self.world.close(what))
            if failed is not None and not disk.hits:
                raise Violation(f"it cannot be closed: {failed!r}") from failed
            disk.end()
            require_nothing_left(disk, sorted(disk.cache.entries))
            left = now_left_by(disk, fault)
            found = self._look(left, by_itself=left is disk and disk.stale)
            if fault is None:
                self.states.append(found)
            elif found not in (self.states if error is not None else self.states[-1:]):
                raise Violation(self._difference(found, error))
            return calls

    def _go_on(
        self, disk: FaultyDisk, what: Any, fault: Fault | None, error: CowEngineError | None
    ) -> CowEngineError | None:
        """Once all is well again, the same step succeeds or has been done, unless something is poisoned."""
        if fault is None or fault.for_ever:
            return error
        disk.end()
        if error is None:
            return None
        again, _ = typed(lambda: self.step(what))
        if again is not None and not isinstance(again, (PoisonedError, *DONE_ALREADY)):
            raise Violation(f"it does not go on: {again!r}, behind {error!r}") from again
        return again

    def _look(self, disk: MemoryDisk, *, by_itself: bool) -> tuple[Any, list[str]]:
        key = fingerprint(disk.cache)
        if by_itself or key not in self.shown:
            self.shown[key] = self._shown(disk)
        return self.shown[key]

    def _shown(self, disk: MemoryDisk) -> tuple[Any, list[str]]:
        state = self.world.show(disk)
        if disk.files:
            raise Violation(f"left open: {sorted(each.path for each in disk.files.values())}")
        files = [path for path, inode in disk.cache.entries.items() if inode != DIRECTORY]
        return state, sorted(
            IDENTITY.sub("*", path) for path in files if not any(each in path for each in self.may_leave)
        )

    def _difference(self, found: tuple[Any, list[str]], error: object) -> str:
        states = self.states if error is not None else self.states[-1:]
        if any(found[0] == state for state, _ in states):
            return f"files {[sorted(set(found[1]) ^ set(files)) for _, files in states]} more or less ({error!r})"
        return f"neither as before nor as behind it ({error!r}): {found[0]!r:.300} {states[-1]!r:.300}"


@dataclass(frozen=True)
class Asked:
    """A step that asks; the answer is that of an untroubled disk, which it gets first."""

    question: Callable[[Any], Any] = field(repr=False)
    answers: list[Any] = field(default_factory=list)

    def __call__(self, what: Any) -> None:
        answer = self.question(what)
        self.answers[1:] = [answer]
        if answer != self.answers[0]:
            raise Violation(f"another answer than on a good disk: {answer!r:.300}")
