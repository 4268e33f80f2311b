"""Calls fail in the threads of the engine, at any moment, while the user goes on: it costs him nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from crash_oracle import Violation
from crash_workload import SMALL, determinism, random_step
from fault_background import eager, require_sealed
from fault_cases import FaultRunner, Scene, after_the_fault, judge_closed, scene, typed
from fault_volumes import BUSY, DISPLACED, NARROW
from faulty_disk import KINDS, FaultyDisk, Kind

from cowengine.engine import sealing

LIVES, STEPS = 60, 25
CALLS = ("pwrite", "fdatasync", "pread_into", "pread", "lock", "unlock", "locked", "punch", "truncate", "stands")
WANTED = (
    "write",
    "write",
    "partial",
    "flush",
    "snapshot",
    "delete",
    "discard",
    "rollback",
    "anchor",
    "hold",
    "release",
)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The sealer takes no rest, and a few blocks fill the disk in memory."""
    for module, name, value in SMALL:
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(sealing, "QUIET_SECONDS", 0)
    monkeypatch.setattr(sealing, "REST", 0)
    with eager():
        yield


@dataclass
class Nth:
    """The n-th call of a kind fails, or all from then on; on a disk in the place of a `Fault`."""

    left: int
    call: str
    kind: Kind
    for_ever: bool

    def of(self, _number: int, call: str) -> Kind | None:
        """How a call fails, if it does."""
        self.left -= call == self.call
        fails = call == self.call and (self.left == 0 or (self.for_ever and self.left < 0))
        return self.kind if fails else None


def live(left: Scene, seed: int) -> int:
    """A volume with threads of its own, one call of which fails; how many did."""
    rng = random.Random(seed)
    disk = FaultyDisk(left.durable)
    runner = FaultRunner(disk, left.geometry)
    runner.background = True
    disk.threads = "cowengine-"
    call = rng.choice(CALLS)
    armed: Any = Nth(rng.randrange(1, 8), call, rng.choice(KINDS[call]), for_ever=rng.random() < 0.3)
    disk.watch(armed)
    runner.resumed(left)
    engine = runner.volume.engine
    job = typed(runner.volume.start_compaction)[1]
    for _ in range(STEPS):
        step = random_step(rng, rng.choice(WANTED))
        error = runner.attempt(step) if runner.operation(step) is not None else None
        if engine.failure is not None:
            break
        if error is not None:
            raise Violation(f"seed {seed}: {step} fails for what failed in the background: {error!r}") from error
    typed(job.wait)
    engine.sealer.stop()
    disk.end()
    content = bytes(runner.oracle.model.content)
    if engine.failure is None:
        require_sealed(runner)
    after_the_fault(runner, None, engine.failure, (content, content))
    judge_closed(left, disk, runner.expectation(), None)
    return len(disk.hits)


@pytest.mark.parametrize("steps", [BUSY, DISPLACED], ids=["sealing", "compaction"])
def test_what_fails_in_the_background_costs_the_user_nothing(steps: tuple[Any, ...]) -> None:
    left = scene(*steps, geometry=NARROW)
    hits = 0
    for seed in range(LIVES):
        with determinism(seed):
            hits += live(left, seed)
    assert hits
