"""The volumes of a store: which there are, which are open, and what each still lacks of the store log.

Each volume is opened once and shared by all who ask for it. A volume that opens first takes in the snapshots of sets
that committed in the store log and did not reach its own log.

Threads     Every method may be called from any thread; one lock.
Durability  `create`, `remove`, `rename` and `detach` are durable when they return, and whole or not there after a
            crash.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterable
from contextlib import suppress

from cowengine.engine.adopt import adopt_as
from cowengine.engine.files import require_folder
from cowengine.engine.setcommit import SetEvent, apply_set_events
from cowengine.engine.setflush import flush_events
from cowengine.errors import BusyError, CorruptionError, CowEngineError, ExistsError, FormatError, NotFoundError
from cowengine.oserrors import typed
from cowengine.store.attach import move, open_alone, read_superblock, refuse_member
from cowengine.store.layout import TYPE_SET
from cowengine.store.log import StoreLog
from cowengine.store.names import (
    DETACHED_NAME,
    UNFINISHED_SUFFIX,
    VOLUME_SUFFIX,
    VOLUMES_NAME,
    check_volume_name,
    volume_file,
)
from cowengine.store.place import StorePlace
from cowengine.volume import Volume


class VolumeTable:
    """The volumes of one open store."""

    def __init__(self, place: StorePlace, log: StoreLog, problems: list[str]) -> None:
        self._place = place
        self._log = log
        self._problems = problems
        self._folder = os.path.join(place.path, VOLUMES_NAME)
        self._lock = threading.RLock()
        self._volumes: dict[str, Volume] = {}  # opened in this session; perhaps closed again by its user
        self._handed_out: set[str] = set()
        self._names: dict[bytes, str] = {}
        self._gone: set[bytes] = set()  # deleted or detached in this session

    def scan(self, known: dict[bytes, str]) -> None:
        """Finds out which volume each file is. Of copies of one volume that which is `known` counts, or the first."""
        require_folder(self._place.io, self._folder)
        names = self.names()
        expected = set(known.values())
        for name in sorted(names, key=lambda name: name not in expected):
            try:
                volume_uuid = read_superblock(self._place, self.path_of(name)).volume_uuid
            except (CowEngineError, OSError) as error:
                self._note(f"volume {name!r}: {error}")
                continue
            first = self._names.setdefault(volume_uuid, name)
            if first != name:
                self._note(f"volume {name!r} is a copy of volume {first!r} and cannot be opened beside it")

    def _note(self, problem: str) -> None:
        if problem not in self._problems:  # a volume may be opened many times
            self._problems.append(problem)

    def remove_unfinished(self) -> None:
        """Remove what a crash left half created."""
        for file_name in self._place.io.names(self._folder):
            if file_name.endswith(UNFINISHED_SUFFIX):
                self._place.io.unlink(os.path.join(self._folder, file_name))

    # ---- what there is ----

    def names(self) -> list[str]:
        """Names of all volumes, sorted."""
        found = []
        with typed(self._folder):
            file_names = self._place.io.names(self._folder)
        for file_name in file_names:
            name = file_name.removesuffix(VOLUME_SUFFIX)
            if name != file_name and name:
                found.append(name)
        return sorted(found)

    def path_of(self, name: str) -> str:
        """Where the file of a volume lies, whether or not there is one. Raises OutOfRangeError."""
        return volume_file(self._place.path, check_volume_name(name))

    def name_of(self, volume_uuid: bytes) -> str | None:
        """The name of the volume with this UUID, or None if the store has none."""
        with self._lock:
            return self._names.get(volume_uuid)

    def uuids(self) -> dict[bytes, str]:
        """Name of each volume by its UUID."""
        with self._lock:
            return dict(self._names)

    def is_open(self, name: object) -> bool:
        """Whether this is the name of a volume that is open."""
        volume = self._volumes.get(name) if isinstance(name, str) else None
        return volume is not None and not volume.closed

    def _require(self, name: str) -> str:
        path = self.path_of(name)
        if not self._place.io.is_file(path):
            raise NotFoundError(f"the store has no volume {name!r}", self._place.path)
        return path

    def _refuse_existing(self, name: str) -> str:
        path = self.path_of(name)
        if os.path.basename(path) in self._place.io.names(self._folder):
            raise ExistsError(f"the store has a volume {name!r} already", self._place.path)
        return path

    # ---- opening ----

    def get(self, name: str, *, hand_out: bool = False) -> Volume:
        """The volume, opened if it is not; handed out, it counts as in use until somebody closes it.

        Raises NotFoundError, OutOfRangeError, and whatever opening a volume raises.
        """
        with self._lock, typed(self._folder):
            volume = self._get(name)
            if hand_out:
                self._handed_out.add(name)
            return volume

    def get_all(self, names: Iterable[str]) -> list[Volume]:
        """The volumes of these names, each as `get` does it."""
        with self._lock, typed(self._folder):
            return [self._get(name) for name in names]

    def _get(self, name: str) -> Volume:
        volume = self._volumes.get(name)
        if volume is not None and not volume.closed and self._place.io.is_file(volume.path):
            return volume
        volume = self._volumes[name] = self._open(name, self._require(name))
        self._handed_out.discard(name)
        return volume

    def _open(self, name: str, path: str) -> Volume:
        place = self._place
        volume = Volume.open(
            path, read_only=place.read_only, io=place.io, background=place.background, store_uuid=place.uuid
        )
        try:
            other = self._names.setdefault(volume.engine.uuid, name)
            if other != name:
                if self._place.io.is_file(self.path_of(other)):
                    raise ExistsError(
                        f"volume {name!r} is a copy of volume {other!r}: a store holds a volume once", path
                    )
                self._names[volume.engine.uuid] = name
            self._take_in(name, volume)
        except BaseException:
            volume.close()
            raise
        return volume

    def _take_in(self, name: str, volume: Volume) -> None:
        """Give the volume the snapshots of sets that it lacks, and note those that it can no longer take."""
        engine = volume.engine
        events = self._events(engine.uuid, engine.durable_store_sequence)
        if not events:
            return
        if self._place.read_only:
            # Only an owner may add to a volume; a look at it shows what its own log holds.
            self._note(f"volume {name!r} lacks snapshots of the last sets until the store is opened for writing")
            return
        taken = {event.store_sequence for event in apply_set_events(engine, events)}
        for event in events:
            if event.store_sequence not in taken and not self._has_snapshot(volume, event):
                self._note(
                    f"volume {name!r} lacks its snapshot of set {event.name!r}: it was written without its store"
                )

    @staticmethod
    def _has_snapshot(volume: Volume, event: SetEvent) -> bool:
        try:
            return volume.get_snapshot(event.snapshot_id).set_id == str(uuid.UUID(bytes=event.set_id))
        except NotFoundError:
            return False

    def _events(self, volume_uuid: bytes, after: int) -> list[SetEvent]:
        return [
            SetEvent(
                store_sequence=entry.sequence,
                set_id=entry.record.set_id,
                name=entry.record.name,
                created_ns=entry.record.created_ns,
                snapshot_id=member.snapshot_id,
                epoch=member.epoch,
                sequence=member.sequence,
                tag=member.tag,
                metadata=entry.record.metadata,
            )
            for entry in self._log.snapshot_entries()
            if entry.sequence > after and entry.record.type == TYPE_SET
            for member in entry.record.members
            if member.volume_uuid == volume_uuid
        ]

    # ---- what a volume still lacks ----

    def is_gone(self, volume_uuid: bytes) -> bool:
        """Whether the volume was deleted or detached; one whose file is merely not to be found may come back."""
        with self._lock:
            return volume_uuid in self._gone

    def holds(self, volume_uuid: bytes, sequence: int) -> bool:
        """Whether the volume's own log durably holds what record `sequence` of the store log gave it."""
        with self._lock:
            name = self._names.get(volume_uuid)
            volume = None if name is None else self._volumes.get(name)
            return volume is not None and volume.engine.durable_store_sequence >= sequence

    def bring_up(self, volume_uuid: bytes) -> None:
        """Make the volume take what it lacks into its own log. Raises what opening or flushing raises."""
        name = self.name_of(volume_uuid)
        if name is None:
            return
        try:
            volume = self.get(name)
        except NotFoundError:
            with self._lock:
                self._names.pop(volume_uuid, None)  # its file was taken away behind our back
            return
        flush_events(volume.engine)

    # ---- making and removing ----

    def create(self, name: str, size: int, *, block_size: int, log_size: int | None) -> Volume:
        """Make a volume and hand it out. Raises ExistsError, OutOfRangeError, NoSpaceError."""
        place = self._place
        with self._lock, typed(self._folder):
            path = self._refuse_existing(name)
            unfinished = path.removesuffix(VOLUME_SUFFIX) + UNFINISHED_SUFFIX
            try:
                Volume.create(
                    unfinished, size, block_size=block_size, log_size=log_size, io=place.io, background=False
                ).close()
                place.io.rename(unfinished, path)
            except BaseException:
                with suppress(OSError):  # a file system that failed may refuse that as well
                    if place.io.is_file(unfinished):
                        place.io.unlink(unfinished)
                raise
            place.io.sync_directory(self._folder)
            return self.get(name, hand_out=True)

    def adopt(self, name: str, raw_path: str, *, block_size: int, raw: bool) -> Volume:
        """Make a raw image a volume of the store and hand it out. Raises as `Volume.adopt`."""
        place = self._place
        with self._lock, typed(self._folder):
            adopt_as(place.io, raw_path, self._refuse_existing(name), block_size=block_size, raw=raw)
            return self.get(name, hand_out=True)

    def _close_unused(self, name: str) -> None:
        """Close a volume that only the store itself uses. Raises BusyError if it was handed out and not closed."""
        volume = self._volumes.get(name)
        if volume is None:
            return
        if not volume.closed and name in self._handed_out:
            raise BusyError(f"volume {name!r} is open: close it first")
        exported = None if volume.closed else volume.engine.exports.why()
        if exported is not None:
            raise BusyError(f"volume {name!r} is in use: {exported}")
        volume.close()

    def hand_back(self, name: str) -> None:
        """The volume does not count as in use any more, and stays open."""
        with self._lock:
            self._handed_out.discard(name)

    def close_one(self, name: str) -> None:
        """Close a volume that only the store itself uses. Raises BusyError if it was handed out and not closed."""
        with self._lock, typed(self._folder):
            self._close_unused(name)

    def _forget(self, name: str) -> None:
        self._volumes.pop(name, None)
        self._handed_out.discard(name)
        for volume_uuid in [volume_uuid for volume_uuid, known in self._names.items() if known == name]:
            del self._names[volume_uuid]
            self._gone.add(volume_uuid)

    def remove(self, name: str) -> None:
        """Delete a volume with all its snapshots. Raises NotFoundError, BusyError, RetentionError."""
        with self._lock, typed(self._folder):
            path = self._require(name)
            self._close_unused(name)
            self._require_disposable(path)
            self._place.io.unlink(path)
            self._place.io.sync_directory(self._folder)
            self._forget(name)

    def _require_disposable(self, path: str) -> None:
        """Raises BusyError or RetentionError if a snapshot is kept by anybody; a file that nobody can read is not."""
        try:
            volume = Volume.open(path, read_only=True, io=self._place.io, background=False)
        except (CorruptionError, FormatError):
            return
        with volume:
            for snapshot in volume.snapshots():
                snapshot.require_deletable()

    def rename(self, name: str, new_name: str) -> bytes:
        """Give a volume another name; returns its UUID. Raises NotFoundError, ExistsError, BusyError,
        OutOfRangeError.
        """
        with self._lock, typed(self._folder):
            path = self._require(name)
            new_path = self._refuse_existing(new_name)
            self._close_unused(name)
            volume_uuid = read_superblock(self._place, path).volume_uuid
            self._place.io.rename(path, new_path)
            self._place.io.sync_directory(self._folder)
            volume = self._volumes.pop(name, None)
            self._forget(name)
            self._gone.discard(volume_uuid)
            self._names[volume_uuid] = new_name
            if volume is not None:
                self._volumes[new_name] = volume  # closed; it still tells what it durably holds
            return volume_uuid

    def detach(self, name: str) -> str:
        """Take a volume out of the store; returns the path of its file, which then stands alone. Raises as `remove`."""
        io = self._place.io
        with self._lock, typed(self._place.path):
            path = self._require(name)
            folder = os.path.join(self._place.path, DETACHED_NAME)
            target = os.path.join(folder, os.path.basename(path))
            self._make_folder(folder)
            if os.path.basename(path) in io.names(folder):
                raise ExistsError("a detached volume of that name lies there: move it away first", target)
            self._close_unused(name)
            self.get(name).close()  # whatever it lacked is in its own log now, and its mark is cleared
            move(self._place, path, target)
            self._forget(name)
            Volume.open(target, io=io, background=False).close()  # opened alone once, it forgets its store
            return target

    def attach(self, path: str, name: str, *, without_store: bool) -> bytes:
        """Move a volume file that stands alone into the store; returns its UUID.

        Raises as `Store.attach`; then the file is where it was.
        """
        with self._lock, typed(self._folder):
            target = self._refuse_existing(name)
            refuse_member(self._place, path)
            with open_alone(self._place, path, without_store=without_store) as volume:
                volume_uuid = volume.engine.uuid
                other = self._names.get(volume_uuid)
                if other is not None and self._place.io.is_file(self.path_of(other)):
                    raise ExistsError(
                        f"the store has this volume already, as {other!r}: a store holds a volume once", path
                    )
                move(self._place, path, target)  # still owned, so that nobody opens it on the way
            self._gone.discard(volume_uuid)
            self._names[volume_uuid] = name
            return volume_uuid

    def _make_folder(self, folder: str) -> None:
        try:
            self._place.io.mkdir(folder, 0o700)
        except FileExistsError:
            require_folder(self._place.io, folder)
            return
        self._place.io.sync_directory(self._place.path)

    # ---- closing ----

    def close_unused(self) -> None:
        """Close the volumes that only the store itself uses."""
        with self._lock:
            for name, volume in self._volumes.items():
                if name not in self._handed_out:
                    volume.close()

    def close(self) -> BaseException | None:
        """Close all volumes; returns the first failure, after trying all."""
        failure: BaseException | None = None
        with self._lock:
            for volume in self._volumes.values():
                try:
                    volume.close()
                except (CowEngineError, OSError) as error:
                    failure = failure or error
        return failure
