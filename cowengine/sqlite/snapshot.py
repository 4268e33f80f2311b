"""A snapshot as a database of its own, read-only.

Recovery runs first, in a throw-away overlay: a hot journal is rolled back, a WAL is folded in. Then the database is
opened read-only. The snapshot is only read; each call has its own overlay and its own VFS.

Threads     any; the connection as SQLite's own.
Durability  nothing here is durable.
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import apsw

from cowengine.errors import NotFoundError, OutOfRangeError
from cowengine.sqlite import layout
from cowengine.sqlite.database import Database
from cowengine.sqlite.file import DatabaseVFS
from cowengine.sqlite.overlay import Overlay
from cowengine.sqlite.raw import RawVolume

if TYPE_CHECKING:
    from cowengine.snapshot import Snapshot
    from cowengine.store import SnapshotSet

_NAME = "snapshot"
_numbers = itertools.count(1)


class _SnapshotVFS(DatabaseVFS):
    """Serves one database, over an overlay that it closes with the last connection."""

    def __init__(self, snapshot: Snapshot | RawVolume) -> None:
        self._source = snapshot
        self._overlay = Overlay(snapshot)
        try:
            self._database = Database(_NAME, self._overlay)
            if not self._database.exists(layout.MAIN):
                raise NotFoundError(f"snapshot {snapshot.name!r} holds no database")
            super().__init__(f"cowengine-snapshot-{os.getpid()}-{next(_numbers)}")
        except BaseException:
            self._overlay.close()
            if isinstance(snapshot, RawVolume):
                snapshot.close()
            raise
        self._recovering = True

    def recover(self) -> None:
        """Roll back a hot journal or fold in a WAL, so that a connection that may not write can read."""
        connection = apsw.Connection(_NAME, apsw.SQLITE_OPEN_READWRITE, vfs=self.name)
        try:
            # Without shared memory a WAL is open to one connection only; back in DELETE mode it needs neither.
            connection.pragma("locking_mode", "EXCLUSIVE")
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
            if connection.pragma("journal_mode") == "wal":
                connection.pragma("journal_mode", "DELETE")
        finally:
            connection.close()
            self._recovering = False

    def discard(self) -> None:
        """The end: throw the overlay away and unregister."""
        self._overlay.close()
        if isinstance(self._source, RawVolume):
            self._source.close()
        self.unregister()

    def _find(self, name: str, create: bool) -> Database | None:
        return self._database if name == _NAME else None

    def _opened(self, database: Database) -> None:
        database.open_files += 1

    def _closed(self, database: Database) -> None:
        database.open_files -= 1
        if database.open_files == 0 and not self._recovering:
            self.discard()


def open_snapshot(
    snapshot: Snapshot | SnapshotSet | str | os.PathLike[str], database: str | None = None
) -> apsw.Connection:
    """A read-only connection to the database as it was at the snapshot; throw-away state goes when it is closed.

    `snapshot` is a snapshot of a database's volume, or a set that `database` names the member of, or the path of a
    raw file that a restore to a folder wrote. What a transaction
    had not committed at that instant is not there. Raises NotFoundError if there is no database in it, FormatError if
    the volume is no database's. Writing through the connection raises apsw.ReadOnlyError.
    """
    vfs = _SnapshotVFS(_member(snapshot, database))
    try:
        vfs.recover()
        return apsw.Connection(_NAME, apsw.SQLITE_OPEN_READONLY, vfs=vfs.name)
    except BaseException:
        vfs.discard()
        raise


def _member(snapshot: Snapshot | SnapshotSet | str | os.PathLike[str], database: str | None) -> Snapshot | RawVolume:
    if isinstance(snapshot, str | os.PathLike):
        return RawVolume(snapshot)
    members: dict[str, Snapshot] | None = getattr(snapshot, "snapshots", None)
    if members is None:
        return snapshot  # type: ignore[return-value]
    if database is None:
        raise OutOfRangeError(f"name the database: the set holds {sorted(members)}")
    member = members.get(database)
    if member is None:
        raise NotFoundError(f"no database {database!r} in the set; it holds {sorted(members)}")
    return member
