"""Volume: a fixed run of blocks in one sparse file, with snapshots.

Thin: checks arguments, names errors, and leaves order and durability to the engine.

Threads   Any thread may call anything. Reads and writes release the GIL during I/O. A volume belongs to one process; in
          the child of a fork every call raises ClosedError.
"""

from __future__ import annotations

import datetime
import logging
import os
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar, cast

from cowengine.closing import Closing
from cowengine.core.gather import gather
from cowengine.core.handle import HeadHandle
from cowengine.core.iotable import KERNEL, IOTable
from cowengine.engine import memory
from cowengine.engine.adopt import adopt_as, adopt_engine, undo_adoption
from cowengine.engine.clones import delete_clone, open_clone
from cowengine.engine.compaction import Compaction, CompactionJob, compact
from cowengine.engine.create import create_engine
from cowengine.engine.engine import Engine
from cowengine.engine.flatten import flatten_copy, flatten_file
from cowengine.engine.lineage import HEAD_ID, LIVE_NAME
from cowengine.engine.reader import Look
from cowengine.engine.reclaim import pending
from cowengine.engine.recovery import open_engine
from cowengine.engine.report import Report
from cowengine.engine.retention import accept_clock
from cowengine.engine.sealing import Sealing, seal, unsealable_count, unsealed_bytes
from cowengine.engine.space import WHEN_FULL, Policy, SpaceLow, SpaceNeeded
from cowengine.engine.usage import VolumeSpace, volume_space
from cowengine.engine.verifying import Verifying, verify_all
from cowengine.errors import ClosedError, CorruptionError, ExistsError, NoSpaceError, NotFoundError, OutOfRangeError
from cowengine.extents import ROWS_MAX, collect
from cowengine.format import ID_MAX, SIZE_MAX, LineageRecord
from cowengine.names import check_name, check_path, encode_metadata, shown
from cowengine.oserrors import typed
from cowengine.ranges import check_barriers, check_buffer, check_extents, check_range, check_rate, whole_number
from cowengine.snapshot import Snapshot, changed_walks, check_id, find_base, head_walk

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined]

    from cowengine.core.roots import Head
    from cowengine.engine.repair import Repaired
    from cowengine.engine.salvage import Salvaged
    from cowengine.extents import ExtentArray

T = TypeVar("T")

logging.getLogger("cowengine").addHandler(logging.NullHandler())

ZEROS = bytes(1 << 20)


class GivenUp(NamedTuple):
    """A snapshot that was given up because space ran out."""

    id: int
    name: str
    change_id: str
    given_up: datetime.datetime
    """When, UTC."""


class Volume(HeadHandle, Closing):
    """A volume. Make one with `create` or `open`; close it, or use it as a context manager.

    `Snapshot.clone` and `open_head` give a Volume that is a clone: a head of its own in the same file. It has all
    methods; bytes, size and history are the clone's, the file, its snapshots and its space are common to all.
    """

    def __init__(
        self, engine: Engine, *, background: bool = True, cache_size: int | None = None, head: Head | None = None
    ) -> None:  # fmt: skip
        self.engine = engine
        if cache_size is not None:
            memory.bound(engine, cache_size)
        if head is None:
            engine.background = background
            if background and not engine.read_only:
                engine.sealer.look(engine)
        self._head_name = LIVE_NAME if head is None else engine.lineage.heads[head.number].name
        self._bind(engine.path, head or engine.path.live)

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], size: int, *, block_size: int = 4096, log_size: int | None = None,
        io: IOTable | None = None, background: bool = True, store_uuid: bytes | None = None,
        cache_size: int | None = None, barriers: int = 1,
    ) -> Self:  # fmt: skip
        """A new sparse volume file of `size` bytes (a multiple of 512), mode 0600; durable when it returns.

        `io` replaces the I/O table; without `background` no thread or timer is used. `block_size` is a power of two
        from 4096 to 1048576. `barriers` is as for `open`. Raises ExistsError if something is in the way,
        OutOfRangeError, NoSpaceError.
        """
        name, barriers = check_path(path), check_barriers(barriers)
        size, block_size = whole_number(size, "size"), whole_number(block_size, "block_size")
        log_size = None if log_size is None else whole_number(log_size, "log_size")
        cache_size = None if cache_size is None else whole_number(cache_size, "cache_size")
        engine = create_engine(
            io or KERNEL, name, size, block_size=block_size, log_size=log_size, store_uuid=store_uuid
        )  # fmt: skip
        engine.vouching.barriers = barriers
        return cls(engine, background=background, cache_size=cache_size)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        io: IOTable | None = None,
        background: bool = True,
        without_store: bool = False,
        store_uuid: bytes | None = None,
        cache_size: int | None = None,
        barriers: int = 1,
    ) -> Self:
        """Opens a volume file, as its owner or read-only (nothing is written then).

        `cache_size` bounds the memory, in bytes, that the map of this volume may take (48 MiB unless told, at least 1
        MiB); what is dirty comes on top of it, up to 16 MiB and one batch.

        With `barriers` 1 a commit of little data is one barrier: its record carries 64-bit checksums of the data, by
        which an open tells after a crash whether it was written. With 2 the data is always synced before the record is
        written: for data of an adversary who can also bring about a crash, as those checksums have no secret.

        Read-only, a volume that has an owner gives its snapshots as they are committed, not the live volume: reading
        that raises BusyError. One that has none gives all, and keeps owners out until it is closed.

        Raises NotFoundError, BusyError (owned by somebody, or it needs its store: `without_store` overrides),
        FormatError (no volume), UnsupportedVersionError, CorruptionError.
        """
        name, barriers = check_path(path), check_barriers(barriers)
        cache_size = None if cache_size is None else whole_number(cache_size, "cache_size")
        engine = open_engine(
            io or KERNEL, name, read_only=read_only, store_uuid=store_uuid, without_store=without_store
        )  # fmt: skip
        engine.vouching.barriers = barriers
        if isinstance(engine, Look):
            from cowengine.reader import SnapshotReader

            return cast("Self", SnapshotReader(engine, background=background, cache_size=cache_size))
        return cls(engine, background=background, cache_size=cache_size)

    @classmethod
    def adopt(
        cls, raw_path: str | os.PathLike[str], path: str | os.PathLike[str] | None = None, *, block_size: int = 4096,
        log_size: int | None = None, raw: bool = False, io: IOTable | None = None, background: bool = True,
    ) -> Self:  # fmt: skip
        """Makes a raw image a volume without copying it, and opens it; durable when it returns.

        With `path` the file gets that name, in the same file system. A crash leaves the raw image or the volume, whole;
        adopting again goes on, or, if only the name is missing, a rename. Some megabytes are added to the file. Raises
        OutOfRangeError (empty, no multiple of 512 bytes, `block_size`, another file system), BusyError (open or owned
        elsewhere), FormatError (a volume already, or it looks like another format and `raw` was not passed),
        ExistsError (`path`), NotFoundError, NoSpaceError.
        """
        source, table = check_path(raw_path), io or KERNEL
        block_size = whole_number(block_size, "block_size")
        log_size = None if log_size is None else whole_number(log_size, "log_size")
        if path is None:
            engine = adopt_engine(table, source, block_size=block_size, log_size=log_size, raw=raw)
            return cls(engine, background=background)
        name = check_path(path)
        adopt_as(table, source, name, block_size=block_size, log_size=log_size, raw=raw)
        return cls(open_engine(table, name), background=background)

    @staticmethod
    def undo_adoption(path: str | os.PathLike[str], *, io: IOTable | None = None) -> None:
        """Ends an adoption, or a flattening in place, that was interrupted: the file is a raw image. Durable on return.

        Raises NotFoundError if none was, FormatError if the file is a volume or was changed since, BusyError.
        """
        undo_adoption(io or KERNEL, check_path(path))

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.size} bytes"
        head = f" {self.head!r}" if self._head.number else ""
        return f"<cowengine.Volume {self.path!r}{head} {state}>"

    def __del__(self) -> None:
        engine = getattr(self, "engine", None)
        if engine is not None and self._head is not None and not self.closed:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            if self._head.number:
                engine.dropped_heads.append(self._head)
            else:
                engine.close_dropped()

    def __reduce__(self) -> Any:
        raise TypeError("a Volume cannot be pickled; open it where it is needed")

    # -- what it is ---------------------------------------------------------------------------------------------------
    @property
    def path(self) -> str:
        """Path of the volume file."""
        return self.engine.name

    @property
    def id(self) -> str:
        """The volume's UUID."""
        return str(uuid.UUID(bytes=self.engine.uuid))

    @property
    def size(self) -> int:
        """Bytes."""
        return int(self._head.size)

    @property
    def block_size(self) -> int:
        """Bytes of a block."""
        return int(self._path.block_bytes)

    @property
    def epoch(self) -> int:
        """The current epoch of this head."""
        return int(self._head.epoch)

    @property
    def closed(self) -> bool:
        """Whether `close` was called; of a clone also whether the live volume was closed."""
        return self.engine.closed or not self._head.is_open

    @property
    def read_only(self) -> bool:
        """Whether it was opened read-only."""
        return self.engine.read_only

    def _check_state(self) -> None:
        """Raises if this handle is closed, or the volume closed or poisoned."""
        self._path.check_state()
        if not self._head.is_open:
            raise ClosedError("the volume is closed", self.path)

    def _require_writable(self) -> None:
        self._check_state()
        self.engine.require_writable()

    # -- bytes --------------------------------------------------------------------------------------------------------
    def pread_many(self, buffer: Buffer, extents: ExtentArray | Sequence[tuple[int, int]]) -> int:
        """Fills a buffer with the bytes of many extents, which are not of one moment; see `Snapshot.pread_many`."""
        rows = check_extents(extents)
        check_buffer(buffer, writable=True)
        return self._named(lambda: gather(self._path, buffer, rows, self._head.size, self._head))

    # `pread`, `pread_into` and `pwrite` are the handle's; what is unusual comes here.
    def _pread(self, length: Any, offset: Any) -> bytes:
        self._check_state()
        offset, length = check_range(offset, length, self._head.size, "read")
        return self._named(lambda: self._path.pread(length, offset, self._head))

    def _pread_into(self, buffer: Any, offset: Any) -> int:
        check_buffer(buffer, writable=True)
        self._check_state()
        offset, length = check_range(offset, memoryview(buffer).nbytes, self._head.size, "read")
        return self._named(lambda: self._path.pread_into(buffer, offset, length, self._head))

    def _read_failed(self, status: int) -> None:
        self._named(lambda: self._path.check_status(status))

    def _named(self, work: Callable[[], T]) -> T:
        """Does what may find damage, and says in which file."""
        try:
            return work()
        except CorruptionError as error:
            raise error.found_in(self.path) from None

    def _pwrite(self, data: Any, offset: Any, done: int, status: int) -> int:
        """A write of which `done` bytes are done, and that then ended with a kernel's status."""
        if type(offset) is not int:
            offset = whole_number(offset, "write: the offset")
        if not 0 <= offset < 1 << 48 or self.engine.read_only:
            self._refuse_write(data, offset)
        try:
            written = self._path.pwrite(data, offset, self._head, done, status)
        except NoSpaceError as error:
            written = self.engine.space.retried(
                error, memoryview(data).nbytes, lambda: int(self._path.pwrite(data, offset, self._head, done))
            )
        except CorruptionError as error:
            raise error.found_in(self.path) from None
        except (TypeError, BufferError, ValueError):
            check_buffer(data)
            raise
        if written < 0:
            self._refuse_write(data, offset)
            return self.pwrite(data, offset)  # the volume has grown since
        if written == 0:
            self._refuse_write(data, offset)
        return written

    def _refuse_write(self, data: Any, offset: int) -> None:
        """Raises what is wrong with a write that was not done; returns if it was of no bytes."""
        self._require_writable()
        check_buffer(data)
        check_range(offset, memoryview(data).nbytes, self.size, "write")

    def discard(self, offset: int, length: int) -> None:
        """Whole blocks in the range read as zeros from now on and give their space back; partial ends are unchanged.

        Not durable before `flush`. Counts as a change. Raises OutOfRangeError.
        """
        done = False
        while not done:  # again, if the volume's size changed meanwhile: its last block is whole where the volume ends
            size = self.size
            offset, length = self._writable_range(offset, length, "discard")
            first, end = self._whole_blocks(offset, length, size)
            done = self._with_space(partial(self._path.discard, first, end, size, self._head))

    def write_zeroes(self, offset: int, length: int) -> None:
        """Exactly these bytes read as zeros from now on; whole blocks give their space back.

        Not durable before `flush`.
        """
        done = False
        while not done:
            size = self.size
            offset, length = self._writable_range(offset, length, "write of zeros")
            first, end = self._whole_blocks(offset, length, size)
            done = self._with_space(partial(self._path.discard, first, end, size, self._head))
        block, stop = self.block_size, offset + length
        begun, ended = (first * block, min(end * block, size)) if first < end else (stop, stop)
        self._write_zeros(offset, begun)
        self._write_zeros(ended, stop)

    def _write_zeros(self, start: int, stop: int) -> None:
        while start < stop:
            start += self.pwrite(memoryview(ZEROS)[: min(stop - start, len(ZEROS))], start)

    def _writable_range(self, offset: int, length: int, what: str) -> tuple[int, int]:
        self._require_writable()
        return check_range(offset, length, self.size, what)

    def _whole_blocks(self, offset: int, length: int, size: int) -> tuple[int, int]:
        """[first, end) of the blocks that lie in the range whole; the last block of the volume ends at its size."""
        block = self.block_size
        end = offset + length
        return -(-offset // block), -(-end // block) if end == size else end // block

    def flush(self) -> None:
        """All writes that returned before the call are durable when it returns.

        Raises PoisonedError if the system could not do it; then close the volume and open it again.
        """
        began = time.perf_counter()
        self._check_state()
        engine = self.engine
        try:
            engine.flush()
        except NoSpaceError as error:
            engine.space.retried(error, 0, engine.flush)
        engine.latencies["flush"].add(time.perf_counter() - began)
        engine.space.look()

    def _with_space(self, work: Callable[[], T]) -> T:
        """Does what may find the file system full; see `policy` and `on_space_needed`."""
        try:
            return work()
        except NoSpaceError as error:
            return self.engine.space.retried(error, 0, work)

    # -- snapshots ----------------------------------------------------------------------------------------------------
    def snapshot(self, name: str, *, metadata: dict[str, Any] | None = None) -> Snapshot:
        """Takes a snapshot. Durable when it returns, and so is every write that returned before.

        `name` is 1 to 255 bytes of UTF-8 without `/` and NUL, unique in the volume (ExistsError). `metadata` is a small
        JSON object. Writers are not stopped. Costs the same whatever the volume's size and its number of snapshots.
        """
        check_name(name)
        engine = self.engine
        encoded = b"" if metadata is None else encode_metadata(metadata, engine.metadata_max)
        began = time.perf_counter()
        try:
            record = engine.snapshot(name, encoded, self._head)
        except NoSpaceError as error:
            record = engine.space.retried(error, 0, lambda: engine.snapshot(name, encoded, self._head))
        taken = Snapshot(engine, record)
        engine.latencies["snapshot"].add(time.perf_counter() - began)
        engine.space.look()
        return taken

    def snapshots(self, start: int = 0, max_results: int | None = None) -> list[Snapshot]:
        """The snapshots, oldest first; at most `max_results` of them from position `start` on."""
        start = min(whole_number(start, "start"), ROWS_MAX)
        stop = None if max_results is None else start + min(whole_number(max_results, "max_results"), ROWS_MAX)
        if start < 0 or (stop is not None and stop < start):
            raise OutOfRangeError(f"snapshots from {start}, {max_results} of them")
        with self.engine.lock:
            self._check_state()
            records = self.engine.lineage.snapshots(start, stop)
            memory.trim(self.engine)
        return [Snapshot(self.engine, record) for record in records]

    def get_snapshot(self, name_or_id: str | int) -> Snapshot:
        """A snapshot by its name (str) or id (int). Raises NotFoundError."""
        engine = self.engine
        with engine.lock:
            self._check_state()
            if isinstance(name_or_id, str):
                record = engine.lineage.find_name(name_or_id)
                if record is None:
                    raise NotFoundError(f"there is no snapshot named {shown(name_or_id)}", self.path)
            else:
                record = engine.live_snapshot(check_id(name_or_id))
            memory.trim_records(engine)
        return Snapshot(engine, record)

    def rollback(self, snapshot: Snapshot | int | str) -> Snapshot:
        """Makes this head what a snapshot is. Durable when it returns.

        Returns the automatic snapshot of what it replaces. Newer snapshots stay. Writes wait meanwhile.
        """
        self._check_state()
        engine = self.engine

        def roll_back() -> LineageRecord:
            with engine.lock:
                record = find_base(engine, snapshot)
                return engine.rollback(record.id, f"before-rollback-{engine.lineage.next_id}", self._head)

        return Snapshot(engine, self._with_space(roll_back))

    def resize(self, size: int) -> None:
        """Makes this head `size` bytes long: a multiple of 512, 512 to 2^48 - 4096. Durable when it returns.

        What is gained reads as zeros, and so does what was cut off once if the volume grows again. Snapshots keep their
        own size and their bytes. Writes wait meanwhile; those that do not lie in the volume any more raise
        OutOfRangeError. Raises OutOfRangeError, and NoSpaceError, where nothing has changed.
        """
        size = whole_number(size, "size")
        self._check_state()
        self._with_space(lambda: self.engine.resize(size, self._head))

    # -- heads --------------------------------------------------------------------------------------------------------
    @property
    def head(self) -> str:
        """The name of this head: "live", or that of the clone."""
        return self._head_name

    @property
    def _head_id(self) -> int:
        if not self._head.number:
            return HEAD_ID
        with self.engine.lock:
            self.engine.require_head(self._head)
            return self.engine.lineage.heads[self._head.number].id

    def heads(self) -> list[str]:
        """The names of all heads of the file, "live" first, then the clones in the order of their making."""
        self._check_state()
        with self.engine.lock:
            return [record.name for record in sorted(self.engine.lineage.heads.values(), key=lambda each: each.id)]

    def open_head(self, name: str) -> Volume:
        """A clone by its name, as a Volume of its own over the same file; close it, or close the live volume.

        A head has one handle at a time: raises BusyError if it is open. Raises NotFoundError.
        """
        self._check_state()
        return Volume(self.engine, head=open_clone(self.engine, check_name(name)))

    def delete_head(self, name: str) -> None:
        """Deletes a clone: gone, also after a crash, when it returns; then its space is given back. O(1) but for that.

        Its snapshots stay. Works on a full file system. Raises NotFoundError, BusyError if the clone is open or it is
        the live volume.
        """
        self._check_state()
        delete_clone(self.engine, check_name(name))
        self.engine.reclaim()

    # -- extents ------------------------------------------------------------------------------------------------------
    def allocated_extents(
        self, start: int = 0, length: int | None = None, max_results: int | None = None
    ) -> ExtentArray:  # fmt: skip
        """What is mapped in a range of this head: rows (offset, length) in bytes."""
        self._check_state()
        walk = head_walk(self.engine, self._head_id, None)
        return collect([walk], self.size, self.block_size, start, length, max_results)

    def changed_extents(
        self, base: Snapshot | int | str, start: int = 0, length: int | None = None, max_results: int | None = None
    ) -> ExtentArray:
        """What changed in this head since a snapshot, writes that returned but are not flushed included.

        Rows (offset, length) in bytes, whole blocks; see `Snapshot.changed_extents`.
        """
        self._check_state()
        with self.engine.lock:
            walks, size = changed_walks(self.engine, self._head_id, find_base(self.engine, base)), self.size
        return collect(walks, size, self.block_size, start, length, max_results)

    # -- a raw image again --------------------------------------------------------------------------------------------
    def flatten(self, raw_path: str | os.PathLike[str] | None = None, *, in_place: bool = False) -> None:
        """Gives a plain raw image back; durable when it returns.

        Without `raw_path`, or with the volume's own, the volume file becomes the image and the volume is closed: in
        place, which takes no copy, where an adopted volume's blocks lie as they did in the image; else (created, grown,
        or written after a snapshot) a copy, mode 0600, takes the file's name; with `in_place` that is a BusyError. So
        is, always, a file that holds more, as snapshots or clones. With another path a new file is written from a
        snapshot that is taken and deleted: the volume stays, writes go on. In copies holes stay holes, and the space is
        shared where the file system can. Raises ExistsError, NotFoundError, NoSpaceError, OutOfRangeError (`in_place`
        with another path).
        """
        engine = self.engine
        self._check_state()
        name = self.path if raw_path is None else check_path(raw_path)
        if os.path.abspath(name) == os.path.abspath(self.path):
            flatten_file(engine, in_place=in_place)
        elif in_place:
            raise OutOfRangeError("in place is the volume file itself; give no other path", name)
        elif engine.read_only:
            flatten_copy(engine, self._head, self.size, name)
        else:
            snapshot = self.snapshot(f"flatten-{uuid.uuid4()}")
            try:
                snapshot.flatten(name)
            finally:
                snapshot.delete()

    def export(self, raw_path: str | os.PathLike[str], *, salvage: bool = False, doubtful: bool = False) -> Report:
        """Writes this head into a new raw image, mode 0600, as `flatten` does with a path; durable when it returns.

        With `salvage` damage is no end: everything that can still be read is there, what cannot is a hole, and the
        report, a `Salvaged`, lists it. Writes wait meanwhile. See `salvage` for a file that does not open, and for
        `doubtful`. Raises as `flatten`; without `salvage` CorruptionError at the first damage.
        """
        self._check_state()
        target = check_path(raw_path)
        if salvage:
            from cowengine.engine import salvage as salvaging

            return salvaging.salvage_open(
                self.engine, target, salvaging.wanted_head(self._head_id), doubtful=doubtful
            )  # fmt: skip
        if os.path.abspath(target) == os.path.abspath(self.path):
            raise ExistsError("that is the volume itself; choose another name", target)
        size = self.size
        self.flatten(target)
        return Report([], {"bytes": size})

    @staticmethod
    def salvage(
        path: str | os.PathLike[str], raw_path: str | os.PathLike[str], *, snapshot: str | int | None = None,
        head: str = LIVE_NAME, doubtful: bool = False, io: IOTable | None = None,
    ) -> Salvaged:  # fmt: skip
        """Writes all that can be read of a damaged volume file into a new raw image; changes nothing in the file.

        For a file that does not open any more; nobody may have it open. Of a snapshot, by name or id, or of a head. It
        is the newest state that the checksums of the file vouch for: `report.state` names it. What no verified metadata
        leads to, cannot be read, or does not fit its seal stays a hole, listed in `report.lost` and `report.problems`.
        Where records of the log are lost, what has no seal may have been overwritten, and is left out, too; with
        `doubtful` it is written. Raises NotFoundError, BusyError, ExistsError, NoSpaceError, FormatError; and
        CorruptionError if nothing leads to what is wanted.
        """
        from cowengine.engine.salvage import salvage_file, wanted_head, wanted_snapshot

        wanted = wanted_head(check_name(head)) if snapshot is None else wanted_snapshot(snapshot)
        return salvage_file(check_path(path), check_path(raw_path), wanted, doubtful=doubtful, io=io or KERNEL)

    # -- space --------------------------------------------------------------------------------------------------------
    def policy(
        self, *, when_full: str | None = None, keep_newest: int | None = None, snapshot_bytes_max: int | None = None
    ) -> Policy:
        """What happens when space runs out; changes what is given, and returns the policy. Durable when it returns.

        `when_full`: "fail" (the default), the call fails with NoSpaceError; "give-up", the oldest snapshots go until it
        succeeds, except those that are held or read, and the `keep_newest` (at least 1) newest ones. Each that goes is
        logged as a warning, counted in `stats` and listed by `given_up`, durably. `snapshot_bytes_max` limits what
        snapshots hold beside the live volume, in bytes of blocks (0: no limit): over it `snapshot` gives snapshots up,
        or fails, as `when_full` says; with "give-up" so do writes, about once a MiB. Raises OutOfRangeError.
        """
        space = self.engine.space
        with self.engine.lock:
            self._check_state()
            policy = space.policy
            if when_full is not None:
                policy = policy._replace(when_full=when_full)
            if keep_newest is not None:
                policy = policy._replace(keep_newest=whole_number(keep_newest, "keep_newest"))
            if snapshot_bytes_max is not None:
                limit = whole_number(snapshot_bytes_max, "snapshot_bytes_max")
                policy = policy._replace(snapshot_bytes_max=limit)
            if policy.when_full not in WHEN_FULL:
                raise OutOfRangeError(f"when_full: {shown(str(when_full))} is none of {', '.join(WHEN_FULL)}")
            if not 1 <= policy.keep_newest <= ID_MAX or not 0 <= policy.snapshot_bytes_max <= SIZE_MAX:
                raise OutOfRangeError(f"keep_newest: 1 to {ID_MAX}; snapshot_bytes_max: 0 to {SIZE_MAX} bytes")
            space.set_policy(policy)
        return policy

    def accept_clock(self) -> None:
        """The system's clock is right, however far it is ahead of the volume's; durable when it returns.

        Dates of `Snapshot.retain_until` count by a clock of the volume's own, so that nobody ends a retention by
        setting the system's. It follows the system's across a restart of the machine by at most 31 days, and never
        back. A volume that lay on a shelf for longer needs this call, by somebody who has looked at a calendar.
        """
        self._check_state()
        accept_clock(self.engine)

    def given_up(self) -> list[GivenUp]:
        """The snapshots that were given up because space ran out, oldest loss first.

        The file keeps the newest of them, dozens; `stats()["snapshots_given_up"]` counts all.
        """
        return [
            GivenUp(
                loss.id, loss.name, f"{self.id}/{loss.epoch}/{loss.tag:016x}",
                datetime.datetime.fromtimestamp(loss.given_up_ns / 1e9, datetime.UTC),
            )
            for loss in self.engine.space.losses
        ]  # fmt: skip

    def on_space_needed(self, callback: Callable[[SpaceNeeded], object] | None, *, time_limit: float = 30.0) -> None:
        """Registers who is asked when a call finds the file system full, before the policy is; None: nobody.

        The callback may free space or wait for it. If what it returns is true the call is tried again, and the callback
        asked again if that was not enough, until `time_limit` seconds after the first failure; if not, the policy
        decides. It runs in the thread of the call, with no lock of the engine held, and may use the volume; its own
        calls do not ask it. What it raises, the call raises.
        """
        self.engine.space.on_needed(callback, time_limit)

    def on_space_low(self, callback: Callable[[SpaceLow], object] | None, *, below: float = 0.1) -> None:
        """Registers who is told, once, when less than a share of the file system is free; None: nobody.

        Told again when it happens again after space was freed. Looked at about once a second, at the end of `flush` and
        `snapshot` and about once a MiB of writes; as `on_space_needed`, except that what it raises is logged.
        """
        self.engine.space.on_low(callback, below)

    # -- care ---------------------------------------------------------------------------------------------------------
    def reclaim(self) -> None:
        """Gives back the space of deleted snapshots to the end; `Snapshot.delete` does so by itself."""
        self.engine.reclaim()

    def du(self) -> VolumeSpace:
        """What the live volume and the snapshots take, each alone and shared, in bytes; exact. See `Snapshot.space`."""
        return volume_space(self.engine)

    def compact(
        self, start: int = 0, *, rate: int | None = None, stop: threading.Event | None = None,
        progress: Callable[[Compaction], None] | None = None,
    ) -> Compaction:  # fmt: skip
        """Moves blocks that snapshots once displaced back to their home slots, where those are free again.

        From byte `start` on, at most `rate` bytes a second, until the end or until `stop` is set, beside reads, writes
        and snapshots. `progress` is called about once a second. What a snapshot holds stays where it is. Durable when
        it returns; cut short, even by a crash, nothing is lost, and `start=result.position` goes on. Releases the GIL.
        Raises OutOfRangeError and NoSpaceError.
        """
        start, _ = self._writable_range(start, 0, "compaction")
        try:
            return compact(self.engine, start, check_rate(rate), stop, progress, self._head)
        except CorruptionError as error:
            raise error.found_in(self.path) from None

    def start_compaction(self, start: int = 0, *, rate: int | None = None) -> CompactionJob:
        """`compact` in a thread of its own: the job tells how far it came, can be stopped and waited for.

        One runs at a time (BusyError). It ends by itself, and when the volume is closed; then, or after a crash,
        another one can go on at `job.progress.position`, or begin anew: what is home is passed over quickly.
        """
        start, _ = self._writable_range(start, 0, "compaction")
        return CompactionJob(self.engine, start, check_rate(rate), self._head)

    def seal(
        self, *, rate: int | None = None, stop: threading.Event | None = None,
        progress: Callable[[Sealing], None] | None = None,
    ) -> Sealing:  # fmt: skip
        """Makes the checksums, the seals, of what snapshots hold and is not sealed yet; then reads verify it.

        It happens by itself in the background, slowly, unless that was forbidden; this does it in the caller's thread,
        at most `rate` bytes a second, until the end or until `stop` is set. `progress` is called about once a second.
        Durable when it returns; cut short, even by a crash, the next one goes on. Releases the GIL. What cannot be read
        is passed over; when all else is sealed, durably, it raises CorruptionError (StorageError: the disk's own
        error) with the names of those snapshots. Raises OutOfRangeError, and NoSpaceError.
        """
        self._require_writable()
        return seal(self.engine, check_rate(rate), stop, progress)

    def unsealed_bytes(self) -> int:
        """Bytes of blocks that snapshots hold and nobody has sealed yet: whose rot would not be found.

        Exact, by a walk over what the snapshots that are not sealed brought in.
        """
        self._check_state()
        return unsealed_bytes(self.engine)

    def verify(
        self, progress: Callable[[Report], None] | None = None, *, rate: int | None = None,
        stop: threading.Event | None = None,
    ) -> Report:  # fmt: skip
        """Verifies every block that any snapshot holds, each once; see `Snapshot.verify`."""
        self._check_state()
        verifying = Verifying(check_rate(rate), stop, progress)
        verify_all(verifying, self.engine)
        return verifying.report

    def stats(self) -> dict[str, Any]:
        """Counters and sizes, in bytes where a name ends in _bytes.

        `latency` has for barriers, flushes, snapshots and deletes of this handle how many there were and how long they
        took: upper bounds of median and 99th percentile, the longest, and the calls by powers of two of a microsecond.
        """
        engine, path = self.engine, self._path
        with engine.lock, typed(self.path):
            return {
                "size_bytes": self.size,
                "block_bytes": self.block_size,
                "file_bytes": engine.io.size(engine.fd) if not engine.closed else 0,
                "epoch": self.epoch,
                "snapshots": engine.lineage.count() if not engine.closed else 0,
                "snapshots_unsealed": len(engine.lineage.unsealed()) if not engine.closed else 0,
                "snapshots_unsealable": unsealable_count(engine),
                "clones": len(engine.lineage.heads) - 1,
                "reclaims_pending": pending(engine) if not engine.closed else 0,
                "log_used_bytes": engine.log.used,
                "log_bytes": engine.log.size,
                "nodes_in_memory": path.map.node_count,
                "nodes_dirty": path.map.dirty_count,
                "memory_bytes": memory.used(engine),
                "read_bytes": path.bytes_read,
                "written_bytes": path.bytes_written,
                "blocks_redirected": path.blocks_placed,
                "poisoned": engine.failure is not None,
                "latency": {name: histogram.describe() for name, histogram in engine.latencies.items()},
                **engine.space.stats(),
                **engine.counters,
            }

    def check(self, repair: bool = False) -> Report:
        """Verifies every invariant of the file. Commits first and lets writes wait while it runs.

        With `repair` it puts right what can be put right without guessing, durably: a damaged superblock, slots that
        the free map calls used and nothing reaches, the index of names, stale seals, a reclaim that was left. No map,
        lineage, record, block or snapshot is changed. The report's `repaired` says what was found and done, `problems`
        what is left. Where it would have to guess it raises CorruptionError and changes nothing; see `repair` for a
        file that does not open, and docs/repair.md.
        """
        from cowengine.engine.check import check_open

        if repair:
            from cowengine.engine.repair import repair_open

            self._require_writable()
            return repair_open(self.engine)
        engine = self.engine
        with engine.lock:
            self._check_state()
            if engine.read_only:
                return check_open(engine.io, engine.fd, engine.name)
            with engine.paused(*engine.path.heads.values()):
                engine.commit()
                return check_open(engine.io, engine.fd, engine.name)

    @staticmethod
    def repair(path: str | os.PathLike[str], *, io: IOTable | None = None) -> Repaired:
        """As `check` with `repair`, of a volume file that nobody has open; also where its free map or its table of
        seals is so damaged that it does not open.

        Raises as `open`; CorruptionError, where nothing was changed, if anything would have to be guessed.
        """
        from cowengine.engine.repair import repair_file

        return repair_file(io or KERNEL, check_path(path))

    def close(self) -> None:
        """Commits what is open and closes; idempotent. Raises PoisonedError if that failed, closed all the same.

        With the live volume its clones are closed; of a clone only its own handle is.
        """
        if self.closed:
            return
        if not self._head.number:
            self.engine.close()
            return
        with self.engine.lock:
            if not self.closed:  # by another thread, and perhaps the clone is open again
                self._bind(self._path, self._head.close())
        if not self.engine.read_only:
            self.engine.flush()
