"""The volume files of a served store as a client reads them: beside their owner, snapshot by snapshot.

The bytes of a snapshot do not go through the server. What is read is pinned in the file until nobody here has it any
more, or the client itself has it deleted.

Threads   Any.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING
from weakref import WeakSet

from cowengine.errors import NotFoundError
from cowengine.volume import Volume

if TYPE_CHECKING:
    from cowengine.control.client import Client
    from cowengine.control.remote_snapshot import RemoteSnapshot
    from cowengine.snapshot import Snapshot


class VolumeReader:
    """One volume file. While it is open here, the server keeps the volume open."""

    def __init__(self, client: Client, name: str) -> None:
        opened = client.call("volume.open", name=name)
        self.id: str = opened["id"]
        self._client = client
        self.name = name
        self._lock = threading.Lock()
        self._users: dict[int, WeakSet[RemoteSnapshot]] = {}
        try:
            self._volume = Volume.open(opened["path"], read_only=True, background=False)
        except BaseException:
            client.call("volume.close", name=name)
            raise

    def pinned(self, user: RemoteSnapshot) -> Snapshot:
        """A snapshot to read from, pinned. Raises NotFoundError, AnchorError, BusyError (it is being deleted)."""
        with self._lock:
            self._users.setdefault(user.id, WeakSet()).add(user)
        try:
            return self._volume.get_snapshot(user.id)
        except NotFoundError:
            user.call("snapshot.publish")  # a set's, perhaps, that stands in the store's log only; or it is gone
        return self._volume.get_snapshot(user.id)

    def unpin(self, number: int) -> None:
        """Nobody here has the snapshot pinned any more, until it is read again."""
        with self._lock:
            users = list(self._users.pop(number, ()))
        for user in users:
            user.forget()

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            users = [user for each in self._users.values() for user in each]
            self._users = {}
        for user in users:
            user.forget()
        self._volume.close()
        with suppress(NotFoundError):
            self._client.call("volume.close", name=self.name)


class VolumeReaders:
    """The volume files that a client has open for reading, by the volume's id."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._readers: dict[str, VolumeReader] = {}

    def of(self, name: str, volume_id: str) -> VolumeReader:
        """The reader of a volume, opened if it is not. Raises NotFoundError if it is that very volume no more."""
        with self._lock:
            found = self._readers.get(volume_id)
            if found is None:
                found = VolumeReader(self._client, name)
                if found.id != volume_id:
                    found.close()
                    raise NotFoundError(f"the store has no volume {name!r} of id {volume_id}")
                self._readers[volume_id] = found
            return found

    def unpin(self, volume_id: str, number: int) -> None:
        """Before a snapshot is deleted: see `VolumeReader.unpin`."""
        with self._lock:
            found = self._readers.get(volume_id)
        if found is not None:
            found.unpin(number)

    def close(self, name: str | None = None) -> None:
        """Closes the reader of one volume, before it is taken away, or all."""
        with self._lock:
            gone = [key for key, reader in self._readers.items() if name in (None, reader.name)]
            readers = [self._readers.pop(key) for key in gone]
        for reader in readers:
            reader.close()
