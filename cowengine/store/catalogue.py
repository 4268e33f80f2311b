"""The catalogue: a SQLite database as index over a store's sets and documents.

Never the only copy of anything, and never a commit point: it is behind the store log by what is still in `_backlog`,
and what a crash takes from it comes back from the store log, or from the volumes. If its file cannot be used, the
same tables live in memory.

Threads     Every method may be called from any thread; one lock.
Durability  None is promised.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from cowengine.core.checksum import xxh64
from cowengine.core.iotable import KERNEL
from cowengine.engine.files import open_regular
from cowengine.errors import CorruptionError, FormatError, NotFoundError
from cowengine.store.layout import TYPE_SET, Record

logger = logging.getLogger("cowengine.store")

MEMORY: Final = ":memory:"
SEAL_SUFFIX: Final = ".sum"
BACKLOG_MAX: Final = 256
REMEMBERED_MAX: Final = 1_000_000
INTEGER_MAX: Final = 2**63 - 1
_FORMAT: Final = 1
_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL
_SCHEMA: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE sets (id BLOB PRIMARY KEY, name TEXT NOT NULL, created_ns INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX sets_by_name ON sets (name);
CREATE INDEX sets_by_creation ON sets (created_ns);
CREATE TABLE members (set_id BLOB, volume_uuid BLOB, volume_name TEXT NOT NULL, snapshot_id INTEGER NOT NULL,
    PRIMARY KEY (set_id, volume_uuid)) WITHOUT ROWID;
CREATE TABLE volumes (uuid BLOB PRIMARY KEY, name TEXT NOT NULL UNIQUE) WITHOUT ROWID;
CREATE TABLE documents (kind TEXT, id TEXT, PRIMARY KEY (kind, id)) WITHOUT ROWID;
"""

Statement = tuple[str, Sequence[Any]]


class CatalogueMember(NamedTuple):
    """One volume's part in a set; `volume_name` is what it was called when the set was taken."""

    volume_uuid: bytes
    volume_name: str
    snapshot_id: int


@dataclass(frozen=True, slots=True)
class CatalogueSet:
    """A set as the catalogue knows it."""

    id: bytes
    name: str
    created_ns: int
    members: tuple[CatalogueMember, ...]


def record_statements(record: Record, volume_names: dict[bytes, str]) -> list[Statement]:
    """What a record of the store log means for the catalogue. A volume without a name is left out."""
    drop: list[Statement] = [
        ("DELETE FROM members WHERE set_id = ?", (record.set_id,)),
        ("DELETE FROM sets WHERE id = ?", (record.set_id,)),
    ]
    if record.type != TYPE_SET:
        return drop
    members = [
        CatalogueMember(member.volume_uuid, volume_names.get(member.volume_uuid, ""), member.snapshot_id)
        for member in record.members
    ]
    return [*drop, *set_statements(CatalogueSet(record.set_id, record.name, record.created_ns, tuple(members)))]


def set_statements(set_: CatalogueSet) -> list[Statement]:
    """Add a set, or members to a set that is there."""
    rows: list[Statement] = [
        ("INSERT OR IGNORE INTO sets VALUES (?, ?, ?)", (set_.id, set_.name, min(set_.created_ns, INTEGER_MAX))),
    ]
    for member in set_.members:
        values = (set_.id, member.volume_uuid, member.volume_name, member.snapshot_id)
        rows.append(("INSERT OR IGNORE INTO members VALUES (?, ?, ?, ?)", values))
    return rows


class Catalogue:
    """The index of one store. `sequence` is that of the last record taken in, or None if it must be rebuilt: `reason`
    then says why, and `remembered` is what the old one knew of sets, None if it can't be read or is not this store's.
    """

    def __init__(self, path: str, store_uuid: bytes, positions: dict[int, int], *, distrust: bool = False) -> None:
        """`positions`: checksum by sequence of all records that a catalogue may have ended with. With `distrust` the
        file is rebuilt whatever it holds.
        """
        self.path = path
        self.problem: str | None = None
        self.reason = ""
        self.remembered: list[CatalogueSet] | None = None
        self._store_uuid = store_uuid
        self._lock = threading.RLock()
        self._backlog: dict[int, tuple[Record, dict[bytes, str], int]] = {}
        self._noted: set[str] = set()  # names of the sets in it, as long as it has no more than sets
        self._only_sets = True
        self._connection, self.sequence = self._open(positions, distrust)

    # ---- opening ----

    def _open(self, positions: dict[int, int], distrust: bool) -> tuple[sqlite3.Connection, int | None]:
        if self.path == MEMORY:
            return self._new(MEMORY), None
        try:
            found = self._open_existing(positions, distrust)
            if found is not None:
                return found
            for suffix in ("", "-wal", "-shm", "-journal", SEAL_SUFFIX):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path + suffix)
            KERNEL.close(KERNEL.open(self.path, _NEW, 0o600))
            return self._new(self.path), None
        except (sqlite3.Error, OSError) as error:
            self.problem = f"the catalogue is kept in memory, its file cannot be used: {error}"
            return self._new(MEMORY), None

    def _open_existing(self, positions: dict[int, int], distrust: bool) -> tuple[sqlite3.Connection, int] | None:
        """The database in the file if it is whole, this store's, and not older than the store log can make up for."""
        if not os.path.isfile(self.path) or os.path.islink(self.path):
            self.reason = "it is missing"
            return None
        connection = _connect(self.path)
        try:
            verdict = self._judge(connection, positions)
            if isinstance(verdict, int) and not distrust:
                _tune(connection)
                return connection, verdict
            self.reason = "it was asked for" if isinstance(verdict, int) else verdict
            self.remembered = self._remember(connection)
        except (sqlite3.DatabaseError, ValueError) as error:
            self.reason = self.reason or f"it is damaged: {error}"
        connection.close()
        return None

    def _judge(self, connection: sqlite3.Connection, positions: dict[int, int]) -> int | str:
        """The sequence of the last record that is in an intact catalogue, or why it cannot be used."""
        if self._rotten():
            return "it is damaged: it changed since it was closed"
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            return f"it is damaged: {verdict}"
        meta = dict(connection.execute("SELECT key, value FROM meta"))
        if meta.get("format") != _FORMAT or _schema(connection) != _expected_schema():
            return "its tables are not those of a catalogue"
        if meta.get("store_uuid") != self._store_uuid:
            return "it is the catalogue of another store"
        sequence = meta.get("sequence")
        if not isinstance(sequence, int) or positions.get(sequence) != _number(meta.get("checksum")):
            return "the store log does not follow on it: it is an older copy, or of another time"
        return sequence

    def _remember(self, connection: sqlite3.Connection) -> list[CatalogueSet] | None:
        """What a catalogue that cannot be trusted says of sets; nothing of what is only in it is ever taken over."""
        (uuid_,) = connection.execute("SELECT value FROM meta WHERE key = 'store_uuid'").fetchone() or (None,)
        if uuid_ != self._store_uuid or _schema(connection) != _expected_schema():
            return None
        sets = connection.execute(f"SELECT id, name, created_ns FROM sets LIMIT {REMEMBERED_MAX}").fetchall()
        columns = "set_id, volume_uuid, volume_name, snapshot_id"
        members = connection.execute(f"SELECT {columns} FROM members LIMIT {REMEMBERED_MAX}").fetchall()
        return [old for old in _joined(sets, members) if isinstance(old.id, bytes) and len(old.id) == 16]

    def _new(self, path: str) -> sqlite3.Connection:
        connection = _connect(path)
        try:
            _tune(connection)
            connection.executescript(_SCHEMA)
            values = [("format", _FORMAT), ("store_uuid", self._store_uuid)]
            connection.executemany("INSERT INTO meta VALUES (?, ?)", values)
        except BaseException:
            connection.close()
            raise
        return connection

    def rebuild(self, sequence: int, checksum: int, statements: Iterable[Statement]) -> None:
        """Fill an empty catalogue, or take in what one lacks; from now on it has the store log up to `sequence`."""
        with self._lock:
            self._run(statements, (sequence, checksum))

    # ---- writing ----

    def add(self, sequence: int, checksum: int, record: Record, volume_names: dict[bytes, str]) -> None:
        """Note record `sequence`. Does not touch the database: that is for who asks, or `relieve`."""
        with self._lock:
            self._backlog[sequence] = record, volume_names, checksum
            self._noted.add(record.name)
            self._only_sets = self._only_sets and record.type == TYPE_SET

    def relieve(self) -> None:
        """Take in what is noted if it has become much."""
        with self._lock:
            if len(self._backlog) >= BACKLOG_MAX:
                self._apply()

    def write(self, statements: list[Statement]) -> None:
        """Change what no record of the store log stands for: volumes' names, documents."""
        with self._lock:
            self._apply()
            self._run(statements, None)

    def checkpoint(self) -> bool:
        """Take in all that is noted, and move it to the main file as far as possible.

        False if the file could not take it: the index is behind then, and the store log must keep what it lacks.
        """
        with self._lock:
            self._apply()
            try:
                self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            except sqlite3.Error as error:
                logger.warning("the catalogue %s is behind: %s", self.path, error)
                return False
            return True

    def _apply(self) -> None:
        """Take in what is noted, in the log's order and without a gap: a record may have been noted before the one
        before it.
        """
        assert self.sequence is not None, "rebuilt before it is used"
        statements: list[Statement] = []
        sequence, checksum = self.sequence, 0
        while (found := self._backlog.get(sequence + 1)) is not None:
            record, volume_names, checksum = found
            statements += record_statements(record, volume_names)
            sequence += 1
        if sequence == self.sequence:
            return
        self._run(statements, (sequence, checksum))
        self._backlog = {later: noted for later, noted in self._backlog.items() if later > sequence}
        self._noted = {record.name for record, _, _ in self._backlog.values()}
        self._only_sets = all(record.type == TYPE_SET for record, _, _ in self._backlog.values())

    def _run(self, statements: Iterable[Statement], position: tuple[int, int] | None) -> None:
        statements = list(statements)
        if position is not None:
            statements.append(("INSERT OR REPLACE INTO meta VALUES ('sequence', ?)", (position[0],)))
            statements.append(("INSERT OR REPLACE INTO meta VALUES ('checksum', ?)", (position[1].to_bytes(8, "big"),)))
        done = False
        while not done:
            try:
                self._transaction(statements)
                done = True
            except sqlite3.Error as error:
                # A full disk, most likely. The store must go on (deleting snapshots is what helps), so go on in memory;
                # the next open finds the file behind, or damaged, and takes in or rebuilds what it lacks.
                self._move_to_memory(error)
        if position is not None:
            self.sequence = position[0]

    def _transaction(self, statements: list[Statement]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for sql, values in statements:
                self._connection.execute(sql, values)
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _move_to_memory(self, error: sqlite3.Error) -> None:
        """Once: what cannot be written there either is damaged."""
        memory = _connect(MEMORY)
        try:
            if self.path == MEMORY:
                raise error
            self._connection.backup(memory)
        except sqlite3.Error:
            memory.close()
            raise CorruptionError(f"the catalogue is damaged ({error}): close the store and open it again") from None
        self._connection.close()
        self._connection, self.path = memory, MEMORY
        self.problem = f"the catalogue is kept in memory, its file cannot be written: {error}"

    # ---- reading ----

    def _rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            self._apply()
            return self._select(sql, values)

    def _select(self, sql: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        """What the database has, without what is noted."""
        with self._lock:
            try:
                return self._connection.execute(sql, values).fetchall()
            except sqlite3.DatabaseError as error:
                raise CorruptionError(
                    f"the catalogue is damaged ({error}): close the store and open it again, which rebuilds it",
                    self.path,
                ) from None

    def sets(self) -> list[CatalogueSet]:
        """All sets, by creation."""
        with self._lock:
            members = self._rows("SELECT * FROM members ORDER BY volume_name")
            return _joined(self._rows("SELECT * FROM sets ORDER BY created_ns, name"), members)

    def has_name(self, name: str) -> bool:
        """Whether a set has this name. Asked before each set, so what is noted is not taken in for it."""
        with self._lock:
            if not self._only_sets:
                self._apply()
            return name in self._noted or bool(self._select("SELECT 1 FROM sets WHERE name = ?", (name,)))

    def find_set(self, name_or_id: str) -> CatalogueSet | None:
        """The set of that name or, if none has it, of that id."""
        with self._lock:
            found = self._rows("SELECT * FROM sets WHERE name = ? ORDER BY created_ns", (name_or_id,))
            if not found:
                with contextlib.suppress(ValueError):
                    found = self._rows("SELECT * FROM sets WHERE id = ?", (uuid.UUID(name_or_id).bytes,))
            if not found:
                return None
            sql = "SELECT volume_uuid, volume_name, snapshot_id FROM members WHERE set_id = ? ORDER BY volume_name"
            members = self._rows(sql, (found[0][0],))
        set_id, name, created_ns = found[0]
        return CatalogueSet(set_id, name, created_ns, tuple(CatalogueMember(*row) for row in members))

    def volume_names(self) -> dict[bytes, str]:
        """Name of each volume that was ever seen and not taken away, by its UUID."""
        return dict(self._rows("SELECT uuid, name FROM volumes"))

    def all_documents(self) -> set[tuple[str, str]]:
        """(kind, id) of each document."""
        return {(kind, document_id) for kind, document_id in self._rows("SELECT kind, id FROM documents")}

    def documents(self, kind: str) -> list[str]:
        """Ids of the documents of a kind, sorted."""
        return [row[0] for row in self._rows("SELECT id FROM documents WHERE kind = ? ORDER BY id", (kind,))]

    def close(self) -> None:
        """Take in what is noted and close the database."""
        with self._lock:
            try:
                if self.sequence is not None:
                    self._apply()
            finally:
                self._connection.close()
                if self.path != MEMORY and self.sequence is not None:
                    self._seal()

    # ---- rot ----

    def _seal(self) -> None:
        """Note the checksum of the closed file beside it: SQLite has none, and would believe a name that rotted."""
        with contextlib.suppress(OSError):
            if not os.path.exists(self.path + "-wal"):
                seal = _file_checksum(self.path)
                fd = KERNEL.open(self.path + SEAL_SUFFIX, _NEW, 0o600)
                try:
                    KERNEL.pwrite(fd, seal, 0)
                finally:
                    KERNEL.close(fd)

    def _rotten(self) -> bool:
        """Whether the file is not the one that was closed last. Nobody knows if the last owner did not close it."""
        try:
            fd = open_regular(KERNEL, self.path + SEAL_SUFFIX, read_only=True)
            try:
                expected = KERNEL.pread(fd, 64, 0)
            finally:
                KERNEL.close(fd)
        except NotFoundError:
            return False
        except FormatError:
            expected = b"not a regular file"
        rotten = _file_checksum(self.path) != expected or os.path.exists(self.path + "-wal")
        os.unlink(self.path + SEAL_SUFFIX)  # from now on the file changes
        return rotten


def _file_checksum(path: str) -> bytes:
    """What the seal of a file says."""
    checksum = 0
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            checksum = xxh64(piece, checksum)
    return f"{checksum:016x}\n".encode()


def _number(raw: Any) -> int | None:
    return int.from_bytes(raw, "big") if isinstance(raw, bytes) else None


def _joined(sets: Iterable[tuple[Any, ...]], members: Iterable[tuple[Any, ...]]) -> list[CatalogueSet]:
    """Sets with their members, from the rows of both tables."""
    of_set: dict[bytes, list[CatalogueMember]] = {}
    for set_id, volume_uuid, name, snapshot_id in members:
        of_set.setdefault(set_id, []).append(CatalogueMember(volume_uuid, name, snapshot_id))
    return [CatalogueSet(id_, name, ns, tuple(of_set.get(id_, ()))) for id_, name, ns in sets]


def _connect(path: str) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False)


def _schema(connection: sqlite3.Connection) -> list[tuple[str, str, str]]:
    return sorted(connection.execute("SELECT type, name, coalesce(sql, '') FROM sqlite_schema"))


def _expected_schema() -> list[tuple[str, str, str]]:
    with contextlib.closing(_connect(MEMORY)) as connection:
        connection.executescript(_SCHEMA)
        return _schema(connection)


def _tune(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL").fetchall()
    # With WAL this loses the last transactions in a power cut, never the database's integrity.
    connection.execute("PRAGMA synchronous = NORMAL")
