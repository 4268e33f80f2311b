"""A long life, shortened: a million small commits and a hundred thousand rounds of snapshot and delete, and what grows.

Descriptors, threads, memory, everything that the engine's objects keep, the slots in use and the file are looked at all
along; none of it may go on growing (growth.py). In the end all snapshots are deleted: no slot has leaked, the file
is compacted to little more than what the live volume holds, and without that it is as good as new.

    python -P tests/torture/soak.py --seconds 60 --seed 1
    python -P tests/torture/soak.py --commits 1000000 --rounds 100000           # all of it: some minutes
    python -P tests/torture/soak.py --seconds 30 --planted descriptor           # a leak that has to be found
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("crash", "torture")]

from growth import MIB, Growth, descriptors, of_engine, of_process, threads  # noqa: E402
from row import Tally, harness_parser, tell  # noqa: E402
from soak_work import BLOCK, BLOCKS, LOG_BYTES, Work  # noqa: E402

from cowengine.engine.allocator import Allocator  # noqa: E402
from cowengine.engine.engine import Engine  # noqa: E402

# Here no barrier has to wait for a disk.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
WARM_UP_TURNS, SAMPLE_TURNS = 1000, 100
SAMPLES_MIN = 16  # fewer say nothing about growth
END_SECONDS = 3.0  # what the end of a run takes
QUIET_SECONDS = 10.0
SIZE_MAX = 1.2  # the compacted file, as a multiple of what the live volume and the log take
FIXED = 2 * MIB  # of any file beside that: runway and reserve
OVERHEAD = 10 * MIB  # of an empty one beside its log: the same, nodes of two checkpoints, free slots among those


class Soak:
    """One run."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.seed = seed
        self.tally = Tally()
        self.growth = Growth()
        self.before = self._handles()
        self.folder = folder
        self.work = Work(folder, seed)
        self.sizes: dict[str, float] = {}

    @staticmethod
    def _handles() -> tuple[int, int]:
        return descriptors(), threads()

    def _handles_when_quiet(self) -> tuple[int, int]:
        """Timers of what was closed may still run, for seconds."""
        late = time.monotonic() + QUIET_SECONDS
        while self._handles() != self.before and time.monotonic() < late:
            time.sleep(0.1)
        return self._handles()

    def run(self, commits: int, rounds: int, seconds: float) -> Tally:
        """Until there were so many of both, or the time is up."""
        late = time.monotonic() + seconds - END_SECONDS
        work = self.work
        try:
            while (work.commits < commits or work.rounds < rounds) and time.monotonic() < late:
                work.turn(commits=work.commits < commits, round_=work.rounds < rounds)
                if work.turns > WARM_UP_TURNS and work.turns % SAMPLE_TURNS == 0:
                    self.sample()
            self.look_at_growth()
            self.end()
        except Exception as error:  # whatever comes out of it is a violation
            self.violation("".join(traceback.format_exception(error)))
        finally:
            work.volume.close()
        self.tally.count = work.steps
        self.tally.also["R19"] = work.deleted
        behind = self._handles_when_quiet()
        if behind != self.before:
            self.violation(f"descriptors and threads: {self.before} before, {behind} behind it")
        return self.tally

    def violation(self, what: str) -> None:
        self.tally.violation(f"seed {self.seed}, {self.work.commits:,} commits, {self.work.rounds:,} rounds: {what}")

    def sample(self) -> None:
        work = self.work
        work.volume.flush()
        opens = {"bytes read by an open": work.bytes_of_open, "bytes read by a reader": work.bytes_of_look}
        self.growth.add(work.steps, {**of_process(), **of_engine(work.volume.engine), **opens})

    def look_at_growth(self) -> None:
        if len(self.growth.steps) < SAMPLES_MIN:
            print(f"too short a run to say what grows: {len(self.growth.steps)} samples")
            return
        for found in self.growth.violations():
            self.violation(found)

    def end(self) -> None:
        """R19: what is left when all snapshots are deleted, then compacted, then without any block."""
        volume = self.work.volume
        self.check("at the end")
        self.work.delete_all()
        live = volume.du().used_bytes + LOG_BYTES
        self.check("behind the last delete")
        self.sizes["deleted"] = self.allocated() / live
        volume.compact()
        self.check("compacted")
        self.sizes["compacted"] = (self.allocated() - FIXED) / live
        if self.sizes["compacted"] > SIZE_MAX:
            self.violation(f"the compacted file takes {self.sizes['compacted']:.2f} times what the volume holds")
        volume.discard(0, BLOCKS * BLOCK)
        self.check("emptied")
        if volume.stats()["snapshots_unsealable"] or volume.engine.unsealable:
            self.violation(
                f"snapshots {sorted(volume.engine.unsealable)} could not be read when they were to be sealed"
            )
        left = self.allocated() - LOG_BYTES
        if left > OVERHEAD:
            self.violation(f"the empty volume's file has {left / MIB:.1f} MiB beside the log")
        ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in self.sizes.items())
        self.tally.more = (
            f"{self.work.commits:,} commits, {self.work.rounds:,} rounds; file to live data: {ratios}; "
            f"empty {left / MIB:.1f} MiB"
        )

    def check(self, when: str) -> None:
        """No slot has leaked, behind checkpoints that have written and given back all there is."""
        for _ in range(3):
            self.work.volume.engine.checkpoint()
        report = self.work.volume.check()
        if not report.ok or report.counts["leaked"]:
            self.violation(f"{when}: {report.counts['leaked']} slots leaked; {report.problems[:3]}")

    def allocated(self) -> int:
        return os.stat(self.folder / "volume").st_blocks * 512


# -- planted leaks -----------------------------------------------------------------------------------------------------
def every(number: int, leak: Callable[..., Any], rightly: Callable[..., Any]) -> Callable[..., Any]:
    """A method that leaks at one call in so many."""
    calls = 0

    def leaking(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        return (rightly if calls % number else leak)(*arguments, **more)

    return leaking


def plant(name: str) -> Any:
    """What switches on a leak, as a context manager."""
    kept: list[bytes] = []

    def keep_descriptor(engine: Engine) -> None:
        if not engine.closed:
            os.dup(engine.fd)
        close(engine)

    def keep_batch(engine: Engine, deltas: bytes, *more: Any) -> None:
        kept.append(deltas + bytes(100))
        acknowledge(engine, deltas, *more)

    def forget_slots(allocator: Allocator, runs: Any, *, punch_all: bool) -> None:
        allocator.settle()

    def forget_freed(engine: Engine, deltas: bytes, freed: bytes, *more: Any) -> None:
        acknowledge(engine, deltas, b"", *more)

    close, acknowledge = Engine.close, Engine._acknowledge
    leaks = {
        "descriptor": (Engine, "close", every(3, keep_descriptor, close)),
        "memory": (Engine, "_acknowledge", every(2, keep_batch, acknowledge)),
        "slot": (Allocator, "retire", every(40, forget_slots, Allocator.retire)),
        "record": (Engine, "_acknowledge", every(41, forget_freed, acknowledge)),
    }
    return mock.patch.object(*leaks[name])


PLANTED = ("descriptor", "memory", "slot", "record")


def main() -> int:
    parser = harness_parser("Commits, snapshots and deletes for long, and looks at what grows.", seconds=60)
    parser.add_argument("--commits", type=int, help="ends with so many; then --seconds is no limit")
    parser.add_argument("--rounds", type=int, help="ends with so many")
    parser.add_argument("--folder", default=MEMORY)
    parser.add_argument("--planted", choices=PLANTED, help="with a leak that has to be found")
    parser.add_argument("--all", action="store_true", help="print every number that was looked at")
    arguments = parser.parse_args()
    endless = 1 << 40
    counted = arguments.commits is not None or arguments.rounds is not None
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=arguments.folder))
        if arguments.planted:
            stack.enter_context(plant(arguments.planted))
        soak = Soak(Path(folder), arguments.seed)
        commits, rounds = (arguments.commits or 0, arguments.rounds or 0) if counted else (endless, endless)
        tally = soak.run(commits, rounds, 1e9 if counted else arguments.seconds)
    if arguments.all:
        print(soak.growth)
    return tell(tally, arguments, "commits and rounds")


if __name__ == "__main__":
    sys.exit(main())
