"""The cases of files: volumes made, adopted, flattened, exported, salvaged and repaired."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from adopt_explorer import INTENT, RAW, VOLUME, AdoptExplorer, Score, flatten
from adopt_explorer import PATH as IMAGE
from crash_oracle import UNKNOWN_NAME, Expectation, Violation
from crash_workload import PATH, PRELUDE, Geometry, determinism
from fault_cases import (
    SEED,
    Case,
    FaultRunner,
    Scene,
    after_the_fault,
    judge_closed,
    now_left_by,
    require_nothing_left,
    require_told,
    scene,
    typed,
)
from fault_volumes import BUSY, NARROW
from faulty_disk import Fault, FaultyDisk
from memory_disk import Durable, MemoryDisk, instants

from cowengine import FormatError, StorageError, Volume

COPY = "/disk/copy"
NAMED = "/disk/named"
EMPTY = Geometry(12 * 4096)


@dataclass(frozen=True)
class CreateCase:
    """Makes a new volume: it is there, or no file is."""

    name: str

    def play(self, fault: Fault | None) -> list[str]:
        with determinism(SEED):
            disk = FaultyDisk(Durable())
            runner = FaultRunner(disk, EMPTY)
            disk.watch(fault)
            error, _ = typed(runner.create)
            calls = list(disk.calls)
            require_told(disk, error, fault)
            if error is None:
                typed(runner.close)
            disk.end()
            names = ["/", "/disk", *([PATH] if error is None else [])]
            require_nothing_left(disk, names)
            later = FaultRunner(now_left_by(disk, fault), EMPTY)
            if PATH not in later.disk.cache.entries:
                if error is None:
                    raise Violation("it is gone")
                later.create()
            elif error is None:
                later.open()
                later.look(runner.expectation())
            later.close()
            return calls


@dataclass(frozen=True)
class AdoptCase:
    """A raw image becomes a volume, or one becomes a raw image: it is the one or the other, whole."""

    name: str
    start: Durable = field(repr=False)
    explorer: AdoptExplorer = field(repr=False)  # knows what the image holds
    work: Callable[[FaultyDisk, AdoptExplorer], Any] = field(repr=False)
    result: str | None

    def play(self, fault: Fault | None) -> list[str]:
        with determinism(SEED):
            explorer = copy.copy(self.explorer)
            explorer.rng, explorer.data = random.Random(SEED), bytearray(self.explorer.data)
            disk = FaultyDisk(self.start)
            disk.watch(fault)
            error, _ = typed(lambda: self.work(disk, explorer))
            calls = list(disk.calls)
            disk.end()
            require_told(disk, error, fault)
            image = NAMED if NAMED in disk.cache.entries else IMAGE
            expected = ["/", "/disk", image]
            if error is not None and INTENT in disk.cache.entries:
                expected.append(INTENT)  # documented: what is needed to go on
            require_nothing_left(disk, sorted(expected))
            left = now_left_by(disk, fault)
            left.faults = 0
            if NAMED in left.cache.entries:
                left.cache.entries[IMAGE] = left.cache.entries.pop(NAMED)
            found = explorer.settle(left)
            if error is None and self.result not in (None, found):
                raise Violation(f"it succeeded, and left a {found}")
            return calls


def adoptions(seed: int) -> Iterator[Case]:
    """Of one image, with holes: there, back, and what an interrupted way there leaves."""
    with determinism(SEED):
        explorer = AdoptExplorer(seed, Score())
        raw = explorer.disk_with(explorer.data).start
        yield AdoptCase(f"adopt:{seed}", raw, explorer, adopt, VOLUME)
        yield AdoptCase(f"adopt-as:{seed}", raw, explorer, adopt_as, VOLUME)
        disk = MemoryDisk(raw)
        explorer.adopt(disk).close()
        interrupted = dict[tuple[str, ...], Durable]()
        for instant in instants(disk.start, disk.journal):
            left = instant.durable.copy()
            for change in instant.pending:
                left.apply(change)
            if INTENT in left.entries:
                case = AdoptCase("", left, explorer, undo, None)
                interrupted.setdefault(tuple(case.play(None)), left)
        for number, left in enumerate(interrupted.values()):
            yield AdoptCase(f"undo-adoption:{seed}-{number}", left, explorer, undo, None)
            yield AdoptCase(f"adopt-again:{seed}-{number}", left, explorer, adopt_again, VOLUME)
        explorer = copy.copy(explorer)
        explorer.data = bytearray(explorer.data)
        explorer.change(Volume.open(IMAGE, io=disk, background=False))
        yield AdoptCase(f"flatten:{seed}", disk.cache.copy(), copy.copy(explorer), flattened, RAW)
        explorer.data = bytearray(explorer.data)
        explorer.move(Volume.open(IMAGE, io=disk, background=False))
        yield AdoptCase(f"flatten-by-copy:{seed}", disk.cache.copy(), explorer, flattened, RAW)


def adopt(disk: FaultyDisk, explorer: AdoptExplorer) -> None:
    explorer.adopt(disk).close()


def adopt_again(disk: FaultyDisk, explorer: AdoptExplorer) -> None:
    adopt(disk, explorer)


def adopt_as(disk: FaultyDisk, explorer: AdoptExplorer) -> None:
    Volume.adopt(
        IMAGE, NAMED, block_size=explorer.block_size, log_size=16384, raw=True, io=disk, background=False
    ).close()


def undo(disk: FaultyDisk, explorer: AdoptExplorer) -> None:
    try:
        Volume.undo_adoption(IMAGE, io=disk)
    except FormatError:  # it is a volume by now
        if disk.hits:
            raise


def flattened(disk: FaultyDisk, explorer: AdoptExplorer) -> None:
    flatten(disk)


@dataclass(frozen=True)
class CopyCase:
    """Writes a raw image out of an open volume: it is there, whole, or nothing is."""

    name: str
    scene: Scene = field(repr=False)
    write: Callable[[FaultRunner], Any] = field(repr=False)
    content: Callable[[FaultRunner], bytes] = field(repr=False)
    temporary: bool = False  # it is made of a snapshot that goes again

    def play(self, fault: Fault | None) -> list[str]:
        with determinism(SEED):
            disk = FaultyDisk(self.scene.durable)
            runner = FaultRunner(disk, self.scene.geometry)
            runner.resumed(self.scene)
            live, content = bytes(runner.oracle.model.content), self.content(runner)
            runner.oracle.begin(("flush",))
            disk.watch(fault)
            error, _ = typed(lambda: self.write(runner))
            calls = list(disk.calls)
            require_told(disk, error, fault)
            if error is None:
                runner.oracle.acknowledge()
            else:
                runner.oracle.begin(("snapshot", UNKNOWN_NAME))  # that of the live volume may be left
            after_the_fault(runner, fault, error, (live, live))
            # It may be there in spite of an error: that of deleting the snapshot it was made of.
            made = error is None or (self.temporary and COPY in disk.cache.entries)
            judge_closed(self.scene, disk, runner.expectation(), fault, (COPY,) if made else ())
            if made and not disk.failed("rename"):
                require_file(now_left_by(disk, fault), COPY, content)
            return calls


def require_file(disk: MemoryDisk, path: str, content: bytes) -> None:
    if path not in disk.cache.entries or disk.cache.files[disk.cache.entries[path]] != content:
        raise Violation(f"{path} is not what was acknowledged")


@dataclass(frozen=True)
class ClosedCase:
    """Does something to a file that nobody has open; it opens behind it, and shows what it did."""

    name: str
    scene: Scene = field(repr=False)
    work: Callable[[FaultyDisk], Any] = field(repr=False)
    made: tuple[str, ...] = ()

    def play(self, fault: Fault | None) -> list[str]:
        with determinism(SEED):
            disk = FaultyDisk(self.scene.durable)
            disk.watch(fault)
            error, _ = typed(lambda: self.work(disk))
            calls = list(disk.calls)
            disk.end()
            require_told(disk, error, fault)
            expected: Expectation = pickle.loads(self.scene.expected)
            judge_closed(self.scene, disk, expected, fault, self.made if error is None else ())
            return calls


def repair(disk: FaultyDisk) -> None:
    report = Volume.repair(PATH, io=disk)
    if not report.ok:
        raise Violation(f"check: {report.problems[:3]}")


def salvage(disk: FaultyDisk) -> None:
    """What it cannot read is a hole, and it says so."""
    report = Volume.salvage(PATH, COPY, io=disk)
    with untroubled(disk):
        with Volume.open(PATH, read_only=True, io=disk, background=False) as volume:
            content = volume.pread(volume.size, 0)
        require_salvaged(disk, report, content)


def salvaged(runner: FaultRunner, source: Any, content: Callable[[FaultRunner], bytes]) -> None:
    """Out of an open volume. A copy with holes counts as an error here, and goes."""
    report = source.export(COPY, salvage=True)
    with untroubled(runner.disk):
        require_salvaged(runner.disk, report, content(runner))
        if not report.ok:
            runner.disk.unlink(COPY)
            raise StorageError(str(report.problems))


@contextmanager
def untroubled(disk: FaultyDisk) -> Iterator[None]:
    """Calls neither count nor fail."""
    disk.inside = True
    try:
        yield
    finally:
        disk.inside = False


def require_salvaged(disk: FaultyDisk, report: Any, content: bytes) -> None:
    image = disk.cache.files[disk.cache.entries[COPY]]
    if report.ok and image != content:
        raise Violation("it says that all was read, and it was not")
    for at in range(0, len(content), 4096):
        if image[at : at + 4096] not in (content[at : at + 4096], bytes(len(content[at : at + 4096]))):
            raise Violation(f"wrong bytes in block {at // 4096}")


def damaged(scene: Scene, slot: int) -> Scene:
    """One superblock is gone."""
    durable = scene.durable.copy()
    durable.files[durable.entries[PATH]][slot * 4096 : slot * 4096 + 100] = bytes(100)
    return Scene(durable, scene.expected, scene.geometry, scene.serial)


def file_cases() -> Iterator[Case]:
    """All of them."""
    busy, small = scene(*BUSY, geometry=NARROW), scene(*PRELUDE, geometry=NARROW)
    yield CreateCase("create")
    yield from adoptions(3)
    yield CopyCase("flatten-snapshot", busy, lambda each: each.volume.snapshots()[1].flatten(COPY), second)
    yield CopyCase("export-snapshot", busy, lambda each: each.volume.snapshots()[1].export(COPY), second)
    yield CopyCase("flatten-beside", busy, lambda each: beside(each, "flatten"), second)
    yield CopyCase("export-beside", busy, lambda each: beside(each, "export"), second)
    yield CopyCase("export-live", busy, lambda each: each.volume.export(COPY), live, temporary=True)
    yield CopyCase("salvage-snapshot", busy, lambda each: salvaged(each, each.volume.snapshots()[1], second), second)
    yield CopyCase("salvage-live", busy, lambda each: salvaged(each, each.volume, live), live)
    yield ClosedCase("salvage", busy, salvage, (COPY,))
    yield ClosedCase("repair", busy, repair)
    for slot in (0, 1):
        yield ClosedCase(f"repair-superblock-{slot}", damaged(small, slot), repair)


def beside(runner: FaultRunner, method: str) -> None:
    """By a reader; the owner has it open."""
    with Volume.open(PATH, read_only=True, io=runner.disk, background=False) as reader:
        getattr(reader.snapshots()[1], method)(COPY)


def second(runner: FaultRunner) -> bytes:
    return runner.oracle.model.snapshots[1].content


def live(runner: FaultRunner) -> bytes:
    return bytes(runner.oracle.model.content)
