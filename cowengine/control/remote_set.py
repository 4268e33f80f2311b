"""Snapshot sets of a store that another process serves, taken and being prepared.

A set that is being prepared is kept by the server for this client: it is aborted there when the client goes away.

Threads   Any.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from cowengine.control.encoding import decode_set
from cowengine.control.protocol import Message
from cowengine.control.remote_snapshot import RemoteSnapshot
from cowengine.errors import ClosedError
from cowengine.store.sets import PendingSet, SnapshotSet

if TYPE_CHECKING:
    from cowengine.control.remote_store import RemoteStore
    from cowengine.snapshot import Snapshot


class RemoteSnapshotSet(SnapshotSet):
    """See SnapshotSet."""

    def __init__(self, store: RemoteStore, found: Message) -> None:
        super().__init__(store, decode_set(found))
        self._remote = store
        self._message = found

    def _lookup(self) -> list[tuple[str, Snapshot | None]]:
        ids = [member["volume_id"] for member in self._message["members"]]
        rows = self._remote.client.call("set.members", set=self._message)
        return [
            (row["volume"], None if row["snapshot"] is None else RemoteSnapshot(self._remote, number, row["snapshot"]))
            for number, row in zip(ids, rows, strict=True)
        ]

    def delete(self) -> None:
        """See SnapshotSet."""
        for member in self._message["members"]:
            self._remote.readers.unpin(member["volume_id"], member["snapshot"])
        self._remote.client.call("set.delete", set=self._message)


class RemotePendingSet(PendingSet):
    """See PendingSet."""

    def __init__(self, store: RemoteStore, number: int, name: str, volumes: Sequence[str]) -> None:
        self.name = name
        self.volumes = list(volumes)
        self.held_seconds = 0.0
        self._remote = store
        self._number = number
        self._lock = threading.Lock()
        self._ended = False

    def _call(self, method: str) -> Any:
        return self._remote.client.call(method, pending=self._number)

    def require_name_free(self) -> None:
        """See PendingSet."""
        self._call("pending.require_name_free")

    def flush(self) -> None:
        """See PendingSet."""
        self._call("pending.flush")

    def commit(self) -> SnapshotSet:
        """See PendingSet. If the server goes away meanwhile (ClosedError), connecting anew tells whether there is a
        set.
        """
        with self._lock:
            if self._ended:
                raise ClosedError("this snapshot set was committed or aborted")
            self._ended = True
            done = self._call("pending.commit")
        self.held_seconds = done["held_seconds"]
        return RemoteSnapshotSet(self._remote, done["set"])

    def abort(self) -> None:
        """See PendingSet."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            with suppress(ClosedError):
                self._call("pending.abort")
