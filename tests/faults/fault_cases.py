"""What is true whatever call fails: one case of a volume, from the fault to what a new process finds.

A case begins with a *scene*, an image that an untroubled history left and what may be found in it, and does one thing
while a fault is on. Then:

  - it succeeded, or raised an error of `cowengine.errors`; it did not succeed if a barrier failed in it;
  - a handle whose barrier failed says so at every call (PoisonedError). Any other goes on: its bytes are those of
    before or behind the call, and whatever is asked of it next succeeds;
  - the file is closed, whatever happened; no descriptor and no file but the volume's is left;
  - whoever opens it next finds what the crash oracle allows, `check` finds nothing, and every block fits its seal:
    behind a power cut that took all that no barrier covered, or, if the fault stayed on to the end, behind a kill.
"""

from __future__ import annotations

import pickle
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

from crash_images import fingerprint
from crash_oracle import SECTOR, Expectation, Oracle, Shown, Violation, compare, show
from crash_workload import PATH, Geometry, Runner, Step, determinism
from faulty_disk import BARRIERS, Fault, FaultyDisk
from memory_disk import Durable, MemoryDisk, instants

from cowengine import Volume
from cowengine.errors import CowEngineError, PoisonedError

SEED = 1
SHOWN: dict[int, Shown] = {}  # what files showed to a new process, by fingerprint: many faults leave the same
SHOWN_MAX = 64
FLUSHES = ("retain", "accept_clock", "repair", "compact_beside")  # steps that show like a flush
WHOLE = ("flush", "resize", "rollback", "snapshot", "delete")  # done or not, as far as live bytes can tell
GO_ON: tuple[Step, ...] = (
    ("write", 3, 2),
    ("partial", 700, 900),
    ("flush",),
    ("snapshot",),
    ("write", 3, 1),
    ("delete", 0),
)


class Case(Protocol):
    """Something that is done while a call fails."""

    @property
    def name(self) -> str:
        """What is done, and to what."""

    def play(self, fault: Fault | None) -> list[str]:
        """Does it, and judges; the calls of the table that it made while the fault was on. Raises Violation."""


@dataclass(frozen=True)
class Scene:
    """A file as it was left, and what may be found in it."""

    durable: Durable
    expected: bytes  # an Expectation, pickled
    geometry: Geometry
    serial: int

    @cached_property
    def names(self) -> list[str]:
        """What lies on the disk."""
        return sorted(self.durable.entries)

    @cached_property
    def found(self) -> bytes:
        """The oracle of a process that opened it and looked at everything, pickled."""
        with determinism(SEED):  # of its own: whoever asks first does not draw other numbers for that
            runner = FaultRunner(MemoryDisk(self.durable), self.geometry, self.serial)
            runner.open()
            runner.look_again(pickle.loads(self.expected))
            runner.close()
        return pickle.dumps(runner.oracle)


def scene(*steps: Step, geometry: Geometry) -> Scene:
    """What is left by steps, and a clean close behind them."""
    with determinism(SEED):
        disk = FaultyDisk(Durable())
        runner = FaultRunner(disk, geometry)
        runner.create()
        runner.run(steps)
        runner.close()
        return Scene(disk.cache, pickle.dumps(runner.expectation()), geometry, runner.serial)


class FaultRunner(Runner):
    """A process on a disk that fails. What it was told by an error is what the oracle makes of it."""

    def resumed(self, scene: Scene) -> None:
        """Goes on from what the scene shows, which it does not read again."""
        self.serial, self.oracle = scene.serial, pickle.loads(scene.found)
        self.open()

    def look_again(self, expected: Expectation) -> None:
        """Of what may be found, what is."""
        self.oracle = Oracle.resume(expected, compare(show(self.volume, extents=False), expected))

    def operation(self, step: Step) -> Any:
        return step if step[0] in FLUSHES or step[0] == "delete_only" else super().operation(step)

    def step(self, step: Step) -> None:
        """Without a fault."""
        error = self.attempt(step)
        if error is not None:
            raise error

    def attempt(self, step: Step) -> CowEngineError | None:
        """The error that a step raised."""
        operation = self.operation(step)
        if operation is None:
            raise Violation(f"{step} can not be done here: a mistake of the case")
        name = operation[0]
        announced = (
            ("flush",) if name in FLUSHES else ("delete", *operation[1:]) if name == "delete_only" else operation
        )
        self.oracle.begin(announced)
        error, result = typed(lambda: self.call(operation))
        if error is None:
            self.oracle.acknowledge(result)
        return error

    def _snapshot(self, name: str) -> Any:
        return self.volume.snapshot(name, metadata={"of": name})

    def _retain(self) -> None:
        from datetime import UTC, datetime

        snapshot = self.volume.snapshots()[-1]
        snapshot.retain_until = datetime(2200, 1, 1, tzinfo=UTC)

    def _accept_clock(self) -> None:
        self.volume.accept_clock()

    def _repair(self) -> None:
        report = self.volume.check(repair=True)
        if not report.ok:
            raise Violation(f"check: {report.problems[:3]}")

    def _compact_beside(self) -> None:
        """In a thread of its own, while this one waits."""
        self.volume.start_compaction().wait()

    def _delete_only(self, name: str) -> None:
        """Without giving its space back."""
        self.volume.engine.delete(self.volume.get_snapshot(name).id)


def typed(action: Callable[[], Any]) -> tuple[CowEngineError | None, Any]:
    """The error that came of it, or what it returned. Any error that is not ours is a violation."""
    try:
        return None, action()
    except CowEngineError as error:
        return error, None
    except Violation:
        raise
    except Exception as error:
        raise Violation(f"an error without a type of ours: {error!r} in {where(error)}") from error


def where(error: BaseException) -> str:
    """The innermost lines of the product that it came through."""
    lines = [each for each in traceback.extract_tb(error.__traceback__) if "cowengine/" in each.filename]
    return " < ".join(f"{each.filename.rpartition('cowengine/')[2]}:{each.lineno}" for each in lines[:-4:-1])


@dataclass(frozen=True)
class VolumeCase:
    """A step on an open volume; `before` are steps behind the opening, without a fault."""

    name: str
    scene: Scene = field(repr=False)
    step: Step
    before: tuple[Step, ...] = ()

    def play(self, fault: Fault | None) -> list[str]:
        with determinism(SEED):
            disk = FaultyDisk(self.scene.durable)
            runner = FaultRunner(disk, self.scene.geometry)
            runner.resumed(self.scene)
            runner.run(self.before)
            old = bytes(runner.oracle.model.content)
            disk.watch(fault)
            error = runner.attempt(self.step)
            calls = list(disk.calls)
            require_told(disk, error, fault)
            after_the_fault(runner, fault, error, (old, bytes(runner.oracle.model.content)))
            judge_closed(self.scene, disk, runner.expectation(), fault)
            return calls


def require_told(disk: FaultyDisk, error: BaseException | None, fault: Fault | None) -> None:
    """Nothing succeeded although a barrier failed in it, and nothing failed by itself."""
    if error is None and disk.failed(*BARRIERS):
        raise Violation("it succeeded although a barrier failed in it")
    if error is not None and not disk.hits:
        raise Violation(f"it failed by itself: {error!r}") from error
    if fault is not None and fault.kind.number == 0 and error is not None:
        raise Violation(f"it did not go on where a call did less than it was asked: {error!r}") from error


def after_the_fault(
    runner: FaultRunner, fault: Fault | None, error: BaseException | None, states: tuple[bytes, bytes]
) -> None:
    """The handle is poisoned, or goes on. Then it is closed, with the fault still on if that is for ever."""
    disk, volume = runner.disk, runner.volume
    if volume.closed:
        disk.end()
        return
    if fault is None or not fault.for_ever:
        disk.end()
    poisoned = volume.engine.failure is not None
    if disk.failed("fdatasync", path=PATH) and not poisoned:
        raise Violation("a barrier failed, and the handle is not poisoned")
    if poisoned:
        runner._require_poisoned()
        failed, _ = typed(lambda: volume.pread(1, 0))
        if not isinstance(failed, PoisonedError):
            raise Violation(f"a poisoned handle can be read: {failed!r}")
    else:
        require_bytes(runner, states, error, may_fail=fault is not None and fault.for_ever)
        if fault is None or not fault.for_ever:
            go_on(runner)
    failed, _ = typed(volume.close)
    if failed is not None and not poisoned and not (fault is not None and fault.for_ever):
        raise Violation(f"the handle cannot be closed: {failed!r}") from failed
    disk.end()


def require_bytes(
    runner: FaultRunner, states: tuple[bytes, bytes], error: BaseException | None, *, may_fail: bool
) -> None:
    """The live volume shows, sector by sector, what it was before the call or what it is behind it."""
    failed, live = typed(lambda: runner.volume.pread(runner.volume.size, 0))
    if failed is not None:
        if not may_fail:
            raise Violation(f"it cannot be read any more: {failed!r}") from failed
        return
    allowed = states if error is not None else states[1:]
    if live in allowed:
        return
    if len(live) not in map(len, allowed) or len(states[0]) != len(states[1]):
        raise Violation("the live volume is neither as before the call nor as behind it")
    for at in range(0, len(live), SECTOR):
        if live[at : at + SECTOR] not in [state[at : at + SECTOR] for state in allowed]:
            raise Violation(f"wrong bytes in live sector {at // SECTOR}")


def go_on(runner: FaultRunner) -> None:
    """All is well again: whatever is asked of the handle succeeds, and a reader beside it sees the snapshots."""
    runner.look_again(runner.expectation())
    for step in GO_ON:
        if runner.operation(step) is None:
            continue
        error = runner.attempt(step)
        if error is not None:
            raise Violation(f"it does not go on: {step[0]} raises {error!r}") from error
    look_beside(runner)


def look_beside(runner: FaultRunner) -> None:
    """No lock is left that would keep a reader out."""
    with Volume.open(PATH, read_only=True, io=runner.disk, background=False) as reader:
        shown = {each.name: None if each.is_anchor else each.pread(each.size, 0) for each in reader.snapshots()}
    known = {each.name: None if each.anchor else each.content for each in runner.oracle.model.snapshots}
    if shown != known:
        raise Violation(f"a reader beside sees snapshots {list(shown)}, not {list(known)}, or other bytes")


def judge_closed(
    scene: Scene, disk: FaultyDisk, expected: Expectation, fault: Fault | None, made: tuple[str, ...] = ()
) -> None:
    """Nothing leaks; and what a new process finds is right. `made` are files that should be there besides."""
    require_nothing_left(disk, sorted([*scene.names, *made]))
    runner = FaultRunner(disk, scene.geometry)
    if fault is not None and fault.for_ever:
        if disk.stale:  # what a failed barrier lost is still in the page cache
            runner.compare(look(runner), expected)
            return
        left = disk.cache
    else:
        left = after_a_power_cut(disk)
    key = fingerprint(left)
    if key not in SHOWN:
        if len(SHOWN) >= SHOWN_MAX:
            SHOWN.clear()
        SHOWN[key] = look(FaultRunner(MemoryDisk(left, recorded=False), scene.geometry))
    runner.compare(SHOWN[key], expected)


def after_a_power_cut(disk: FaultyDisk) -> Durable:
    """What barriers have covered, and nothing else."""
    *_, last = instants(disk.start, disk.journal)
    return last.durable


def now_left_by(disk: FaultyDisk, fault: Fault | None) -> MemoryDisk:
    """What a new process finds: behind a power cut, or a kill if the fault stayed on."""
    return disk if fault is not None and fault.for_ever else MemoryDisk(after_a_power_cut(disk))


def look(runner: FaultRunner) -> Shown:
    """All that a new process finds; it is checked."""
    try:
        runner.open()
        return runner.show()
    finally:
        runner.close()


def require_nothing_left(disk: FaultyDisk, names: list[str]) -> None:
    """No descriptor, file or thread."""
    if disk.files:
        raise Violation(f"left open: {sorted(each.path for each in disk.files.values())}")
    if sorted(disk.cache.entries) != names and not disk.failed("unlink", "rmdir", "rename"):
        raise Violation(f"left behind: {sorted(set(disk.cache.entries) ^ set(names))}")
    if threading.active_count() > 1 and any(each.name.startswith("cowengine") for each in threading.enumerate()):
        raise Violation(f"threads left: {[each.name for each in threading.enumerate()]}")


@dataclass(frozen=True)
class OpenCase:
    """Opens a volume as it was left: recovery, if that was no clean close."""

    name: str
    scene: Scene = field(repr=False)
    read_only: bool = False

    def play(self, fault: Fault | None) -> list[str]:
        with determinism(SEED):
            disk = FaultyDisk(self.scene.durable)
            runner = FaultRunner(disk, self.scene.geometry, self.scene.serial)
            expected: Expectation = pickle.loads(self.scene.expected)
            disk.watch(fault)
            error, volume = typed(lambda: Volume.open(PATH, read_only=self.read_only, io=disk, background=False))
            calls = list(disk.calls)
            require_told(disk, error, fault)
            if error is None:
                runner.volume = volume
                if fault is None or not fault.for_ever:
                    disk.end()
                    runner.look_again(expected)
                    expected = runner.expectation()
                    if not self.read_only:
                        go_on(runner)
                        expected = runner.expectation()
                typed(volume.close)
            disk.end()
            judge_closed(self.scene, disk, replace(expected, closed=False), fault)
            return calls


@dataclass(frozen=True)
class CloseCase:
    """Closes a volume that has something to commit."""

    name: str
    scene: Scene = field(repr=False)
    before: tuple[Step, ...] = ()

    def play(self, fault: Fault | None) -> list[str]:
        with determinism(SEED):
            disk = FaultyDisk(self.scene.durable)
            runner = FaultRunner(disk, self.scene.geometry)
            runner.resumed(self.scene)
            runner.run(self.before)
            runner.oracle.begin(("flush",))
            disk.watch(fault)
            error, _ = typed(runner.volume.close)
            calls = list(disk.calls)
            disk.end()
            require_told(disk, error, fault)
            if not runner.volume.closed:
                raise Violation("it is not closed")
            if error is None:
                runner.oracle.acknowledge()
            expected = replace(runner.expectation(), closed=fault is None)
            judge_closed(self.scene, disk, expected, fault)
            return calls


@dataclass(frozen=True)
class LookCase:
    """Asks something that changes nothing: the answer is that of an untroubled disk, or an error."""

    name: str
    scene: Scene = field(repr=False)
    look: Callable[[FaultRunner], Any] = field(repr=False)
    before: tuple[Step, ...] = ()
    answers: list[Any] = field(default_factory=list, repr=False)

    def play(self, fault: Fault | None) -> list[str]:
        with determinism(SEED):
            disk = FaultyDisk(self.scene.durable)
            runner = FaultRunner(disk, self.scene.geometry)
            runner.resumed(self.scene)
            runner.run(self.before)
            live = bytes(runner.oracle.model.content)
            disk.watch(fault)
            error, answer = typed(lambda: self.look(runner))
            calls = list(disk.calls)
            require_told(disk, error, fault)
            if fault is None:
                self.answers[:] = [answer]
            elif error is None and [answer] != self.answers:
                raise Violation(f"another answer than on a good disk: {answer!r:.200}")
            after_the_fault(runner, fault, error, (live, live))
            judge_closed(self.scene, disk, runner.expectation(), fault)
            return calls


def cuts(scene: Scene, step: Step, before: tuple[Step, ...], known: set[int]) -> list[Scene]:
    """The files that a crash leaves in the middle of a step, each of which an open goes another way about.

    But for those whose fingerprint is `known`.
    """
    with determinism(SEED):
        disk = FaultyDisk(scene.durable)
        runner = FaultRunner(disk, scene.geometry)
        runner.resumed(scene)
        runner.run(before)
        begun = len(disk.journal)
        operation = runner.operation(step)
        disk.note(runner.oracle.begin(operation))
        runner.call(operation)
        found = [
            Scene(left, pickle.dumps(instant.note), scene.geometry, runner.serial + 1)
            for instant in instants(disk.start, list(disk.journal))
            if instant.position > begun
            for left in left_by(instant)
        ]
        runner.close()
    ways: dict[tuple[str, ...], Scene] = {}
    for each in found:
        if fingerprint(each.durable) not in known:
            known.add(fingerprint(each.durable))
            ways.setdefault(tuple(OpenCase("", each).play(None)), each)
    return list(ways.values())


def left_by(instant: Any) -> list[Durable]:
    """With nothing of what no barrier covered, and with all of it."""
    nothing, everything = instant.durable.copy(), instant.durable.copy()
    for change in instant.pending:
        everything.apply(change)
    return [nothing, everything]


def all_closed(action: Callable[[], Any]) -> None:
    """For handles that may be closed already."""
    with suppress(CowEngineError):
        action()
