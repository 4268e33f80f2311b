"""Where a restore writes: raw sparse files in a folder, or new volumes of a store; nameless until all of it is right.

Knows nothing of streams. The I/O table does what is durable in a folder, the store what is durable in a store.

Threads   One caller for each destination. Two restores of one volume into one place: the second raises BusyError.
Durable   When `publish` returns. What a crash leaves has a temporary name, which the next restore of that volume
          removes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from typing import Any, Protocol

from cowengine.backup.stream import VolumeEntry
from cowengine.backup.target import system_errors
from cowengine.core.iotable import KERNEL, IOTable
from cowengine.engine.files import open_unfinished
from cowengine.errors import CowEngineError, ExistsError, OutOfRangeError

ZERO_BYTES = 1 << 20


class Restoring(Protocol):
    """One volume being restored. Offsets and lengths in bytes."""

    def begin(self, entry: VolumeEntry) -> None:
        """The next backup of the chain begins: take its size, and forget everything if it holds the volume whole."""

    def data(self, offset: int, plain: bytes | memoryview) -> None: ...
    def hole(self, offset: int, length: int) -> None: ...
    def finish(self) -> None:
        """All is written: make it durable, still under the temporary name."""

    def publish(self) -> str:
        """Give it its name, durably; returns what it is called. Raises ExistsError."""

    def discard(self) -> None:
        """Remove it, published or not."""


class Place(Protocol):
    """A folder or a store."""

    def check(self, name: str) -> None:
        """Raises ExistsError if a volume of that name cannot be published here."""

    def open(self, entry: VolumeEntry, size: int | None) -> Restoring:
        """Begin a volume. `size` is the size it will have in the end, if that is known already."""

    def discard(self) -> None:
        """The restore failed and every volume was discarded: remove what the place itself has made."""


def place_of(destination: Any, io: IOTable | None) -> Place:
    """A store is what has `create_volume`; everything else is the path of a folder."""
    if hasattr(destination, "create_volume"):
        return _Store(destination)
    try:
        path = os.fspath(destination)
    except TypeError:
        path = b""
    if not isinstance(path, str) or not path or "\0" in path:
        raise OutOfRangeError("a destination is a store or the path of a folder")
    return _Folder(path, io or KERNEL)


class _Folder:
    def __init__(self, path: str, io: IOTable) -> None:
        self._path = path
        self._io = io
        self._made = False
        with system_errors(path):
            if io.is_file(path):
                raise ExistsError("a file is in the way of the folder to restore into", path)

    def check(self, name: str) -> None:
        with system_errors(self._path):
            if self._is_there() and name + ".raw" in self._io.names(self._path):
                raise ExistsError("a restore replaces nothing: remove or rename it first", _raw_path(self._path, name))

    def open(self, entry: VolumeEntry, size: int | None) -> Restoring:
        with system_errors(self._path):
            if not self._is_there():
                self._io.mkdir(self._path)
                self._io.sync_directory(os.path.dirname(os.path.abspath(self._path)))
                self._made = True
        self.check(entry.name)
        return _RawFile(self._io, self._path, entry.name)

    def discard(self) -> None:
        if self._made:
            self._io.rmdir(self._path)

    def _is_there(self) -> bool:
        try:
            self._io.names(self._path)
        except FileNotFoundError:
            return False
        return True


class _RawFile:
    def __init__(self, io: IOTable, folder: str, name: str) -> None:
        self._io = io
        self._folder = folder
        self._name = name
        self._final = _raw_path(folder, name)
        self._path = os.path.join(folder, f".{name}.raw.restoring")
        self._fd = -1
        self._published = False
        with system_errors(self._path):
            self._fd = open_unfinished(io, self._path)

    def begin(self, entry: VolumeEntry) -> None:
        with system_errors(self._path):
            if entry.mode == "whole":
                self._io.truncate(self._fd, 0)
            self._io.truncate(self._fd, entry.size)

    def data(self, offset: int, plain: bytes | memoryview) -> None:
        with system_errors(self._path):
            self._io.pwrite(self._fd, plain, offset)

    def hole(self, offset: int, length: int) -> None:
        with system_errors(self._path):
            try:
                self._io.punch(self._fd, offset, length)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                for position in range(offset, offset + length, ZERO_BYTES):
                    self._io.pwrite(self._fd, bytes(min(ZERO_BYTES, offset + length - position)), position)

    def finish(self) -> None:
        with system_errors(self._path):
            self._io.fdatasync(self._fd)

    def publish(self) -> str:
        with system_errors(self._final):
            if os.path.basename(self._final) in self._io.names(self._folder):
                raise ExistsError("a restore replaces nothing: remove or rename it first", self._final)
            self._io.rename(self._path, self._final)
            self._published = True
            self._io.sync_directory(self._folder)
        self._close()
        return self._final

    def discard(self) -> None:
        with system_errors(self._path):
            try:
                self._io.unlink(self._final if self._published else self._path)
            finally:
                self._close()
            self._io.sync_directory(self._folder)

    def _close(self) -> None:
        if self._fd >= 0:
            self._io.close(self._fd)
            self._fd = -1


def _raw_path(folder: str, name: str) -> str:
    return os.path.join(folder, name + ".raw")


class _Store:
    def __init__(self, store: Any) -> None:
        self._store = store

    def check(self, name: str) -> None:
        if name in self._store.volumes():
            raise ExistsError(f"the store has a volume {name!r}: a restore replaces nothing; delete or rename it first")

    def open(self, entry: VolumeEntry, size: int | None) -> Restoring:
        self.check(entry.name)
        return _StoreVolume(self._store, entry, size)

    def discard(self) -> None:
        return None


class _StoreVolume:
    def __init__(self, store: Any, entry: VolumeEntry, size: int | None) -> None:
        self._store = store
        self._name = entry.name
        self._size_known = size is not None
        # The same for each restore of this name, so that the next one finds what a crash left.
        self._temporary = ".restoring-" + hashlib.sha256(entry.name.encode()).hexdigest()[:32]
        if self._temporary in store.volumes():
            store.delete_volume(self._temporary)
        self._volume = store.create_volume(
            self._temporary, entry.size if size is None else size, block_size=entry.block_size
        )
        self._size = 0  # of the volume at this point of the chain
        self._written = False
        self._published = False

    def begin(self, entry: VolumeEntry) -> None:
        if entry.mode == "whole" and self._written:
            self._volume.write_zeroes(0, self._volume.size)
        elif entry.size < self._size:
            self.hole(entry.size, self._size - entry.size)
        if not self._size_known and entry.size != self._volume.size:
            self._volume.resize(entry.size)
        self._size = entry.size

    def data(self, offset: int, plain: bytes | memoryview) -> None:
        self._written = True
        # Beyond the volume's last size there is only what a later backup of the chain cuts off.
        count = min(len(plain), self._volume.size - offset)
        if count > 0:
            self._volume.pwrite(plain[:count], offset)

    def hole(self, offset: int, length: int) -> None:
        count = min(length, self._volume.size - offset)
        if count > 0:
            self._volume.write_zeroes(offset, count)

    def finish(self) -> None:
        self._volume.flush()
        self._volume.close()

    def publish(self) -> str:
        self._store.rename_volume(self._temporary, self._name)
        self._published = True
        return self._name

    def discard(self) -> None:
        with contextlib.suppress(CowEngineError):
            self._volume.close()
        self._store.delete_volume(self._name if self._published else self._temporary)
