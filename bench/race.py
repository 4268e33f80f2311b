"""A race: one workload for every subject, in turns, each beside the raw file.

In each round every entry has one turn, and the order rotates. A turn is a pair of neighbours: the entry's lane and its
base, the same work on the raw file; in one round the one goes first, in the next round the other. What the machine does
meanwhile meets both, so what counts is the ratio of a pair; that of an entry is the median over the rounds.

A subject that is slow must not make the run long: an entry that has used more of its time than rounds have passed sits
out, but has some rounds at least.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from result import Line, median, tenths
from subjects.cowengine_volume import CowengineVolume
from subjects.field import Field
from subjects.raw_file import RawDisk
from subjects.subject import NotOffered, Subject
from workload import MiB, Workload

ROUNDS_TO_JUDGE = 5
BARRIER_SHARE = 0.7  # what is durable and takes less than this of a barrier is not durable

_numbers = count()


def nothing() -> None:
    """There is nothing to prepare."""


@dataclass(frozen=True)
class Lane:
    """What one subject does in each round: `prepare`, and then, timed, `run`, which is so many `operations`."""

    run: Callable[[], object]
    prepare: Callable[[], object] = nothing
    operations: int = 1

    def timed(self) -> float:
        """Seconds of one run."""
        self.prepare()
        started = time.perf_counter()
        self.run()
        return time.perf_counter() - started


Make = Callable[[Any, Workload], Lane]  # the lane on a disk that was made for it


@dataclass
class Entry:
    """A subject, or a variant of one, with all that it was measured at."""

    subject: str
    variant: str
    goal: float | None
    at: dict[str, float]
    lane: Lane
    base: Lane
    reason: str = ""  # why it takes no part any more
    spent: float = 0.0
    turns: int = 0
    pairs: dict[int, tuple[float, float]] = field(default_factory=dict)  # by round: seconds an operation, of the base

    @property
    def label(self) -> str:
        return f"{self.subject}, {self.variant}" if self.variant else self.subject

    def turn(self, number: int, keep: bool) -> None:
        """One pair; the base first in every other round."""
        began = time.perf_counter()
        if number % 2:
            base_seconds, seconds = self.base.timed(), self.lane.timed()
        else:
            seconds, base_seconds = self.lane.timed(), self.base.timed()
        self.spent += time.perf_counter() - began
        self.turns += 1
        if keep:
            self.pairs[number] = seconds / self.lane.operations, base_seconds / self.base.operations


@dataclass(frozen=True)
class Budget:
    """How long a race may be: seconds of each entry, cowengine's own and a peer's; rounds that each has at least."""

    own: float
    peers: float
    least: int  # without the one that warms up


ONCE = Budget(0.0, 0.0, 1)  # a single round, to see that it works


class Race:
    """Enter lanes, then `run` once; lines are left in `lines`, for the table."""

    def __init__(self, benchmark: Any, field: Field, workload: Workload, budget: Budget, lines: list[Line]) -> None:
        self.benchmark = benchmark
        self.field = field
        self.workload = workload
        self.budget = budget
        self.lines = lines
        self.entries: list[Entry] = []
        self.disks = ExitStack()
        self.base_lane: Lane | None = None
        self.barriers: dict[int, float] = {}  # by round, of what must be durable

    # -- who takes part -----------------------------------------------------------------------------------------------
    def disk(self, subject: Subject, size: int, folder: Path | None = None) -> Any:
        """A new disk, closed after the race; in the subject's own folder unless told."""
        made = subject.create(folder or self.field.folders[subject.name], f"disk-{next(_numbers)}", size)
        self.disks.callback(made.close)
        return made

    def raw(self, size: int, folder: Path | None = None) -> RawDisk:
        """A raw file, closed after the race."""
        made = self.disk(self.subject("raw file"), size, folder)
        assert isinstance(made, RawDisk)
        return made

    def subject(self, name: str) -> Subject:
        """One that is running."""
        return next(subject for subject in self.field.running if subject.name == name)

    def racers(self, **options: Any) -> list[Subject]:
        """All that run but the raw file: cowengine, with `options` of its own, and its peers."""
        peers = [subject for subject in self.field.running if subject.name not in ("raw file", "cowengine")]
        return [CowengineVolume(**options), *peers]

    def against(self, base: Lane | Make, size: int = 0) -> None:
        """The base of what is entered from now on: a lane, or how to make it on a raw file of `size` bytes."""
        self.base_lane = base if isinstance(base, Lane) else base(self.raw(size), self.workload.again())

    def enter(
        self, make: Make, size: int, variant: str = "", *, goal: float | None = None,
        at: dict[str, float] | None = None, among: Iterable[Subject] | None = None,
    ) -> None:  # fmt: skip
        """One entry for each subject, or for those `among`, each on a new disk. `goal` is cowengine's."""
        for subject in self.racers() if among is None else among:
            own_goal = goal if subject.name == "cowengine" else None
            try:
                lane = make(self.disk(subject, size), self.workload.again())
            except Exception as error:
                reason = why(error, subject.name)
                self._enter(Entry(subject.name, variant, None, at or {}, Lane(nothing), Lane(nothing), reason))
            else:
                self.enter_lane(lane, variant, subject=subject.name, goal=own_goal, at=at)

    def enter_lane(
        self, lane: Lane, variant: str = "", *, subject: str = "cowengine", goal: float | None = None,
        at: dict[str, float] | None = None,
    ) -> None:  # fmt: skip
        """One entry with a lane that is there."""
        assert self.base_lane is not None, "call `against` first"
        self._enter(Entry(subject, variant, goal, at or {}, lane, self.base_lane))

    def _enter(self, entry: Entry) -> None:
        assert entry.label not in [each.label for each in self.entries], f"{entry.label} takes part already"
        self.entries.append(entry)

    # -- the race -----------------------------------------------------------------------------------------------------
    def run(
        self, row: str, workload: str, *, rounds: int, rate: bool = False, durable: bool = False, absolute: bool = False
    ) -> None:  # fmt: skip
        """At most so many rounds. With `rate` ratios are of rates, larger is better. What is `durable` must not take
        less than a barrier, which is measured beside it: a line that does says so. Goals are for ratios, or with
        `absolute` for seconds.
        """
        overwrite = self._barrier() if durable else None

        def whole() -> None:
            os.sync()  # what making the disks left to be written
            total, warmup = (1, 0) if self.budget == ONCE else (rounds, max(rounds // 20, 1))
            for number in range(-warmup, total):
                passed = (number + warmup + 1) / (total + warmup)
                turn = number % max(len(self.entries), 1)
                for entry in self.entries[turn:] + self.entries[:turn]:
                    if self._takes_part(entry, passed, 1 if number < 0 else self.budget.least + bool(warmup)):
                        self._turn(entry, number, keep=number >= 0)
                if overwrite is not None:
                    self.barriers[number] = overwrite.timed()

        self.benchmark.pedantic(whole)
        self._keep(row, workload, rate, absolute)

    def _takes_part(self, entry: Entry, passed: float, least: int) -> bool:
        """Whether it has time left, when that part of the rounds has passed, or had fewer turns than it must have."""
        seconds = self.budget.own if entry.subject == "cowengine" else self.budget.peers
        return not entry.reason and (entry.spent < seconds * passed or entry.turns < least)

    def _turn(self, entry: Entry, number: int, keep: bool) -> None:
        try:
            entry.turn(number, keep)
        except Exception as error:
            entry.reason = why(error, entry.subject)

    def _barrier(self) -> Lane:
        """What no durable operation can undercut: overwrite 4 KiB and fdatasync."""
        raw = self.raw(MiB)
        self.workload.fill(raw.pwrite, MiB)

        def overwrite() -> None:
            os.pwrite(raw.fd, self.workload.block, 0)
            os.fdatasync(raw.fd)

        return Lane(overwrite)

    # -- what came of it ----------------------------------------------------------------------------------------------
    def _keep(self, row: str, workload: str, rate: bool, absolute: bool) -> None:
        lines = [replace(self._line(entry, row, workload, rate), absolute=absolute) for entry in self.entries]
        self.lines += lines
        own = [entry.pairs.values() for entry in self.entries if entry.subject == "cowengine" and entry.pairs]
        if own and self.benchmark.stats is not None:
            # What pytest-benchmark shows, saves and compares are the seconds of cowengine's first entry.
            self.benchmark.stats.stats.data[:] = [seconds for seconds, _ in own[0]]
        self.benchmark.extra_info.update(
            lines=[asdict(line) for line in lines],
            barriers=[rounded(seconds) for seconds in self.barriers.values()],
            rounds={
                entry.label: [[rounded(one) for one in pair] for pair in entry.pairs.values()] for entry in self.entries
            },
        )

    def _line(self, entry: Entry, row: str, workload: str, rate: bool) -> Line:
        pairs = list(entry.pairs.values())
        if not pairs:
            return Line(row, workload, entry.variant, entry.subject, note=entry.reason or "no round", at=entry.at)
        low, ratio, high = tenths([b / a if rate else a / b for a, b in pairs])
        value, base = median([a for a, _ in pairs]), median([b for _, b in pairs])
        note = entry.reason
        shares = [a * entry.lane.operations / self.barriers[n] for n, (a, _) in entry.pairs.items() if self.barriers]
        if len(shares) >= ROUNDS_TO_JUDGE and median(shares) < BARRIER_SHARE:
            note = f"BELOW {BARRIER_SHARE} OF A BARRIER: not durable, or not measured right"
        return Line(
            row, workload, entry.variant, entry.subject, value, "s", base, ratio, low, high, rate, entry.goal, note,
            entry.at,
        )  # fmt: skip

    def of_program(
        self, workload: str, measured: Callable[[], list[tuple[float, float]]], *, goal: float | None = None,
        rate: bool = False,
    ) -> None:  # fmt: skip
        """Instead of `run`: rounds that a program measured, seconds an operation of cowengine and of its base."""
        self.enter_lane(Lane(nothing), goal=goal)
        self.entries[0].pairs = dict(enumerate(self.benchmark.pedantic(measured)))
        self._keep("", workload, rate, False)

    def between(self, variant: str, other: str, *, goal: float, rate: bool = False) -> None:
        """After `run`: a line more, for two variants of cowengine, round by round."""
        one, two = self.rounds(variant), self.rounds(other)
        pairs = [(one[number][0], two[number][0]) for number in one.keys() & two.keys()]
        self.beside(pairs, f"{variant} beside {other}", goal=goal, rate=rate)

    def rounds(self, variant: str = "") -> dict[int, tuple[float, float]]:
        """Of a variant of cowengine, by round: seconds an operation, and of the base."""
        label = f"cowengine, {variant}" if variant else "cowengine"
        return next(entry.pairs for entry in self.entries if entry.label == label)

    def beside(
        self, pairs: Sequence[tuple[float, float]], variant: str, *, unit: str = "s", goal: float | None = None,
        rate: bool = False,
    ) -> None:  # fmt: skip
        """After `run`: a line more, of pairs that lanes measured themselves: cowengine's value and that beside it."""
        row, workload = self.lines[-1].row, self.lines[-1].workload
        low, ratio, high = tenths([b / a if rate else a / b for a, b in pairs])
        value, base = median([a for a, _ in pairs]), median([b for _, b in pairs])
        self._more(Line(row, workload, variant, "cowengine", value, unit, base, ratio, low, high, rate, goal))

    def figure(
        self, row: str, workload: str, value: float | None, unit: str, *, variant: str = "", goal: float | None = None,
        rate: bool = False, subject: str = "cowengine", base: float | None = None, ratio: float | None = None,
        note: str = "",
    ) -> None:  # fmt: skip
        """A line that is not of a race: a time, bytes, a rate (larger is better), beside or instead of one; None was
        not measured, and the note says why.
        """
        self._more(Line(row, workload, variant, subject, value, unit, base, ratio, rate=rate, goal=goal, note=note))

    def _more(self, line: Line) -> None:
        self.lines.append(line)
        self.benchmark.extra_info.setdefault("lines", []).append(asdict(line))

    def missing(self, name: str, reason: str) -> None:
        """Names something else that this machine cannot measure, as a missing subject is named."""
        self.field.missing[name] = reason


def why(error: Exception, subject: str) -> str:
    """Why a subject takes no part; raises what must not happen: to cowengine ever, to a peer where CI runs."""
    if isinstance(error, NotOffered):
        return str(error)
    if subject == "cowengine" or os.environ.get("CI") == "true":
        raise error
    return f"failed: {error!r}"


def rounded(seconds: float) -> float:
    """Four digits: the JSON file has every round."""
    return float(f"{seconds:.4g}")
