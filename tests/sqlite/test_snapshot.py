"""Snapshots of databases: opened read-only, extracted, restored; never changed."""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import apsw
import pytest

import cowengine
from cowengine.errors import ExistsError, FormatError, NotFoundError, OutOfRangeError, StorageError
from cowengine.sqlite import VFS, extract, open_snapshot
from cowengine.sqlite.database import Database
from cowengine.sqlite.layout import JOURNAL, MAIN, SUFFIXES, WAL

ROWS = 3000


def content(snapshot: Any) -> str:
    digest = hashlib.sha256()
    for offset, length in snapshot.allocated_extents().tolist():
        digest.update(offset.to_bytes(8, "little") + snapshot.pread(length, offset))
    return digest.hexdigest()


@pytest.fixture
def connection(vfs: VFS) -> Any:
    made = vfs.connect("a.db")
    made.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
    with made:
        made.executemany("INSERT INTO t (v) VALUES (?)", [(os.urandom(50),) for _ in range(ROWS)])
    yield made
    made.close()


def first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4 << 20)


def half_a_transaction(connection: apsw.Connection) -> None:
    """Begin one and let it spill, so that the main file is half changed and the journal is hot."""
    connection.execute("PRAGMA cache_size = 5; PRAGMA cache_spill = 5; BEGIN IMMEDIATE")
    connection.execute("UPDATE t SET v = 'half done'; DELETE FROM t WHERE id % 2")


def state(connection: Any) -> tuple[int, int]:
    rows = connection.execute("SELECT count(*), coalesce(sum(v = 'half done'), 0) FROM t").fetchall()
    return (rows[0][0], rows[0][1])


def test_a_hot_journal_is_rolled_back_and_the_snapshot_untouched(vfs: VFS, connection: apsw.Connection) -> None:
    half_a_transaction(connection)
    snapshot = vfs.store.open_volume("a.db").snapshot("hot")
    database = Database("a.db", _ReadOnly(snapshot), read_only=True)
    assert database.exists(JOURNAL)
    assert database.length(JOURNAL) > 0
    before = content(snapshot)
    frozen = open_snapshot(snapshot)
    assert state(frozen) == (ROWS, 0)
    assert frozen.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    frozen.close()
    assert content(snapshot) == before
    connection.execute("COMMIT")
    assert state(connection) == (ROWS // 2, ROWS // 2)


def test_a_wal_is_folded_in_and_the_snapshot_untouched(vfs: VFS) -> None:
    connection = vfs.connect("w.db", exclusive=True)
    connection.execute("PRAGMA journal_mode = WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, v)").fetchall()
    for number in range(50):
        connection.execute("INSERT INTO t (v) VALUES (?)", (number,))
    connection.execute("BEGIN; DELETE FROM t")
    snapshot = vfs.store.open_volume("w.db").snapshot("wal")
    assert Database("w.db", _ReadOnly(snapshot), read_only=True).length(WAL) > 0
    before = content(snapshot)
    frozen = open_snapshot(snapshot)
    assert state(frozen) == (50, 0)
    frozen.close()
    assert content(snapshot) == before
    connection.execute("COMMIT")
    connection.close()


def test_a_snapshot_cannot_be_written(vfs: VFS, connection: apsw.Connection) -> None:
    frozen = open_snapshot(vfs.store.open_volume("a.db").snapshot("s"))
    for statement in ("DELETE FROM t", "CREATE TABLE u (v)", "VACUUM", "PRAGMA journal_mode = WAL; DELETE FROM t"):
        with pytest.raises((apsw.ReadOnlyError, apsw.CantOpenError)):
            frozen.execute(statement).fetchall()
    assert state(frozen) == (ROWS, 0)
    frozen.close()


def test_old_snapshots_stay_what_they_were_while_the_database_goes_on(vfs: VFS, connection: apsw.Connection) -> None:
    taken = []
    for number in range(5):
        with connection:
            connection.execute("UPDATE t SET v = ? WHERE id % 7 = ?", (number, number))
            connection.execute("DELETE FROM t WHERE id = ?", (number + 1,))
        taken.append(vfs.store.open_volume("a.db").snapshot(str(number)))
    open_at_once = [open_snapshot(snapshot) for snapshot in taken]
    for number, frozen in enumerate(open_at_once):
        assert frozen.execute("SELECT count(*) FROM t").fetchall() == [(ROWS - number - 1,)]
        assert frozen.execute("SELECT max(v) FROM t WHERE typeof(v) = 'integer'").fetchall() == [(number,)]
        frozen.close()


def test_closing_leaves_nothing_registered(vfs: VFS, connection: apsw.Connection) -> None:
    before = set(apsw.vfs_names())
    frozen = open_snapshot(vfs.store.open_volume("a.db").snapshot("s"))
    assert len(set(apsw.vfs_names()) - before) == 1
    frozen.close()
    assert set(apsw.vfs_names()) == before


def test_a_set_is_opened_by_the_name_of_its_database(vfs: VFS, connection: apsw.Connection) -> None:
    vfs.store.create_volume("other", 1 << 20)
    taken = vfs.store.snapshot(["a.db", "other"], "both")
    frozen = open_snapshot(taken, "a.db")
    assert state(frozen) == (ROWS, 0)
    frozen.close()
    with pytest.raises(OutOfRangeError, match="other"):
        open_snapshot(taken)
    with pytest.raises(NotFoundError, match="none"):
        open_snapshot(taken, "none")


def test_a_snapshot_without_a_database_is_refused(vfs: VFS) -> None:
    volume = vfs.store.create_volume("raw", 8 << 20)
    with pytest.raises(NotFoundError):
        open_snapshot(volume.snapshot("empty"))
    volume.pwrite(b"data", 0)
    with pytest.raises(FormatError):
        open_snapshot(volume.snapshot("foreign"))


def test_extracted_files_have_the_exact_lengths_and_plain_sqlite_recovers_them(
    vfs: VFS, connection: apsw.Connection, tmp_path: Path
) -> None:
    half_a_transaction(connection)
    live = vfs.database("a.db")
    assert live is not None
    snapshot = vfs.store.open_volume("a.db").snapshot("hot")
    lengths = {SUFFIXES[file]: live.length(file) for file in (MAIN, JOURNAL, WAL) if live.exists(file)}
    paths = extract(snapshot, tmp_path / "out.db")
    assert {path.removeprefix(str(tmp_path / "out.db")): os.path.getsize(path) for path in paths} == lengths
    assert set(lengths) == {"", "-journal"}
    plain = sqlite3.connect(tmp_path / "out.db")
    assert state(plain) == (ROWS, 0)
    plain.close()
    assert not (tmp_path / "out.db-journal").exists()
    connection.execute("ROLLBACK")


@pytest.mark.needs("sqlite3")
def test_the_sqlite3_program_opens_extracted_files(vfs: VFS, connection: apsw.Connection, tmp_path: Path) -> None:
    half_a_transaction(connection)
    extract(vfs.store.open_volume("a.db").snapshot("hot"), tmp_path / "out.db")
    command = ["sqlite3", str(tmp_path / "out.db"), "PRAGMA integrity_check; SELECT count(*) FROM t"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["ok", str(ROWS)]
    connection.execute("ROLLBACK")


@pytest.mark.parametrize("in_the_way", ["out.db", "out.db-journal", "out.db-wal", "out.db.part"])
def test_extract_overwrites_nothing(vfs: VFS, connection: apsw.Connection, tmp_path: Path, in_the_way: str) -> None:
    (tmp_path / in_the_way).write_bytes(b"mine")
    with pytest.raises(ExistsError, match=in_the_way):
        extract(vfs.store.open_volume("a.db").snapshot("s"), tmp_path / "out.db")
    assert [path.name for path in tmp_path.glob("out.db*")] == [in_the_way]
    assert (tmp_path / in_the_way).read_bytes() == b"mine"


def test_extract_leaves_nothing_when_it_fails(vfs: VFS, connection: apsw.Connection, tmp_path: Path) -> None:
    half_a_transaction(connection)
    snapshot = vfs.store.open_volume("a.db").snapshot("hot")
    reads = 0

    class Failing:
        size = snapshot.size

        def pread(self, length: int, offset: int) -> bytes:
            nonlocal reads
            reads += 1
            if reads == 3:
                raise OSError(errno.EIO, "the disk is gone")
            return snapshot.pread(length, offset)

    with pytest.raises(StorageError, match="the disk is gone"):
        extract(Failing(), tmp_path / "out.db")  # type: ignore[arg-type]
    assert list(tmp_path.glob("out.db*")) == []
    connection.execute("ROLLBACK")


def test_extract_refuses_what_holds_no_database(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        extract(tmp_path / "missing.raw", tmp_path / "out.db")
    (tmp_path / "short.raw").write_bytes(b"short")
    with pytest.raises(FormatError):
        extract(tmp_path / "short.raw", tmp_path / "out.db")
    (tmp_path / "zeros.raw").write_bytes(bytes(8 << 20))
    with pytest.raises(NotFoundError):
        extract(tmp_path / "zeros.raw", tmp_path / "out.db")


def test_a_restored_raw_file_is_a_database(vfs: VFS, connection: apsw.Connection, tmp_path: Path) -> None:
    """Through a real backup of a hot snapshot: restored to a folder, opened there, and extracted."""
    half_a_transaction(connection)
    taken = vfs.store.snapshot(["a.db"], "hot")
    backup = cowengine.Requestor(vfs.store).backup(str(tmp_path / "target"), snapshot_set=taken)
    connection.execute("ROLLBACK")
    cowengine.restore(str(tmp_path / "target"), backup.id, str(tmp_path / "restored"))
    raw = tmp_path / "restored" / "a.db.raw"
    before = first_bytes(raw)
    frozen = open_snapshot(raw)
    assert state(frozen) == (ROWS, 0)
    frozen.close()
    assert first_bytes(raw) == before
    assert len(extract(raw, tmp_path / "out.db")) == 2
    plain = sqlite3.connect(tmp_path / "out.db")
    assert state(plain) == (ROWS, 0)
    plain.close()


class _ReadOnly:
    """A snapshot as storage to look at: whatever would change it is not there."""

    def __init__(self, snapshot: Any) -> None:
        self.size = snapshot.size
        self.block_size = 4096
        self.pread = snapshot.pread
        self.allocated_extents = snapshot.allocated_extents
