"""Hunts on real files: each call failing, a full disk, flipped bits."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from crash_explorer import Keeps
from every_call import faults_in, violation
from fault_cases import Case
from fault_volumes import volume_cases
from faulty_disk import Fault
from flip import Original, flip
from hostile_steps import work_folder
from ledger import Ledger
from planting import Played, Trace
from small_disk import QuotaDisk

from cowengine.errors import NoSpaceError

STEPS = ("busy:write-12-2", "busy:partial-4000-700", "busy:snapshot", "busy:checkpoint")


@cache
def step_faults() -> list[tuple[Case, Fault]]:
    """Some steps, with each way in which a call of theirs can fail."""
    cases = [case for case in volume_cases() if case.name in STEPS]
    return [(case, fault) for case in cases for fault in faults_in(case)]


@dataclass(frozen=True)
class Faults:
    """The fault table: a call of a step fails, once or from then on. A history is a choice of steps and calls."""

    calls: int = 60
    harness: str = "fault table"

    def trace(self, number: int) -> Trace:
        faults = step_faults()
        return tuple(random.Random(number).sample(range(len(faults)), self.calls))

    def play(self, number: int, trace: Trace, keeps: Keeps | None, effort: int = 0) -> Played:
        for count, place in enumerate(trace[: effort or None], 1):
            problem = violation(*step_faults()[place])
            if problem is not None:
                return Played(problem, count)
        return Played(None, len(trace))


@dataclass(frozen=True)
class FullDisk:
    """A disk that becomes full: every snapshot can still be deleted, and nothing acknowledged is lost."""

    snapshots: int = 12
    harness: str = "full disk"

    def trace(self, number: int) -> Trace:
        rng = random.Random(number)
        return tuple(("snapshot", rng.randrange(1, 12_000)) for _ in range(self.snapshots))

    def play(self, number: int, trace: Trace, keeps: Keeps | None, effort: int = 0) -> Played:
        with work_folder() as folder:
            disk = QuotaDisk(folder / "disk")
            ledger = Ledger(disk, disk.path / "v", 16384)
            try:
                self._play(disk, ledger, random.Random(number), trace)
            except Exception as error:
                return Played(f"{type(error).__name__}: {error}")
            finally:
                with suppress(Exception):
                    ledger.volume.close()
        return Played(None)

    def _play(self, disk: QuotaDisk, ledger: Ledger, rng: random.Random, trace: Trace) -> None:
        for place, (_, length) in enumerate(trace):
            ledger.write(length)
            ledger.snapshot(f"s{place}")
        disk.fill(rng.choice((0, 4096, 16384)))
        with suppress(NoSpaceError):
            for _ in range(200):
                ledger.write(9000)
                ledger.volume.flush()
        for name in rng.sample(sorted(ledger.snapshots), len(ledger.snapshots)):
            ledger.delete(name)
        ledger.volume.flush()
        ledger.verify()
        ledger.reopen()
        ledger.verify()
        problems = ledger.volume.check().problems
        assert not problems, f"check: {problems[:2]}"


@dataclass(frozen=True)
class Flips:
    """Bits of a volume's metadata, of bytes that are not zero, flipped one at a time."""

    bits: int = 200
    harness: str = "bit flips"

    def trace(self, number: int) -> Trace:
        with Original("snapshots") as original:
            return tuple(original.sample(2 * self.bits, number)[self.bits :])

    def play(self, number: int, trace: Trace, keeps: Keeps | None, effort: int = 0) -> Played:
        with Original("snapshots") as original:
            for count, bit in enumerate(trace[: effort or None], 1):
                try:
                    flip(original, bit)
                except Exception as error:
                    return Played(f"{type(error).__name__}: {error}", count)
        return Played(None, len(trace))
