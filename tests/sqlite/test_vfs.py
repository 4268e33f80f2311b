"""Databases on volumes, through SQLite itself."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import apsw
import pytest

import cowengine
from cowengine.errors import BusyError, ClosedError, ExistsError, FormatError, NotFoundError, OutOfRangeError
from cowengine.sqlite import VFS
from cowengine.sqlite.layout import JOURNAL, MAIN, WAL, volume_bytes


def count(connection: apsw.Connection, table: str = "t") -> int:
    return int(connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0])


def make_table(vfs: VFS, name: str = "a.db", rows: int = 0) -> apsw.Connection:
    connection = vfs.connect(name)
    connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
    with connection:
        connection.executemany("INSERT INTO t (v) VALUES (?)", [(number,) for number in range(rows)])
    return connection


def is_sound(connection: apsw.Connection) -> bool:
    return bool(connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)])


@pytest.mark.parametrize("mode", ["delete", "truncate", "persist", "memory", "off", "wal"])
def test_every_journal_mode_keeps_what_was_committed_and_drops_what_was_not(store: cowengine.Store, mode: str) -> None:
    with VFS(store, capacity=64 << 20) as vfs:
        connection = vfs.connect("a.db", exclusive=mode == "wal")
        assert connection.pragma("journal_mode", mode) == mode
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
        for number in range(20):
            with connection:
                connection.execute("INSERT INTO t (v) VALUES (?)", (number,))
        if mode != "off":
            connection.execute("BEGIN; DELETE FROM t; ROLLBACK")
        connection.close()
    with VFS(store) as vfs:
        connection = vfs.connect("a.db", create=False, exclusive=mode == "wal")
        assert is_sound(connection)
        assert count(connection) == 20
        connection.close()


def test_a_database_survives_a_reopened_store(tmp_path: Path) -> None:
    with cowengine.Store.create(tmp_path / "s") as store, VFS(store) as vfs:
        make_table(vfs, rows=1000).close()
    with cowengine.Store.open(tmp_path / "s") as store, VFS(store) as vfs:
        assert vfs.databases() == ["a.db"]
        connection = vfs.connect("a.db", create=False)
        assert count(connection) == 1000
        connection.close()


def test_a_second_committer_is_busy_and_readers_are_not(vfs: VFS) -> None:
    first, second = make_table(vfs, rows=3), vfs.connect("a.db", busy_timeout=0)
    first.execute("BEGIN IMMEDIATE; DELETE FROM t")
    with pytest.raises(apsw.BusyError):
        second.execute("BEGIN IMMEDIATE")
    assert count(second) == 3
    first.execute("COMMIT")
    assert count(second) == 0
    second.execute("BEGIN IMMEDIATE; ROLLBACK")
    first.close()
    second.close()


def test_a_reader_holds_a_commit_up_and_then_it_succeeds(vfs: VFS) -> None:
    committer, reader = make_table(vfs, rows=3), vfs.connect("a.db")
    committer.set_busy_timeout(0)
    reader.execute("BEGIN; SELECT * FROM t").fetchall()
    committer.execute("BEGIN; DELETE FROM t")
    with pytest.raises(apsw.BusyError):
        committer.execute("COMMIT")
    assert count(reader) == 3
    reader.execute("COMMIT")
    committer.execute("COMMIT")
    assert count(reader) == 0
    reader.close()
    committer.close()


def test_a_busy_timeout_waits_for_the_other_connection(vfs: VFS) -> None:
    first, second = make_table(vfs), vfs.connect("a.db", busy_timeout=20)
    first.execute("BEGIN IMMEDIATE; INSERT INTO t VALUES (1, 1)")
    thread = threading.Timer(0.3, lambda: first.execute("COMMIT"))
    thread.start()
    second.execute("INSERT INTO t VALUES (2, 2)")
    thread.join()
    assert count(second) == 2
    first.close()
    second.close()


def test_threads_that_move_money_lose_none(vfs: VFS) -> None:
    connection = vfs.connect("bank.db")
    connection.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER)")
    with connection:
        connection.executemany("INSERT INTO account VALUES (?, 100)", [(number,) for number in range(50)])
    failures: list[BaseException] = []

    def move(seed: int) -> None:
        randomness = random.Random(seed)
        own = vfs.connect("bank.db", busy_timeout=60)
        try:
            for _ in range(40):
                payer, payee = randomness.sample(range(50), 2)
                with own:
                    own.execute("UPDATE account SET balance = balance - 1 WHERE id = ?", (payer,))
                    own.execute("UPDATE account SET balance = balance + 1 WHERE id = ?", (payee,))
                assert own.execute("SELECT sum(balance) FROM account").fetchall() == [(5000,)]
        except apsw.BusyError:  # both read, both want to write: SQLite tells one to start again at once
            failures.append(AssertionError("a deferred transaction should not have been read first"))
        except BaseException as failure:
            failures.append(failure)
        finally:
            own.close()

    threads = [threading.Thread(target=move, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert is_sound(connection)
    connection.close()


def test_a_wal_belongs_to_one_connection(vfs: VFS) -> None:
    owner = vfs.connect("a.db", exclusive=True)
    owner.pragma("journal_mode", "wal")
    owner.execute("CREATE TABLE t (v)")
    other = vfs.connect("a.db", busy_timeout=0)
    with pytest.raises(apsw.BusyError):
        count(other)
    other.close()
    owner.close()


def test_large_blobs_come_back_whole(vfs: VFS) -> None:
    blobs = [os.urandom(size) for size in (1, 4095, 4096, 1 << 20, 9_000_001)]
    connection = make_table(vfs)
    for blob in blobs:
        connection.execute("INSERT INTO t (v) VALUES (?)", (blob,))
    other = vfs.connect("a.db")
    assert [row[0] for row in other.execute("SELECT v FROM t ORDER BY id")] == blobs
    other.close()
    connection.close()


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_every_page_size_works(vfs: VFS, page_size: int) -> None:
    connection = vfs.connect("a.db")
    connection.pragma("page_size", page_size)
    connection.execute("CREATE TABLE t (v)")
    with connection:
        connection.executemany("INSERT INTO t VALUES (?)", [(os.urandom(300),) for _ in range(500)])
    assert connection.pragma("page_size") == page_size
    assert is_sound(connection)
    connection.close()


def test_vacuum_gives_the_space_back(vfs: VFS) -> None:
    connection = make_table(vfs)
    with connection:
        connection.executemany("INSERT INTO t (v) VALUES (?)", [(os.urandom(1000),) for _ in range(4000)])
    volume = vfs.store.open_volume("a.db")
    before = int(volume.allocated_extents()[:, 1].sum())
    connection.execute("DELETE FROM t WHERE id > 100")
    connection.execute("VACUUM")
    assert int(volume.allocated_extents()[:, 1].sum()) < before // 3
    assert is_sound(connection)
    assert count(connection) == 100
    connection.close()


def test_many_databases_live_beside_each_other(vfs: VFS) -> None:
    names = [f"tenant {number:02} ü.db" for number in range(20)]
    for number, name in enumerate(names):
        make_table(vfs, name, rows=number).close()
    assert vfs.databases() == sorted(names)
    for number, name in enumerate(names):
        connection = vfs.connect(name, create=False)
        assert count(connection) == number
        connection.close()


def test_a_full_database_says_so_and_stays_sound(store: cowengine.Store) -> None:
    with VFS(store, capacity=1 << 20) as vfs:
        connection = make_table(vfs, rows=10)
        with pytest.raises(apsw.FullError):
            connection.execute("INSERT INTO t (v) VALUES (?)", (os.urandom(2 << 20),))
        assert is_sound(connection)
        assert count(connection) == 10
        connection.execute("INSERT INTO t (v) VALUES (11)")
        connection.close()


def test_sorting_more_than_memory_holds_uses_temporary_files(vfs: VFS) -> None:
    connection = make_table(vfs)
    connection.execute("PRAGMA cache_size = 10; PRAGMA temp_store = FILE; CREATE TEMP TABLE x (v)")
    with connection:
        connection.executemany("INSERT INTO x VALUES (?)", [(os.urandom(100),) for _ in range(5000)])
    ordered = [row[0] for row in connection.execute("SELECT v FROM x ORDER BY v")]
    assert ordered == sorted(ordered)
    connection.close()
    assert vfs.store.volumes() == ["a.db"]


def test_a_transaction_over_attached_databases_is_refused_whole(vfs: VFS) -> None:
    make_table(vfs, "b.db").close()
    connection = make_table(vfs, "a.db")
    connection.execute("ATTACH 'b.db' AS b")
    with pytest.raises((apsw.CantOpenError, apsw.IOError)):
        connection.execute("BEGIN; INSERT INTO main.t VALUES (1, 1); INSERT INTO b.t VALUES (1, 1); COMMIT")
    if connection.in_transaction:
        connection.execute("ROLLBACK")
    assert (count(connection, "main.t"), count(connection, "b.t")) == (0, 0)
    connection.execute("INSERT INTO b.t VALUES (2, 2)")
    connection.close()


def test_a_rolled_back_journal_leaves_no_file(vfs: VFS) -> None:
    connection = make_table(vfs, rows=5)
    connection.execute("BEGIN; DELETE FROM t")
    database = vfs.database("a.db")
    assert database is not None
    assert database.exists(JOURNAL)
    connection.execute("ROLLBACK")
    assert [database.exists(file) for file in (MAIN, JOURNAL, WAL)] == [True, False, False]
    assert database.length(MAIN) == 4096 * int(connection.pragma("page_count"))
    connection.close()


def test_export_writes_a_file_any_sqlite_opens(vfs: VFS, tmp_path: Path) -> None:
    connection = make_table(vfs, rows=500)
    vfs.export("a.db", tmp_path / "out.db")
    plain = sqlite3.connect(tmp_path / "out.db")
    assert plain.execute("SELECT count(*) FROM t").fetchone() == (500,)
    plain.close()
    with pytest.raises(ExistsError):
        vfs.export("a.db", tmp_path / "out.db")
    with pytest.raises(NotFoundError):
        vfs.export("none.db", tmp_path / "other.db")
    assert not (tmp_path / "other.db").exists()
    connection.close()


def test_an_export_that_cannot_read_is_busy_and_leaves_no_file(vfs: VFS, tmp_path: Path) -> None:
    connection = make_table(vfs, rows=5)
    connection.execute("BEGIN EXCLUSIVE")
    with pytest.raises(BusyError):
        vfs.export("a.db", tmp_path / "out.db", busy_timeout=0.05)
    assert list(tmp_path.glob("out.db*")) == []
    connection.execute("ROLLBACK")
    connection.close()


@pytest.mark.parametrize(
    "name", ["", "a/b", "..", "nul\0", "x" * 300, ":memory:", "file:x", "a.db-wal", "a.db-journal", 7, None]
)
def test_a_name_that_cannot_be_is_refused_and_makes_no_volume(vfs: VFS, name: str) -> None:
    with pytest.raises(OutOfRangeError):
        vfs.connect(name)
    assert vfs.store.volumes() == []


def test_a_missing_database_is_not_made_by_looking(vfs: VFS) -> None:
    for options in ({"create": False}, {"read_only": True}):
        with pytest.raises(NotFoundError, match=r"missing\.db"):
            vfs.connect("missing.db", **options)
    with pytest.raises(apsw.CantOpenError):
        apsw.Connection("missing.db", apsw.SQLITE_OPEN_READWRITE, vfs=vfs.name)
    assert vfs.store.volumes() == []


def test_a_read_only_connection_cannot_write(vfs: VFS) -> None:
    make_table(vfs, rows=2).close()
    connection = vfs.connect("a.db", read_only=True)
    assert count(connection) == 2
    with pytest.raises(apsw.ReadOnlyError):
        connection.execute("DELETE FROM t")
    connection.close()


def test_a_read_only_store_serves_databases_read_only(tmp_path: Path) -> None:
    with cowengine.Store.create(tmp_path / "s") as store, VFS(store) as vfs:
        make_table(vfs, rows=4).close()
    with cowengine.Store.open(tmp_path / "s", read_only=True) as store, VFS(store) as vfs:
        connection = vfs.connect("a.db", create=False)
        assert count(connection) == 4
        with pytest.raises(apsw.ReadOnlyError):
            connection.execute("DELETE FROM t")
        connection.close()


def test_another_volume_is_no_database_and_stays_as_it_is(vfs: VFS) -> None:
    volume = vfs.store.create_volume("raw", volume_bytes(1 << 20))
    volume.pwrite(b"data", 0)
    with pytest.raises(FormatError):
        vfs.connect("raw")
    assert vfs.databases() == []
    assert volume.pread(4, 0) == b"data"


def test_listing_databases_takes_no_volume_into_use(vfs: VFS) -> None:
    make_table(vfs).close()
    for name, size in (("raw", 8 << 20), ("tiny", 512), ("x-wal", 8 << 20)):
        vfs.store.create_volume(name, size).close()
    assert vfs.databases() == ["a.db"]
    with pytest.raises(FormatError, match="too small"):
        vfs.connect("tiny")
    vfs.store.open_volume("tiny").close()
    for name in ("raw", "tiny", "x-wal"):
        vfs.store.delete_volume(name)
    assert vfs.store.volumes() == ["a.db"]


def test_releasing_needs_all_connections_closed(vfs: VFS) -> None:
    connection = make_table(vfs)
    assert vfs.in_use("a.db")
    with pytest.raises(BusyError):
        vfs.release("a.db")
    connection.close()
    assert not vfs.in_use("a.db")
    vfs.release("a.db")
    vfs.store.delete_volume("a.db")
    assert vfs.databases() == []


def test_a_rolled_back_volume_is_the_database_it_was(vfs: VFS) -> None:
    connection = make_table(vfs, rows=10)
    volume = vfs.store.open_volume("a.db")
    snapshot = volume.snapshot("before")
    with connection:
        connection.executemany("INSERT INTO t (v) VALUES (?)", [(os.urandom(1000),) for _ in range(200)])
    connection.close()
    volume.rollback(snapshot)
    connection = vfs.connect("a.db", create=False)
    assert is_sound(connection)
    assert count(connection) == 10
    connection.close()


def test_a_volume_that_was_closed_meanwhile_is_opened_again(vfs: VFS) -> None:
    make_table(vfs, rows=10).close()
    vfs.store.open_volume("a.db").close()
    connection = vfs.connect("a.db", create=False)
    assert count(connection) == 10
    connection.close()


def test_a_closed_vfs_refuses_and_is_unregistered(store: cowengine.Store) -> None:
    vfs = VFS(store, "mine")
    assert "mine" in apsw.vfs_names()
    vfs.close()
    vfs.close()
    assert "mine" not in apsw.vfs_names()
    with pytest.raises(ClosedError):
        vfs.connect("a.db")


def test_a_store_has_one_vfs_and_a_name_one_owner(vfs: VFS, tmp_path: Path) -> None:
    with pytest.raises(ExistsError, match="has a VFS"):
        VFS(vfs.store, "second")
    assert VFS.of(vfs.store) is vfs
    with cowengine.Store.create(tmp_path / "other") as other:
        with pytest.raises(ExistsError, match=vfs.name):
            VFS(other)
        with VFS.of(other) as made:
            assert made.name != vfs.name


def test_without_apsw_the_error_names_the_extra() -> None:
    program = (
        "import sys; sys.modules['apsw'] = None\ntry:\n import cowengine.sqlite\nexcept ImportError as e: print(e)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "cowengine[sqlite]" in answer.stdout
