"""The writer for SQLite databases on volumes: it makes a snapshot of a live database hold no half transaction.

`freeze` closes the gate of the database's lock (locks.py): the transaction that is being written ends, no other begins,
and readers go on. To other connections that is the same as one that has run BEGIN IMMEDIATE; they wait as their busy
timeout says. No SQL runs while the database stands still, so the window is as long as one transaction and the snapshot.

A database in WAL mode belongs to one connection for as long as that is open, so nobody else can checkpoint it. Such an
application gives the writer its connection, and a lock that it holds around each of its transactions:

    lock = threading.Lock()
    writer = SQLiteWriter(vfs, "bank.db", connection=connection, lock=lock)
    with lock, connection: ...

Threads     events may come from any thread, abort at any time.
Durability  none of its own: the snapshot is the provider's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import apsw

from cowengine.errors import BusyError, CorruptionError, NotFoundError, OutOfRangeError, WriterError
from cowengine.sqlite.database import Database
from cowengine.sqlite.snapshot import open_snapshot
from cowengine.sqlite.vfs import VFS
from cowengine.store import Store
from cowengine.vss.documents import Component, WriterMetadata
from cowengine.vss.writer import JobView, Level, Writer

# Of the time an event has, this much is left for what comes after the wait for other connections.
_MARGIN = 0.1


class SQLiteWriter(Writer):
    """One database of a VFS as a writer; its one component is the database."""

    def __init__(
        self,
        vfs: VFS,
        database_name: str,
        *,
        name: str | None = None,
        level: Level = "back-end",
        required: bool = True,
        freeze_limit: float = 60.0,
        connection: apsw.Connection | None = None,
        lock: threading.Lock | None = None,
    ) -> None:
        """`name` is the writer's, by default "sqlite:" and the database's; `freeze_limit` is in seconds.

        Give `connection` and `lock` for a database in WAL mode, as the module's docstring says, and for no other.
        """
        if (connection is None) != (lock is None):
            raise OutOfRangeError("give connection and lock together, or neither")
        self.name = name or f"sqlite:{database_name}"
        self.level = level
        self.required = required
        self.freeze_limit = freeze_limit
        self.vfs = vfs
        self.database_name = database_name
        self._connection = connection
        self._lock = lock
        self._mutex = threading.Lock()
        # The job this writer is frozen for, or about to be.
        self._job: str | None = None
        # The job for which the application's lock is held.
        self._lock_owner: str | None = None

    def identify(self) -> WriterMetadata:
        """One component, on the volume that has the database's name."""
        component = Component(self.database_name, volumes=(self.database_name,), properties={"format": "sqlite"})
        return WriterMetadata(writer=self.name, components=(component,))

    def prepare_snapshot(self, job: JobView) -> Mapping[str, Any]:
        """Fold the WAL in, or roll a journal back that a crash has left: what the next opener would have to do."""
        with self._borrowed(_timeout(job)) as connection:
            mode = str(connection.pragma("journal_mode"))
            if mode == "wal":
                busy, log, done = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()[0]
                if busy or log != done:
                    raise BusyError(f"the WAL of {self.database_name!r} could not be folded in: it is being read")
            else:
                connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        return {"journal_mode": mode}

    def freeze(self, job: JobView) -> None:
        """Wait for the transaction that is being written; let no other begin."""
        with self._mutex:
            self._job = job.id
        until = job.deadline
        reached = self._close(job.id, until)
        with self._mutex:
            if reached and self._job == job.id:
                return
            aborted = self._job != job.id
        if reached:
            self._open(job.id)
        reason = "the job was aborted" if aborted else "a transaction did not end in time; keep transactions short"
        raise WriterError(f"database {self.database_name!r}: {reason}", writer=self.name, phase="freeze")

    def thaw(self, job: JobView) -> None:
        """Transactions begin again. Raises WriterError if they did before: the set may hold half a transaction."""
        with self._mutex:
            was_frozen = self._job == job.id
            self._job = None
        if was_frozen and not self._open(job.id):
            message = f"database {self.database_name!r} was thawed by its own clock before the set was finished"
            raise WriterError(message, writer=self.name, phase="thaw")

    def abort(self, job: JobView) -> None:
        """Thaw if frozen, and end a freeze that still waits."""
        with self._mutex:
            if self._job == job.id:
                self._job = None
        self._open(job.id)

    def pre_restore(self, job: JobView) -> None:
        """Let go of the volume, if it is restored into this store. Raises BusyError while a connection is open."""
        if getattr(job, "destination", self.vfs.store) is self.vfs.store:
            self.vfs.release(self.database_name)

    def post_restore(self, job: JobView) -> Mapping[str, Any]:
        """Open what was restored, which recovers it, and check it. Raises CorruptionError if it is not sound."""
        destination = getattr(job, "destination", self.vfs.store)
        restored = getattr(job, "restored", {}).get(self.database_name, self.database_name)
        if isinstance(destination, Store):
            vfs = self.vfs if destination is self.vfs.store else VFS.of(destination)
            try:
                problems = _check(vfs.connect(restored, create=False, exclusive=True))
            finally:
                vfs.release(restored)
        else:
            problems = _check(open_snapshot(restored))
        if problems != ["ok"]:
            raise CorruptionError(f"database {self.database_name!r}: {problems[0]}", volume=self.database_name)
        return {"integrity_check": "ok"}

    # The two ways of standing still: the gate of the database, or the application's lock.

    def _close(self, owner: str, until: float) -> bool:
        if self._lock is None or self._connection is None:
            return self._database().lock.close_gate(owner, until)
        while not self._lock.acquire(timeout=0.05):
            with self._mutex:
                if self._job != owner:
                    return False
            if time.monotonic() >= until:
                return False
        try:
            is_idle = not self._connection.in_transaction
        except apsw.ThreadingViolationError:  # another thread is using it
            is_idle = False
        if not is_idle:
            self._lock.release()
            raise BusyError(f"a transaction of {self.database_name!r} is open outside the lock")
        with self._mutex:
            self._lock_owner = owner
        return True

    def _open(self, owner: str) -> bool:
        if self._lock is None:
            database = self.vfs.open_database(self.database_name)
            return database is not None and database.lock.open_gate(owner)
        with self._mutex:
            held = self._lock_owner == owner
            if held:
                self._lock_owner = None
        if held:
            self._lock.release()
        return held

    def _database(self) -> Database:
        database = self.vfs.database(self.database_name)
        if database is None:
            raise NotFoundError(f"no database {self.database_name!r} in the store")
        return database

    @contextmanager
    def _borrowed(self, timeout: float) -> Iterator[apsw.Connection]:
        """The application's connection, between two of its transactions, or one of our own."""
        if self._connection is not None and self._lock is not None:
            if not self._lock.acquire(timeout=timeout):
                raise BusyError(f"the lock of database {self.database_name!r} was not free for {timeout:.1f} s")
            try:
                yield self._connection
            finally:
                self._lock.release()
            return
        connection = self.vfs.connect(self.database_name, create=False, busy_timeout=timeout)
        try:
            yield connection
        except (apsw.BusyError, apsw.CantOpenError) as error:
            hint = "in WAL mode, give the writer the application's connection= and lock="
            raise BusyError(f"database {self.database_name!r} cannot be read now ({error}); {hint}") from error
        finally:
            connection.close()


def _check(connection: apsw.Connection) -> list[str]:
    """What `PRAGMA integrity_check` says; closes the connection."""
    try:
        return [str(row[0]) for row in connection.execute("PRAGMA integrity_check")]
    finally:
        connection.close()


def _timeout(job: JobView) -> float:
    return max(0.0, min(job.deadline - time.monotonic() - _MARGIN, 30.0))


def writers_of_store(store: Any) -> list[Writer]:
    """A writer for each database of the store: entry point "sqlite" of the group cowengine.writers."""
    vfs = VFS.of(store)
    return [SQLiteWriter(vfs, name) for name in vfs.databases()]
