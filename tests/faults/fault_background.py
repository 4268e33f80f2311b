"""The cases of work in the background: calls fail in it, and in nothing that the user does meanwhile.

That must cost nobody anything. What the user asks for succeeds, unless a barrier failed: then every call says so. Once
all is well again what was left undone is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from crash_oracle import Violation
from crash_workload import Step, determinism
from fault_cases import SEED, Case, FaultRunner, Scene, after_the_fault, judge_closed, scene, typed
from fault_volumes import BUSY, NARROW
from faulty_disk import Fault, FaultyDisk

from cowengine.engine import sealing

# What the user does between two pieces of work, over and over: it takes away what is being sealed, and brings more.
MEANWHILE: tuple[Step, ...] = (
    ("write", 3, 2), ("snapshot",), ("partial", 700, 900), ("delete", 1), ("flush",), ("write", 5, 1), ("snapshot",),
)  # fmt: skip
PIECES = 4


@contextmanager
def eager() -> Iterator[None]:
    """A sealer that asks for a checkpoint behind each piece, so that it makes calls of every kind."""
    before, sealing.DIRTY_SEALS_MAX = sealing.DIRTY_SEALS_MAX, 0
    try:
        yield
    finally:
        sealing.DIRTY_SEALS_MAX = before


@dataclass(frozen=True)
class SealerCase:
    """The sealer's pieces, as its thread does them, and steps between them. Only the pieces meet the fault."""

    name: str
    scene: Scene = field(repr=False)

    def play(self, fault: Fault | None) -> list[str]:
        with determinism(SEED), eager():
            disk = FaultyDisk(self.scene.durable)
            runner = FaultRunner(disk, self.scene.geometry)
            runner.resumed(self.scene)
            engine = runner.volume.engine
            work = sealing.Work(engine.unsealable)
            for number in range(PIECES):
                disk.watch(fault)
                sealing._piece(engine, work)
                disk.end()
                if engine.failure is not None:
                    break
                self.go_on(runner, number)
            calls = list(disk.calls)
            live = bytes(runner.oracle.model.content)
            if engine.failure is None:
                require_sealed(runner)
            after_the_fault(runner, None, engine.failure, (live, live))
            judge_closed(self.scene, disk, runner.expectation(), None)
            return calls

    def go_on(self, runner: FaultRunner, number: int) -> None:
        """The next step of the user."""
        step = MEANWHILE[number % len(MEANWHILE)]
        error = runner.attempt(step) if runner.operation(step) is not None else None
        if error is not None:
            raise Violation(f"{step[0]} fails for what failed in the background: {error!r}") from error


def require_sealed(runner: FaultRunner) -> None:
    """All is well again, and everything can be sealed."""
    failed, report = typed(lambda: (runner.volume.seal(), runner.volume.verify())[1])
    if failed is not None or not report.ok or report.counts["unsealed"]:
        raise Violation(f"it cannot be sealed any more: {failed or report.problems or report.counts}")


def background_cases() -> Iterator[Case]:
    """All of them."""
    yield SealerCase("sealer:beside-steps", scene(*BUSY, geometry=NARROW))
