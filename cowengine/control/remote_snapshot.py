"""A snapshot of a store that another process serves.

Bytes and extents are read from the volume file, beside its owner; what changes something is the server's to do.

Threads   Any.
"""

from __future__ import annotations

import datetime
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from cowengine.control.client import told_of
from cowengine.control.encoding import decode_date, decode_report
from cowengine.control.protocol import Message
from cowengine.engine.usage import SnapshotSpace
from cowengine.errors import AnchorError, NotFoundError
from cowengine.names import check_name, check_path, check_reason
from cowengine.ranges import check_rate
from cowengine.snapshot import Snapshot, check_date

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined]

    from cowengine.control.remote_store import RemoteStore
    from cowengine.engine.report import Report
    from cowengine.extents import ExtentArray
    from cowengine.volume import Volume


class RemoteSnapshot(Snapshot):
    """See Snapshot. What is read is pinned while this object lives: others then cannot have it deleted (BusyError)."""

    def __init__(self, store: RemoteStore, volume_id: str, found: Message) -> None:
        self._store = store
        self._volume_id = volume_id
        self._message = found
        self._anchor: bool = found["is_anchor"]
        self._metadata: dict[str, Any] | None = None
        self._pinned: Snapshot | None = None

    def __repr__(self) -> str:
        return f"<cowengine.Snapshot {self.name!r} id={self.id} epoch={self.epoch}>"

    # -- what it is ----------------------------------------------------------------------------------------------------
    @property
    def id(self) -> int:
        """See Snapshot."""
        number: int = self._message["id"]
        return number

    @property
    def name(self) -> str:
        """See Snapshot."""
        name: str = self._message["name"]
        return name

    @property
    def epoch(self) -> int:
        """See Snapshot."""
        epoch: int = self._message["epoch"]
        return epoch

    @property
    def created(self) -> datetime.datetime:
        """See Snapshot."""
        return datetime.datetime.fromtimestamp(self.created_ns / 1e9, datetime.UTC)

    @property
    def created_ns(self) -> int:
        """See Snapshot."""
        created_ns: int = self._message["created_ns"]
        return created_ns

    @property
    def size(self) -> int:
        """See Snapshot."""
        size: int = self._message["size"]
        return size

    @property
    def block_size(self) -> int:
        """See Snapshot."""
        block_size: int = self._message["block_size"]
        return block_size

    @property
    def change_id(self) -> str:
        """See Snapshot."""
        change_id: str = self._message["change_id"]
        return change_id

    @property
    def set_id(self) -> str | None:
        """See Snapshot."""
        set_id: str | None = self._message["set_id"]
        return set_id

    @property
    def volume_path(self) -> str:
        """See Snapshot."""
        path: str = self._message["volume_path"]
        return path

    @property
    def _volume_name(self) -> str:
        name: str = self._message["volume"]
        return name

    def call(self, method: str, /, **params: Any) -> Any:
        """Calls a method about this snapshot."""
        volume = {"name": self._volume_name, "id": self._volume_id}
        return self._store.client.call(method, {"volume": volume, "snapshot": self.id}, **params)

    def _state(self) -> Message:
        state: Message = self.call("snapshot.state")
        self._anchor = state["is_anchor"]
        return state

    @property
    def is_anchor(self) -> bool:
        """See Snapshot."""
        if not self._anchor and not self._store.closed:
            try:
                self._state()
            except NotFoundError:
                pass  # deleted; it is what it was
        return self._anchor

    @property
    def metadata(self) -> dict[str, Any]:
        """See Snapshot."""
        if self._metadata is None:
            self._metadata = self._state()["metadata"]
        return dict(self._metadata or {})

    @property
    def hold_reason(self) -> str | None:
        """See Snapshot."""
        reason: str | None = self._state()["hold_reason"]
        return reason

    @property
    def retain_until(self) -> datetime.datetime | None:
        """See Snapshot."""
        until = self._state()["retain_until"]
        return None if until is None else decode_date(until)

    @retain_until.setter
    def retain_until(self, until: datetime.datetime) -> None:
        check_date(until)
        self.call("snapshot.retain", until=until.isoformat())

    # -- bytes and extents ---------------------------------------------------------------------------------------------
    def _data(self) -> Snapshot:
        """The snapshot in the volume file, pinned."""
        pinned = self._pinned
        if pinned is None:
            self._store.check_open()
            pinned = self._pinned = self._store.readers.of(self._volume_name, self._volume_id).pinned(self)
        return pinned

    def forget(self) -> None:
        """Gives the pin up, until the next read."""
        self._pinned = None

    def pread(self, length: int, offset: int) -> bytes:
        """See Snapshot."""
        return self._data().pread(length, offset)

    def pread_into(self, buffer: Buffer, offset: int) -> int:
        """See Snapshot."""
        return self._data().pread_into(buffer, offset)

    def pread_many(self, buffer: Buffer, extents: ExtentArray | Sequence[tuple[int, int]]) -> int:
        """See Snapshot."""
        return self._data().pread_many(buffer, extents)

    def _require_data(self) -> None:
        if self._data().is_anchor:
            raise AnchorError(f"snapshot {self.name!r} is an anchor: its data was given up", self.volume_path)

    def allocated_extents(
        self, start: int = 0, length: int | None = None, max_results: int | None = None
    ) -> ExtentArray:  # fmt: skip
        """See Snapshot."""
        return self._data().allocated_extents(start, length, max_results)

    def changed_extents(
        self, base: Snapshot | int | str, start: int = 0, length: int | None = None, max_results: int | None = None
    ) -> ExtentArray:
        """See Snapshot."""
        if isinstance(base, RemoteSnapshot):
            base = base.change_id
        return self._data().changed_extents(base, start, length, max_results)

    def flatten(self, raw_path: str | os.PathLike[str]) -> None:
        """See Snapshot."""
        self._data().flatten(raw_path)

    def export(self, raw_path: str | os.PathLike[str], *, salvage: bool = False, doubtful: bool = False) -> Report:
        """See Snapshot. To salvage is the server's to do: it writes the image."""
        if not salvage:
            return self._data().export(raw_path)
        given = check_path(raw_path)
        path = os.path.abspath(given)
        with told_of(given, path):
            return decode_report(self.call("snapshot.salvage", path=path, doubtful=doubtful))

    def verify(
        self, progress: Callable[[Report], None] | None = None, *, rate: int | None = None,
        stop: threading.Event | None = None,
    ) -> Report:  # fmt: skip
        """See Snapshot. The server reads and compares: it knows all seals."""
        tell = None if progress is None else lambda report: progress(decode_report(report))
        return decode_report(self.call("snapshot.verify", rate=check_rate(rate), progress=tell, stop=stop))

    @contextmanager
    def _kept(self) -> Iterator[None]:
        pinned = self._data()
        yield
        del pinned

    def exported(self) -> AbstractContextManager[None]:
        """See Snapshot."""
        return self._kept()

    # -- what its owner decides ----------------------------------------------------------------------------------------
    def space(self) -> SnapshotSpace:
        """See Snapshot."""
        return SnapshotSpace(**self.call("snapshot.space"))

    def clone(self, name: str) -> Volume:
        """See Snapshot."""
        from cowengine.control.remote_volume import RemoteVolume

        return RemoteVolume(self._store, self.call("snapshot.clone", name=check_name(name)))

    def hold(self, reason: str) -> None:
        """See Snapshot."""
        self.call("snapshot.hold", reason=check_reason(reason))

    def release(self) -> None:
        """See Snapshot."""
        self.call("snapshot.release")

    def require_deletable(self) -> None:
        """See Snapshot."""
        self.call("snapshot.require_deletable")

    def delete(self) -> None:
        """See Snapshot. BusyError also while another process reads it."""
        self._store.readers.unpin(self._volume_id, self.id)
        self.call("snapshot.delete")

    def to_anchor(self) -> None:
        """See Snapshot. BusyError also while another process reads it."""
        self._store.readers.unpin(self._volume_id, self.id)
        self.call("snapshot.to_anchor")
