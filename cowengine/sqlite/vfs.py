"""The VFS: SQLite databases on the volumes of a store.

    with cowengine.Store.create(path) as store, cowengine.sqlite.VFS(store) as vfs:
        connection = vfs.connect("bank.db")

One database is one volume, named like the database, with all its files in it (docs/sqlite.md); so one flush makes a
transaction durable and one snapshot holds the whole database at one instant.

Threads     everything may be called from any thread. The processes that may use a store are one: no other has a
            connection.
Durability  as SQLite's `PRAGMA synchronous` asks; with FULL (the default) a transaction is durable when COMMIT returns.
"""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from types import TracebackType
from typing import Any
from weakref import WeakValueDictionary

import apsw

from cowengine.core.iotable import KERNEL
from cowengine.errors import (
    BusyError,
    ClosedError,
    CorruptionError,
    ExistsError,
    FormatError,
    NotFoundError,
    OutOfRangeError,
)
from cowengine.oserrors import typed
from cowengine.sqlite import layout
from cowengine.sqlite.database import Database, split_name
from cowengine.sqlite.file import DatabaseVFS
from cowengine.sqlite.locks import BusyHandler
from cowengine.store.names import check_volume_name

DEFAULT_CAPACITY = 64 << 30

# Who serves which store. A store has one VFS, because locks are kept per VFS.
_serving: WeakValueDictionary[int, VFS] = WeakValueDictionary()


class VFS(DatabaseVFS):
    """An apsw VFS, registered under `name` until `close`."""

    def __init__(self, store: Any, name: str = "cowengine", *, capacity: int = DEFAULT_CAPACITY) -> None:
        """Serve the databases of `store` (a cowengine.Store).

        `capacity`, in bytes, is what each file of a database created from now on may grow to; space is used only as it
        is written. Raises ExistsError if a VFS of that name is registered.
        """
        if name in apsw.vfs_names():
            raise ExistsError(f"a VFS named {name!r} is registered; close it or choose another name")
        if id(store) in _serving:
            raise ExistsError("the store has a VFS, which alone knows the locks of its databases; use VFS.of(store)")
        self._volume_bytes = layout.volume_bytes(capacity)
        self.store = store
        self._mutex = threading.RLock()
        self._databases: dict[str, Database] = {}
        self._is_open = True
        super().__init__(name)
        _serving[id(store)] = self

    @classmethod
    def of(cls, store: Any) -> VFS:
        """The VFS that serves the store; a new one, with a name of its own, if there is none."""
        return _serving.get(id(store)) or cls(store, f"cowengine-{id(store):x}")

    # What applications call.

    def connect(
        self,
        database: str,
        *,
        create: bool = True,
        read_only: bool = False,
        exclusive: bool = False,
        busy_timeout: float = 10.0,
    ) -> apsw.Connection:
        """A connection to the database of that name.

        `busy_timeout` (seconds) is how long a statement waits for other connections; `exclusive` keeps all others out
        from the first statement on, which a database in WAL mode needs. Raises NotFoundError if there is no
        such database and `create` is false, OutOfRangeError for a name that no volume can have, FormatError if the
        volume holds something else. A database that is created is durable with its first transaction.
        """
        create = create and not read_only
        if self._find(database, create) is None:
            raise NotFoundError(f"no database {database!r} in the store; databases() lists them")
        flags = apsw.SQLITE_OPEN_READONLY if read_only else apsw.SQLITE_OPEN_READWRITE
        connection = apsw.Connection(database, flags | (apsw.SQLITE_OPEN_CREATE if create else 0), vfs=self.name)
        connection.set_busy_handler(BusyHandler(busy_timeout))
        if exclusive:
            connection.pragma("locking_mode", "EXCLUSIVE")
        return connection

    def databases(self) -> list[str]:
        """The names of the store's volumes that hold a database, sorted."""
        return sorted(name for name in self.store.volumes() if self._is_database(name))

    def export(self, database: str, path: str | os.PathLike[str], *, busy_timeout: float = 10.0) -> None:
        """Write the database, as of one instant, as a plain SQLite file, mode 0600, to `path`, which must not exist.

        Uses SQLite's backup interface, so other connections may read meanwhile. Raises ExistsError,
        NotFoundError, BusyError.
        """
        name = os.fspath(path)
        source = self.connect(database, create=False, busy_timeout=busy_timeout)
        try:
            try:
                with typed(name):
                    KERNEL.close(KERNEL.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            except FileExistsError:
                raise ExistsError("refusing to overwrite", name) from None
            except (FileNotFoundError, NotADirectoryError):
                raise NotFoundError("there is no such directory", name) from None
            try:
                _back_up(source, name, busy_timeout)
            except BaseException as error:
                os.unlink(name)
                if isinstance(error, apsw.BusyError):
                    raise BusyError(f"database {database!r} is locked by another connection") from error
                raise
        finally:
            source.close()

    def release(self, database: str) -> None:
        """Let go of the database's volume and of space no file uses. Raises BusyError while a connection is open.

        What else is raised kept space from coming back, or the volume from a clean close: it is let go all the same.
        """
        with self._mutex:
            known = self._databases.get(database)
            if known is None:
                return
            if known.open_files:
                raise BusyError(f"database {database!r} has open connections: close them first")
            try:
                if not known.read_only:
                    known.trim()
            finally:
                del self._databases[database]
                self._close_volume(known.storage)

    def database(self, name: str) -> Database | None:
        """What is known of a database: its files and its lock. For writers; None if there is no such database."""
        return self._find(name, create=False)

    def open_database(self, name: str) -> Database | None:
        """The same if it is open already; None, and nothing opened, if it is not."""
        with self._mutex:
            return self._databases.get(name)

    def in_use(self, database: str) -> bool:
        """True while a connection to the database is open."""
        known = self.open_database(database)
        return known is not None and known.open_files > 0

    def close(self) -> None:
        """Release every database and unregister the VFS. Raises BusyError while a connection is open; nothing is done.

        Else the VFS is closed, whatever is raised: what `release` raised.
        """
        with self._mutex, ExitStack() as ending:
            for name in filter(self.in_use, self._databases):
                raise BusyError(f"database {name!r} has open connections: close them first")
            ending.callback(self._retire)
            for name in self._databases:
                ending.callback(self.release, name)

    def _retire(self) -> None:
        self._is_open = False
        _serving.pop(id(self.store), None)
        self.unregister()

    def __enter__(self) -> VFS:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except BusyError:
            if error is None:
                raise
            # An error left connections open, and it is the error that matters: let the store close the volumes.
            self._retire()

    # What SQLite calls, through DatabaseVFS.

    def _find(self, name: str, create: bool) -> Database | None:
        with self._mutex:
            if not self._is_open:
                raise ClosedError(f"VFS {self.name!r} is closed")
            known = self._databases.get(name) if isinstance(name, str) else None
            if known is not None and known.open_files == 0 and known.storage.closed:
                known = None  # somebody else closed the volume, which closes it for all
            if known is None:
                known = self._open_database(name, create)
                if known is not None:
                    self._databases[name] = known
            return known if known is None or create or known.exists(layout.MAIN) else None

    def _open_database(self, name: str, create: bool) -> Database | None:
        check_volume_name(name)
        if split_name(name)[1] != layout.MAIN or name.startswith((":", "file:")):
            raise OutOfRangeError(f"a database cannot be named {name!r}: to SQLite that means something else")
        if name not in self.store.volumes():
            if not create:
                return None
            volume = self.store.create_volume(name, self._volume_bytes)
        else:
            volume = self.store.open_volume(name)
        return Database(name, volume, read_only=self.store.read_only)

    def _opened(self, database: Database) -> None:
        with self._mutex:
            if database.open_files == 0:
                database.reload()
            database.open_files += 1

    def _closed(self, database: Database) -> None:
        with self._mutex:
            database.open_files -= 1

    def _is_database(self, name: str) -> bool:
        known = self.open_database(name)
        if known is not None:
            return known.exists(layout.MAIN)
        try:
            volume = self.store.open_volume(name, hand_out=False)
            if volume.size < layout.volume_bytes(1):
                return False
            found = layout.decode_newest(volume.pread(layout.COPY_COUNT * layout.COPY_BYTES, 0), volume.size)
        except (FormatError, CorruptionError):
            return False
        return found is not None and found[0].exists[layout.MAIN] and split_name(name)[1] == layout.MAIN

    def _close_volume(self, volume: Any) -> None:
        volume.close()


def _back_up(source: apsw.Connection, path: str, busy_timeout: float) -> None:
    """Copies a database into an empty file."""
    target = apsw.Connection(path)
    try:
        target.set_busy_handler(BusyHandler(busy_timeout))
        with target.backup("main", source, "main") as backup:
            while not backup.done:
                backup.step(-1)
    finally:
        target.close()
