"""What clients can ask for by name: the volumes of a store and their snapshots, or one volume or snapshot.

An export that is open keeps what it shows: a snapshot cannot be deleted, nor a volume. Its size is that at the open.

Threads   Any.
"""

from __future__ import annotations

import logging
import os
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from cowengine.closing import Closing
from cowengine.engine.holds import exported
from cowengine.engine.lineage import HEAD_ID
from cowengine.errors import BusyError, ClosedError, CowEngineError, NotFoundError, OutOfRangeError
from cowengine.format import LINEAGE_DELETED, LINEAGE_SNAPSHOT
from cowengine.names import shown
from cowengine.nbd.protocol import TransmissionFlag
from cowengine.reader import SnapshotReader
from cowengine.snapshot import Snapshot
from cowengine.volume import Volume

if TYPE_CHECKING:
    from cowengine.core.datapath import DataPath
    from cowengine.core.roots import Root
    from cowengine.engine.engine import Engine
    from cowengine.store import Store

logger = logging.getLogger("cowengine.nbd")

OPENINGS_MAX = 100  # of one volume, for a list

#: Names, each with what it stands for, for people.
Listing = list[tuple[str, str]]


class Export(Closing):
    """One export that a client has open."""

    def __init__(
        self, name: str, volume: Volume, snapshot: Snapshot | None, kept: ExitStack, bitmap: str | None = None
    ) -> None:  # fmt: skip
        """`kept` is given up when it is closed, or cannot be made."""
        self.name = name
        self.volume = volume
        self.snapshot = snapshot
        #: What is exported.
        self.source: Volume | Snapshot = snapshot or volume
        self.engine: Engine = volume.engine
        self.path: DataPath = volume.engine.path
        self.id = HEAD_ID if snapshot is None else snapshot.id
        self.read_only = snapshot is not None or volume.read_only
        self._bitmap = bitmap
        self._epochs: tuple[tuple[int, int], list[int]] | None = None
        with kept as undo, self.engine.lock:
            undo.enter_context(self._keep(self.id))
            if snapshot is not None:
                self.engine.readable_snapshot(self.id)
            self.root: Root = self.engine.lineage.root(self.id)
            self.size = self.source.size
            self.block_size = self.source.block_size
            self.description = describe(volume, snapshot)
            self._kept = undo.pop_all()

    def _keep(self, number: int) -> AbstractContextManager[None]:
        return exported(self.engine, number)

    def close(self) -> None:
        """What was kept may go. Idempotent."""
        self._kept.close()

    def flags(self, *, structured: bool) -> TransmissionFlag:
        """What can be done with it."""
        flags = TransmissionFlag.HAS_FLAGS | TransmissionFlag.SEND_FLUSH | TransmissionFlag.SEND_CACHE
        flags |= TransmissionFlag.CAN_MULTI_CONN  # a flush on one connection covers what was answered on all
        if structured:
            flags |= TransmissionFlag.SEND_DF
        if self.read_only:
            return flags | TransmissionFlag.READ_ONLY
        flags |= TransmissionFlag.SEND_FUA | TransmissionFlag.SEND_TRIM
        return flags | TransmissionFlag.SEND_WRITE_ZEROES | TransmissionFlag.SEND_FAST_ZERO

    def epochs_below(self) -> list[int]:
        """The epochs of the snapshots that it stands on, ascending: looked for anew when there are more or fewer."""
        with self.engine.lock:
            now = (self.volume.epoch, self.engine.lineage.count())
            if self._epochs is None or self._epochs[0] != now:
                below = [
                    record.epoch
                    for record in self.engine.lineage.ancestors(self.id)
                    if record.kind == LINEAGE_SNAPSHOT and not record.flags & LINEAGE_DELETED and record.id != self.id
                ]
                self._epochs = (now, below[::-1])
            return self._epochs[1]

    def bitmaps(self) -> list[str]:
        """The snapshots that it can be compared with, newest first."""
        if self._bitmap is not None:
            return [self._bitmap]
        return [each.name for each in reversed(self.volume.snapshots()) if each.id != self.id]

    def keep_bitmap(self, name: str) -> int | None:
        """The id of a snapshot to compare with, which is kept from now on; None if there is no such snapshot."""
        if self._bitmap is not None and name != self._bitmap:
            return None
        try:
            snapshot = self.volume.get_snapshot(name)
            if snapshot.id == self.id:
                return None
            self._kept.enter_context(self._keep(snapshot.id))
        except (NotFoundError, OutOfRangeError):
            return None
        return snapshot.id


def describe(volume: Volume, snapshot: Snapshot | None) -> str:
    """What an export is, for people."""
    if snapshot is not None:
        return f"snapshot of {snapshot.created:%Y-%m-%d %H:%M:%S} UTC, {snapshot.size} bytes"
    return f"volume, {volume.size} bytes{', read-only' if volume.read_only else ''}"


class Exports(ABC):
    """What a server offers, and who uses it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users: Counter[str] = Counter()
        self._closed: Counter[str] = Counter()

    @staticmethod
    def of_store(store: Store) -> Exports:
        """All volumes of a store, and their snapshots as VOLUME@SNAPSHOT. The store stays its caller's."""
        return _OfStore(store)

    @staticmethod
    def of_volume(
        volume: Volume, snapshot: Snapshot | None = None, *, name: str | None = None, bitmap: str | None = None
    ) -> Exports:  # fmt: skip
        """One volume, or one snapshot of it; clients that ask for no name get it, too.

        `name` is that of the volume, unless told the stem of its file. `bitmap`: the one snapshot that clients may
        compare with. Raises NotFoundError, and BusyError if another process owns the volume.
        """
        return _OfVolume(volume, snapshot, name, bitmap)

    @abstractmethod
    def list(self, names_max: int) -> Listing:
        """What there is, at most so many."""

    @abstractmethod
    def _find(self, name: str) -> Iterator[tuple[str, str | None]]:
        """What a name can stand for: (volume, snapshot or None). Most likely first."""

    @abstractmethod
    def _made(self, name: str, volume_name: str, snapshot_name: str | None, kept: ExitStack) -> Export:
        """The export, which has `kept`. Raises NotFoundError, and whatever opening the volume raises."""

    def open(self, name: str) -> Export:
        """An export, for one client; who gets it closes it.

        Raises NotFoundError, BusyError while the volume is closed for clients, and what opening the volume raises.
        """
        for volume_name, snapshot_name in self._find(name):
            with ExitStack() as undo:
                undo.enter_context(self._used(volume_name))
                try:
                    return self._made(name, volume_name, snapshot_name, undo.pop_all())
                except (NotFoundError, OutOfRangeError):
                    continue
        raise NotFoundError(f"there is no export {shown(name)}")

    @contextmanager
    def _used(self, volume_name: str) -> Iterator[None]:
        with self._lock:
            if self._closed[volume_name]:
                raise BusyError(f"volume {volume_name!r} takes no clients now")
            self._users[volume_name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._users[volume_name] -= 1
                if not self._users[volume_name]:
                    del self._users[volume_name]  # or names that there are not would stay

    def users(self, volume_name: str) -> int:
        """How many clients have a volume or one of its snapshots open."""
        with self._lock:
            return self._users[volume_name]

    @contextmanager
    def closed_for(self, volume_name: str) -> Iterator[None]:
        """Keeps clients off a volume: to delete, rename or detach it. Raises BusyError if one uses it."""
        with self._lock:
            count = self._users[volume_name]
            if count:
                raise BusyError(f"volume {volume_name!r} is exported to {count} client{'s' if count > 1 else ''}")
            self._closed[volume_name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._closed[volume_name] -= 1


class _OfStore(Exports):
    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store

    def list(self, names_max: int) -> Listing:
        found: Listing = []
        for name in self._store.volumes():
            try:
                found += self._of(name, names_max - len(found))
            except (CowEngineError, OSError) as error:
                logger.error("volume %r is not listed: %s", name, error)
            if len(found) >= names_max:
                break
        return found

    def _of(self, name: str, names_max: int) -> Listing:
        """A volume and its snapshots. Who has it open no more may close it meanwhile: then once more."""
        for _ in range(OPENINGS_MAX):
            with suppress(ClosedError):
                volume = self._store.open_volume(name, hand_out=False)
                snapshots = [each for each in volume.snapshots(0, names_max - 1) if not each.is_anchor]
                shown_as = [(f"{name}@{each.name}", describe(volume, each)) for each in snapshots]
                return [(name, describe(volume, None)), *shown_as]
        raise ClosedError("it is closed again and again")

    def _find(self, name: str) -> Iterator[tuple[str, str | None]]:
        yield name, None
        parts = name.split("@")
        for count in range(1, min(len(parts), 16)):  # either name may hold an @
            yield "@".join(parts[:count]), "@".join(parts[count:])

    def _made(self, name: str, volume_name: str, snapshot_name: str | None, kept: ExitStack) -> Export:
        with kept as undo:
            volume = self._store.open_volume(volume_name, hand_out=False)
            snapshot = None if snapshot_name is None else volume.get_snapshot(snapshot_name)
            return Export(name, volume, snapshot, undo.pop_all())


class _OfVolume(Exports):
    def __init__(self, volume: Volume, snapshot: Snapshot | None, name: str | None, bitmap: str | None) -> None:
        super().__init__()
        if isinstance(volume, SnapshotReader):
            raise BusyError("the volume belongs to another process, which has to serve it", volume.path)
        if bitmap is not None:
            volume.get_snapshot(bitmap)
        volume.engine.path.check_state()  # or BusyError: a volume of a store that is served is exported there
        self._volume = volume
        self._snapshot = snapshot
        self._bitmap = bitmap
        self._volume_name = name or os.path.splitext(os.path.basename(volume.path))[0]
        self.name = self._volume_name if snapshot is None else f"{self._volume_name}@{snapshot.name}"

    def list(self, names_max: int) -> Listing:
        return [(self.name, describe(self._volume, self._snapshot))]

    def _find(self, name: str) -> Iterator[tuple[str, str | None]]:
        if name in ("", self.name):
            yield self._volume_name, None

    def _made(self, name: str, volume_name: str, snapshot_name: str | None, kept: ExitStack) -> Export:
        return Export(self.name, self._volume, self._snapshot, kept, self._bitmap)
