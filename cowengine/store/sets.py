"""Snapshot sets: snapshots of several volumes at one point in time, all or none.

`PendingSet` is the way to one in two phases, as a provider needs it: preparing holds nobody, committing is one short
hold with one barrier of the store log. `SnapshotSet` is what comes out.

Threads     Both may be used from any thread; one commit or abort of a pending set counts.
Durability  `commit` and `delete` are durable when they return.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING

from cowengine.engine.setcommit import Prepared, prepare
from cowengine.errors import ClosedError, ExistsError, NotFoundError, PoisonedError
from cowengine.snapshot import Snapshot
from cowengine.store.catalogue import CatalogueMember, CatalogueSet
from cowengine.store.documents import Document
from cowengine.store.layout import TYPE_SET, Record, RecordMember
from cowengine.store.log import Entry
from cowengine.volume import Volume

if TYPE_CHECKING:
    from cowengine.store.store import Store

LEDGER_KIND = "ledger"
_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class SnapshotSet:
    """One snapshot set. Its attributes stay readable after it was deleted."""

    def __init__(self, store: Store, found: CatalogueSet) -> None:
        self._store = store
        self._found = found

    def __repr__(self) -> str:
        return f"<SnapshotSet {self.name!r} of {self.volumes}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SnapshotSet) and self._found.id == other._found.id

    def __hash__(self) -> int:
        return hash(self._found.id)

    @property
    def id(self) -> str:
        """The set's UUID."""
        return str(uuid.UUID(bytes=self._found.id))

    @property
    def name(self) -> str:
        """Its name, which is also that of each member's snapshot."""
        return self._found.name

    @property
    def created(self) -> datetime:
        """When it was taken, in UTC."""
        return _UNIX_EPOCH + timedelta(microseconds=self._found.created_ns // 1000)

    @property
    def volumes(self) -> list[str]:
        """Names of the member volumes, as they were called when the set was taken."""
        return [member.volume_name for member in self._found.members]

    @property
    def snapshots(self) -> dict[str, Snapshot]:
        """The members' snapshots by volume name, as far as they are still there. Opens the volumes that are not
        open.
        """
        return {name: snapshot for name, snapshot in self._lookup() if snapshot is not None}

    @property
    def missing(self) -> list[str]:
        """Names of the volumes that were deleted or detached, or whose snapshot of this set was deleted."""
        return [name for name, snapshot in self._lookup() if snapshot is None]

    def _lookup(self) -> list[tuple[str, Snapshot | None]]:
        return [self._store.find_member(self._found.id, member) for member in self._found.members]

    @property
    def ledger(self) -> Document | None:
        """The freeze ledger of the run that took the set, or None if it has none."""
        try:
            return self._store.get_document(LEDGER_KIND, self.id)
        except NotFoundError:
            return None

    def put_ledger(self, ledger: Document) -> None:
        """Keep a freeze ledger with the set, in place of one it had; durable on return. Raises as
        `Store.attach_ledger`.
        """
        self._store.attach_ledger(self.id, ledger)

    def delete(self) -> None:
        """Delete the set and its members' snapshots; durable on return.

        Raises NotFoundError if it was deleted before, BusyError if a member is held: nothing was done then. If a
        member cannot be deleted for another reason its error is raised, the set is gone all the same, and the rest is
        deleted later, at the latest when the store is opened.
        """
        self._store.delete_set(self._found)


class PendingSet:
    """A snapshot set that is ready to be taken. Leaving its context without `commit` aborts it."""

    def __init__(self, store: Store, name: str, volumes: Sequence[tuple[str, Volume]], metadata: bytes) -> None:
        self.name = name
        self.volumes = [volume_name for volume_name, _ in volumes]
        self.held_seconds = 0.0
        self._store = store
        self._members = list(volumes)
        self._metadata = metadata
        self._id = uuid.uuid4().bytes
        self._lock = threading.Lock()
        self._ended = False

    def __enter__(self) -> PendingSet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def require_name_free(self) -> None:
        """Raises ExistsError if a member has a snapshot of that name now."""
        for volume_name, volume in self._members:
            if volume.engine.has_name(self.name):
                raise ExistsError(
                    f"volume {volume_name!r} has a snapshot {self.name!r} already: choose another name for the set"
                )

    def flush(self) -> None:
        """Flush every member, holding nobody: what is durable before the commit need not be waited for in it."""
        for _, volume in self._members:
            volume.flush()

    def commit(self) -> SnapshotSet:
        """Take the set: one instant over all members, one barrier. Durable on return; `held_seconds` says how long it
        held.

        Raises ClosedError after a commit or an abort, ExistsError if a member has a snapshot of that name. After
        PoisonedError the outcome is unknown until the store is opened again; after any other error there is no set.
        """
        with self._lock:
            if self._ended:
                raise ClosedError("this snapshot set was committed or aborted")
            self._ended = True
            try:
                return self._commit()
            finally:
                self._store.release_set(self.name, len(self._members), self._metadata)

    def _commit(self) -> SnapshotSet:
        for _, volume in self._members:
            volume.engine.space.keep_limit()
        names = {volume.engine.uuid: name for name, volume in self._members}
        begin = time.perf_counter()
        try:
            with prepare([volume.engine for _, volume in self._members], name=self.name) as prepared:
                entry = self._append(prepared, names)
        finally:
            self.held_seconds = time.perf_counter() - begin
        members = [CatalogueMember(m.volume_uuid, names[m.volume_uuid], m.snapshot_id) for m in entry.record.members]
        members.sort(key=lambda member: member.volume_name)
        found = CatalogueSet(self._id, self.name, entry.record.created_ns, tuple(members))
        return SnapshotSet(self._store, found)

    def _append(self, prepared: Prepared, names: dict[bytes, str]) -> Entry:
        """The commit point. From the first byte of the record on, a failure means that nobody knows whether there is
        a set.
        """
        record = Record(
            type=TYPE_SET,
            set_id=self._id,
            created_ns=time.time_ns(),
            members=tuple(
                RecordMember(member.volume_uuid, member.snapshot_id, member.epoch, member.sequence, member.tag)
                for member in prepared.members
            ),
            name=self.name,
            metadata=self._metadata,
        )

        def finish(sequence: int) -> None:
            prepared.finish(self._id, self.name, record.created_ns, sequence, self._metadata)

        self._store.log.check_usable()
        prepared.commit_point()
        try:
            entry = self._store.append(record, names, finish)
        except BaseException as error:
            prepared.poison(error)
            if isinstance(error, OSError):
                raise PoisonedError(
                    f"the store log could not be written ({error}): close the store and open it again"
                ) from error
            raise
        return entry

    def abort(self) -> None:
        """Give the set up; nothing was done. Idempotent, and without effect after a commit."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
        with suppress(ClosedError):
            self._store.release_set(self.name, len(self._members), self._metadata)
