"""A volume that another process owns: its snapshots, as they are committed.

Listing looks at the file again, so snapshots taken later appear and deleted ones vanish. A snapshot that was asked for
by name, or that was read, is pinned: its owner cannot delete it while the object lives (BusyError there).

Threads   Any thread may call anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from cowengine.engine.reader import Look, require_same
from cowengine.engine.verifying import Verifying
from cowengine.errors import BusyError, CorruptionError
from cowengine.ranges import check_rate
from cowengine.snapshot import Snapshot
from cowengine.volume import Volume

if TYPE_CHECKING:
    import io
    import threading
    from collections.abc import Buffer  # type: ignore[attr-defined]

    from cowengine.engine.engine import Engine
    from cowengine.engine.report import Report
    from cowengine.engine.usage import SnapshotSpace
    from cowengine.extents import ExtentArray

T = TypeVar("T")


class SnapshotReader(Volume):
    """What `Volume.open(read_only=True)` gives of a volume that has an owner. The live volume cannot be read here.

    `size` and `epoch` are as of the last call of `snapshots` or `get_snapshot`.
    """

    def __init__(self, look: Look, *, background: bool = True, cache_size: int | None = None) -> None:
        super().__init__(look, background=background, cache_size=cache_size)
        self._reader = look.reader
        if cache_size is not None:
            self._reader.cache_bytes = cache_size

    def _newest(self, work: Callable[[], T]) -> T:
        """`work` with the newest committed state behind this volume."""

        def of(look: Look) -> T:
            self.engine = look
            self._bind(look.path, look.path.live)
            return work()

        with self._reader.lock:
            return self._reader.restarting(of)

    def snapshots(self, start: int = 0, max_results: int | None = None) -> list[Snapshot]:
        """The snapshots committed by now, oldest first; see `Volume.snapshots`. None is pinned by this."""
        found = self._newest(lambda: Volume.snapshots(self, start, max_results))
        return [PinnedSnapshot(snapshot) for snapshot in found]

    def get_snapshot(self, name_or_id: str | int) -> Snapshot:
        """A snapshot by its name or id, pinned: it cannot be deleted while the returned object lives.

        Raises NotFoundError, BusyError if its owner is about to delete it.
        """
        snapshot = PinnedSnapshot(self._newest(lambda: Volume.get_snapshot(self, name_or_id)))
        snapshot.pin()
        return snapshot

    def verify(
        self, progress: Callable[[Report], None] | None = None, *, rate: int | None = None,
        stop: threading.Event | None = None,
    ) -> Report:  # fmt: skip
        """Not possible: nothing keeps all snapshots in place. Raises BusyError; verify them one by one."""
        self._path.check_state()
        raise BusyError("the volume belongs to another process; verify its snapshots one by one", self.path)

    def stats(self) -> dict[str, Any]:
        """See `Volume.stats`; as of the last look at the file."""
        return self._newest(lambda: Volume.stats(self))

    def unsealed_bytes(self) -> int:
        """See `Volume.unsealed_bytes`; as of the last look at the file."""
        return self._newest(lambda: Volume.unsealed_bytes(self))

    def heads(self) -> list[str]:
        """The names of the heads as committed by now; see `Volume.heads`."""
        return self._newest(lambda: Volume.heads(self))

    def open_head(self, name: str) -> Volume:
        """Not possible: heads are their owner's. Raises BusyError."""
        self._path.check_state()
        raise BusyError("the volume belongs to another process: only its snapshots can be read here", self.path)

    def export(self, raw_path: str | os.PathLike[str], *, salvage: bool = False, doubtful: bool = False) -> Report:
        """Not possible: the live volume is its owner's. Raises BusyError."""
        self._path.check_state()
        raise BusyError("the volume belongs to another process: only its snapshots can be read here", self.path)

    def check(self, repair: bool = False) -> Report:
        """Not possible: the file does not stand still. Raises BusyError."""
        self._path.check_state()
        raise BusyError("the volume belongs to another process; check it there", self.path)


class PinnedSnapshot(Snapshot):
    """A snapshot of a volume that another process owns; pinned from the first read, or by `pin`, to the end."""

    _is_pinned = False

    def __init__(self, seen: Snapshot) -> None:
        look = seen._engine
        assert isinstance(look, Look)
        self._found = seen._record()
        super().__init__(look, self._found)
        self._reader = look.reader
        self._seen = seen

    def __del__(self) -> None:
        if self._is_pinned:
            self._reader.unpin(self._id)

    def pin(self) -> None:
        """Keeps the owner from giving its data back; an anchor has none.

        Raises NotFoundError if the owner was faster, BusyError if it is at it.
        """
        with self._reader.lock:
            if not self._is_pinned and not self.is_anchor:
                self._reader.pin(self._found)
                self._is_pinned = True

    def _read(self, work: Callable[[Snapshot], T]) -> T:
        if not self._is_pinned:
            self.pin()
        return self._restarting(work, self._seen._engine)

    def _restarting(self, work: Callable[[Snapshot], T], look: Engine | None = None) -> T:
        """`work` on the snapshot as a look saw it (default: the newest), or a newer one if need be."""

        def of(look: Look) -> T:
            seen = self._seen
            if seen._engine is not look:
                self._seen = seen = Snapshot(look, require_same(look, self._found))
            return work(seen)

        assert look is None or isinstance(look, Look)
        return self._reader.restarting(of, look)

    @property
    def metadata(self) -> dict[str, Any]:
        """See `Snapshot.metadata`."""
        return self._restarting(lambda seen: seen.metadata, self._seen._engine)

    @property
    def hold_reason(self) -> str | None:
        """See `Snapshot.hold_reason`."""
        return self._restarting(lambda seen: seen.hold_reason)

    def _retain_until_ns(self) -> int:
        return self._restarting(lambda seen: seen._retain_until_ns())

    def space(self) -> SnapshotSpace:
        """See `Snapshot.space`."""
        return self._restarting(lambda seen: seen.space())

    def flatten(self, raw_path: str | os.PathLike[str]) -> None:
        """See `Snapshot.flatten`."""
        self._read(lambda seen: seen.flatten(raw_path))

    def export(self, raw_path: str | os.PathLike[str], *, salvage: bool = False, doubtful: bool = False) -> Report:
        """See `Snapshot.export`. To salvage is its owner's: the file does not stand still. Raises BusyError then."""
        if salvage:
            raise BusyError("the volume belongs to another process; salvage there", self.volume_path)
        return self._read(lambda seen: seen.export(raw_path))

    def pread(self, length: int, offset: int) -> bytes:
        """See `Snapshot.pread`."""
        return self._read(lambda seen: seen.pread(length, offset))

    def pread_into(self, buffer: Buffer, offset: int) -> int:
        """See `Snapshot.pread_into`."""
        return self._read(lambda seen: seen.pread_into(buffer, offset))

    def pread_many(self, buffer: Buffer, extents: ExtentArray | Sequence[tuple[int, int]]) -> int:
        """See `Snapshot.pread_many`."""
        return self._read(lambda seen: seen.pread_many(buffer, extents))

    def verify(
        self, progress: Callable[[Report], None] | None = None, *, rate: int | None = None,
        stop: threading.Event | None = None,
    ) -> Report:  # fmt: skip
        """See `Snapshot.verify`. What the owner sealed since it last wrote its checkpoint is not known here."""
        verifying = Verifying(check_rate(rate), stop, progress)

        def go_on(seen: Snapshot) -> bool:
            """To the end, or as far as this look leads: then a newer one goes on there, however busy the owner is."""
            start = verifying.position
            try:
                seen._verify_on(verifying)
            except CorruptionError:
                if verifying.position == start:
                    raise
                return False
            return True

        while not self._read(go_on):
            pass
        return verifying.report

    def open(self) -> io.RawIOBase:
        """See `Snapshot.open`."""
        self.pin()
        return super().open()

    def allocated_extents(
        self, start: int = 0, length: int | None = None, max_results: int | None = None
    ) -> ExtentArray:  # fmt: skip
        """See `Snapshot.allocated_extents`."""
        return self._read(lambda seen: seen.allocated_extents(start, length, max_results))

    def changed_extents(
        self, base: Snapshot | int | str, start: int = 0, length: int | None = None, max_results: int | None = None
    ) -> ExtentArray:
        """See `Snapshot.changed_extents`. The base may be newer than this object."""
        self.pin()
        return self._restarting(lambda seen: seen.changed_extents(base, start, length, max_results))
