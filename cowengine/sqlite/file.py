"""Between SQLite and a database's files: what SQLite calls for each open file, and how a name finds its file.

Translates and nothing else: names to files, errors of cowengine to those SQLite understands. `database.py` does the
work.

Not claimed: no I/O capability beyond an atomic sector of 512 bytes, no atomic or ordered writes, no power-safe
overwrite. SQLite then does all it can itself, which is right on any medium.
Not offered: shared memory (so a WAL needs `PRAGMA locking_mode=EXCLUSIVE`), memory mapping, and super-journals (a
transaction over several attached databases is refused when it commits, and rolled back).

Threads     SQLite uses one open file from one thread at a time; several files of one database are used at once.
Durability  what SQLite asks for with xSync, and every deletion, is durable on return.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from typing import Any

import apsw

from cowengine.errors import CowEngineError, NoSpaceError, NotFoundError, ReadOnlyError
from cowengine.sqlite import layout
from cowengine.sqlite.database import Database, split_name
from cowengine.sqlite.locks import LockHolder

SECTOR_BYTES = 4096

_OWN_FILES = apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_WAL


def _failure(error: CowEngineError, extended_result: int) -> Exception:
    """The exception that gives SQLite the right result code, with our text."""
    if isinstance(error, NoSpaceError):
        return apsw.FullError(str(error))
    if isinstance(error, ReadOnlyError):
        return apsw.ReadOnlyError(str(error))
    failure = apsw.IOError(str(error))
    failure.extendedresult = extended_result  # type: ignore[attr-defined]
    return failure


class DatabaseFile:
    """One open file of a database."""

    def __init__(self, database: Database, file: int, finished: Any) -> None:
        self._database = database
        self._file = file
        self._finished = finished
        self._holder = LockHolder()

    def xRead(self, amount: int, offset: int) -> bytes:
        try:
            return self._database.read(self._file, amount, offset)
        except CowEngineError as error:
            raise _failure(error, apsw.SQLITE_IOERR_READ) from error

    def xWrite(self, data: Any, offset: int) -> None:
        try:
            self._database.write(self._file, data, offset)
        except CowEngineError as error:
            raise _failure(error, apsw.SQLITE_IOERR_WRITE) from error

    def xTruncate(self, newsize: int) -> None:
        try:
            self._database.truncate(self._file, newsize)
        except CowEngineError as error:
            raise _failure(error, apsw.SQLITE_IOERR_TRUNCATE) from error

    def xSync(self, flags: int) -> None:
        try:
            self._database.flush()
        except CowEngineError as error:
            raise _failure(error, apsw.SQLITE_IOERR_FSYNC) from error

    def xFileSize(self) -> int:
        return self._database.length(self._file)

    def xLock(self, level: int) -> None:
        if not self._database.lock.acquire(self._holder, level):
            raise apsw.BusyError(f"database {self._database.name!r} is locked by another connection")

    def xUnlock(self, level: int) -> None:
        self._database.lock.release(self._holder, level)

    def xCheckReservedLock(self) -> bool:
        return self._database.lock.is_reserved()

    def xSectorSize(self) -> int:
        return SECTOR_BYTES

    def xDeviceCharacteristics(self) -> int:
        return 0

    def xFileControl(self, op: int, ptr: int) -> bool:
        return False

    def xClose(self) -> None:
        self._database.lock.release(self._holder, 0)
        finished, self._finished = self._finished, None
        if finished is not None:
            finished(self._database)


class DatabaseVFS(apsw.VFS):
    """An apsw VFS whose databases `_find` knows. Temporary files go to SQLite's default VFS: they need not last."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "")
        self.name = name

    @abstractmethod
    def _find(self, name: str, create: bool) -> Database | None:
        """The database of that name; created if it is missing and may be; else None."""

    @abstractmethod
    def _opened(self, database: Database) -> None:
        """A file of the database is about to be opened."""

    @abstractmethod
    def _closed(self, database: Database) -> None:
        """It was closed, or could not be opened."""

    def xSleep(self, microseconds: int) -> int:
        # The inherited one sleeps with the GIL held, and the connection that is waited for could not go on.
        time.sleep(microseconds / 1e6)
        return microseconds

    def xFullPathname(self, name: str) -> str:
        return name

    def xAccess(self, pathname: str, flags: int) -> bool:
        name, file = split_name(pathname)
        try:
            database = self._find(name, create=False)
        except CowEngineError as error:
            raise _failure(error, apsw.SQLITE_IOERR_ACCESS) from error
        if database is None or not database.exists(file):
            return False
        if flags == apsw.SQLITE_ACCESS_READWRITE:
            return not database.read_only
        # Like SQLite's own VFS: a file without a byte is none, so that an empty journal asks for no recovery.
        return flags != apsw.SQLITE_ACCESS_EXISTS or database.length(file) > 0

    def xDelete(self, filename: str, syncdir: bool) -> None:
        # Durable whatever `syncdir` says: the deletion of its journal is what commits a transaction, and a process that
        # is killed must not lose an acknowledged one.
        name, file = split_name(filename)
        try:
            database = self._find(name, create=False)
            removed = database is not None and database.remove(file)
        except CowEngineError as error:
            raise _failure(error, apsw.SQLITE_IOERR_DELETE) from error
        if not removed:
            raise _failure(NotFoundError(f"no file {filename!r}"), apsw.SQLITE_IOERR_DELETE_NOENT)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> Any:
        if name is None or not flags[0] & _OWN_FILES:
            return self._open_elsewhere(name, flags)
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        database_name, file = split_name(path)
        create = bool(flags[0] & apsw.SQLITE_OPEN_CREATE)
        database = self._find(database_name, create=create and file == layout.MAIN)
        if database is None:
            raise apsw.CantOpenError(f"no database {database_name!r}")
        self._opened(database)
        try:
            if not self._provide(database, file, flags[0]):
                raise apsw.CantOpenError(f"no file {path!r}")
        except BaseException:
            self._closed(database)
            raise
        flags[1] = flags[0]
        if database.read_only:
            flags[1] = flags[0] & ~(apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE) | apsw.SQLITE_OPEN_READONLY
        return DatabaseFile(database, file, self._closed)

    def _open_elsewhere(self, name: str | apsw.URIFilename | None, flags: list[int]) -> Any:
        if flags[0] & apsw.SQLITE_OPEN_SUPER_JOURNAL:
            raise apsw.CantOpenError("a transaction over several attached databases is not offered")
        return apsw.VFSFile("", None, flags)

    def _provide(self, database: Database, file: int, flags: int) -> bool:
        """True if the file exists when it returns."""
        if not database.exists(file) and flags & apsw.SQLITE_OPEN_CREATE and not database.read_only:
            database.create(file)
        return database.exists(file)
