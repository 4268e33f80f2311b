"""The cases of those who use a store: who asks for snapshots and backups of it, and SQLite.

Threads of theirs make the calls; each waits for the other.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import apsw
from crash_oracle import Violation
from crash_workload import determinism
from fault_backups import TARGET, write
from fault_cases import SEED, Case
from fault_states import Asked, StateCase, World
from fault_stores import LEDGERS, create, opened, shown, some_store
from memory_disk import MemoryDisk
from set_workload import STORE

from cowengine import Requestor, Store, Volume, Writer
from cowengine.backup import restore
from cowengine.errors import PoisonedError, StorageError
from cowengine.sqlite import VFS, SQLiteWriter, extract, open_snapshot, writers_of_store
from cowengine.vss import Component, WriterMetadata

DATABASE, OUT = "bank.db", "/disk/out.db"
CAPACITY = 1 << 20


def application_cases() -> Iterator[Case]:
    """All of them."""
    start = some_store(MemoryDisk())
    steps: dict[str, Callable[[Store], Any]] = {
        "snapshot": lambda store: store_of(store).snapshot(["a", "b"], "asked"),
        "rehearse": lambda store: store_of(store).rehearse(["a"]),
        "status": Asked(lambda store: store_of(store).writer_status()),
        "backup": lambda store: store_of(store).backup(io.BytesIO(), snapshot_set="of-a"),
    }
    for what, step in steps.items():
        yield StateCase(f"requestor:{what}", REQUESTED, start, ended(step), LEDGERS)
    yield restore_to_a_store()
    yield from sqlite_cases()


def restore_to_a_store() -> Case:
    disk = MemoryDisk()
    create(disk)
    with determinism(SEED + 3), Volume.create("/disk/v", 8192, log_size=16384, io=disk, background=False) as volume:
        disk.mkdir(TARGET)
        volume.pwrite(b"backed up" * 200, 700)
        kept = write(volume, "one", "full").id

    def restored(store: Store) -> None:
        restore(TARGET, kept, store, io=store.log._io)

    return StateCase("backup:restore-to-store", STORES, disk.cache, restored, UNFINISHED)


# -- who asks ----------------------------------------------------------------------------------------------------------
class Quiet(Writer):
    """Concerned, and content with everything."""

    name = "quiet"

    def identify(self) -> WriterMetadata:
        return WriterMetadata(writer=self.name, components=(Component("all", volumes=("a",)),))


def store_of(store: Store) -> Requestor:
    return Requestor(store, [Quiet()])


def ended(step: Callable[[Store], Any]) -> Callable[[Store], Any]:
    """The step, and the ends of the threads that it began."""

    def run(store: Store) -> Any:
        try:
            return step(store)
        finally:
            for thread in threading.enumerate():
                if thread.name.startswith("cowengine"):
                    thread.join()

    return run


def shown_without_ledgers(disk: MemoryDisk) -> Any:
    """What a ledger says of times is another thing each time."""
    volumes, sets, documents = shown(disk)
    return volumes, {name: (members, missing) for name, (members, missing, _) in sets.items()}, documents


def shown_but_unfinished(disk: MemoryDisk) -> Any:
    """What a restore could not remove again, the next one does, and nobody takes it for a volume of his."""
    volumes, *more = shown(disk)
    return {name: content for name, content in volumes.items() if not name.startswith(UNFINISHED)}, more


REQUESTED = World(opened, Store.close, shown_without_ledgers)
STORES = World(opened, Store.close, shown_but_unfinished)
UNFINISHED = (".restoring", ".new")


# -- SQLite ------------------------------------------------------------------------------------------------------------
@dataclass
class Bank:
    """A store with a database that is open."""

    store: Store
    vfs: VFS = field(init=False)
    connection: Any = field(init=False)

    def __post_init__(self) -> None:
        try:
            self.vfs = VFS(self.store, f"bank-{id(self):x}", capacity=CAPACITY)
            self.connection = self.vfs.connect(DATABASE)
        except BaseException:
            self.store.close()
            raise

    def close(self) -> None:
        try:
            with told(self):
                self.connection.close()
        finally:
            try:
                self.vfs.close()
            finally:
                self.store.close()
                if self.vfs.name in apsw.vfs_names():
                    raise Violation("the VFS is left")


@contextmanager
def told(bank: Bank) -> Iterator[None]:
    """SQLite tells errors by classes of its own."""
    try:
        yield
    except apsw.Error as error:
        is_poisoned = bank.store.open_volume(DATABASE, hand_out=False).engine.failure is not None
        raise (PoisonedError if is_poisoned else StorageError)(f"{type(error).__name__}: {error}") from error


def bank(disk: MemoryDisk) -> Bank:
    return Bank(opened(disk))


def sqlite_cases() -> Iterator[Case]:
    disk = MemoryDisk()
    with determinism(SEED + 4):
        Store.create(STORE, log_size=16384, io=disk, background=False).close()
        opened_bank = bank(disk)
        opened_bank.connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES (1, 'old')")
        opened_bank.connection.execute("INSERT INTO t VALUES (2, 'kept')")
        opened_bank.store.open_volume(DATABASE, hand_out=False).snapshot("before")
        opened_bank.store.create_volume("none", 8192, log_size=16384).close()
        opened_bank.close()
    start = disk.cache
    steps: dict[str, Callable[[Bank], Any]] = {
        "transaction": transaction,
        "writer": lambda bank: Requestor(bank.store, [SQLiteWriter(bank.vfs, DATABASE)]).snapshot([DATABASE], "asked"),
        "look": Asked(looked),
        "extract": lambda bank: extract(before(bank), OUT, io=bank.store.log._io),
    }
    for what, step in steps.items():
        yield StateCase(f"sqlite:{what}", BANKS, start, ended(in_words(step)), (*LEDGERS, ".part"))


def in_words(step: Callable[[Bank], Any]) -> Callable[[Any], Any]:
    def run(bank: Bank) -> Any:
        with told(bank):
            return step(bank)

    return run


def transaction(bank: Bank) -> None:
    bank.connection.execute("UPDATE t SET v = 'new' WHERE id = 1")


def before(bank: Bank) -> Any:
    return bank.store.open_volume(DATABASE, hand_out=False).get_snapshot("before")


def looked(bank: Bank) -> Any:
    writers = [each.name for each in writers_of_store(bank.store)]
    return bank.vfs.databases(), writers, rows_of(open_snapshot(before(bank)))


def rows_of(connection: Any) -> Any:
    try:
        return connection.execute("SELECT * FROM t ORDER BY id").fetchall()
    finally:
        connection.close()


def banked(disk: MemoryDisk) -> Any:
    """What the database holds, and its snapshots; what came out of it."""
    found = bank(disk)
    try:
        report = found.store.check()
        if found.store.problems or not report.ok:
            raise Violation(f"the store has problems: {found.store.problems} {report.problems[:3]}")
        if found.connection.pragma("integrity_check") != "ok":
            raise Violation("the database is damaged")
        rows = found.connection.execute("SELECT * FROM t ORDER BY id").fetchall()
        snapshots = [each.name for each in found.store.open_volume(DATABASE, hand_out=False).snapshots()]
        return rows, snapshots, [each.name for each in found.store.snapshot_sets()], out(disk)
    finally:
        found.close()


def out(disk: MemoryDisk) -> bytes | None:
    inode = disk.cache.entries.get(OUT)
    return None if inode is None else bytes(disk.cache.files[inode])


BANKS = World(bank, Bank.close, banked)
