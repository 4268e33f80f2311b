"""The disk under a mounted file system fails: at each kind of barrier in turn, and while everything is read.

nbdkit serves the disk, nbdfuse makes a file of it, a loop device stands on that, ext4, XFS or btrfs on the loop device.
So what fdatasync says is what the kernel makes of a real failed write: an error once, and then success, with pages that
are clean in the cache and old on the disk. The call that meets it has to fail with a typed error and poison the handle.
Then the file system is unmounted, which drops the cache, the disk is healed, and what is there is opened, checked and
compared with what was acknowledged. Reads that fail have to say so, or give the right bytes, and change nothing.

A history follows from a seed; it runs once to learn which of its barriers is which, and then again for each that fails.

    python -P tests/torture/writeback_error.py --seconds 60 --seed 1
    python -P tests/torture/writeback_error.py --seconds 60 --seed 1 --planted    # a failed barrier is called again
"""

from __future__ import annotations

import logging
import random
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("crash", "model", "torture")]

from barriers import KINDS, kinds  # noqa: E402
from crash_oracle import Violation, verify  # noqa: E402
from crash_workload import Runner, Step, determinism, shrink  # noqa: E402
from memory_disk import Barrier, DirectoryBarrier, Durable, Event, Note, Write  # noqa: E402
from mounted import BTRFS, EXT4, XFS, Disk, FileSystem, disk, lacking, run_harness  # noqa: E402
from nbd_disk import Served, served  # noqa: E402
from row import Tally  # noqa: E402
from told import AnyRunner, a_runner  # noqa: E402

from cowengine.core.iotable import IOTable  # noqa: E402
from cowengine.errors import CowEngineError  # noqa: E402

FILE_SYSTEMS = (EXT4, XFS, BTRFS)
FORGIVING = (EXT4, XFS)  # where a second fdatasync succeeds
STEPS = 12
NOTHING_TO_WRITE = ("recovery begins", "directory entry")  # such a barrier may fail only if the disk cannot flush


class Watched(IOTable):
    """The kernel's files. Writes down what a barrier is known by, and breaks the disk for the one that shall fail."""

    before_barrier = None

    def __init__(self, break_at: int | None = None, served: Served | None = None) -> None:
        self.journal: list[Event] = []
        self.barriers: list[tuple[int, str]] = []  # position in the journal, what is synced
        self.paths: dict[int, str] = {}
        self.break_at = break_at
        self.served = served
        self.how = "write"  # what the disk cannot do
        self.stays_broken = False
        self.retries = False  # the planted fault
        self.met = 0  # barriers that failed
        self.faults = 0  # ... and said so

    def note(self, expected: Any) -> None:
        self.journal.append(Note(expected))

    @property
    def expected(self) -> Any:
        """What may be found; None before anything was promised."""
        return next((event.value for event in reversed(self.journal) if isinstance(event, Note)), None)

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        fd = super().open(path, flags, mode)
        self.paths[fd] = path.rpartition(".")[2] if "." in path else "volume"
        return fd

    def pwrite(self, fd: int, data: Any, offset: int) -> None:
        super().pwrite(fd, data, offset)
        self.journal.append(Write(0, offset, bytes(data)))

    def fdatasync(self, fd: int) -> None:
        self.barrier(self.paths[fd], Barrier(0, len(self.journal)), lambda: IOTable.fdatasync(self, fd))

    def sync_directory(self, path: str) -> None:
        self.barrier("directory", DirectoryBarrier(path), lambda: IOTable.sync_directory(self, path))

    def barrier(self, what: str, event: Event, call: Callable[[], None]) -> None:
        broken = self.served if len(self.barriers) == self.break_at else None
        self.barriers.append((len(self.journal), what))
        self.journal.append(event)
        if broken:
            broken.fail(self.how)
        try:
            call()
        except OSError:
            self.met += 1
            if broken and not self.stays_broken:
                broken.heal()
            if self.retries:
                with suppress(OSError):
                    call()
                return
            self.faults += 1
            raise
        if broken:
            broken.heal()  # there was nothing to write


@dataclass(frozen=True)
class History:
    """What is done, and which of its barriers is of which kind."""

    seed: int
    steps: tuple[Step, ...]
    barriers: tuple[tuple[int, str], ...]


def history(seed: int, folder: Path) -> History:
    """It runs on an empty folder, with a disk that works."""
    io = Watched()
    runner = a_runner(seed, folder, io, io)
    steps = runner.random_steps(random.Random(seed), STEPS)
    if isinstance(runner, Runner):
        steps += (("checkpoint",), ("reopen",))
    run(History(seed, steps, ()), folder, io)
    if isinstance(runner, Runner) and not runner.geometry.adopted:
        named = kinds(Durable(), io.journal)
    else:
        named = {position: f"{Path(runner.path).name}: {what}" for position, what in io.barriers}
    return History(seed, steps, tuple((number, named[position]) for number, (position, _) in enumerate(io.barriers)))


def run(planned: History, folder: Path, io: Watched) -> AnyRunner:
    """Runs it until its end or the failed barrier, which has to be told by a typed error; and closes."""
    with determinism(planned.seed):
        runner = a_runner(planned.seed, folder, io, io)
        runner.perform = typed
        try:
            runner.create()
            runner.run(planned.steps)
        except OSError as error:
            if not io.faults or io.expected is not None:
                raise Violation(f"{error!r} came out") from error
            require_typed(error)
        finally:
            with suppress(CowEngineError):
                runner.close()
    return runner


def typed(action: Callable[[], Any]) -> Any:
    try:
        return action()
    except OSError as error:
        require_typed(error)
        raise


def require_typed(error: OSError) -> None:
    if not isinstance(error, CowEngineError):
        where = [f"{each.name}:{each.lineno}" for each in traceback.extract_tb(error.__traceback__)]
        raise Violation(f"an error without a type: {error!r} in {where}") from error


class Bench:
    """A file system on a disk that can be broken."""

    def __init__(self, folder: Path, file_system: FileSystem, stack: ExitStack) -> None:
        self.name = file_system.name
        self.served: Served = stack.enter_context(served(folder, file_system.name, file_system.size))
        stack.callback(self.served.heal)
        self.disk: Disk = stack.enter_context(disk(folder, file_system, self.served.image))

    def make(self) -> None:
        """A new file system: the one before may have lost something of its own."""
        self.disk.unmount()
        self.disk.make()
        self.disk.mount()

    def remount(self) -> None:
        """Nobody remembers anything of the disk."""
        self.disk.unmount()
        self.served.heal()
        self.served.forget()
        self.disk.mount()

    def fail_barrier(self, planned: History, number: int, kind: str, rng: random.Random, retries: bool) -> int:
        """Runs the history; how many barriers failed: none if this one had nothing to write."""
        watched = Watched(number, self.served)
        if not retries and (kind in NOTHING_TO_WRITE or rng.random() < 0.2):
            watched.how = "flush"
        watched.stays_broken = not retries and rng.random() < 0.5
        watched.retries = retries
        self.make()
        runner = run(planned, self.disk.place, watched)
        self.remount()
        if watched.expected is None:  # nothing was promised; what is left of the file may be refused
            left = runner.successor(Watched())
            with suppress(CowEngineError):
                left.open()
            left.close()
            return watched.met
        self.look(runner, watched.expected)
        if rng.random() < 0.5:
            self.read_badly(runner, watched.expected, rng.choice((0.02, 0.2, 1)))
            self.remount()
            self.look(runner, watched.expected)
        return watched.met

    def look(self, runner: AnyRunner, expected: Any) -> None:
        later = runner.successor(Watched())
        try:
            later.open()
            later.look(expected)
        finally:
            later.close()

    def read_badly(self, runner: AnyRunner, expected: Any, probability: float) -> None:
        """Reads everything from a disk that fails to read: right bytes or a typed error."""
        self.remount()
        self.served.fail("read", probability)
        later = runner.successor(Watched())
        try:
            later.open()
            if isinstance(later, Runner):
                verify(later.volume, expected)
                later.volume.check()
        except OSError as error:
            require_typed(error)
        finally:
            with suppress(CowEngineError):
                later.close()


class Round:
    """Every kind of barrier of one history, on every file system."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.rng = random.Random(seed)
        self.history = history(seed, folder)

    def failures(self, file_systems: tuple[FileSystem, ...]) -> list[tuple[FileSystem, int, str]]:
        """One barrier of each kind, in any order."""
        by_kind: dict[str, list[int]] = {}
        for number, kind in self.history.barriers:
            by_kind.setdefault(kind, []).append(number)
        chosen = [(each, self.rng.choice(numbers), kind) for each in file_systems for kind, numbers in by_kind.items()]
        self.rng.shuffle(chosen)
        return chosen


def work(folder: Path, seed: int, seconds: float, planted: bool) -> Tally:
    tally = Tally(skipped=lacking(folder, FILE_SYSTEMS, "nbdkit", "nbdfuse"))
    if tally.skipped:
        return tally
    shrink()
    logging.disable(logging.CRITICAL)  # every fault is worth an error
    late, met = time.monotonic() + seconds, set()
    with ExitStack() as stack:
        try:
            benches = {each.name: Bench(folder, each, stack) for each in FILE_SYSTEMS}
        except OSError as error:
            tally.skipped = str(error)
            return tally
        while time.monotonic() < late and not tally.violations:
            rehearsal = folder / f"rehearsal-{seed}"
            rehearsal.mkdir()
            planned = Round(seed, rehearsal)
            shutil.rmtree(rehearsal)
            for file_system, number, kind in planned.failures(FORGIVING if planted else FILE_SYSTEMS):
                if time.monotonic() > late or tally.violations:
                    break
                where = f"seed {seed}, {file_system.name}, barrier {number} ({kind})"
                try:
                    failed = benches[file_system.name].fail_barrier(planned.history, number, kind, planned.rng, planted)
                except Exception as error:
                    tally.violation(f"{where}: {error!r}\n  steps {planned.history.steps}")
                    break
                tally.count += failed > 0
                met |= {(file_system.name, kind)} if failed else set()
            seed += 1
    wanted = {(each.name, kind) for each in FILE_SYSTEMS for kind in KINDS}
    tally.more = f"{len(wanted & met)} of {len(wanted)} kinds of barriers on a file system"
    return tally


if __name__ == "__main__":
    sys.exit(run_harness(work, "Breaks the disk under a file system at each kind of barrier.", 60, "failed barriers"))
