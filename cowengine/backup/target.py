"""A directory of backups: where streams and manifests lie, and the order in which a backup comes to exist or goes.

Knows files and names, not what streams hold. Layout and order: docs/backup-format.md section 2.

Threads   A `ChainLock` is held by one writer of a chain, in any process; readers take no lock.
Durable   `NewBackup.publish` and `remove` are durable when they return. Every durable call goes through the I/O table.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from types import TracebackType

from cowengine.backup.manifest import MANIFEST_BYTES_MAX, Backup, decode_manifest, encode_manifest
from cowengine.backup.names import checked_backup_id, checked_chain
from cowengine.backup.stream import StreamHeader
from cowengine.backup.stream_reader import Source
from cowengine.closing import Closing
from cowengine.core.iotable import KERNEL, IOTable
from cowengine.engine.files import open_regular, require_folder
from cowengine.errors import (
    BackupError,
    BusyError,
    CowEngineError,
    ExistsError,
    NotFoundError,
    OutOfRangeError,
    StorageError,
)
from cowengine.oserrors import typed

CHAINS = "chains"
LOCK = "lock"
STREAM = "stream"
MANIFEST = "manifest.json"
NEW = ".new-"
OLD = ".old-"


@contextlib.contextmanager
def system_errors(path: str) -> Iterator[None]:
    """Turns the operating system's errors into typed ones that name `path`."""
    try:
        with typed(path):
            yield
    except CowEngineError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise NotFoundError("not found, or no folder", path) from error
        if error.errno in (errno.ENAMETOOLONG, errno.EFBIG, errno.EINVAL):
            raise OutOfRangeError(f"{error.strerror}: the file system cannot hold this", path) from error
        raise BackupError(f"{error.strerror or error} [{path}]") from error


class Target:
    """A target directory, opened by path; nothing is created before the first backup."""

    def __init__(self, path: str | os.PathLike[str], io: IOTable | None = None) -> None:
        self.path = os.fspath(path)
        if not isinstance(self.path, str) or not self.path or "\0" in self.path:
            raise OutOfRangeError("a backup target is the path of a directory, '-', or a binary file object")
        self.io = io or KERNEL

    def chain_path(self, chain: str) -> str:
        return os.path.join(self.path, CHAINS, checked_chain(chain))

    def backup_path(self, backup: Backup) -> str:
        return os.path.join(self.chain_path(backup.chain), backup.id)

    def chains(self) -> list[str]:
        """The names of all chains, sorted; none if there is no backup yet. Raises NotFoundError without a target."""
        with system_errors(self.path):
            if CHAINS not in self.io.names(self.path):
                return []
            chains = os.path.join(self.path, CHAINS)
            require_folder(self.io, chains)
            return [name for name in self.io.names(chains) if not name.startswith(".")]

    def backups(self, chain: str | None = None, problems: list[str] | None = None) -> list[Backup]:
        """All backups, or one chain's, in the order they were written.

        A damaged manifest raises BackupError, or is named in `problems` if that is given.
        """
        found: list[Backup] = []
        for name in self.chains() if chain is None else [checked_chain(chain)]:
            for backup_id in self._ids(name):
                try:
                    found.append(self._load(name, backup_id))
                except CowEngineError as error:
                    if problems is None:
                        raise
                    problems.append(str(error))
        return sorted(found, key=lambda backup: (backup.chain, backup.number, backup.id))

    def next_number(self, chain: str) -> int:
        """The number of the chain's next backup. One with a damaged manifest does not count.

        Raises StorageError if one cannot be read now: a number that is given twice breaks the chain.
        """
        last = 0
        for backup_id in self._ids(chain):
            try:
                last = max(last, self._load(chain, backup_id).number)
            except StorageError:
                raise
            except CowEngineError:
                continue
        return last + 1

    def find(self, backup_id: str) -> Backup:
        """The backup with this id. Raises NotFoundError, or BackupError if its manifest is damaged."""
        return self._load(self.chain_holding(checked_backup_id(backup_id)), backup_id)

    def chain_holding(self, backup_id: str) -> str:
        """The chain that has a backup of this id, damaged or not. Raises NotFoundError."""
        for chain in self.chains():
            if backup_id in self._ids(chain):
                return chain
        raise NotFoundError(f"there is no backup {backup_id}", self.path)

    def chain_of(self, backup: Backup) -> list[Backup]:
        """What `backup` needs, the one without a base first, itself last. Raises BackupError on a bad link."""
        links = [backup]
        while links[-1].base is not None:
            child = links[-1]
            try:
                base = self._load(child.chain, checked_backup_id(links[-1].base))
            except NotFoundError:
                message = f"backup {child.id} of chain {child.chain!r} stands on {child.base}, which is missing"
                raise BackupError(message) from None
            check_link(base, child.header)
            links.append(base)
        return links[::-1]

    @contextlib.contextmanager
    def source(self, backup: Backup) -> Iterator[Source]:
        """The backup's stream, read from the disk rather than from the cache."""
        path = os.path.join(self.backup_path(backup), STREAM)
        with system_errors(path):
            fd = self.io.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            with system_errors(path):
                expected, size = backup.bytes_written, self.io.size(fd)
            if size != expected:
                raise BackupError(f"backup {backup.id}: its stream has {size} bytes instead of {expected}")
            yield file_source(self.io, fd, path)
        finally:
            self.io.close(fd)

    def remove(self, chain: str, backup_id: str) -> None:
        """Removes one backup, durably. The caller holds the chain's lock and has checked that nobody stands on it."""
        chain_path = self.chain_path(chain)
        path, gone = os.path.join(chain_path, backup_id), os.path.join(chain_path, OLD + backup_id)
        with system_errors(path):
            require_folder(self.io, path)
            self.io.rename(path, gone)
            # From here on it is gone; what is left of it under the other name, the next run removes.
            self.io.sync_directory(chain_path)
            remove_folder(self.io, gone)

    def _ids(self, chain: str) -> list[str]:
        path = self.chain_path(chain)
        with system_errors(path):
            try:
                names = self.io.names(path)
            except (FileNotFoundError, NotADirectoryError):
                return []
            require_folder(self.io, path)
        return [name for name in names if name != LOCK and not name.startswith(".")]

    def _load(self, chain: str, backup_id: str) -> Backup:
        folder = os.path.join(self.chain_path(chain), backup_id)
        path = os.path.join(folder, MANIFEST)
        with system_errors(path):
            fd = self.io.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                require_folder(self.io, folder)
                size = self.io.size(fd)
                raw = self.io.pread(fd, size, 0) if size <= MANIFEST_BYTES_MAX else b""
            finally:
                self.io.close(fd)
        try:
            backup = decode_manifest(raw)
        except CowEngineError as error:
            raise type(error)(f"backup {backup_id} of chain {chain!r}: {error}") from None
        if (backup.chain, backup.id) != (chain, backup_id):
            raise BackupError(f"backup {backup_id} of chain {chain!r} has the manifest of another, {backup.id}")
        return backup


def check_link(base: Backup, child: StreamHeader) -> None:
    """Raises BackupError unless `child` really stands on `base`: ids, root and each volume's change ids."""
    problem = None
    if (base.id, base.root) != (child.base_id, child.base_root) or base.chain != child.chain:
        problem = "it was made on another backup, or that one was changed"
    elif base.number >= child.number or base.kind == "copy":
        problem = f"its base is a {base.kind} with number {base.number}"
    else:
        for entry in child.volumes:
            before = base.header.volume(entry.name)
            if entry.mode == "changes" and (
                before is None or (before.uuid, before.to_id) != (entry.uuid, entry.from_id)
            ):
                problem = f"volume {entry.name!r} does not continue its base: wrong change id"
    if problem:
        raise BackupError(f"backup {child.backup_id} of chain {child.chain!r} does not fit {base.id}: {problem}")


def file_source(io: IOTable, fd: int, path: str) -> Source:
    """An open stream from its beginning, as the disk and not the cache has it."""
    with system_errors(path):
        io.forget(fd)
    position = 0

    def read(length: int) -> bytes:
        nonlocal position
        with system_errors(path):
            data = io.pread(fd, length, position)
        position += len(data)
        return data

    return Source(read)


class ChainLock(Closing):
    """The right to write to one chain, for as long as it is open. What crashed runs left in the chain is removed.

    Raises BusyError if another writer has it.
    """

    def __init__(self, target: Target, chain: str) -> None:
        self._io = target.io
        self.path = target.chain_path(chain)
        with system_errors(self.path):
            self._make_folders(target)
            self._fd = self._open_lock(os.path.join(self.path, LOCK))
            try:
                self._io.lock(self._fd, True)
                for name in self._io.names(self.path):
                    if name.startswith((NEW, OLD)):
                        remove_folder(self._io, os.path.join(self.path, name))
            except BlockingIOError:
                self._io.close(self._fd)
                raise BusyError("another backup or delete runs in this chain", self.path) from None
            except BaseException:
                self._io.close(self._fd)
                raise

    def _open_lock(self, path: str) -> int:
        try:
            return self._io.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return open_regular(self._io, path, read_only=False)

    def _make_folders(self, target: Target) -> None:
        for path in (target.path, os.path.dirname(self.path), self.path):
            try:
                self._io.mkdir(path)
            except FileExistsError:
                if path != target.path:
                    require_folder(self._io, path)
                continue
            self._io.sync_directory(os.path.dirname(os.path.abspath(path)))

    def close(self) -> None:
        if self._fd >= 0:
            self._io.close(self._fd)
            self._fd = -1


class NewBackup:
    """A backup being written: a sink for its stream, then `publish`. Leaving it without that removes it."""

    def __init__(self, target: Target, lock: ChainLock, backup_id: str) -> None:
        self._io = target.io
        self._chain_path = lock.path
        self._final = os.path.join(lock.path, backup_id)
        self._path = os.path.join(lock.path, NEW + backup_id)
        self._fd = -1
        self._position = 0
        self._published = False

    def __enter__(self) -> NewBackup:
        with system_errors(self._path):
            self._io.mkdir(self._path)
            try:
                self._fd = self._create(STREAM)
            except BaseException:
                self._io.rmdir(self._path)
                raise
        return self

    def write(self, data: bytes) -> None:
        with system_errors(self._path):
            self._io.pwrite(self._fd, data, self._position)
        self._position += len(data)

    def written(self) -> Source:
        """What was written so far, made durable and read back."""
        with system_errors(self._path):
            self._io.fdatasync(self._fd)
        return file_source(self._io, self._fd, self._path)

    def publish(self, backup: Backup) -> None:
        """Give the backup its name. Durable on return. Raises ExistsError if it is there already."""
        with system_errors(self._final):
            self._io.fdatasync(self._fd)
            fd = self._create(MANIFEST)
            try:
                self._io.pwrite(fd, encode_manifest(backup), 0)
                self._io.fdatasync(fd)
            finally:
                self._io.close(fd)
            self._io.sync_directory(self._path)
            if os.path.basename(self._final) in self._io.names(self._chain_path):
                raise ExistsError(f"backup {backup.id} exists already", self._final)
            self._io.rename(self._path, self._final)
            try:
                self._io.sync_directory(self._chain_path)
            except BaseException:
                # Not known to be durable: it must not look complete either.
                self._io.rename(self._final, self._path)
                raise
            self._published = True

    def __exit__(self, kind: object, error: object, trace: TracebackType | None) -> None:
        if self._fd >= 0:
            self._io.close(self._fd)
        if not self._published:
            # The error on its way out matters more than a failure to clean up; the next run tries again.
            with contextlib.suppress(OSError):
                remove_folder(self._io, self._path)

    def _create(self, name: str) -> int:
        return self._io.open(os.path.join(self._path, name), os.O_RDWR | os.O_CREAT | os.O_EXCL)


def remove_folder(io: IOTable, path: str) -> None:
    """Removes a backup's folder and the files a backup may have; anything else in it makes this fail."""
    require_folder(io, path)
    for name in io.names(path):
        if name in (STREAM, MANIFEST):
            io.unlink(os.path.join(path, name))
    io.rmdir(path)
