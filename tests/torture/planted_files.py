"""Hunts on real files: each call failing, a full disk, flipped bits."""

from __future__ import annotations

import errno
import random
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from crash_explorer import Keeps
from failing_table import FailingTable
from flip import Original, flip
from hostile_steps import work_folder
from ledger import Ledger
from planting import Played, Trace
from small_disk import QuotaDisk
from test_every_call_fails import SIZE, History, calls_of_the_workload, verify, workload

from cowengine import Volume
from cowengine.errors import CowEngineError, NoSpaceError


@dataclass(frozen=True)
class Faults:
    """The fault table: one call of the workload fails, once or from then on. A history is a choice of calls."""

    calls: int = 40
    number: int = errno.EIO
    harness: str = "fault table"

    def trace(self, number: int) -> Trace:
        with work_folder() as folder:
            created, total = calls_of_the_workload(folder / "dry")
        rng = random.Random(number)
        return tuple((rng.randrange(created + 1, total + 1), rng.random() < 0.5) for _ in range(self.calls))

    def play(self, number: int, trace: Trace, keeps: Keeps | None, effort: int = 0) -> Played:
        for count, (fail_at, for_ever) in enumerate(trace[: effort or None], 1):
            with work_folder() as folder:
                problem = self._one(folder / "v", fail_at, for_ever)
            if problem:
                return Played(f"call {fail_at} fails{' for ever' if for_ever else ''}: {problem}", count)
        return Played(None, len(trace))

    def _one(self, path: Path, fail_at: int, for_ever: bool) -> str | None:
        table, history = FailingTable(fail_at, self.number, for_ever=for_ever), History()
        volume = Volume.create(path, SIZE, log_size=16384, io=table, background=False)
        try:
            with suppress(CowEngineError):
                workload(volume, history)
            killed = path.with_name("killed")
            shutil.copyfile(path, killed)  # as the process would leave it if it died now
            verify(killed, history)
            with suppress(CowEngineError):
                volume.close()
            verify(path, history)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        finally:
            with suppress(Exception):
                volume.close()
        return None


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
