"""Explores a history that a disk in memory has recorded: every crash image worth looking at is opened and compared.

At each barrier, and at the end, the images are: nothing pending arrived, all of it, every prefix, all but one, every
subset if there are few, seeded samples if there are many, and samples torn at 512 bytes; then those that differ from
these only in what nobody asked for. Each distinct image is opened (which is a recovery), compared with what the user
was told (crash_oracle), and checked; unless it differs from one that was only in bytes that nobody asked for, or that
are only shown (crash_reads): then what it shows is put together and compared. From a sample of
them the history goes on: the recovery itself is recorded and cut, more steps run, and their images are looked at in
turn; also after a kill, where the page cache survives and the power goes later, and after a barrier that fails. One of
the two superblock slots may also rot while nobody writes it.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any

from crash_images import Choice, Cut, choices, fingerprint
from crash_oracle import Violation
from crash_reads import SAMPLED, Judged, Known, Node, WatchedDisk
from crash_workload import Runner, determinism
from memory_disk import Durable, Event, Instant, MemoryDisk, instants
from set_workload import StoreRunner

from cowengine.core.checksum import xxh64
from cowengine.errors import CowEngineError

SLOT = 4096
Keeps = Callable[[Durable, Sequence[Event]], Callable[[int], bool]]  # which barriers of a journal work


@dataclass(frozen=True)
class Plan:
    """How much is looked at. `images` per barrier, and `beside` for each way in which these open that leaves writes
    which nobody asks for; the other fields are probabilities per image or per barrier.
    """

    images: int = 40
    beside: int = 48
    nested: float = 0.04
    kills: float = 0.15
    rot: float = 0.25
    depth: int = 2
    enough: int = 100  # violations, then the exploring ends


@dataclass(frozen=True)
class Past:
    """What a history has behind it when it is cut."""

    crashes: int = 0
    recoveries_cut: int = 0  # in a row, the present one included
    killed: bool = False
    failed: bool = False  # a barrier


FRESH = Past()


@dataclass
class Tally:
    """What was looked at. `states` are the hashes of the images; the fields that end in _states count some of them."""

    states: set[int] = field(default_factory=set)
    other_states: int = 0  # of tasks that are over, whose images have the id of a volume of their own
    recoveries: int = 0
    compared: int = 0  # times that all that was shown was compared with a promise
    same_states: int = 0  # not opened: they differ from one that was only in what nobody asked for, or is only shown
    barriers: int = 0
    kills: int = 0
    failed_barriers: int = 0
    rotten: int = 0
    nested_states: int = 0  # in what followed a crash
    recovery_states: int = 0  # within a recovery
    second_recovery_states: int = 0  # within one that followed upon a recovery cut short
    killed_states: int = 0  # the power went after a kill
    failed_states: int = 0  # the power went in a history that a failed barrier is part of
    violations: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.states |= other.states
        self.violations += other.violations
        for each in fields(self):
            if each.name not in ("states", "violations"):
                setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    @property
    def distinct(self) -> int:
        return self.other_states + len(self.states)

    def note(self, key: int, past: Past) -> bool:
        """A state that is cut after all that; whether it is a new one."""
        if key in self.states:
            return False
        self.states.add(key)
        self.nested_states += past.crashes > 0
        self.recovery_states += past.recoveries_cut > 0
        self.second_recovery_states += past.recoveries_cut > 1
        self.killed_states += past.killed
        self.failed_states += past.failed
        return True


# -- exploring --------------------------------------------------------------------------------------------------------
class Explorer:
    def __init__(self, seed: int, plan: Plan, describe: str, keeps: Keeps | None = None) -> None:
        self.rng = random.Random(seed)
        self.plan = plan
        self.describe = describe
        self.tally = Tally()
        self.keeps = keeps
        self.seen: set[tuple[int, int]] = set()
        self.known = Known()
        self.notes: dict[int, Any] = {}  # all promises there were, so that no other one gets the id of one that is gone

    def explore(
        self, runner: Runner | StoreRunner, past: Past = FRESH, trail: str = "", *, since: int = 0, recovered: int = 0
    ) -> None:
        """Every crash of the journal that the runner's disk holds.

        Its first `recovered` entries are a recovery. What lies before position `since` is left out.
        """
        disk = runner.disk
        plan = self.plan
        keeps = self.keeps(disk.start, disk.journal) if self.keeps else lambda _: True
        for instant in instants(disk.start, disk.journal, keeps):
            if len(self.tally.violations) >= plan.enough:
                return
            if instant.note is None or instant.position < since:
                continue
            self.tally.barriers += 1
            now = replace(past, recoveries_cut=past.recoveries_cut + 1 if instant.position < recovered else 0)
            here = f"{trail} / barrier at {instant.position}"
            self.notes[id(instant.note)] = instant.note
            self.images(runner, Cut(instant), now, here)
            if past.crashes < plan.depth and self.rng.random() < plan.kills:
                self.kill(runner, instant, now, here)
            if not instant.pending and self.rng.random() < plan.rot:
                self.rot(runner, instant, here)

    def images(self, runner: Runner | StoreRunner, cut: Cut, past: Past, trail: str) -> None:
        """Those of one instant. From some of them the history goes on."""
        leaves: dict[Node, Choice] = {}
        for choice in choices(cut.pending, self.rng, self.plan.images >> 2 * past.crashes):
            if len(self.tally.violations) >= self.plan.enough or not cut.is_new(choice):
                continue
            leaf = self.image(runner, cut, choice, past, trail)
            if leaf is not None:
                leaves.setdefault(leaf, choice)
                if past.crashes < self.plan.depth and self.rng.random() < self.plan.nested:
                    disk = MemoryDisk(cut.image.copy())
                    self.go_on(runner, disk, cut.note, past, f"{trail}, arrived {choice}")
        for leaf, choice in leaves.items():
            self.beside(runner, cut, leaf, choice, past, trail)

    def image(self, runner: Runner | StoreRunner, cut: Cut, choice: Choice, past: Past, trail: str) -> Node | None:
        """Looks at one image; the leaf that it leads to. None: it was looked at before, or broke a promise."""
        key = cut.arrange(choice)
        fresh = self.tally.note(key, past)
        if (key, id(cut.note)) in self.seen:
            return None
        self.seen.add((key, id(cut.note)))
        leaf = self.known.find(cut)
        if leaf is None or leaf.shown is None or self.rng.random() < SAMPLED:
            self.guard(trail, lambda: self.reopen(runner, cut, leaf), choice)
        else:
            self.tally.same_states += fresh
            self.guard(trail, lambda: self.judge(runner, cut, leaf), choice)
        return leaf or self.known.find(cut)

    def beside(
        self, runner: Runner | StoreRunner, cut: Cut, leaf: Node, choice: Choice, past: Past, trail: str
    ) -> None:  # fmt: skip
        """Images that differ from one that led to this leaf only in what nobody asked for there.

        Twice as many if a part of that is shown.
        """
        free = cut.free_at(leaf)
        if not free:
            return
        for _ in range(self.plan.beside << cut.shows(leaf, free)):
            other = list(choice)
            for number in free:
                other[number] = cut.arrival(number, self.rng)
            if len(self.tally.violations) < self.plan.enough and cut.is_new(tuple(other)):
                self.image(runner, cut, tuple(other), past, trail)

    def kill(self, runner: Runner | StoreRunner, instant: Instant, past: Past, trail: str) -> None:
        """The process dies, the page cache lives on, and the history with it."""
        self.tally.kills += 1
        disk = MemoryDisk(instant.durable.copy(), instant.pending, instant.cached)
        self.go_on(runner, disk, instant.note, replace(past, killed=True), f"{trail}, killed")

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
        self.guard(f"{trail}, superblock slot {slot} rotten", lambda: self.live_on(runner, image, instant.note))

    def reopen(self, runner: Runner | StoreRunner, cut: Cut, leaf: Node | None) -> None:
        """Recovers, checks and compares; `leaf` is where the same was done before, as far as anybody can tell."""
        self.tally.recoveries += 1
        disk = WatchedDisk(cut.image.copy())
        later = runner.successor(disk)
        later.buffer = disk.buffer
        with determinism(0):
            try:
                later.open()
                shown = later.show(extents=sum(disk.asked.values()) % 2 == 0)  # the same for the same answers
            finally:
                abandon(later)
        if leaf is not None and leaf.shown is not None and leaf.show_again(cut) != shown:
            raise Violation("two images that differ only in what nobody asks for show different things")
        leaf = self.known.add(cut.root, disk, shown)
        self.judge(runner, cut, leaf)

    def judge(self, runner: Runner | StoreRunner, cut: Cut, leaf: Node) -> None:
        """Compares what an image shows that leads to this leaf: all of it, or what is new of its contents."""
        judged = leaf.judged.get(id(cut.note))
        if judged is None:
            self.tally.compared += 1
            found = runner.compare(leaf.show_again(cut), cut.note)
            judged = leaf.judged[id(cut.note)] = Judged(runner.judges(leaf.shown, cut.note, found))
            judged.good.update((piece, cut.answer(piece[2])) for piece in leaf.pieces)
        for piece in cut.unsettled_pieces.get(judged, leaf.pieces):
            number, begin, part = piece
            answer = cut.answer(part)
            if (piece, answer) not in judged.good:
                leaf.fill(cut, piece)
                if judged.faults[number](begin, begin + part[2] - part[1]) is not None:
                    runner.compare(leaf.show_again(cut), cut.note)  # it may still agree with another commit
                    return
                judged.good.add((piece, answer))
        if judged not in cut.unsettled_pieces:
            cut.unsettled_pieces[judged] = [piece for piece in leaf.pieces if not cut.is_settled(piece[2])]

    def live_on(self, runner: Runner | StoreRunner, image: Durable, expected: Any) -> None:
        """Recovers and compares, works, and compares again."""
        self.tally.recoveries += 1
        later = runner.successor(MemoryDisk(image, recorded=False))
        try:
            later.open()
            later.resume(expected, later.look(runner.once_opened(expected)))
            later.run((("checkpoint",), ("write", 3, 2)))
            later.look(later.expectation())
        finally:
            abandon(later)

    def go_on(self, runner: Runner | StoreRunner, disk: MemoryDisk, expected: Any, past: Past, trail: str) -> None:
        """Opens on a recorded disk, runs a few steps more, and looks at the crashes of all that."""
        steps = runner.random_steps(self.rng, self.rng.randrange(7))
        fails = self.rng.randrange(8) if self.rng.random() < 0.3 else None
        later = runner.successor(disk)
        here = f"{trail}; then {'' if fails is None else f'barrier {fails} fails, '}{steps}"
        recovered: list[int] = []

        def history() -> None:
            disk.note(runner.once_opened(expected))
            disk.fail_barrier = fails
            disk.fate = lambda: self.rng.randrange(3)
            try:
                later.open()
                recovered.append(len(disk.journal))
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
            now = replace(past, crashes=past.crashes + 1, failed=past.failed or disk.faults > 0)
            self.explore(later, now, here, recovered=recovered[0] if recovered else len(disk.journal))
        abandon(later)

    def guard(self, trail: str, action: Callable[[], None], choice: Choice | None = None) -> bool:
        try:
            action()
        except Exception as error:  # whatever comes out of it is a violation
            where = traceback.extract_tb(error.__traceback__)[-1]
            arrived = "" if choice is None else f", arrived {choice}"
            self.tally.violations.append(
                f"{type(error).__name__}: {error} ({where.name}:{where.lineno})\n  {self.describe}{trail}{arrived}"
            )
            return False
        return True


def abandon(runner: Runner | StoreRunner) -> None:
    """The end of a process: nothing it does from now on reaches its disk, and it does not even try."""
    runner.disk.power_off()
    for engine in runner.engines():
        engine.poison(OSError("the process has ended"))
    with suppress(OSError):
        runner.close()


def is_superblock(slot: bytearray) -> bool:
    return len(slot) == SLOT and xxh64(bytes(slot[: SLOT - 8])) == int.from_bytes(slot[SLOT - 8 :], "little")
