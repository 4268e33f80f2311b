"""A volume, or a clone, of a store that another process serves.

Everything is the server's to do. The live bytes of a volume go over its NBD socket, if it has one; else, and of clones,
in the messages of the control protocol.

Threads   Any.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from cowengine.control.client import told_of
from cowengine.control.compaction import RemoteCompaction
from cowengine.control.encoding import decode_bytes, decode_date, decode_extents, decode_report
from cowengine.control.live import LiveBytes
from cowengine.control.protocol import LINE_BYTES_MAX, PIECE_BYTES, Message
from cowengine.control.remote_snapshot import RemoteSnapshot
from cowengine.engine.compaction import Compaction, CompactionJob
from cowengine.engine.sealing import Sealing
from cowengine.engine.space import Policy
from cowengine.engine.usage import VolumeSpace
from cowengine.errors import BusyError, ClosedError, OutOfRangeError
from cowengine.extents import ROWS_MAX
from cowengine.names import check_name, check_path, encode_metadata
from cowengine.ranges import check_buffer, check_extents, check_range, check_rate, whole_number
from cowengine.volume import GivenUp, Volume

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined]

    from cowengine.control.remote_store import RemoteStore
    from cowengine.engine.engine import Engine
    from cowengine.engine.report import Report
    from cowengine.extents import ExtentArray
    from cowengine.snapshot import Snapshot

T = TypeVar("T")

SNAPSHOTS_A_CALL = 1000
EXTENTS_A_CALL = 1 << 18


class RemoteVolume(Volume):
    """See Volume. Made by a RemoteStore, `open_head` and `RemoteSnapshot.clone`."""

    def __init__(self, store: RemoteStore, found: Message) -> None:
        self._store = store
        self._volume_name: str = found["name"]
        self._volume_id: str = found["id"]
        self._head_name: str = found["head"]
        self._volume_path: str = found["path"]
        self._block_size: int = found["block_size"]
        self._is_closed = False
        self._closing = threading.Lock()
        nbd_path = None if self._is_clone else store.nbd_path
        self._live = LiveBytes(self.call, nbd_path, self._volume_name, read_only=store.read_only)
        #: Whether closing it is to be told to the server, as it counts it as open.
        self.handed_out = False

    def __repr__(self) -> str:
        head = f" {self.head!r}" if self._is_clone else ""
        return f"<cowengine.Volume {self.path!r}{head} served by another process{' closed' if self.closed else ''}>"

    def __del__(self) -> None:
        pass  # what it had at the server goes with the session

    def call(self, method: str, /, **params: Any) -> Any:
        """Calls a method about this volume."""
        self._check_state()
        volume = {"name": self._volume_name, "id": self._volume_id, "head": self._head_name}
        return self._store.client.call(method, {"volume": volume}, **params)

    @property
    def _is_clone(self) -> bool:
        return self._head_name != "live"

    def _check_state(self) -> None:
        if self.closed:
            raise ClosedError("the volume is closed", self.path)
        self._store.check_open()

    @property
    def engine(self) -> Engine:  # type: ignore[override]
        """Not here: the engine is in the process that serves the store. Raises BusyError."""
        raise BusyError(
            f"another process serves the store; there the volume is export {self._volume_name!r} of the NBD socket",
            self._store.nbd_path or self.path,
        )

    # -- what it is ----------------------------------------------------------------------------------------------------
    @property
    def path(self) -> str:
        """See Volume."""
        return self._volume_path

    @property
    def id(self) -> str:
        """See Volume."""
        return self._volume_id

    @property
    def size(self) -> int:
        """See Volume."""
        size: int = self.call("volume.info")["size"]
        return size

    @property
    def block_size(self) -> int:
        """See Volume."""
        return self._block_size

    @property
    def epoch(self) -> int:
        """See Volume."""
        epoch: int = self.call("volume.info")["epoch"]
        return epoch

    @property
    def closed(self) -> bool:
        """See Volume."""
        return self._is_closed or self._store.closed

    @property
    def read_only(self) -> bool:
        """See Volume."""
        return self._store.read_only

    # -- bytes ---------------------------------------------------------------------------------------------------------
    def pread(self, length: int, offset: int) -> bytes:
        """See Volume."""
        length, offset = whole_number(length, "read: the length"), whole_number(offset, "read: the offset")
        if length > PIECE_BYTES:
            check_range(offset, length, self.size, "read")
        if length <= 0:
            return decode_bytes(self.call("volume.pread", length=length, offset=offset))
        buffer = bytearray(length)
        self.pread_into(buffer, offset)
        return bytes(buffer)

    def pread_into(self, buffer: Buffer, offset: int) -> int:
        """See Volume."""
        check_buffer(buffer, writable=True)
        self._check_state()
        view, offset = memoryview(buffer).cast("B"), whole_number(offset, "read: the offset")
        if len(view) > PIECE_BYTES:
            check_range(offset, len(view), self.size, "read")
        self._live.read(view, offset)
        return len(view)

    def pread_many(self, buffer: Buffer, extents: ExtentArray | Sequence[tuple[int, int]]) -> int:
        """See Volume."""
        rows = check_extents(extents)
        check_buffer(buffer, writable=True)
        view, at, size = memoryview(buffer).cast("B"), 0, self.size
        if int(rows[:, 1].sum()) > len(view):
            raise OutOfRangeError(f"{int(rows[:, 1].sum())} bytes do not fit in a buffer of {len(view)}")
        for offset, length in rows.tolist():
            check_range(offset, length, size, "read")
        for offset, length in rows.tolist():
            at += self.pread_into(view[at : at + length], offset) if length else 0
        return at

    def pwrite(self, data: Buffer, offset: int) -> int:
        """See Volume."""
        check_buffer(data)
        self._check_state()
        view, offset = memoryview(data).cast("B"), whole_number(offset, "write: the offset")
        if len(view) > PIECE_BYTES:
            check_range(offset, len(view), self.size, "write")
        self._live.write(view, offset)
        return len(view)

    def discard(self, offset: int, length: int) -> None:
        """See Volume."""
        self.call("volume.discard", offset=_number(offset, "offset"), length=_number(length, "length"))

    def write_zeroes(self, offset: int, length: int) -> None:
        """See Volume."""
        self.call("volume.write_zeroes", offset=_number(offset, "offset"), length=_number(length, "length"))

    def flush(self) -> None:
        """See Volume."""
        self.call("volume.flush")

    def resize(self, size: int) -> None:
        """See Volume."""
        self.call("volume.resize", size=whole_number(size, "size"))

    # -- snapshots -----------------------------------------------------------------------------------------------------
    def _snapshot(self, found: Message) -> Snapshot:
        return RemoteSnapshot(self._store, self._volume_id, found)

    def snapshot(self, name: str, *, metadata: dict[str, Any] | None = None) -> Snapshot:
        """See Volume."""
        check_name(name)
        encode_metadata(metadata, LINE_BYTES_MAX)
        return self._snapshot(self.call("volume.snapshot", name=name, metadata=metadata))

    def snapshots(self, start: int = 0, max_results: int | None = None) -> list[Snapshot]:
        """See Volume."""
        start, found = whole_number(start, "start"), []
        left = ROWS_MAX if max_results is None else whole_number(max_results, "max_results")
        if start < 0 or left < 0:
            raise OutOfRangeError(f"snapshots from {start}, {max_results} of them")
        self._check_state()
        while left > 0:
            wanted = min(left, SNAPSHOTS_A_CALL)
            page = self.call("volume.snapshots", start=min(start, ROWS_MAX), max_results=wanted)
            found += [self._snapshot(each) for each in page]
            start, left = start + len(page), left - len(page)
            if len(page) < wanted:
                break
        return found

    def get_snapshot(self, name_or_id: str | int) -> Snapshot:
        """See Volume."""
        return self._snapshot(self.call("volume.get_snapshot", name_or_id=name_or_id))

    def rollback(self, snapshot: Snapshot | int | str) -> Snapshot:
        """See Volume."""
        return self._snapshot(self.call("volume.rollback", snapshot=_reference(snapshot)))

    # -- heads ---------------------------------------------------------------------------------------------------------
    def heads(self) -> list[str]:
        """See Volume."""
        names: list[str] = self.call("volume.heads")
        return names

    def open_head(self, name: str) -> Volume:
        """See Volume."""
        return RemoteVolume(self._store, self.call("volume.open_head", name=check_name(name)))

    def delete_head(self, name: str) -> None:
        """See Volume."""
        self.call("volume.delete_head", name=check_name(name))

    # -- extents -------------------------------------------------------------------------------------------------------
    def allocated_extents(
        self, start: int = 0, length: int | None = None, max_results: int | None = None
    ) -> ExtentArray:  # fmt: skip
        """See Volume."""
        return self._extents("volume.allocated_extents", start, length, max_results)

    def changed_extents(
        self, base: Snapshot | int | str, start: int = 0, length: int | None = None, max_results: int | None = None
    ) -> ExtentArray:
        """See Volume."""
        return self._extents("volume.changed_extents", start, length, max_results, base=_reference(base))

    def _extents(
        self, method: str, start: int, length: int | None, max_results: int | None, **params: Any
    ) -> ExtentArray:
        """Page by page, as a message has its bounds."""
        import numpy

        start = whole_number(start, "start")
        end = None if length is None else start + whole_number(length, "length")
        left = ROWS_MAX if max_results is None else whole_number(max_results, "max_results")
        pages = []
        while True:
            wanted = min(left, EXTENTS_A_CALL)
            length = None if end is None else end - start
            page = decode_extents(self.call(method, start=start, length=length, max_results=wanted, **params))
            pages.append(page)
            left -= len(page)
            if len(page) < wanted or left <= 0:
                break
            start = int(page[-1].sum())
            if end is not None and start >= end:
                break
        return pages[0] if len(pages) == 1 else numpy.concatenate(pages)

    # -- images --------------------------------------------------------------------------------------------------------
    def flatten(self, raw_path: str | os.PathLike[str] | None = None, *, in_place: bool = False) -> None:
        """See Volume. The server writes the image. The file of a store's volume itself is none: BusyError."""
        given = self.path if raw_path is None else check_path(raw_path)
        path = os.path.abspath(given)
        with told_of(given, path):
            self.call("volume.flatten", path=path, in_place=bool(in_place))

    def export(self, raw_path: str | os.PathLike[str], *, salvage: bool = False, doubtful: bool = False) -> Report:
        """See Volume. The server writes the image."""
        given = check_path(raw_path)
        path = os.path.abspath(given)
        with told_of(given, path):
            return decode_report(self.call("volume.export", path=path, salvage=salvage, doubtful=doubtful))

    # -- space ---------------------------------------------------------------------------------------------------------
    def policy(
        self, *, when_full: str | None = None, keep_newest: int | None = None, snapshot_bytes_max: int | None = None
    ) -> Policy:
        """See Volume."""
        changes: dict[str, Any] = {}
        if when_full is not None:
            changes["when_full"] = when_full
        if keep_newest is not None:
            changes["keep_newest"] = whole_number(keep_newest, "keep_newest")
        if snapshot_bytes_max is not None:
            changes["snapshot_bytes_max"] = whole_number(snapshot_bytes_max, "snapshot_bytes_max")
        return Policy(**(self.call("volume.set_policy", **changes) if changes else self.call("volume.policy")))

    def accept_clock(self) -> None:
        """See Volume."""
        self.call("volume.accept_clock")

    def given_up(self) -> list[GivenUp]:
        """See Volume."""
        rows: list[Message] = self.call("volume.given_up")
        return [GivenUp(**{**row, "given_up": decode_date(row["given_up"])}) for row in rows]

    def on_space_needed(self, callback: Callable[..., object] | None, *, time_limit: float = 30.0) -> None:
        """Not possible: who is asked for space is told in the process that serves the store. Raises BusyError."""
        raise self._owners_alone()

    def on_space_low(self, callback: Callable[..., object] | None, *, below: float = 0.1) -> None:
        """Not possible: who is told of little space is told in the process that serves the store. Raises BusyError."""
        raise self._owners_alone()

    def _owners_alone(self) -> BusyError:
        self._check_state()
        return BusyError("another process serves the store: callbacks about space are registered there", self.path)

    # -- care ----------------------------------------------------------------------------------------------------------
    def reclaim(self) -> None:
        """See Volume."""
        self.call("volume.reclaim")

    def du(self) -> VolumeSpace:
        """See Volume."""
        return VolumeSpace(**self.call("volume.du"))

    def compact(
        self, start: int = 0, *, rate: int | None = None, stop: threading.Event | None = None,
        progress: Callable[[Compaction], None] | None = None,
    ) -> Compaction:  # fmt: skip
        """See Volume."""
        tell = None if progress is None else lambda report: progress(Compaction(**report))
        start = whole_number(start, "compaction: the offset")
        return Compaction(**self.call("volume.compact", start=start, rate=check_rate(rate), progress=tell, stop=stop))

    def start_compaction(self, start: int = 0, *, rate: int | None = None) -> CompactionJob:
        """See Volume. Ends also with this process."""
        start, _ = check_range(start, 0, self.size, "compaction")
        return RemoteCompaction(self, start, check_rate(rate))

    def seal(
        self, *, rate: int | None = None, stop: threading.Event | None = None,
        progress: Callable[[Sealing], None] | None = None,
    ) -> Sealing:  # fmt: skip
        """See Volume."""
        tell = None if progress is None else lambda report: progress(Sealing(**report))
        return Sealing(**self.call("volume.seal", rate=check_rate(rate), progress=tell, stop=stop))

    def unsealed_bytes(self) -> int:
        """See Volume."""
        count: int = self.call("volume.unsealed_bytes")
        return count

    def verify(
        self, progress: Callable[[Report], None] | None = None, *, rate: int | None = None,
        stop: threading.Event | None = None,
    ) -> Report:  # fmt: skip
        """See Volume."""
        tell = None if progress is None else lambda report: progress(decode_report(report))
        return decode_report(self.call("volume.verify", rate=check_rate(rate), progress=tell, stop=stop))

    def stats(self) -> dict[str, Any]:
        """See Volume."""
        found: dict[str, Any] = self.call("volume.stats")
        return found

    def check(self, repair: bool = False) -> Report:
        """See Volume."""
        return decode_report(self.call("volume.repair" if repair else "volume.check"))

    def close(self) -> None:
        """See Volume. The server closes the volume when nobody has it open any more."""
        with self._closing:
            self._live.close()
            if self.closed:
                return
            if self._is_clone:
                self.call("volume.close_head")
            elif self.handed_out:
                self._store.client.call("volume.close", name=self._volume_name)
            self._is_closed = True


def _number(value: Any, what: str) -> int:
    return whole_number(value, f"the {what}")


def _reference(base: Snapshot | int | str) -> Any:
    """A snapshot as the protocol names it."""
    from cowengine.snapshot import Snapshot

    return base.change_id if isinstance(base, Snapshot) else base
