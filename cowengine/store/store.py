"""The store: a directory of volumes with one owner, and the snapshot sets over them.

Puts the parts together: the store log (commit point of sets), the volumes, the documents, and the catalogue, which is
an index and nothing more. The files are described in docs/store-format.md.

Threads     Thread-safe. Sets over disjoint volumes are taken in parallel but for their record in the store log.
Fork        A child process may not use its parent's store: ClosedError.
Durability  Each method says so; all durable calls go through one I/O table, the catalogue's excepted.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from cowengine.closing import Closing
from cowengine.core.iotable import KERNEL, IOTable
from cowengine.engine.report import Report
from cowengine.engine.usage import VolumeSpace
from cowengine.errors import (
    BusyError,
    ClosedError,
    CowEngineError,
    ExistsError,
    NotFoundError,
    OutOfRangeError,
    PoisonedError,
    ReadOnlyError,
)
from cowengine.names import check_name, check_path, encode_metadata
from cowengine.oserrors import typed
from cowengine.ranges import whole_number
from cowengine.snapshot import Snapshot
from cowengine.store import layout
from cowengine.store.catalogue import MEMORY, Catalogue, CatalogueMember, CatalogueSet, record_statements
from cowengine.store.create import create_folder
from cowengine.store.documents import Document, Documents
from cowengine.store.layout import TYPE_DELETE, Record, RecordMember
from cowengine.store.log import Entry, StoreLog
from cowengine.store.names import (
    CATALOGUE_NAME,
    DOCUMENTS_NAME,
    LOG_NAME,
    VOLUME_SUFFIX,
)
from cowengine.store.place import StorePlace
from cowengine.store.rebuild import (
    RebuildReport,
    catalogue_statements,
    folder_statements,
    rebuild_report,
    set_rows,
)
from cowengine.store.sets import LEDGER_KIND, PendingSet, SnapshotSet
from cowengine.store.settle import Settlement
from cowengine.store.volumes import VolumeTable
from cowengine.volume import Volume

logger = logging.getLogger("cowengine.store")

ROOM_WAIT_SECONDS = 10.0


class Store(Closing):
    """One open store. Made by `Store.create` and `Store.open`."""

    # ---- opening and closing ----

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        log_size: int = layout.RING_BYTES_DEFAULT,
        io: IOTable | None = None,
        catalogue: str | None = None,
        background: bool = True,
    ) -> Store:
        """Make a store in a new directory (mode 0700) and open it; durable on return.

        `log_size`: bytes of the store log's ring, 16 KiB to 64 MiB. Raises ExistsError if anything is at `path`,
        NotFoundError if its parent is missing, OutOfRangeError.
        """
        table = io or KERNEL
        folder = os.path.abspath(os.fspath(path))
        create_folder(table, folder, log_size)
        return cls.open(folder, io=io, catalogue=catalogue, background=background)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        io: IOTable | None = None,
        catalogue: str | None = None,
        background: bool = True,
    ) -> Store:
        """Open a store and own it, or look at it read-only.

        What a crash left unfinished is finished first; what could not be is in `problems`, by name. `catalogue`: a
        path, or ":memory:"; unless told, the file in the store, or memory if `io` is not the kernel's or the store is
        read-only. Raises NotFoundError, FormatError, UnsupportedVersionError, CorruptionError, BusyError (another
        owner), StorageError.
        """
        table = io or KERNEL
        folder = os.path.abspath(os.fspath(path))
        if catalogue is None:
            in_file = type(table) is IOTable and not read_only
            catalogue = os.path.join(folder, CATALOGUE_NAME) if in_file else MEMORY
        return cls._open(folder, table, catalogue, read_only=read_only, background=background)

    @classmethod
    def _open(
        cls,
        folder: str,
        table: IOTable,
        catalogue: str,
        *,
        read_only: bool = False,
        background: bool = True,
        distrust: bool = False,
    ) -> Store:
        log = StoreLog(table, os.path.join(folder, LOG_NAME), read_only=read_only)
        try:
            place = StorePlace(table, folder, log.header.store_uuid, read_only, background)
            with typed(folder):
                return cls(place, log, catalogue, distrust=distrust)
        except BaseException:
            log.close()
            raise

    def __init__(self, place: StorePlace, log: StoreLog, catalogue: str, *, distrust: bool = False) -> None:
        self.path = place.path
        self.id = str(uuid.UUID(bytes=place.uuid))
        self.read_only = place.read_only
        self.log = log
        self.closed = True  # until it is open
        #: What came of the rebuilding of the catalogue at open, or None if it was not rebuilt.
        self.rebuilt: RebuildReport | None = None
        self._problems: list[str] = []
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._names_taken: set[str] = set()
        self._documents = Documents(place.io, os.path.join(place.path, DOCUMENTS_NAME))
        self._volumes = VolumeTable(place, log, self._problems)
        self._settlement = Settlement(log, self._volumes)
        positions = {entry.sequence: entry.checksum for entry in log.entries}
        positions[log.header.base_sequence] = log.header.base_checksum
        self._catalogue = Catalogue(catalogue, place.uuid, positions, distrust=distrust)
        try:
            self._volumes.scan(self._catalogue.volume_names() if self._catalogue.sequence is not None else {})
            self._recover()
        except BaseException:
            self._volumes.close()
            self._catalogue.close()
            raise
        self.closed = False

    def _recover(self) -> None:
        """Finish what a crash left: volumes first, then the catalogue, and only then give the records up."""
        base = self.log.header.base_sequence
        if not self.read_only:
            self._volumes.remove_unfinished()
            self._documents.remove_unfinished()
            if self.log.entries:
                base, failed = self._settlement.settle()
                self._problems += failed
                for entry in self.log.snapshot_entries():
                    if entry.record.type == TYPE_DELETE:
                        self._documents.delete(LEDGER_KIND, str(uuid.UUID(bytes=entry.record.set_id)))
        self._fill_catalogue()
        self._volumes.close_unused()
        if base > self.log.header.base_sequence:
            self._catalogue.checkpoint()
            self._give_up(base)

    def _fill_catalogue(self) -> None:
        """Bring the catalogue up to the store log and the folders, or rebuild it."""
        catalogue, names = self._catalogue, self._volumes.uuids()
        rebuild = catalogue.sequence is None
        unreadable: list[str] = []
        if rebuild:
            statements = catalogue_statements(self._volumes, self._documents, unreadable)
        else:
            statements = folder_statements(self._volumes, self._documents, catalogue, unreadable)
        self._problems += unreadable
        for entry in self.log.snapshot_entries():
            if entry.sequence > (catalogue.sequence or 0):
                statements += record_statements(entry.record, names)
        if statements or rebuild:
            catalogue.rebuild(self.log.tip_sequence, self.log.tip_checksum, statements)
        if rebuild and catalogue.reason and (names or self.log.tip_sequence):  # else the store is new
            self.rebuilt = rebuild_report(catalogue, len(names), unreadable)
            logger.warning("%s: the catalogue was rebuilt: %s", self.path, catalogue.reason)

    @classmethod
    def rebuild(cls, path: str | os.PathLike[str]) -> RebuildReport:
        """Rebuild the catalogue of a store from the store log, the volumes and the documents, whatever it holds.

        The report says what could not be known. Opening a store does this by itself if the catalogue is missing,
        damaged or of another store. Raises as `open`.
        """
        folder = os.path.abspath(check_path(path))
        with cls._open(folder, KERNEL, os.path.join(folder, CATALOGUE_NAME), distrust=True) as store:
            return store.rebuilt or RebuildReport(reason="the store is new")

    @property
    def problems(self) -> list[str]:
        """What is not as it should be and could not be put right at open, by name."""
        found = list(self._problems)
        if self._catalogue.problem is not None:
            found.append(self._catalogue.problem)
        return found

    def close(self) -> None:
        """Close all volumes, then the store; durable. Idempotent. Raises the first failure, after closing
        everything.
        """
        with self._lock:
            if self.closed:
                return
            self.closed = True
        if os.getpid() != self._pid:
            return
        failure = self._volumes.close()
        try:
            if not self.read_only and self.log.poison is None:
                base = self._settlement.settled_sequence()
                if self._catalogue.checkpoint():
                    self.log.advance(base, clean=base == self.log.tip_sequence)
        finally:
            try:
                self._catalogue.close()
            finally:
                self.log.close()
        if failure is not None:
            raise failure

    def __del__(self) -> None:
        if not getattr(self, "closed", True) and os.getpid() == self._pid:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __repr__(self) -> str:
        return f"<Store {self.path!r}{' closed' if self.closed else ''}>"

    def _check_open(self) -> None:
        if self.closed or os.getpid() != self._pid:
            raise ClosedError("the store is closed, or belongs to the parent process: open it anew", self.path)

    def _check_writable(self) -> None:
        self._check_open()
        if self.read_only:
            raise ReadOnlyError("the store is open read-only", self.path)

    # ---- volumes ----

    def volumes(self) -> list[str]:
        """Names of all volumes, sorted."""
        self._check_open()
        return self._volumes.names()

    def volume_path(self, name: str) -> str:
        """Where the file of a volume lies, whether or not there is one. Raises OutOfRangeError."""
        return self._volumes.path_of(name)

    def create_volume(self, name: str, size: int, *, block_size: int = 4096, log_size: int | None = None) -> Volume:
        """Make a volume of `size` bytes and open it; durable on return.

        Raises ExistsError, OutOfRangeError (name, size, block size), NoSpaceError.
        """
        self._check_writable()
        volume = self._volumes.create(name, size, block_size=block_size, log_size=log_size)
        self._note_volume(volume.engine.uuid, name)
        return volume

    def adopt_volume(
        self, name: str, raw_path: str | os.PathLike[str], *, block_size: int = 4096, raw: bool = False
    ) -> Volume:
        """Make a raw image a volume of the store and open it: the file is moved here, never copied; durable on return.

        Raises ExistsError, and as `Volume.adopt`; OutOfRangeError if it lies in another file system.
        """
        self._check_writable()
        block_size = whole_number(block_size, "block_size")
        volume = self._volumes.adopt(name, check_path(raw_path), block_size=block_size, raw=raw)
        self._note_volume(volume.engine.uuid, name)
        return volume

    def _note_volume(self, volume_uuid: bytes, name: str) -> None:
        self._catalogue.write([("INSERT OR REPLACE INTO volumes VALUES (?, ?)", (volume_uuid, name))])

    def open_volume(self, name: str, *, hand_out: bool = True) -> Volume:
        """The volume: one object, shared by all who open it; closing it closes it for all.

        `hand_out=False` is for a short look: it does not count as in use, and the caller does not close it.
        Raises NotFoundError, OutOfRangeError.
        """
        self._check_open()
        return self._volumes.get(name, hand_out=hand_out)

    def hand_back(self, name: str) -> None:
        """A volume that `create_volume`, `adopt_volume`, `attach` or `open_volume` gave is the store's own again.

        It stays open, does not count as in use, and whoever had it must not close it.
        """
        self._check_open()
        self._volumes.hand_back(name)

    def close_unused(self, name: str) -> None:
        """Close a volume that is open and was not handed out, durably. Raises BusyError if it was."""
        self._check_open()
        self._volumes.close_one(name)

    def delete_volume(self, name: str) -> None:
        """Delete a volume and all its snapshots; its sets then lack it. Durable on return.

        Raises NotFoundError, OutOfRangeError, BusyError while it is open or one of its snapshots is held or has a
        clone, RetentionError while one is retained.
        """
        self._check_writable()
        self._volumes.remove(name)
        self._catalogue.write([("DELETE FROM volumes WHERE name = ?", (name,))])

    def rename_volume(self, name: str, new_name: str) -> None:
        """Give a volume another name; durable on return.

        Raises NotFoundError, ExistsError, OutOfRangeError, BusyError while it is open.
        """
        self._check_writable()
        self._note_volume(self._volumes.rename(name, new_name), new_name)

    def detach(self, name: str) -> str:
        """Take a volume out of the store, with its snapshots; returns the path of its file, which then stands alone.

        Durable on return. Raises NotFoundError, OutOfRangeError, BusyError while it is open, ExistsError if a file of
        that name was detached before and still lies there.
        """
        self._check_writable()
        path = self._volumes.detach(name)
        self._catalogue.write([("DELETE FROM volumes WHERE name = ?", (name,))])
        return path

    def attach(self, path: str | os.PathLike[str], name: str | None = None, *, without_store: bool = False) -> Volume:
        """Move a volume file that stands alone into the store, with its snapshots, and open it; durable on return.

        `name`: unless told, that of the file. Snapshots of sets bring their sets along; those of sets that were deleted
        here meanwhile may go. Raises NotFoundError, FormatError, CorruptionError, ExistsError (the name is taken, or
        the store has this very volume), BusyError (it is open, it is a volume of another store, or its store was not
        closed cleanly: `without_store` overrides the last), OutOfRangeError, StorageError (another file system).
        """
        self._check_writable()
        source = os.path.abspath(check_path(path))
        name = os.path.basename(source).removesuffix(VOLUME_SUFFIX) if name is None else name
        volume_uuid = self._volumes.attach(source, name, without_store=without_store)
        volume = self._volumes.get(name, hand_out=True)
        for entry in self.log.snapshot_entries():
            if entry.record.type == TYPE_DELETE and any(m.volume_uuid == volume_uuid for m in entry.record.members):
                self._settlement.delete_members(entry)
        self._note_volume(volume_uuid, name)
        self._catalogue.write(set_rows(self._volumes, volume_uuid, name))
        return volume

    # ---- snapshot sets ----

    def snapshot(
        self, volume_names: Iterable[str], name: str, *, metadata: dict[str, Any] | None = None
    ) -> SnapshotSet:
        """Snapshot several volumes at one point in time: all or none. Durable on return, with every write that
        returned before.

        `metadata`: a small JSON object that each member's snapshot keeps. Raises OutOfRangeError (no volume, one named
        twice, a bad name), NotFoundError, ExistsError, BusyError,
        PoisonedError.
        """
        with self._prepare_set(volume_names, name, metadata) as pending:
            try:
                return pending.commit()
            except ExistsError:
                pending.require_name_free()  # says so by the volume's name; to look before each set costs more
                raise

    def prepare_set(
        self, volume_names: Iterable[str], name: str, *, metadata: dict[str, Any] | None = None
    ) -> PendingSet:
        """The slow part of a set: checks, opens the volumes, keeps its name and its room in the store log. Holds
        nobody.

        Raises as `snapshot`.
        """
        pending = self._prepare_set(volume_names, name, metadata)
        try:
            pending.require_name_free()
        except BaseException:
            pending.abort()
            raise
        return pending

    def _prepare_set(self, volume_names: Iterable[str], name: str, metadata: dict[str, Any] | None) -> PendingSet:
        self._check_writable()
        self.log.check_usable()
        check_name(name, "snapshot set")
        volumes = self._members(volume_names)
        encoded = encode_metadata(metadata, min(volume.engine.metadata_max for _, volume in volumes))
        self._check_record(len(volumes), name, encoded)
        self._take_name(name)
        try:
            self._make_room(_set_bytes(name, len(volumes), encoded))
        except BaseException:
            self._drop_name(name)
            raise
        return PendingSet(self, name, volumes, encoded)

    def _members(self, volume_names: Iterable[str]) -> list[tuple[str, Volume]]:
        if isinstance(volume_names, str | bytes):
            raise OutOfRangeError("the volumes of a snapshot set are a list of names, not one string")
        names = list(volume_names)
        if not names:
            raise OutOfRangeError("a snapshot set has at least one volume")
        seen: set[str] = set()
        for name in names:
            if not self._volumes.is_open(name):
                self._volumes.path_of(name)  # or OutOfRangeError, before any is opened
            if name in seen:
                raise OutOfRangeError(f"volume {name!r} is named twice: each volume is in a set once")
            seen.add(name)
        return list(zip(names, self._volumes.get_all(names), strict=True))

    def _check_record(self, member_count: int, name: str, metadata: bytes) -> None:
        if _set_bytes(name, member_count, metadata) > self.log.record_bytes_max():
            raise OutOfRangeError(
                f"{member_count} volumes are too many for one set in this store: its log takes records of "
                f"{self.log.record_bytes_max()} bytes"
            )

    def _take_name(self, name: str) -> None:
        with self._lock:
            if name in self._names_taken or self._catalogue.has_name(name):
                raise ExistsError(f"the store has a snapshot set {name!r} already", self.path)
            self._names_taken.add(name)

    def _drop_name(self, name: str) -> None:
        with self._lock:
            self._names_taken.discard(name)

    def release_set(self, name: str, member_count: int, metadata: bytes) -> None:
        """A pending set ended: its name stands in the catalogue or is free, and its room was used or is free."""
        self.log.release(_set_bytes(name, member_count, metadata))
        self._drop_name(name)
        self._catalogue.relieve()

    def append(
        self, record: Record, volume_names: dict[bytes, str], meanwhile: Callable[[int], object] | None = None
    ) -> Entry:
        """Commit a record and note it for the catalogue; `meanwhile` as in `StoreLog.append`. For sets only: members
        are held.
        """
        entry = self.log.append(record, meanwhile)
        self._catalogue.add(entry.sequence, entry.checksum, record, volume_names)
        return entry

    def snapshot_sets(self) -> list[SnapshotSet]:
        """All snapshot sets, oldest first."""
        self._check_open()
        return [SnapshotSet(self, found) for found in self._catalogue.sets()]

    def get_snapshot_set(self, name_or_id: str) -> SnapshotSet:
        """The set of that name or, if none has it, of that id. Raises NotFoundError."""
        self._check_open()
        found = self._catalogue.find_set(name_or_id) if isinstance(name_or_id, str) else None
        if found is None:
            raise NotFoundError(f"the store has no snapshot set {name_or_id!a:.300}", self.path)
        return SnapshotSet(self, found)

    def find_member(self, set_id: bytes, member: CatalogueMember) -> tuple[str, Snapshot | None]:
        """(name of the volume, the member's snapshot of this set or None if it is gone)."""
        self._check_open()
        name = self._volumes.name_of(member.volume_uuid)
        if name is None:
            return member.volume_name, None
        try:
            snapshot = self._volumes.get(name).get_snapshot(member.snapshot_id)
        except NotFoundError:
            return name, None
        return name, snapshot if snapshot.set_id == str(uuid.UUID(bytes=set_id)) else None

    def delete_set(self, found: CatalogueSet) -> None:
        """Delete a set: its record first, which commits, then each member. As `SnapshotSet.delete`."""
        self._check_writable()
        for member in found.members:
            _, snapshot = self.find_member(found.id, member)
            if snapshot is not None:
                snapshot.require_deletable()
        record = Record(
            type=TYPE_DELETE,
            set_id=found.id,
            created_ns=time.time_ns(),
            members=tuple(
                RecordMember(volume_uuid=member.volume_uuid, snapshot_id=member.snapshot_id, epoch=0, sequence=0, tag=0)
                for member in found.members
            ),
        )
        length = layout.record_bytes(len(record.members), 0, 0)
        self._make_room(length)
        try:
            with self._lock:
                if self._catalogue.find_set(str(uuid.UUID(bytes=found.id))) is None:
                    raise NotFoundError(f"the snapshot set {found.name!r} was deleted", self.path)
                entry = self._append_delete(record)
        finally:
            self.log.release(length)
        self._settlement.delete_members(entry)
        with suppress(NotFoundError):
            self.delete_document(LEDGER_KIND, str(uuid.UUID(bytes=found.id)))

    def _append_delete(self, record: Record) -> Entry:
        try:
            return self.append(record, {})
        except OSError as error:
            raise PoisonedError(
                f"the store log could not be written ({error}): close the store and open it again"
            ) from error

    def attach_ledger(self, set_id: str, ledger: Document) -> None:
        """Keep a freeze ledger with a set, in place of one it had; durable on return. Raises NotFoundError,
        OutOfRangeError.
        """
        self.put_document(LEDGER_KIND, self.get_snapshot_set(set_id).id, ledger)

    # ---- room in the store log ----

    def _make_room(self, length: int) -> None:
        """Keep room for a record, recycling the ring if need be. Raises BusyError if other pending sets keep it all."""
        deadline = time.monotonic() + ROOM_WAIT_SECONDS
        while not self.log.reserve(length):
            base, failed = self._settlement.settle(pressed=True)
            if base > self.log.header.base_sequence:
                self._catalogue.checkpoint()
                self._give_up(base)
            elif failed:
                raise BusyError(f"the store log is full of what volumes cannot take in: {'; '.join(failed)}", self.path)
            elif time.monotonic() > deadline:
                raise BusyError("the store log is full of snapshot sets that are being prepared", self.path)
            else:
                time.sleep(0.005)

    def _give_up(self, base: int) -> None:
        try:
            self.log.advance(base)
        except OSError as error:
            raise PoisonedError(
                f"the store log could not be written ({error}): close the store and open it again"
            ) from error
        self._settlement.forget(base)

    # ---- documents ----

    def put_document(self, kind: str, document_id: str, document: Document) -> None:
        """Keep a JSON object; durable on return. `kind`: 1 to 32 letters a-z; `document_id`: 1 to 128 of
        A-Za-z0-9._-
        """
        self._check_writable()
        self._documents.put(kind, document_id, document)
        self._catalogue.write([("INSERT OR IGNORE INTO documents VALUES (?, ?)", (kind, document_id))])

    def get_document(self, kind: str, document_id: str) -> Document:
        """The document. Raises NotFoundError, CorruptionError, OutOfRangeError."""
        self._check_open()
        return self._documents.get(kind, document_id)

    def documents(self, kind: str) -> list[str]:
        """Ids of the documents of a kind, sorted."""
        self._check_open()
        return self._catalogue.documents(kind)

    def delete_document(self, kind: str, document_id: str) -> None:
        """Remove a document; durable on return. Raises NotFoundError."""
        self._check_writable()
        found = self._documents.delete(kind, document_id)
        self._catalogue.write([("DELETE FROM documents WHERE kind = ? AND id = ?", (kind, document_id))])
        if not found:
            raise NotFoundError(f"there is no document {kind} {document_id}")

    # ---- space ----

    def du(self) -> dict[str, VolumeSpace]:
        """The space of each volume by name; see `Volume.du`. Raises whatever opening a volume raises."""
        self._check_open()
        return {name: self._volumes.get(name).du() for name in self._volumes.names()}

    # ---- check ----

    def check(self) -> Report:
        """Check every volume, and that every set is there. Nothing is changed."""
        self._check_open()
        report = Report(problems=self.problems)
        names = self._volumes.names()
        for name in names:
            try:
                found = self._volumes.get(name).check()
                report.problems += [f"volume {name!r}: {problem}" for problem in found.problems]
            except (CowEngineError, OSError) as error:
                report.problems.append(f"volume {name!r}: {error}")
        report.counts.update(volumes=len(names), sets=len(self._catalogue.sets()))
        return report


def _set_bytes(name: str, member_count: int, metadata: bytes) -> int:
    return layout.record_bytes(member_count, len(name.encode()), len(metadata))
