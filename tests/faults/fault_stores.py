"""The cases of a store: sets over several volumes, and all that is done to volumes, documents and the store itself."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from crash_images import fingerprint
from crash_oracle import Violation, content_of
from crash_workload import Step, determinism
from fault_cases import SEED, SHOWN_MAX, Case, left_by, now_left_by, require_nothing_left, require_told, typed
from fault_states import StateCase, World
from faulty_disk import BARRIERS, Fault, FaultyDisk
from memory_disk import Durable, MemoryDisk, instants
from set_workload import SET_PRELUDE, STORE, Joint, ShownStore, StoreRunner

from cowengine import Store, Volume
from cowengine.errors import CowEngineError, PoisonedError, StorageError

SHOWN: dict[int, ShownStore] = {}  # what stores showed to a new process, by fingerprint
GO_ON: tuple[Step, ...] = (
    ("single", "a", "write", 1, 1), ("single", "b", "flush"), ("set", 0), ("delete_set", 0),
    ("single", "c", "snapshot"),
)  # fmt: skip
STEPS: tuple[Step, ...] = (
    ("set", 0), ("set", 1), ("set", 3), ("delete_set", 0), ("single", "a", "flush"), ("single", "b", "snapshot"),
    ("single", "b", "delete", 1),
)  # fmt: skip
UNFLUSHED: tuple[Step, ...] = (("single", "a", "write", 2, 1), ("single", "b", "write", 1, 1))


# -- sets --------------------------------------------------------------------------------------------------------------
class FaultStoreRunner(StoreRunner):
    """A process on a disk that fails; `expected` is what may be found behind the last step."""

    error: CowEngineError | None = None
    expected: Joint

    def call(self, action: Any, names: tuple[str, ...], expected: Joint, opens_anew: bool = False) -> None:
        self.expected = expected
        self.disk.note(expected)
        self.error, result = typed(action)
        if self.error is None:
            for name in names:
                self.members[name].oracle.acknowledge(result[name] if isinstance(result, dict) else result)
            self.expected = self.expectation()
            self.disk.note(self.expected)

    def look_again(self, expected: Joint) -> None:
        """Of what may be found, what is."""
        found = self.look(expected, extents=False)
        self.sets.clear()
        self.resume(expected, found)
        self.expected = self.expectation()

    def is_poisoned(self) -> bool:
        return self.store.log.poison is not None or any(each.failure is not None for each in self.engines())


@dataclass(frozen=True)
class SetCase:
    """A step on an open store, behind something that is not flushed."""

    name: str
    start: Durable = field(repr=False)
    expected: bytes = field(repr=False)
    serial: int
    step: Step

    def play(self, fault: Fault | None) -> list[str]:
        with determinism(SEED):
            disk = FaultyDisk(self.start)
            runner = FaultStoreRunner(disk, self.serial)
            runner.open()
            runner.look_again(pickle.loads(self.expected))
            runner.run(UNFLUSHED)
            disk.watch(fault)
            runner.run((self.step,))
            calls = list(disk.calls)
            require_told(disk, runner.error, fault)
            for_ever = fault is not None and fault.for_ever
            if not for_ever:
                disk.end()
            go_on(runner, self.step, goes_on=not for_ever)
            disk.end()
            judge(disk, runner.expected, self.serial, fault)
            return calls


def go_on(runner: FaultStoreRunner, step: Step, *, goes_on: bool) -> None:
    """Closes the store. One in which nothing is poisoned does what it is asked before; else it says so."""
    poisoned = runner.is_poisoned()
    if runner.disk.failed(*BARRIERS) and not poisoned:
        raise Violation("a barrier failed, and nothing is poisoned")
    if poisoned:
        require_poisoned(runner)
    elif goes_on and not (runner.error and step[0] == "delete_set"):  # its members may go at the next open only
        runner.look_again(runner.expected)
        for step in GO_ON:
            runner.run((step,))
            if runner.error is not None:
                raise Violation(f"it does not go on: {step} raises {runner.error!r}") from runner.error
    failed, _ = typed(runner.close)
    if failed is not None and not poisoned and goes_on:
        raise Violation(f"the store cannot be closed: {failed!r}") from failed


def require_poisoned(runner: FaultStoreRunner) -> None:
    """What is poisoned says so."""
    for member in runner.members.values():
        if member.volume.engine.failure is not None:
            failed, _ = typed(member.volume.flush)
            if not isinstance(failed, PoisonedError):
                raise Violation(f"a poisoned volume can be flushed: {failed!r}")
    if runner.store.log.poison is not None:
        failed, _ = typed(lambda: runner.store.snapshot(["c"], "poisoned"))
        if not isinstance(failed, PoisonedError):
            raise Violation(f"a poisoned store takes a set: {failed!r}")


def judge(disk: FaultyDisk, expected: Joint, serial: int, fault: Fault | None) -> None:
    """Nothing leaks; and a new process finds all members before the step, or all behind it."""
    require_nothing_left(disk, sorted(disk.cache.entries))
    later = FaultStoreRunner(now_left_by(disk, fault), serial + 1000)
    key = fingerprint(later.disk.cache)
    if key not in SHOWN or later.disk.stale:
        if len(SHOWN) >= SHOWN_MAX:
            SHOWN.clear()
        try:
            later.open()
            SHOWN[key] = later.show()
        finally:
            later.close()
    later.compare(SHOWN[key], expected)


def set_cases() -> Iterator[Case]:
    with determinism(SEED):
        disk = FaultyDisk(Durable())
        runner = FaultStoreRunner(disk)
        runner.create()
        runner.run((*SET_PRELUDE, ("set", 0)))
        runner.close()
        start, expected = disk.cache, pickle.dumps(runner.expectation())
    for step in STEPS:
        yield SetCase(f"store:{'-'.join(map(str, step))}", start, expected, runner.serial, step)


# -- the rest ----------------------------------------------------------------------------------------------------------
def opened(disk: MemoryDisk) -> Store:
    return Store.open(STORE, io=disk, background=False)


def shown(disk: MemoryDisk) -> Any:
    """All volumes with their snapshots, all sets and documents; and what stands alone beside the store."""
    with opened(disk) as store:
        if store.problems:
            raise Violation(f"the store has problems: {store.problems}")
        report = store.check()
        if not report.ok:
            raise Violation(f"check: {report.problems[:3]}")
        volumes = {name: contents(store.open_volume(name)) for name in store.volumes()}
        sets = {each.name: (each.volumes, each.missing, each.ledger) for each in store.snapshot_sets()}
        documents = {each: store.get_document("backup", each) for each in store.documents("backup")}
    return volumes, sets, documents


def contents(volume: Volume) -> Any:
    return volume.pread(volume.size, 0), [(each.name, content_of(each)) for each in volume.snapshots()]


LEDGERS = ("/ledger.",)
STORES = World(opened, Store.close, shown)
NO_WORLD = World(lambda disk: disk, lambda disk: None, shown)  # nothing is open before the step and behind it


def cut(start: Durable, step: Callable[[Store], Any]) -> Durable:
    """What a crash in the middle of a step leaves, the one with which an open has the most to do."""
    with determinism(SEED):
        disk = MemoryDisk(start)
        store = opened(disk)
        begun = len(disk.journal)
        step(store)
        found = [
            left
            for instant in instants(disk.start, list(disk.journal))
            if instant.position > begun
            for left in left_by(instant)
        ]
        store.close()
    return max(found, key=calls_of_an_open)


def calls_of_an_open(left: Durable) -> int:
    disk = FaultyDisk(left)
    disk.watch(None)
    opened(disk).close()
    return len(disk.calls)


def some_store(disk: MemoryDisk) -> Durable:
    """Two volumes with snapshots of their own and a set each, a document, a ledger; closed."""
    with determinism(SEED + 1):  # other UUIDs than those of what a case makes
        create(disk)
        with opened(disk) as store:
            for each in ("a", "b"):
                with store.create_volume(each, 8192, log_size=16384) as volume:
                    volume.pwrite(each.encode() * 600, 3000)
                    volume.snapshot("own")
                    store.snapshot(["a"], f"of-{each}")
            store.put_document("backup", "one", {"a": 1})
            store.get_snapshot_set("of-a").put_ledger({"writers": []})
    return disk.cache.copy()


def store_cases() -> Iterator[Case]:
    """What a store does but for sets."""
    start = some_store(MemoryDisk())
    steps: dict[str, Callable[[Store], Any]] = {
        "create-volume": lambda store: store.create_volume("d", 8192, log_size=16384).close(),
        "delete-volume": lambda store: store.delete_volume("b"),
        "rename-volume": lambda store: store.rename_volume("a", "z"),
        "detach": lambda store: store.detach("b"),
        "put-document": lambda store: store.put_document("backup", "two", {"b": 2}),
        "replace-document": lambda store: store.put_document("backup", "one", {"a": 2}),
        "delete-document": lambda store: store.delete_document("backup", "one"),
        "ledger": lambda store: store.get_snapshot_set("of-a").put_ledger({"writers": [1]}),
        "set": lambda store: store.snapshot(["a", "b"], "both"),
        "delete-set": lambda store: store.get_snapshot_set("of-a").delete(),
        "close-unused": write_and_close,
    }
    for what, step in steps.items():
        # Nobody finds the ledger of a set that is gone, and nobody misses its place.
        yield StateCase(f"store:{what}", STORES, start, step, LEDGERS if what == "delete-set" else ())
    yield StateCase("store:close", World(opened_and_used, Store.close, shown), start, Store.close)
    yield StateCase("store:open", NO_WORLD, start, open_well)
    for what in ("delete-set", "set"):
        yield StateCase(f"store:open-cut-{what}", NO_WORLD, cut(start, steps[what]), open_well, LEDGERS)
    yield StateCase(
        "store:create", World(lambda disk: disk, lambda disk: None, shown_if_there), Durable(), create, ("/store/",)
    )


def open_well(disk: MemoryDisk) -> None:
    """What it could not do it says: a problem counts as an error here."""
    with opened(disk) as store:
        if store.problems:
            raise StorageError("; ".join(store.problems))


def write_and_close(store: Store) -> None:
    store.open_volume("a").pwrite(b"more", 0)
    store.hand_back("a")
    store.close_unused("a")


def opened_and_used(disk: MemoryDisk) -> Store:
    store = opened(disk)
    for name in store.volumes():
        volume = store.open_volume(name)
        volume.pwrite(b"used", 0)
        volume.flush()
    return store


def shown_if_there(disk: MemoryDisk) -> Any:
    return shown(disk) if f"{STORE}/store.log" in disk.cache.entries else None


def create(disk: MemoryDisk) -> None:
    Store.create(STORE, log_size=16384, io=disk, background=False).close()
