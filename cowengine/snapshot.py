"""Snapshot: a read-only view of a volume at one epoch.

Holds no bytes; it leads to the map's root that the volume kept. Thread-safe. Reads release the GIL.
"""

from __future__ import annotations

import datetime
import io
import json
import uuid
from typing import TYPE_CHECKING, Any

from cowengine.engine.holds import hold, require_deletable
from cowengine.engine.usage import SnapshotSpace, snapshot_space
from cowengine.errors import FullBackupRequired, NotFoundError, OutOfRangeError, ReadOnlyError
from cowengine.extents import Walk, collect
from cowengine.format import ID_MAX, LINEAGE_ANCHOR, LINEAGE_DELETED, LineageRecord
from cowengine.names import check_reason, shown
from cowengine.ranges import check_buffer, check_range, whole_number

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined]

    from cowengine.engine.engine import Engine
    from cowengine.extents import ExtentArray

CHANGE_ID_MAX = 80  # letters: a UUID, 15 digits, 16 digits, two slashes


def change_id(engine: Engine, record: LineageRecord) -> str:
    """`<volume uuid>/<epoch>/<tag>`: names this state for ever, also in copies of the file."""
    return f"{engine.uuid_text}/{record.epoch}/{record.tag:016x}"


class Snapshot:
    """A read-only view of a volume at one epoch. Made by `Volume.snapshot`, `snapshots` and `get_snapshot`.

    Attributes stay readable after the snapshot was deleted; its bytes do not (NotFoundError).
    """

    def __init__(self, engine: Engine, record: LineageRecord) -> None:
        self._engine = engine
        self._id = record.id
        self._name = record.name
        self._epoch = record.epoch
        self._size = record.size
        self._created_ns = record.created_ns
        self._set_id = record.set_id
        self._anchor = bool(record.flags & LINEAGE_ANCHOR)
        self._change_id = change_id(engine, record)
        self._metadata: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"<cowengine.Snapshot {self._name!r} id={self._id} epoch={self._epoch}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Snapshot) and other._change_id == self._change_id

    def __hash__(self) -> int:
        return hash(self._change_id)

    def __reduce__(self) -> Any:
        raise TypeError("a Snapshot cannot be pickled; pass its change_id")

    @property
    def id(self) -> int:
        """The number of the snapshot in its volume; never reused."""
        return self._id

    @property
    def name(self) -> str:
        """Unique among the snapshots of the volume."""
        return self._name

    @property
    def epoch(self) -> int:
        """The epoch that the snapshot ended."""
        return self._epoch

    @property
    def created(self) -> datetime.datetime:
        """When it was taken, UTC."""
        return datetime.datetime.fromtimestamp(self._created_ns / 1e9, datetime.UTC)

    @property
    def size(self) -> int:
        """Size of the volume at that point, in bytes."""
        return self._size

    @property
    def block_size(self) -> int:
        """Bytes of a block."""
        return int(self._engine.path.block_bytes)

    @property
    def change_id(self) -> str:
        """`<volume uuid>/<epoch>/<tag>`, stable for ever."""
        return self._change_id

    @property
    def set_id(self) -> str | None:
        """The id of the snapshot set that it belongs to, or None."""
        return str(uuid.UUID(bytes=self._set_id)) if any(self._set_id) else None

    @property
    def is_anchor(self) -> bool:
        """Whether its data was given up."""
        return self._anchor

    @property
    def metadata(self) -> dict[str, Any]:
        """What was passed to `Volume.snapshot`; read from the file at the first use."""
        if self._metadata is None:
            data = self._engine.metadata(self._record())
            self._metadata = json.loads(data) if data else {}
        return dict(self._metadata)

    @property
    def volume_path(self) -> str:
        """Path of the volume file."""
        return self._engine.name

    def _record(self) -> LineageRecord:
        self._engine.path.check_state()
        record = self._engine.lineage.get(self._id)
        if record is None or record.flags & LINEAGE_DELETED:
            raise NotFoundError(f"snapshot {self._name!r} was deleted", self._engine.name)
        return record

    # -- bytes --------------------------------------------------------------------------------------------------------
    def pread(self, length: int, offset: int) -> bytes:
        """`length` bytes from byte `offset`. Raises OutOfRangeError past the end, NotFoundError once deleted."""
        plain = type(offset) is int and type(length) is int
        if not plain or length < 0 or offset < 0 or offset + length > self._size:
            offset, length = check_range(offset, length, self._size, "read", "snapshot")
        engine = self._engine
        if self._id not in engine.lineage.loaded_roots:
            self._record()
        return engine.path.pread(length, offset, engine.lineage.root(self._id))

    def pread_into(self, buffer: Buffer, offset: int) -> int:
        """Fills a writable buffer from byte `offset`; returns its length. Raises as `pread`."""
        engine = self._engine
        try:
            length = memoryview(buffer).nbytes
            if type(offset) is not int or offset < 0 or offset + length > self._size:
                offset, length = check_range(offset, length, self._size, "read", "snapshot")
            if self._id not in engine.lineage.loaded_roots:
                self._record()
            return engine.path.pread_into(buffer, offset, length, engine.lineage.root(self._id))
        except (TypeError, BufferError, ValueError):
            check_buffer(buffer, writable=True)
            raise

    def open(self) -> io.RawIOBase:
        """A seekable, read-only file object over the whole snapshot."""
        self._record()
        return _SnapshotFile(self)

    # -- extents ------------------------------------------------------------------------------------------------------
    def allocated_extents(
        self, start: int = 0, length: int | None = None, max_results: int | None = None
    ) -> ExtentArray:  # fmt: skip
        """What is mapped in a range: rows (offset, length) in bytes. Everything else reads as zeros."""
        self._record()
        walk = _walk(self._engine, self._id, None)
        return collect([walk], self._size, self.block_size, start, length, max_results)

    def changed_extents(
        self, base: Snapshot | int | str, start: int = 0, length: int | None = None, max_results: int | None = None
    ) -> ExtentArray:
        """What differs between two snapshots of a volume, in either order: rows (offset, length) in bytes, whole
        blocks.

        `base` is a Snapshot, an id, a name or a change id. Restart at the end of the last row. Raises
        FullBackupRequired if no exact answer exists for this base, NotFoundError for an unknown id or name.
        """
        self._record()
        with self._engine.lock:
            walks = changed_walks(self._engine, self._id, find_base(self._engine, base))
        return collect(walks, self._size, self.block_size, start, length, max_results)

    # -- space --------------------------------------------------------------------------------------------------------
    def space(self) -> SnapshotSpace:
        """What the snapshot alone takes, and what deleting it would give back, in bytes; exact.

        Found at the first call by a walk that costs what differs from its neighbours, and kept until one of them
        changes. Holds nobody up. Raises NotFoundError if it is deleted, also meanwhile.
        """
        self._record()
        return snapshot_space(self._engine, self._id)

    # -- holds --------------------------------------------------------------------------------------------------------
    @property
    def hold_reason(self) -> str | None:
        """Why the snapshot is held; None if it is not. Raises NotFoundError once deleted."""
        return self._record().hold_reason or None

    def hold(self, reason: str) -> None:
        """From now on the snapshot cannot be deleted, made an anchor or given up (BusyError), until `release`.

        Durable when it returns. `reason` is 1 to 64 bytes of UTF-8. Holding again for the same reason changes nothing;
        for another one it raises BusyError, as two who hold must not release each other. Raises NotFoundError.
        """
        self._record()
        hold(self._engine, self._id, check_reason(reason))

    def release(self) -> None:
        """Ends a hold. Durable when it returns; without effect on a snapshot that is not held."""
        self._record()
        hold(self._engine, self._id, "")

    def require_deletable(self) -> None:
        """Raises BusyError, with the reason, if `delete` would now."""
        require_deletable(self._engine, self._record())

    # -- end ----------------------------------------------------------------------------------------------------------
    def delete(self) -> None:
        """Deletes the snapshot: gone, also after a crash, when it returns; then its space is given back.

        Reads in progress end well; later ones raise NotFoundError. Works on a full file system. Raises BusyError if the
        snapshot is held.
        """
        self._record()
        self._engine.delete(self._id)
        self._engine.reclaim()


def check_id(number: object) -> int:
    """The id of a snapshot, if it can be one. Raises OutOfRangeError."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise OutOfRangeError(f"a snapshot is named by a str or by its id, an int, not {type(number).__name__}")
    if not 1 <= number <= ID_MAX:
        raise OutOfRangeError(f"snapshot id: 1 to {ID_MAX} is possible")
    return number


def find_base(engine: Engine, base: Snapshot | int | str) -> LineageRecord:
    """The snapshot that a caller means.

    Raises FullBackupRequired for a change id that names no snapshot of this volume.
    """
    if isinstance(base, Snapshot):
        if base._engine is not engine and not base.change_id.startswith(f"{engine.uuid_text}/"):
            raise FullBackupRequired(f"snapshot {base.name!r} belongs to another volume")
        base = base.change_id
    if isinstance(base, bool) or not isinstance(base, int | str):
        raise OutOfRangeError(f"a base is a Snapshot, an id, a name or a change id, not {type(base).__name__}")
    if isinstance(base, int):
        return engine.live_snapshot(check_id(base))
    if "/" not in base:
        record = engine.lineage.find_name(base)
        if record is None:
            raise NotFoundError(f"there is no snapshot named {shown(base)}", engine.name)
        return record
    return _by_change_id(engine, base)


def _by_change_id(engine: Engine, text: str) -> LineageRecord:
    parts = text.split("/")
    well_formed = len(text) <= CHANGE_ID_MAX and len(parts) == 3 and parts[1].isdecimal()
    if not well_formed or parts[0] != engine.uuid_text:
        raise FullBackupRequired(f"change id {shown(text)} is not of this volume; take a full backup")
    record = engine.lineage.find_epoch(int(parts[1]))
    if record is not None and change_id(engine, record) == text:
        return record
    raise FullBackupRequired(f"the snapshot of change id {shown(text)} does not exist any more; take a full backup")


def changed_walks(engine: Engine, target: int, base: LineageRecord) -> list[Walk]:
    """The walks that together find every block in which two states differ.

    A block differs iff it was born after the nearest common ancestor in one of them. If one is the other's ancestor,
    one walk does; after a rollback the history is a tree, and both sides are walked.
    """
    lineage = engine.lineage
    if lineage.stands_on(target, base):
        return [_walk(engine, target, base.epoch)]
    mine = {record.id for record in lineage.ancestors(target)}
    for record in lineage.ancestors(base.id):
        if record.id == target:
            return [_walk(engine, base.id, record.epoch)]
        if record.id in mine:
            return [_walk(engine, target, record.epoch), _walk(engine, base.id, record.epoch)]
    return [_walk(engine, target, 0), _walk(engine, base.id, 0)]


def _walk(engine: Engine, number: int, born_after: int | None) -> Walk:
    root = None if number == 0 else engine.lineage.root(number)

    def walk(first: int, end: int, rows_max: int) -> bytearray:
        return engine.path.extents(root, first, end, rows_max, born_after)

    return walk


live_walk = _walk


class _SnapshotFile(io.RawIOBase):
    """A snapshot as a file."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        self._snapshot = snapshot
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if self.closed:
            raise ValueError("seek of a closed file")
        offset = whole_number(offset, "seek: the offset")
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._snapshot.size}.get(whence)
        if base is None or base + offset < 0:
            raise OutOfRangeError(f"seek to {offset} (whence {whence})")
        self._position = base + offset
        return self._position

    def write(self, data: Any) -> int:
        raise ReadOnlyError(f"snapshot {self._snapshot.name!r} cannot be written", self._snapshot.volume_path)

    def readinto(self, buffer: Any) -> int:
        if self.closed:
            raise ValueError("read of a closed file")
        view = memoryview(buffer).cast("B")
        length = max(0, min(len(view), self._snapshot.size - self._position))
        if length:
            self._snapshot.pread_into(view[:length], self._position)
            self._position += length
        return length
