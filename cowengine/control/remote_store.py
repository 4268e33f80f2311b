"""A store that another process serves: the same interface as Store, over the control protocol.

What is not said here is as in Store. Objects that were opened, and sets that are being prepared, belong to this client:
the server gives them up when it closes or goes away.

Threads     Any.
Fork        A child process may not use its parent's: ClosedError.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from cowengine.control.client import told_of
from cowengine.control.encoding import decode_report
from cowengine.control.readers import VolumeReaders
from cowengine.control.remote_set import RemotePendingSet, RemoteSnapshotSet
from cowengine.control.remote_volume import RemoteVolume
from cowengine.engine.usage import VolumeSpace
from cowengine.errors import ClosedError, CowEngineError, NotFoundError, OutOfRangeError
from cowengine.names import check_name, check_path, encode_metadata
from cowengine.ranges import whole_number
from cowengine.store import PendingSet, SnapshotSet, Store
from cowengine.store.documents import encode_document
from cowengine.store.layout import METADATA_BYTES_MAX
from cowengine.store.names import VOLUME_SUFFIX, check_volume_name, document_file, volume_file

if TYPE_CHECKING:
    from cowengine.control.client import Client
    from cowengine.engine.report import Report
    from cowengine.store.documents import Document
    from cowengine.volume import Volume


class RemoteStore(Store):
    """See Store. Made by `connect`."""

    def __init__(self, path: str, client: Client) -> None:
        self.path = path
        self.client = client
        self.id = client.welcome["store"]["id"]
        #: Where the volumes and snapshots are block devices, or None.
        self.nbd_path: str | None = client.welcome["nbd"]
        self.read_only = client.welcome["read_only"]
        self.readers = VolumeReaders(client)
        self.rebuilt = None
        self.closed = False
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._shared: dict[str, RemoteVolume] = {}

    def __repr__(self) -> str:
        return f"<Store {self.path!r} served by another process{' closed' if self.closed else ''}>"

    def __del__(self) -> None:
        if not getattr(self, "closed", True) and os.getpid() == self._pid:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            self.close()

    @property
    def problems(self) -> list[str]:
        """See Store."""
        found: list[str] = self.client.call("store.problems")
        return found

    def check_open(self) -> None:
        """Raises ClosedError."""
        self.client.check_open()

    def close(self) -> None:
        """Close what this client has open, durably, and end its session. The store stays with its server."""
        with self._lock:
            if self.closed:
                return
            if os.getpid() == self._pid:
                self._close_all()
            self.closed = True
            self.client.close()

    def _close_all(self) -> None:
        failure: CowEngineError | None = None
        with suppress(CowEngineError):
            self.readers.close()
        for volume in self._shared.values():
            try:
                volume.close()
            except ClosedError:
                break  # the server is gone
            except CowEngineError as error:
                failure = failure or error
        if failure is not None:
            self.closed = True
            self.client.close()
            raise failure

    # ---- volumes ----

    def volumes(self) -> list[str]:
        """See Store."""
        names: list[str] = self.client.call("store.volumes")
        return names

    def volume_path(self, name: str) -> str:
        """See Store."""
        return volume_file(self.path, check_volume_name(name))

    def _new(self, method: str, name: str, **params: Any) -> Volume:
        with self._lock:
            volume = RemoteVolume(self, self.client.call(method, name=name, **params))
            volume.handed_out = True
            self._shared[name] = volume
            return volume

    def create_volume(self, name: str, size: int, *, block_size: int = 4096, log_size: int | None = None) -> Volume:
        """See Store."""
        size, block_size = whole_number(size, "size"), whole_number(block_size, "block_size")
        log_size = None if log_size is None else whole_number(log_size, "log_size")
        name = check_volume_name(name)
        return self._new("store.create_volume", name, size=size, block_size=block_size, log_size=log_size)

    def adopt_volume(
        self, name: str, raw_path: str | os.PathLike[str], *, block_size: int = 4096, raw: bool = False
    ) -> Volume:
        """See Store."""
        block_size = whole_number(block_size, "block_size")
        given, name = check_path(raw_path), check_volume_name(name)
        path = os.path.abspath(given)
        with told_of(given, path):
            return self._new("store.adopt_volume", name, path=path, block_size=block_size, raw=bool(raw))

    def attach(self, path: str | os.PathLike[str], name: str | None = None, *, without_store: bool = False) -> Volume:
        """See Store."""
        source = os.path.abspath(check_path(path))
        name = os.path.basename(source).removesuffix(VOLUME_SUFFIX) if name is None else name
        return self._new("store.attach", check_volume_name(name), path=source, without_store=bool(without_store))

    def open_volume(self, name: str, *, hand_out: bool = True) -> Volume:
        """See Store. The volume: one object, shared by all who open it through this client."""
        check_volume_name(name)
        with self._lock:
            volume = self._shared.get(name)
            if volume is None or volume.closed:
                volume = RemoteVolume(self, self.client.call("volume.info", volume={"name": name}))
                self._shared[name] = volume
            if hand_out and not volume.handed_out:
                self.client.call("volume.open", name=name)
                volume.handed_out = True
            return volume

    def hand_back(self, name: str) -> None:
        """See Store."""
        with self._lock:
            volume = self._shared.get(name)
            if volume is not None and volume.handed_out and not volume.closed:
                volume.handed_out = False
                self.client.call("volume.close", name=name)

    def close_unused(self, name: str) -> None:
        """See Store. The server closes by itself what nobody uses."""
        self.check_open()

    def delete_volume(self, name: str) -> None:
        """See Store. BusyError also while another client has it open."""
        self._take_away("store.delete_volume", name)

    def rename_volume(self, name: str, new_name: str) -> None:
        """See Store. BusyError also while another client has it open."""
        self._take_away("store.rename_volume", name, new_name=check_volume_name(new_name))

    def detach(self, name: str) -> str:
        """See Store. BusyError also while another client has it open."""
        path: str = self._take_away("store.detach", name)
        return path

    def _take_away(self, method: str, name: str, **params: Any) -> Any:
        """What the volume may not be open for: to look at snapshots of it is not to have it open."""
        check_volume_name(name)
        self.readers.close(name)
        result = self.client.call(method, name=name, **params)
        with self._lock:
            self._shared.pop(name, None)
        return result

    # ---- snapshot sets ----

    def snapshot(
        self, volume_names: Iterable[str], name: str, *, metadata: dict[str, Any] | None = None
    ) -> SnapshotSet:
        """See Store."""
        names = _checked(volume_names, name, metadata)
        found = self.client.call("store.snapshot", volumes=names, name=name, metadata=metadata)
        return RemoteSnapshotSet(self, found)

    def prepare_set(
        self, volume_names: Iterable[str], name: str, *, metadata: dict[str, Any] | None = None
    ) -> PendingSet:
        """See Store. The server aborts it if this client goes away."""
        names = _checked(volume_names, name, metadata)
        number = self.client.call("store.prepare_set", volumes=names, name=name, metadata=metadata)
        return RemotePendingSet(self, number, name, names)

    def snapshot_sets(self) -> list[SnapshotSet]:
        """See Store."""
        found: list[SnapshotSet] = []
        while page := self.client.call("store.snapshot_sets", start=len(found)):
            found += [RemoteSnapshotSet(self, each) for each in page]
        return found

    def get_snapshot_set(self, name_or_id: str) -> SnapshotSet:
        """See Store."""
        if not isinstance(name_or_id, str):
            raise NotFoundError(f"the store has no snapshot set {name_or_id!a:.300}", self.path)
        return RemoteSnapshotSet(self, self.client.call("store.get_snapshot_set", name_or_id=name_or_id))

    def attach_ledger(self, set_id: str, ledger: Document) -> None:
        """See Store."""
        encode_document(ledger)
        self.client.call("store.attach_ledger", set=set_id, ledger=ledger)

    # ---- documents ----

    def put_document(self, kind: str, document_id: str, document: Document) -> None:
        """See Store."""
        document_file(kind, document_id)
        encode_document(document)
        self.client.call("store.put_document", kind=kind, id=document_id, document=document)

    def get_document(self, kind: str, document_id: str) -> Document:
        """See Store."""
        document_file(kind, document_id)
        document: Document = self.client.call("store.get_document", kind=kind, id=document_id)
        return document

    def documents(self, kind: str) -> list[str]:
        """See Store."""
        found: list[str] = self.client.call("store.documents", kind=kind)
        return found

    def delete_document(self, kind: str, document_id: str) -> None:
        """See Store."""
        document_file(kind, document_id)
        self.client.call("store.delete_document", kind=kind, id=document_id)

    # ---- the whole store ----

    def du(self) -> dict[str, VolumeSpace]:
        """See Store."""
        return {name: VolumeSpace(**space) for name, space in self.client.call("store.du").items()}

    def check(self) -> Report:
        """See Store."""
        return decode_report(self.client.call("store.check"))


def _checked(volume_names: Iterable[str], name: str, metadata: dict[str, Any] | None) -> list[str]:
    """The names of the members. Raises OutOfRangeError for what a message cannot carry."""
    check_name(name, "snapshot set")
    encode_metadata(metadata, METADATA_BYTES_MAX)
    if isinstance(volume_names, str | bytes):
        raise OutOfRangeError("the volumes of a snapshot set are a list of names, not one string")
    return [check_volume_name(each) for each in volume_names]
