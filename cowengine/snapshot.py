"""Snapshot: a read-only view of a volume at one epoch.

Holds no bytes; it leads to the map's root that the volume kept. Thread-safe. Reads release the GIL.
"""

from __future__ import annotations

import datetime
import io
import json
import os
import re
import struct
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from cowengine.core.gather import gather
from cowengine.core.handle import SnapshotHandle
from cowengine.engine.clones import make_clone, open_clone
from cowengine.engine.flatten import flatten_copy
from cowengine.engine.holds import exported, hold, require_deletable
from cowengine.engine.report import Report
from cowengine.engine.retention import retain
from cowengine.engine.usage import SnapshotSpace, snapshot_space
from cowengine.engine.verifying import Verifying
from cowengine.errors import (
    CorruptionError,
    CowEngineError,
    FullBackupRequired,
    NotFoundError,
    OutOfRangeError,
    ReadOnlyError,
)
from cowengine.extents import Walk, collect
from cowengine.format import EPOCH_MAX, ID_MAX, LINEAGE_ANCHOR, LINEAGE_DELETED, LINEAGE_HEAD, LineageRecord
from cowengine.names import check_name, check_path, check_reason, shown
from cowengine.ranges import check_buffer, check_extents, check_range, check_rate, whole_number

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined]

    from cowengine.core.roots import Root
    from cowengine.engine.engine import Engine
    from cowengine.engine.lineage import Lineage
    from cowengine.engine.report import Report
    from cowengine.extents import ExtentArray
    from cowengine.volume import Volume

T = TypeVar("T")

_PAIR = struct.Struct("<QQ")
_UNIX_EPOCH = datetime.datetime.fromtimestamp(0, datetime.UTC)
CHANGE_ID = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/([1-9][0-9]{0,14})/[0-9a-f]{16}")


def change_id(engine: Engine, record: LineageRecord) -> str:
    """`<volume uuid>/<epoch>/<tag>`: names this state for ever, also in copies of the file."""
    return f"{engine.uuid_text}/{record.epoch}/{record.tag:016x}"


class Snapshot(SnapshotHandle):
    """A read-only view of a volume at one epoch. Made by `Volume.snapshot`, `snapshots` and `get_snapshot`.

    Attributes stay readable after the snapshot was deleted; its bytes do not (NotFoundError). The bytes of an anchor
    were given up (AnchorError); it still is a base for changed extents.
    """

    def __init__(self, engine: Engine, record: LineageRecord) -> None:
        self._bind(engine.path, record.size)
        self._engine = engine
        self._id = record.id
        self._name = record.name
        self._epoch = record.epoch
        self._created_ns = record.created_ns
        self._set_id = record.set_id
        self._anchor = bool(record.flags & LINEAGE_ANCHOR)
        self._tag = record.tag
        self._change_id = ""  # until somebody asks for it
        self._metadata: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"<cowengine.Snapshot {self._name!r} id={self._id} epoch={self._epoch}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Snapshot) and other.change_id == self.change_id

    def __hash__(self) -> int:
        return hash(self.change_id)

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
    def created_ns(self) -> int:
        """The same as Unix time in nanoseconds."""
        return self._created_ns

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
        if not self._change_id:
            self._change_id = f"{self._engine.uuid_text}/{self._epoch}/{self._tag:016x}"
        return self._change_id

    @property
    def set_id(self) -> str | None:
        """The id of the snapshot set that it belongs to, or None."""
        return str(uuid.UUID(bytes=self._set_id)) if any(self._set_id) else None

    @property
    def is_anchor(self) -> bool:
        """Whether its data was given up."""
        record = None if self._engine.closed else self._engine.lineage.get(self._id)
        if record is not None:
            self._anchor = bool(record.flags & LINEAGE_ANCHOR)
        return self._anchor

    @property
    def metadata(self) -> dict[str, Any]:
        """What was passed to `Volume.snapshot`; read from the file at the first use."""
        if self._metadata is None:
            self._metadata = self._decoded(self._engine.metadata(self._record()))
        return dict(self._metadata)

    def _decoded(self, data: bytes) -> dict[str, Any]:
        """Metadata as it was passed. Raises CorruptionError for what nobody can have passed."""
        try:
            metadata = json.loads(data) if data else {}
        except (ValueError, RecursionError) as error:
            raise CorruptionError(
                f"the snapshot's metadata is no JSON ({error})", self._engine.name, snapshot=self._name
            ) from None
        if not isinstance(metadata, dict):
            raise CorruptionError("the snapshot's metadata is no JSON object", self._engine.name, snapshot=self._name)
        return metadata

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

    def _require_data(self) -> None:
        """Raises NotFoundError if the snapshot was deleted, AnchorError if it is an anchor."""
        self._record()
        self._engine.readable_snapshot(self._id)

    # -- bytes --------------------------------------------------------------------------------------------------------
    def pread_many(self, buffer: Buffer, extents: ExtentArray | Sequence[tuple[int, int]]) -> int:
        """Fills a writable buffer with the bytes of many extents, one behind the other; returns how many bytes.

        `extents` has rows (offset, length) in bytes, as `changed_extents` gives them, in any order. The GIL is released
        once for all. Raises as `pread`, and OutOfRangeError if the buffer is too small, before anything is read; after
        any other error the buffer holds anything.
        """
        rows = check_extents(extents)
        check_buffer(buffer, writable=True)
        return self._named(lambda: gather(self._path, buffer, rows, self._size, self._root()))

    # `pread` and `pread_into` are the handle's; what is unusual comes here.
    def _pread(self, length: Any, offset: Any) -> bytes:
        offset, length = check_range(offset, length, self._size, "read", "snapshot")
        return self._named(lambda: self._path.pread(length, offset, self._root()))

    def _pread_into(self, buffer: Any, offset: Any) -> int:
        check_buffer(buffer, writable=True)
        offset, length = check_range(offset, memoryview(buffer).nbytes, self._size, "read", "snapshot")
        return self._named(lambda: self._path.pread_into(buffer, offset, length, self._root()))

    def _root(self) -> Root:
        """The map's root, noted for the reads to come."""
        lineage = self._engine.lineage
        root = lineage.loaded_roots.get(self._id)
        if root is None:
            self._require_data()
            root = lineage.root(self._id)
        self._note(root)
        return root

    def _read_failed(self, status: int) -> None:
        self._named(lambda: self._path.check_status(status))

    def _named(self, work: Callable[[], T]) -> T:
        """Does what may find the snapshot deleted or damage, and says of which snapshot in which file."""
        try:
            return work()
        except NotFoundError:
            self._require_data()
            raise
        except CorruptionError as error:
            raise error.found_in(self._engine.name, self._name) from None

    def _crowded(self) -> None:
        """What is read is among what can be dropped, although it was dropped before and somebody else kept the root."""
        with suppress(CowEngineError):
            self._engine.lineage.root(self._id)

    def open(self) -> io.RawIOBase:
        """A seekable, read-only file object over the whole snapshot. Raises as `pread`."""
        self._require_data()
        return _SnapshotFile(self)

    def flatten(self, raw_path: str | os.PathLike[str]) -> None:
        """Writes the snapshot into a new raw image; see `Volume.flatten`. Raises ExistsError, NotFoundError,
        NoSpaceError.
        """
        self._require_data()
        engine = self._engine
        try:
            flatten_copy(engine, engine.lineage.root(self._id), self._size, check_path(raw_path))
        except CorruptionError as error:
            raise error.found_in(engine.name, self._name) from None

    def export(self, raw_path: str | os.PathLike[str], *, salvage: bool = False, doubtful: bool = False) -> Report:
        """Writes the snapshot into a new raw image; see `Volume.export` and, for a file that does not open,
        `Volume.salvage`.
        """
        self._require_data()
        if salvage:
            from cowengine.engine.salvage import salvage_open, wanted_snapshot

            return salvage_open(self._engine, check_path(raw_path), wanted_snapshot(self._id), doubtful=doubtful)
        self.flatten(raw_path)
        return Report([], {"bytes": self._size})

    def verify(
        self, progress: Callable[[Report], None] | None = None, *, rate: int | None = None,
        stop: threading.Event | None = None,
    ) -> Report:  # fmt: skip
        """Reads every block of the snapshot from the disk and compares it with its seal, where it has one.

        Blocks that are damaged or cannot be read are problems of the report, which name the volume, the snapshot, the
        byte and the place in the file; `counts` has `blocks`, `verified`, `unsealed` and `damaged`. Runs in the
        caller's thread, at most `rate` bytes a second, until the end or until `stop` is set; `progress` is called about
        once a second with the report so far. Releases the GIL, holds nobody up. Raises NotFoundError once deleted,
        CorruptionError where metadata is damaged, OutOfRangeError.
        """
        verifying = Verifying(check_rate(rate), stop, progress)
        self._verify_on(verifying)
        return verifying.report

    def _verify_on(self, verifying: Verifying) -> None:
        """Goes on with a verification of this snapshot. Raises as `verify`."""
        self._require_data()
        verifying.snapshot(self._engine, self._id)

    # -- extents ------------------------------------------------------------------------------------------------------
    def allocated_extents(
        self, start: int = 0, length: int | None = None, max_results: int | None = None
    ) -> ExtentArray:  # fmt: skip
        """What is mapped in a range: rows (offset, length) in bytes. Everything else reads as zeros.

        Raises as `pread`.
        """
        self._require_data()
        walk = _walk(self._engine, self._id, None)
        return collect([walk], self._size, self.block_size, start, length, max_results)

    def changed_extents(
        self, base: Snapshot | int | str, start: int = 0, length: int | None = None, max_results: int | None = None
    ) -> ExtentArray:
        """What differs between two snapshots of a volume, in either order: rows (offset, length) in bytes, whole
        blocks.

        `base` is a Snapshot, an id, a name or a change id. Restart at the end of the last row. Either of the two may be
        an anchor, if the other stands on it. Raises FullBackupRequired if no exact answer exists for this base,
        NotFoundError for an unknown id or name, OutOfRangeError for what cannot be a base.
        """
        with self._engine.lock:
            self._record()
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

    # -- clones -------------------------------------------------------------------------------------------------------
    def clone(self, name: str) -> Volume:
        """A writable clone: a further head of the file, which begins as this snapshot. Durable when it returns.

        Costs the same whatever the size. `name` is as a snapshot's, and unique among the heads of the file
        (ExistsError); 255 clones are possible (OutOfRangeError). The snapshot is held while the clone lives and was not
        rolled back to another one. Close what is returned; `Volume.open_head` opens the clone again. Raises
        AnchorError, NotFoundError, ReadOnlyError, NoSpaceError.
        """
        from cowengine.volume import Volume

        self._record()
        make_clone(self._engine, self._id, check_name(name))
        return Volume(self._engine, head=open_clone(self._engine, name))

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

    @property
    def retain_until(self) -> datetime.datetime | None:
        """Until when nobody can delete the snapshot, make it an anchor or give it up (RetentionError); UTC, or None.

        Assign a later date, with a time zone, to extend it; durable behind the assignment. It is never shortened:
        RetentionError. The date counts by a clock of the volume's own, which does not follow when somebody sets the
        system's; see `Volume.accept_clock`. Raises NotFoundError once deleted, OutOfRangeError for a date that has
        passed or lies behind the year 2261.
        """
        until_ns = self._retain_until_ns()
        return _UNIX_EPOCH + datetime.timedelta(microseconds=until_ns // 1000) if until_ns else None

    @retain_until.setter
    def retain_until(self, until: datetime.datetime) -> None:
        self._record()
        retain(self._engine, self._id, check_date(until))

    def _retain_until_ns(self) -> int:
        return self._record().retain_until_ns

    def exported(self) -> AbstractContextManager[None]:
        """While the `with` block lasts the snapshot cannot be deleted, made an anchor or given up (BusyError).

        For who shows it to clients. Not durable, unlike `hold`. Raises NotFoundError.
        """
        return exported(self._engine, self._id)

    def require_deletable(self) -> None:
        """Raises BusyError or RetentionError, with the reason, if `delete` would now."""
        require_deletable(self._engine, self._record())

    # -- end ----------------------------------------------------------------------------------------------------------
    def delete(self) -> None:
        """Deletes the snapshot: gone, also after a crash, when it returns; then its space is given back.

        Reads in progress end well; later ones raise NotFoundError. Works on a full file system. An anchor, too, can be
        deleted. Raises BusyError if the snapshot is held, RetentionError if it is retained.
        """
        self._record()
        began = time.perf_counter()
        self._engine.delete(self._id)
        self._engine.latencies["delete"].add(time.perf_counter() - began)
        self._engine.reclaim()

    def to_anchor(self) -> None:
        """Gives up the snapshot's data and keeps all else, so that it still is a base for changed extents.

        An anchor, also after a crash, when it returns; then its space is given back. There is no way back. Reads in
        progress end well; later ones raise AnchorError. Of an anchor it does nothing. Works on a full file system.
        Raises BusyError if the snapshot is held, RetentionError if it is retained.
        """
        self._record()
        self._engine.to_anchor(self._id)
        self._engine.reclaim()


def check_date(until: object) -> int:
    """A date as Unix time in nanoseconds. Raises OutOfRangeError."""
    if not isinstance(until, datetime.datetime) or until.tzinfo is None:
        raise OutOfRangeError(f"a date is a datetime with a time zone, not {until!r}")
    return (until - _UNIX_EPOCH) // datetime.timedelta(microseconds=1) * 1000


def check_id(number: object) -> int:
    """The id of a snapshot, if it can be one. Raises OutOfRangeError."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise OutOfRangeError(f"a snapshot is named by a str or by its id, an int, not {type(number).__name__}")
    if not 1 <= number <= ID_MAX:
        raise OutOfRangeError(f"snapshot id: 1 to {ID_MAX} is possible")
    return number


def find_base(engine: Engine, base: Snapshot | int | str) -> LineageRecord:
    """The snapshot that a caller means by a Snapshot, an id, a name or a change id.

    Raises FullBackupRequired for a Snapshot or change id that is none of this volume, or no more; NotFoundError for an
    unknown id or name; OutOfRangeError for what is none of them.
    """
    if isinstance(base, Snapshot):
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
    parts = CHANGE_ID.fullmatch(text)
    if parts is None or int(parts[2]) > EPOCH_MAX:
        raise OutOfRangeError(f"{shown(text)} is no change id: <volume uuid>/<epoch>/<tag of 16 hexadecimal digits>")
    if parts[1] != engine.uuid_text:
        raise FullBackupRequired(f"change id {shown(text)} is of another volume; take a full backup")
    record = engine.lineage.find_epoch(int(parts[2]))
    if record is not None and change_id(engine, record) == text:
        return record
    raise FullBackupRequired(f"the volume has no snapshot of change id {shown(text)}; take a full backup")


def changed_walks(engine: Engine, target: int, base: LineageRecord) -> list[Walk]:
    """The walks that together find every block of `target` that `base` has not, or has not like that.

    Blocks behind the end of a smaller base are found by their births, as growing and shrinking leave tombstones; the
    one in which it ends has bytes behind that end, which the base has not.
    """
    record = engine.lineage.get(target)
    assert record is not None
    size = engine.path.heads[record.number].size if record.kind == LINEAGE_HEAD else record.size
    block, part = divmod(base.size, engine.path.block_bytes)
    walks = _differing_walks(engine, target, base)
    return [*walks, _one_block(block)] if part and base.size < size else walks


def _one_block(block: int) -> Walk:
    return lambda first, end, _: bytearray(_PAIR.pack(block, 1)) if first <= block < end else bytearray()


def _differing_walks(engine: Engine, target: int, base: LineageRecord) -> list[Walk]:
    """The walks that together find every block in which two maps differ.

    A block differs iff it was born after the nearest common ancestor in one of them. If one is the other's ancestor,
    one walk does; after a rollback the history is a tree, and both sides are walked. An anchor has nothing to walk, so
    it serves as an ancestor only: else FullBackupRequired.
    """
    sides, common = _sides(engine.lineage, target, base)
    for number in sides:
        record = engine.lineage.get(number)
        if record is not None and record.flags & LINEAGE_ANCHOR:
            raise FullBackupRequired(
                f"snapshot {record.name!r} is an anchor, and what it is compared with does not stand on it; "
                "take a full backup"
            )
    return [_walk(engine, number, common) for number in sides]


def _sides(lineage: Lineage, target: int, base: LineageRecord) -> tuple[list[int], int]:
    """Whose changes after which epoch are the difference of two states."""
    if lineage.stands_on(target, base):
        return [target], base.epoch
    mine = {record.id for record in lineage.ancestors(target)}
    for record in lineage.ancestors(base.id):
        if record.id in mine:
            return [base.id] if record.id == target else [target, base.id], record.epoch
    return [target, base.id], 0


def _walk(engine: Engine, number: int, born_after: int | None) -> Walk:
    root = engine.lineage.root(number)

    def walk(first: int, end: int, rows_max: int) -> bytearray:
        try:
            return engine.path.extents(root, first, end, rows_max, born_after)
        except NotFoundError:
            engine.readable_snapshot(number)  # it became an anchor meanwhile?
            raise

    return walk


head_walk = _walk


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
