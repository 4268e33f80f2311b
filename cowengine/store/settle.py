"""What the store log still owes its volumes: which records are outstanding, and how they cease to be.

A set's record is outstanding until each member volume holds the snapshot in its own log, a delete's until each
member's snapshot is gone. Used to recycle the ring, at the clean close, and at open for what a crash left.

Threads     Every method may be called from any thread; one recycles at a time.
"""

from __future__ import annotations

import threading
import uuid

from cowengine.errors import CowEngineError, NotFoundError
from cowengine.store.layout import TYPE_DELETE
from cowengine.store.log import Entry, StoreLog
from cowengine.store.volumes import VolumeTable


class Settlement:
    """Brings the volumes of a store up to its store log."""

    def __init__(self, log: StoreLog, volumes: VolumeTable) -> None:
        self._log = log
        self._volumes = volumes
        self._lock = threading.Lock()
        # One deletes at a time: a snapshot that another thread is still deleting is not found, and not durably gone.
        self._delete_lock = threading.Lock()
        self._deleted: set[int] = set()  # delete records in the ring whose members are all gone

    def _lacking(self, entry: Entry) -> set[bytes]:
        """UUIDs of the volumes that still lack what a set's record gave them."""
        return {
            member.volume_uuid
            for member in entry.record.members
            if not self._volumes.is_gone(member.volume_uuid)
            and not self._volumes.holds(member.volume_uuid, entry.sequence)
        }

    def _is_outstanding(self, entry: Entry, pressed: bool) -> bool:
        if entry.record.type == TYPE_DELETE:
            return entry.sequence not in self._deleted
        return any(
            not pressed or self._volumes.name_of(volume_uuid) is not None for volume_uuid in self._lacking(entry)
        )

    def delete_members(self, entry: Entry, *, pressed: bool = False) -> None:
        """Delete the snapshots that a delete record names, as far as they are there. Raises the first failure, after
        trying all.
        """
        with self._delete_lock:
            complete, failure = self._try_delete(entry)
        if failure is not None:
            raise failure
        if complete or pressed:
            self._deleted.add(entry.sequence)

    def _try_delete(self, entry: Entry) -> tuple[bool, BaseException | None]:
        """(whether no volume's file was missing, the first failure)."""
        complete = True
        failure: BaseException | None = None
        for member in entry.record.members:
            name = self._volumes.name_of(member.volume_uuid)
            if name is None:
                complete = complete and self._volumes.is_gone(member.volume_uuid)
                continue
            try:
                snapshot = self._volumes.get(name).get_snapshot(member.snapshot_id)
                if snapshot.set_id == str(uuid.UUID(bytes=entry.record.set_id)):
                    snapshot.delete()
            except NotFoundError:
                continue
            except (CowEngineError, OSError) as error:
                failure = failure or error
        return complete, failure

    def settle(self, *, pressed: bool = False) -> tuple[int, list[str]]:
        """Bring all volumes up; returns (the last record that nobody needs any more, what failed).

        `pressed`: the room is needed, and volumes whose files are not to be found no longer count. The caller takes the
        records into the catalogue before it gives them up.
        """
        with self._lock:
            problems: list[str] = []
            entries = self._log.snapshot_entries()
            lagging: set[bytes] = set()
            for entry in entries:
                if entry.record.type != TYPE_DELETE:
                    lagging |= self._lacking(entry)
            for volume_uuid in sorted(lagging):
                try:
                    self._volumes.bring_up(volume_uuid)
                except (CowEngineError, OSError) as error:
                    problems.append(
                        f"volume {self._volumes.name_of(volume_uuid)!r} cannot take in its snapshots: {error}"
                    )
            for entry in entries:
                if entry.record.type == TYPE_DELETE and entry.sequence not in self._deleted:
                    try:
                        self.delete_members(entry, pressed=pressed)
                    except (CowEngineError, OSError) as error:
                        problems.append(f"a deleted snapshot set cannot be deleted whole: {error}")
            return self.settled_sequence(pressed=pressed), problems

    def settled_sequence(self, *, pressed: bool = False) -> int:
        """The last record before the first outstanding one."""
        base = self._log.header.base_sequence
        for entry in self._log.snapshot_entries():
            if self._is_outstanding(entry, pressed):
                break
            base = entry.sequence
        return base

    def forget(self, base_sequence: int) -> None:
        """Records up to this one are no longer in the ring."""
        self._deleted = {sequence for sequence in self._deleted if sequence > base_sequence}
