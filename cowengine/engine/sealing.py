"""Sealing: the checksums of what snapshots froze, made behind their backs.

A snapshot never waits for its seals. Each that is not sealed is walked, oldest first: the blocks born after its nearest
readable ancestor are read in pieces, and their seals entered a batch at a time (SE1, SE2). When the walk is at its end
the snapshot is *sealed*, and the next checkpoint writes that down together with the seals (I41).

Who deletes never waits for a sealer: it finds the snapshot gone, and goes on with the next. What was entered since the
last checkpoint is lost in a crash and made again.

Threads   `seal` runs in its caller's thread; a `Sealer` has one of its own, a daemon that works a tenth of the time and
          ends when there is nothing left. Neither holds the commit lock for longer than a batch, or a checkpoint.
"""

from __future__ import annotations

import atexit
import logging
import struct
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cowengine.core.sealing import enter_seals, make_seals, unsealed_blocks
from cowengine.engine.pace import Pace
from cowengine.errors import CowEngineError, NoSpaceError, NotFoundError
from cowengine.format import LINEAGE_SEALED

if TYPE_CHECKING:
    from cowengine.core.roots import Root
    from cowengine.engine.engine import Engine

logger = logging.getLogger("cowengine.engine")

ROWS = 256
PASSES = 64  # over what is sealed, in one piece
DIRTY_SEALS_MAX = 1024  # nodes, before the sealer itself asks for a checkpoint
QUIET_SECONDS = 1.0  # after a snapshot: its writer comes first
REST = 9  # times as long as the work
REST_SECONDS_MAX = 1.0
_PAIR = struct.Struct("<QQ")

_sealers: weakref.WeakSet[Sealer] = weakref.WeakSet()


@dataclass(slots=True)
class Sealing:
    """How far one came: bytes of blocks sealed, snapshots sealed, and whether it came to the end."""

    sealed_bytes: int = 0
    snapshots: int = 0
    done: bool = False


@dataclass(slots=True)
class Walk:
    """The way over what one snapshot has that no readable ancestor holds: extents of blocks, pruned by birth."""

    number: int
    root: Root
    born_after: int
    end: int
    position: int = 0
    rows: deque[tuple[int, int]] = field(default_factory=deque)

    def next(self, engine: Engine) -> tuple[int, int] | None:
        """The next extent as blocks [first, end), to be told of by `passed`; None at the end."""
        if not self.rows and self.position < self.end:
            raw = engine.path.extents(self.root, self.position, self.end, ROWS, self.born_after)
            self.rows.extend((first, first + count) for first, count in _PAIR.iter_unpack(raw))
            if len(self.rows) < ROWS:
                self.rows.append((self.end, self.end))
        return None if not self.rows or self.rows[0][0] >= self.end else self.rows[0]

    def passed(self, block: int) -> None:
        """All before this block is done."""
        self.position = block
        _, end = self.rows.popleft()
        if block < end:
            self.rows.appendleft((block, end))


def walk_of(engine: Engine, number: int, *, whole: bool = False) -> Walk:
    """The way over what a snapshot has and its nearest readable ancestor has not, or over all. Raises NotFoundError."""
    with engine.lock:
        record = engine.readable_snapshot(number)
        born_after = 0 if whole else engine.lineage.readable_before(number)
        return Walk(number, engine.lineage.root(number), born_after, -(-record.size // engine.path.block_bytes))


def begin(engine: Engine, passed_over: set[int]) -> Walk | None:
    """The way over the oldest snapshot that is not sealed; None if there is none."""
    with engine.lock:
        engine.require_writable()
        number = next((number for number in engine.lineage.unsealed() if number not in passed_over), None)
        return None if number is None else walk_of(engine, number)


def step(engine: Engine, walk: Walk) -> tuple[int, bool]:
    """One piece of a snapshot: bytes read, and whether it was the last. Raises NotFoundError if it was deleted."""
    path = engine.path
    read, made = 0, list[tuple[int, int, int]]()
    for _ in range(PASSES):
        extent = walk.next(engine)
        if extent is None:
            break
        position, read, made = make_seals(path, walk.root, *extent)
        walk.passed(position)
        if read:
            break
    with engine.lock:
        engine.require_writable()
        enter_seals(path, walk.root, made)
        at_end = walk.next(engine) is None
        if at_end:
            _finish(engine, walk)
        if engine.seals.dirty_nodes() > DIRTY_SEALS_MAX:
            engine.checkpoint()
    return read, at_end


def _finish(engine: Engine, walk: Walk) -> None:
    """All that was walked over is sealed. If an ancestor has gone meanwhile that was not, there is more to do."""
    if engine.lineage.readable_before(walk.number) >= walk.born_after:
        engine.lineage.seal(walk.number)


def seal(
    engine: Engine, bytes_a_second: int | None = None, stop: threading.Event | None = None,
    progress: Callable[[Sealing], None] | None = None,
) -> Sealing:  # fmt: skip
    """Seals what is not, until the end or until `stop` is set. Durable when it returns.

    `bytes_a_second` bounds the speed; `progress` is called about once a second. Raises CorruptionError where metadata
    is damaged, StorageError.
    """
    pace, result = Pace(bytes_a_second, stop, progress), Sealing()
    walk = begin(engine, set())
    while walk is not None and not pace.stop.is_set():
        try:
            read, at_end = step(engine, walk)
        except NotFoundError:
            read, at_end = 0, True
        result.sealed_bytes += read
        if at_end:
            result.snapshots += _is_sealed(engine, walk.number)
            walk = begin(engine, set())
        pace.keep(result.sealed_bytes, result)
    result.done = walk is None
    if engine.seals.dirty_nodes() or result.snapshots:
        engine.checkpoint()
    return result


def _is_sealed(engine: Engine, number: int) -> bool:
    with engine.lock:
        record = engine.lineage.get(number)
    return record is not None and bool(record.flags & LINEAGE_SEALED)


def unsealed_bytes(engine: Engine) -> int:
    """Bytes of blocks that snapshots reach and that have no seal: a walk over what is not sealed; exact.

    What branches of a deleted branch point share counts once for each.
    """
    with engine.lock:
        engine.path.check_state()
        numbers = list(engine.lineage.unsealed())
    blocks = 0
    for number in numbers:
        try:
            walk = walk_of(engine, number)
            while extent := walk.next(engine):
                position, found = unsealed_blocks(engine.path, walk.root, *extent)
                walk.passed(position)
                blocks += found
        except NotFoundError:
            continue  # deleted meanwhile
    return blocks * int(engine.path.block_bytes)


# -- in the background -------------------------------------------------------------------------------------------------
class Sealer:
    """Seals in the background, while there is anything to seal. Does not keep its engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = weakref.ref(engine)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._more = False  # snapshots were taken since the thread last looked
        _sealers.add(self)

    def wake(self) -> None:
        """There may be something to seal."""
        with self._lock:
            self._more = True
            if self._thread is None and not self._stop.is_set():
                thread = threading.Thread(target=self._run, name="cowengine-sealer", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    logger.debug("no sealer: %s", error)  # no thread to be had: the next snapshot tries again
                    return
                self._thread = thread

    def look(self, engine: Engine) -> None:
        """After an open: an earlier process may have left something."""
        if max(engine.lineage.sealed_below, 1) < engine.lineage.next_id:
            self.wake()

    def abandon(self) -> None:
        """In the child of a fork: the thread is the parent's."""
        self._lock, self._thread, self._stop = threading.Lock(), None, threading.Event()
        self._stop.set()

    def stop(self) -> None:
        """Ends the work, and waits for the piece under way. The commit lock must not be held."""
        with self._lock:
            self._stop.set()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException:
            with self._lock:
                self._thread = None  # the next snapshot begins anew
            raise

    def _work(self) -> None:
        rest = QUIET_SECONDS
        work = _Work()
        while not self._stop.wait(rest):
            with self._lock:
                self._more = False
            engine = self._engine()
            began = time.monotonic()
            more = engine is not None and work.piece(engine)
            del engine
            rest = min(REST * (time.monotonic() - began), REST_SECONDS_MAX)
            with self._lock:
                if not more and not self._more:
                    self._thread = None
                    return
                if not more:
                    rest = QUIET_SECONDS


class _Work:
    """Where a sealer is."""

    def __init__(self) -> None:
        self._walk: Walk | None = None
        self._passed_over: set[int] = set()  # what could not be read; to verify it says why

    def piece(self, engine: Engine) -> bool:
        """Does one piece; whether there may be more to do."""
        try:
            self._walk = self._walk or begin(engine, self._passed_over)
            if self._walk is None:
                return False
            _, at_end = step(engine, self._walk)
            if at_end:
                self._walk = None
            return True
        except NotFoundError:
            self._walk = None
            return True
        except NoSpaceError as error:
            logger.debug("%s: sealing waits for space: %s", engine.name, error)
            return False
        except CowEngineError as error:
            if engine.closed or engine.failure is not None or self._walk is None:
                return False
            logger.warning("%s: snapshot %d cannot be sealed: %s", engine.name, self._walk.number, error)
            self._passed_over.add(self._walk.number)
            self._walk = None
            return True


def _stop_all() -> None:
    """At the end of the interpreter: a daemon must not be in the middle of anything."""
    for sealer in list(_sealers):
        sealer.stop()


atexit.register(_stop_all)
