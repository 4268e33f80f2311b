"""The SQLite writer, alone and with a requestor."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

import cowengine
from cowengine.errors import BusyError, NotFoundError, OutOfRangeError, WriterError
from cowengine.sqlite import VFS, SQLiteWriter, open_snapshot, writers_of_store
from cowengine.sqlite.layout import JOURNAL, WAL
from cowengine.vss.discovery import load_writers
from cowengine.vss.writer import JobView


def job(seconds: float = 10.0, name: str = "job") -> JobView:
    return JobView(name, "snapshot", ("a.db",), deadline=time.monotonic() + seconds)


@pytest.fixture
def connection(vfs: VFS) -> Iterator[apsw.Connection]:
    made = vfs.connect("a.db")
    made.execute("CREATE TABLE t (v); INSERT INTO t VALUES (0)")
    yield made
    made.close()


@pytest.fixture
def writer(vfs: VFS) -> SQLiteWriter:
    return SQLiteWriter(vfs, "a.db")


def test_it_owns_the_volume_of_its_database(writer: SQLiteWriter) -> None:
    metadata = writer.identify()
    assert metadata.writer == "sqlite:a.db"
    assert metadata.volumes == ("a.db",)
    assert type(metadata).from_json(metadata.to_json()) == metadata


def test_while_frozen_nobody_writes_and_everybody_reads(writer: SQLiteWriter, connection: apsw.Connection) -> None:
    connection.set_busy_timeout(0)
    writer.freeze(job())
    with pytest.raises(apsw.BusyError):
        connection.execute("INSERT INTO t VALUES (1)")
    assert connection.execute("SELECT count(*) FROM t").fetchall() == [(1,)]
    writer.thaw(job())
    connection.execute("INSERT INTO t VALUES (1)")


def test_freeze_waits_for_the_transaction_that_is_being_written(
    writer: SQLiteWriter, connection: apsw.Connection
) -> None:
    connection.execute("BEGIN IMMEDIATE; INSERT INTO t VALUES (1)")
    timer = threading.Timer(0.2, lambda: connection.execute("COMMIT"))
    timer.start()
    began = time.monotonic()
    writer.freeze(job())
    assert 0.15 < time.monotonic() - began < 5
    timer.join()
    assert not connection.in_transaction
    writer.thaw(job())


def test_a_transaction_that_does_not_end_is_a_veto_and_nobody_stays_frozen(
    writer: SQLiteWriter, connection: apsw.Connection, vfs: VFS
) -> None:
    connection.execute("BEGIN IMMEDIATE; INSERT INTO t VALUES (1)")
    with pytest.raises(WriterError, match="did not end in time"):
        writer.freeze(job(0.1))
    connection.execute("COMMIT; INSERT INTO t VALUES (2)")


def test_abort_thaws_any_number_of_times_from_any_thread(writer: SQLiteWriter, connection: apsw.Connection) -> None:
    connection.set_busy_timeout(0)
    writer.abort(job())
    writer.freeze(job())
    threads = [threading.Thread(target=writer.abort, args=(job(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    connection.execute("INSERT INTO t VALUES (1)")
    writer.abort(job())


def test_abort_ends_a_freeze_that_waits(writer: SQLiteWriter, connection: apsw.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE; INSERT INTO t VALUES (1)")
    threading.Timer(0.1, writer.abort, (job(),)).start()
    began = time.monotonic()
    with pytest.raises(WriterError, match="aborted"):
        writer.freeze(job())
    assert time.monotonic() - began < 5
    connection.execute("COMMIT; INSERT INTO t VALUES (2)")


def test_another_jobs_abort_does_not_thaw(writer: SQLiteWriter, connection: apsw.Connection) -> None:
    connection.set_busy_timeout(0)
    writer.freeze(job())
    writer.abort(job(name="another"))
    with pytest.raises(apsw.BusyError):
        connection.execute("INSERT INTO t VALUES (1)")
    writer.thaw(job())


def test_a_thaw_that_comes_too_late_says_so_and_the_database_goes_on(
    writer: SQLiteWriter, connection: apsw.Connection
) -> None:
    short = job(0.1)
    writer.freeze(short)
    connection.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(WriterError, match="its own clock"):
        writer.thaw(short)


def test_a_missing_database_is_a_veto(vfs: VFS) -> None:
    writer = SQLiteWriter(vfs, "missing.db")
    for event in (writer.prepare_snapshot, writer.freeze):
        with pytest.raises(NotFoundError):
            event(job())
    writer.abort(job())
    assert vfs.store.volumes() == []


def test_prepare_rolls_a_journal_back_that_a_crash_left(vfs: VFS, tmp_path: Path) -> None:
    connection = vfs.connect("a.db")
    connection.execute("CREATE TABLE t (v)")
    with connection:
        connection.executemany("INSERT INTO t VALUES (?)", [("x" * 100,)] * 1000)
    connection.execute("PRAGMA cache_size = 5; PRAGMA cache_spill = 5; BEGIN; UPDATE t SET v = 'half'")
    taken = vfs.store.snapshot(["a.db"], "hot")
    connection.execute("ROLLBACK")
    connection.close()
    backup = cowengine.Requestor(vfs.store).backup(str(tmp_path / "target"), snapshot_set=taken)
    with cowengine.Store.create(tmp_path / "second") as store, VFS(store, "second") as second:
        cowengine.restore(str(tmp_path / "target"), backup.id, store)
        database = second.database("a.db")
        assert database is not None
        assert database.exists(JOURNAL)
        assert SQLiteWriter(second, "a.db").prepare_snapshot(job()) == {"journal_mode": "delete"}
        assert not database.exists(JOURNAL)


def test_a_wal_needs_the_applications_connection(vfs: VFS) -> None:
    lock = threading.Lock()
    owner = vfs.connect("a.db", exclusive=True)
    owner.execute("PRAGMA journal_mode = WAL; CREATE TABLE t (v); INSERT INTO t VALUES (1)").fetchall()
    with pytest.raises(BusyError, match="connection="):
        SQLiteWriter(vfs, "a.db").prepare_snapshot(job(0.3))
    writer = SQLiteWriter(vfs, "a.db", connection=owner, lock=lock)
    assert writer.prepare_snapshot(job()) == {"journal_mode": "wal"}
    database = vfs.database("a.db")
    assert database is not None
    assert database.length(WAL) == 0
    writer.freeze(job())
    assert lock.locked()
    writer.thaw(job())
    assert not lock.locked()
    writer.freeze(job())
    writer.abort(job())
    writer.abort(job())
    assert not lock.locked()
    owner.execute("BEGIN; INSERT INTO t VALUES (2)")
    with pytest.raises(BusyError, match="outside the lock"):
        writer.freeze(job())
    assert not lock.locked()
    owner.execute("COMMIT")
    with lock, pytest.raises(WriterError, match="in time"):
        writer.freeze(job(0.1))
    owner.close()


def test_connection_and_lock_come_together(vfs: VFS, connection: apsw.Connection) -> None:
    with pytest.raises(OutOfRangeError):
        SQLiteWriter(vfs, "a.db", connection=connection)


def test_a_requestor_takes_sets_without_half_transactions(vfs: VFS) -> None:
    """Two threads write; each set, opened without any recovery to do, holds whole transactions."""
    setup = vfs.connect("a.db")
    setup.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
    with setup:
        setup.executemany("INSERT INTO t VALUES (?, 0)", [(number,) for number in range(200)])
    stop = threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        own = vfs.connect("a.db", busy_timeout=60)
        try:
            while not stop.is_set():
                own.execute("BEGIN IMMEDIATE; UPDATE t SET v = v + 1; COMMIT")
        except BaseException as failure:
            failures.append(failure)
        finally:
            own.close()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    requestor = cowengine.Requestor(vfs.store, writers=[SQLiteWriter(vfs, "a.db")])
    try:
        for number in range(8):
            taken = requestor.snapshot(["a.db"], f"set-{number}")
            outcomes = {entry["phase"]: entry["outcome"] for entry in taken.ledger["entries"]}
            assert outcomes["freeze"] == outcomes["thaw"] == "ok"
            frozen = open_snapshot(taken, "a.db")
            assert len(frozen.execute("SELECT DISTINCT v FROM t").fetchall()) == 1
            frozen.close()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    setup.close()


def test_a_restore_lets_the_writer_check_what_came_back(vfs: VFS, connection: apsw.Connection, tmp_path: Path) -> None:
    requestor = cowengine.Requestor(vfs.store, writers=[SQLiteWriter(vfs, "a.db")])
    backup = requestor.backup(str(tmp_path / "target"), volumes=["a.db"])
    target = str(tmp_path / "target")
    with cowengine.Store.create(tmp_path / "second") as store, VFS(store, "second") as second:
        cowengine.restore(target, backup.id, store, writers=[SQLiteWriter(second, "a.db")])
        assert not second.in_use("a.db")
        restored = second.connect("a.db", create=False)
        assert restored.execute("SELECT count(*) FROM t").fetchall() == [(1,)]
        restored.close()
    cowengine.restore(target, backup.id, str(tmp_path / "folder"), writers=[SQLiteWriter(vfs, "a.db")])
    assert (tmp_path / "folder" / "a.db.raw").exists()


def test_a_damaged_database_fails_the_restore_and_leaves_nothing(
    vfs: VFS, connection: apsw.Connection, tmp_path: Path
) -> None:
    """The bytes come back as they were, so the writer alone can tell that the database in them is broken."""
    with connection:
        connection.executemany("INSERT INTO t VALUES (?)", [("x" * 1000,)] * 200)
    volume = vfs.store.open_volume("a.db")
    database = vfs.database("a.db")
    assert database is not None
    area: Any = database.areas[0]
    volume.pwrite(b"\xff" * 4096, area.offset + 5 * 4096)
    taken = vfs.store.snapshot(["a.db"], "damaged")
    backup = cowengine.Requestor(vfs.store).backup(str(tmp_path / "target"), snapshot_set=taken)
    with cowengine.Store.create(tmp_path / "second") as store, VFS(store, "second") as second:
        with pytest.raises((WriterError, apsw.Error)):
            cowengine.restore(str(tmp_path / "target"), backup.id, store, writers=[SQLiteWriter(second, "a.db")])
        assert store.volumes() == []


def test_pre_restore_refuses_while_a_connection_is_open(
    vfs: VFS, writer: SQLiteWriter, connection: apsw.Connection
) -> None:
    with pytest.raises(BusyError):
        writer.pre_restore(job())
    connection.execute("INSERT INTO t VALUES (1)")


def test_each_database_of_a_store_gets_a_writer(vfs: VFS, connection: apsw.Connection) -> None:
    vfs.store.create_volume("not a database", 1 << 20)
    assert [each.name for each in writers_of_store(vfs.store)] == ["sqlite:a.db"]
    assert [each.name for each in load_writers("sqlite", vfs.store)] == ["sqlite:a.db"]
