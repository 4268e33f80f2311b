"""A process that works on real files, tells a pipe what it does, and is stopped; and what its parent concludes.

The child runs the steps. It says when one begins and what came of it. The parent runs *the same steps*, except that
each call is answered from what the child told; so its oracle ends where the child's did, and knows what may be found.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import select
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from backup_workload import BackupRunner
from crash_oracle import Violation
from crash_workload import GEOMETRIES, Runner, Step
from set_workload import StoreRunner

from cowengine.core.iotable import KERNEL, IOTable
from cowengine.errors import CowEngineError

AnyRunner = Runner | StoreRunner | BackupRunner
KINDS_OF_FILES = ("store", "volume", "volume", "backups", "volume")
PATIENCE_SECONDS = 60  # for a child to open, or to end once its file system is dead


class Ended(Exception):
    """The child told no more."""


class Notes:
    """Takes the notes of a runner on real files; here nobody reads them."""

    faults = 0
    before_barrier = None

    def note(self, expected: Any) -> None:
        """What may be found from now on."""


class Teller(Notes):
    """The child's end of the pipe. Once `cut` is set nothing begins any more, and nothing counts as acknowledged."""

    def __init__(self, pipe: int, cut: mmap.mmap) -> None:
        self.pipe = pipe
        self.cut = cut
        self.returned = False

    def tell(self, line: str) -> None:
        """A line for the parent, whole or not at all."""
        self.end_if_cut()
        os.write(self.pipe, f"{line}\n".encode())

    def end_if_cut(self) -> None:
        if self.cut[0]:
            self.end()

    def end(self) -> NoReturn:
        os._exit(0)

    def note(self, expected: Any) -> None:
        if not self.returned:
            self.tell("begins")
        self.returned = False

    def perform(self, action: Callable[[], Any]) -> Any:
        """Does it, and tells what it returned."""
        try:
            result = action()
        except (OSError, CowEngineError):
            self.end_if_cut()
            raise
        self.tell(json.dumps(encoded(result)))
        self.returned = True
        return result


class Told(Notes):
    """The parent's end: answers from the lines that the child told. `expected` is what may be found."""

    def __init__(self, lines: list[str], expected: Any) -> None:
        self.lines: Iterator[str] = iter(lines)
        self.expected = expected
        self.returned = False
        self.acknowledged = 0
        self.in_flight = False

    def next_line(self) -> str:
        line = next(self.lines, None)
        if line is None:
            raise Ended
        return line

    def note(self, expected: Any) -> None:
        if not self.returned:
            self.next_line()
        self.in_flight = not self.returned
        self.returned = False
        self.expected = expected

    def perform(self, _action: Callable[[], Any]) -> Any:
        result = decoded(json.loads(self.next_line()))
        self.acknowledged += 1
        self.returned = True
        return result


def encoded(result: Any) -> Any:
    """A Snapshot, or one per volume, as JSON."""
    if result is None:
        return None
    if isinstance(result, dict):
        return {name: encoded(each) for name, each in result.items()}
    return [result.name, result.change_id]


def decoded(told: Any) -> Any:
    if isinstance(told, dict):
        return {name: decoded(each) for name, each in told.items()}
    return SimpleNamespace(name=told[0], change_id=told[1]) if told else None


# -- the runner on real files -----------------------------------------------------------------------------------------
def a_runner(seed: int, folder: Path, notes: Any, io: IOTable = KERNEL) -> AnyRunner:
    """A runner in a folder: most are on a volume, some on a store, some on a target of backups."""
    kind = KINDS_OF_FILES[seed % len(KINDS_OF_FILES)]
    runner: AnyRunner
    if kind == "store":
        runner = StoreRunner(notes)
    elif kind == "backups":
        runner = BackupRunner(notes)
    else:
        runner = Runner(notes, random.Random(seed).choice(GEOMETRIES))
    runner.path, runner.io = str(folder / kind), io
    return runner


@dataclass
class Child:
    """A process that runs the steps of a runner."""

    process: int
    pipe: int
    cut: mmap.mmap
    text: bytes = b""

    def wait_until_open(self) -> None:
        select.select([self.pipe], [], [], PATIENCE_SECONDS)

    def kill(self) -> list[str]:
        """What it told before it died."""
        os.kill(self.process, signal.SIGKILL)
        return self.last_words()

    def end(self) -> list[str]:
        """What it told before it was cut off; it has to notice that it was."""
        self.cut[0] = 1
        ready, _, _ = select.select([self.pipe], [], [], PATIENCE_SECONDS)
        while ready and (part := os.read(self.pipe, 1 << 16)):
            self.text += part
            ready, _, _ = select.select([self.pipe], [], [], PATIENCE_SECONDS)
        os.kill(self.process, signal.SIGKILL)
        return self.last_words()

    def last_words(self) -> list[str]:
        with open(self.pipe, "rb") as pipe:
            self.text += pipe.read()
        os.waitpid(self.process, 0)
        lines = self.text.decode().split("\n")[:-1]
        if any(line.startswith("failed") for line in lines):
            raise Violation(f"the process {lines[-1]}")
        return lines


def start(runner: AnyRunner, steps: tuple[Step, ...]) -> Child:
    """The child opens what there is, and works."""
    reader, writer = os.pipe()
    cut = mmap.mmap(-1, 1)
    process = os.fork()
    if process == 0:
        try:
            os.close(reader)
            work(runner, steps, Teller(writer, cut))
        except BaseException as error:
            where = traceback.extract_tb((error.__cause__ or error).__traceback__)[-3:]
            os.write(writer, f"\nfailed: {error!r} in {[f'{each.name}:{each.lineno}' for each in where]}\n".encode())
        finally:
            os._exit(0)
    os.close(writer)
    return Child(process, reader, cut)


def some_life(runner: AnyRunner, rng: random.Random, length: int, seconds: float) -> tuple[tuple[Step, ...], Child]:
    """A child that works for a random while, `seconds` at most, behind the opening or, at times, from before it on."""
    steps = runner.random_steps(rng, length)
    runner.background = rng.random() < 0.5
    while_opening = rng.random() < 0.2
    child = start(runner, steps)
    if not while_opening:
        child.wait_until_open()
    time.sleep(rng.random() * seconds)
    return steps, child


def work(runner: AnyRunner, steps: tuple[Step, ...], teller: Teller) -> None:
    """The child's life; the parent's steps are finite, but more than it lives to do."""
    runner.disk, runner.perform = teller, teller.perform
    try:
        runner.open()
    except (OSError, CowEngineError):
        teller.end_if_cut()
        raise
    teller.tell("open")
    runner.run(steps)


def conclude(runner: AnyRunner, steps: tuple[Step, ...], lines: list[str]) -> Told:
    """What may be found, from what a child told that ran these steps."""
    told = Told(lines[1:], runner.expectation())
    if lines:
        runner.disk, runner.perform = told, told.perform
        try:
            runner.run(steps)
        except Ended:
            pass
    return told


def look(runner: AnyRunner, expected: Any, extents: bool = True) -> AnyRunner:
    """Opens what was left, compares, checks, closes; the runner that goes on from there.

    Without `extents` two commits may look the same (a discard of zeros): then nobody may go on from there.
    """
    later = runner.successor(Notes())
    try:
        later.open()
        found = later.look(expected, extents)
    finally:
        later.close()
    later.resume(expected, found)
    return later
