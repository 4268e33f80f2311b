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
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cowengine.core.sealing import enter_seals, make_seals, unsealed_blocks
from cowengine.engine import memory
from cowengine.engine.pace import Pace
from cowengine.errors import CorruptionError, CowEngineError, FormatError, NoSpaceError, NotFoundError, StorageError
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
TOLD_MAX = 10  # snapshots that one error names
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
    """The way over what one snapshot has that no readable ancestor holds: extents of blocks, pruned by birth.

    What the snapshots `beside` it have, each with its number of blocks, in the same place is passed over.
    """

    number: int
    name: str
    root: Root
    born_after: int
    end: int
    beside: list[tuple[Root, int]] = field(default_factory=list)
    position: int = 0
    rows: deque[tuple[int, int]] = field(default_factory=deque)

    def next(self, engine: Engine) -> tuple[int, int] | None:
        """The next extent as blocks [first, end), to be told of by `passed`; None at the end."""
        while True:
            if not self.rows and self.position < self.end:
                raw = engine.path.extents(self.root, self.position, self.end, ROWS, self.born_after)
                self.rows.extend((first, first + count) for first, count in _PAIR.iter_unpack(raw))
                if len(self.rows) < ROWS:
                    self.rows.append((self.end, self.end))
            if not self.rows or self.rows[0][0] >= self.end:
                return None
            if not self.beside:
                return self.rows[0]
            is_beside, first, end = self._look_beside(engine, *self.rows[0])
            if not is_beside:
                return first, end
            self.passed(end)

    def passed(self, block: int) -> None:
        """All before this block is done."""
        self.position = block
        _, end = self.rows.popleft()
        if block < end:
            self.rows.appendleft((block, end))

    def _look_beside(self, engine: Engine, first: int, end: int) -> tuple[bool, int, int]:
        """Whether the first blocks of an extent lie where another snapshot has them, too, or nowhere; and which."""
        if engine.path.map.node_count > engine.path.node_limit:
            memory.trim(engine)
        slot, count = engine.path.place(first, self.root)
        count = min(count, end - first)
        for other in list(self.beside):
            root, blocks = other
            if first >= blocks or not slot:
                continue
            try:
                there, same = engine.path.place(first, root)
            except NotFoundError:
                self.beside.remove(other)  # deleted meanwhile
                continue
            count = min(count, same, blocks - first)
            if there == slot:
                return True, first, first + count
        return not slot, first, first + count


def walk_of(engine: Engine, number: int, beside: Iterable[int] = ()) -> Walk:
    """The way over what a snapshot has and its nearest readable ancestor has not. Raises NotFoundError."""
    with engine.lock:
        walk = _walk(engine, number)
        walk.born_after = engine.lineage.readable_before(number)
        for other in beside:
            with suppress(NotFoundError):
                there = _walk(engine, other)
                walk.beside.append((there.root, there.end))
        return walk


def whole_walk_of(engine: Engine, number: int, start: int) -> Walk:
    """The way over all that a snapshot has, from a block on. Raises NotFoundError."""
    with engine.lock:
        walk = _walk(engine, number)
    walk.position = start
    walk.rows.append((start, walk.end))
    return walk


def _walk(engine: Engine, number: int) -> Walk:
    record = engine.readable_snapshot(number)
    blocks = -(-record.size // engine.path.block_bytes)
    return Walk(number, record.name, engine.lineage.root(number), 0, blocks)


def disjoint_walks(engine: Engine, numbers: Iterable[int]) -> Iterator[Walk]:
    """The ways over some snapshots, one after the other, each block on one of them.

    Branches of a branch point that is deleted, or an anchor, have blocks in common that no readable snapshot below them
    holds: those are on the way over the first of them. Keeps one number for each snapshot that stands on such a point;
    each branch is compared with those before it, at the cost of one look-up for each piece of its map.
    """
    walked: dict[int, list[int]] = {}
    for number in numbers:
        try:
            with engine.lock:
                points = engine.lineage.hidden_before(number)
                before = {other: None for point in points for other in reversed(walked.get(point, ()))}
                walk = walk_of(engine, number, before)
        except NotFoundError:
            continue  # an anchor, or deleted meanwhile
        yield walk
        for point in points:
            walked.setdefault(point, []).append(number)


def oldest_unsealed(engine: Engine, passed_over: set[int]) -> int | None:
    """The oldest snapshot that is not sealed and not passed over."""
    with engine.lock:
        engine.require_writable()
        return next((number for number in engine.lineage.unsealed() if number not in passed_over), None)


def step(engine: Engine, walk: Walk) -> tuple[int, bool]:
    """One piece of a snapshot: bytes read, and whether it was the last. Raises NotFoundError if it was deleted."""
    path = engine.path
    read, made = 0, list[tuple[int, int, int, int]]()
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
        bound_dirty(engine)
    return read, at_end


def bound_dirty(engine: Engine) -> None:
    """Behind entered seals: a checkpoint, if too many nodes wait for one. The commit lock is held."""
    if engine.seals.dirty_nodes() > DIRTY_SEALS_MAX:
        engine.checkpoint()


def _finish(engine: Engine, walk: Walk) -> None:
    """All that was walked over is sealed. If an ancestor has gone meanwhile that was not, there is more to do."""
    if engine.lineage.readable_before(walk.number) >= walk.born_after:
        engine.lineage.seal(walk.number)
        engine.unsealable.discard(walk.number)


class Work:
    """Where one who seals is, and what could not be read on the way: that is passed over, the rest still sealed."""

    def __init__(self, passed_over: set[int]) -> None:
        self._walk: Walk | None = None
        self._passed_over = passed_over
        self.snapshots = 0
        self.damage: dict[int, CowEngineError] = {}

    def piece(self, engine: Engine) -> int | None:
        """Does one piece, and returns how many bytes it read; None if there is nothing to do.

        Raises NoSpaceError and what else is not about one snapshot.
        """
        number = self._walk.number if self._walk is not None else oldest_unsealed(engine, self._passed_over)
        if number is None:
            return None
        read, at_end = 0, True
        try:
            self._walk = self._walk or walk_of(engine, number)
            read, at_end = step(engine, self._walk)
            self.snapshots += at_end and _is_sealed(engine, number)
        except NotFoundError:
            pass  # deleted meanwhile
        except (CorruptionError, FormatError, StorageError) as error:
            if engine.closed or engine.failure is not None:
                raise
            _tell(engine, number, f"snapshot {number} cannot be sealed", error)
            self._passed_over.add(number)
            self.damage[number] = error.with_traceback(None)  # that would keep the engine
        if at_end:
            self._walk = None
        return read

    def is_done(self, engine: Engine) -> bool:
        """Whether all is sealed but what is passed over."""
        return self._walk is None and oldest_unsealed(engine, self._passed_over) is None


def _tell(engine: Engine, number: int, what: str, error: CowEngineError) -> None:
    """Logs, once for each snapshot (0: all of them), what keeps it from being sealed."""
    if number not in engine.unsealable:
        engine.unsealable.add(number)
        logger.warning("%s: %s: %s", engine.name, what, error)


def seal(
    engine: Engine, bytes_a_second: int | None = None, stop: threading.Event | None = None,
    progress: Callable[[Sealing], None] | None = None,
) -> Sealing:  # fmt: skip
    """Seals what is not, until the end or until `stop` is set. Durable when it returns.

    `bytes_a_second` bounds the speed; `progress` is called about once a second. A snapshot that cannot be read is
    passed over; when all others are sealed, durably, that is raised: CorruptionError or StorageError.
    """
    pace, result, work = Pace(bytes_a_second, stop, progress), Sealing(), Work(set())
    while not pace.stop.is_set() and (read := work.piece(engine)) is not None:
        result.sealed_bytes += read
        result.snapshots = work.snapshots
        pace.keep(result.sealed_bytes, result)
    result.done = work.is_done(engine)
    if engine.seals.dirty_nodes() or result.snapshots:
        engine.checkpoint()
    if work.damage:
        raise _all_damage(engine, work.damage) from next(iter(work.damage.values()))
    return result


def _all_damage(engine: Engine, damage: dict[int, CowEngineError]) -> CowEngineError:
    """One error that names all snapshots that could not be read: CorruptionError, unless the disk's own were all."""
    told = [f"{_name(engine, number)}: {error}" for number, error in list(damage.items())[:TOLD_MAX]]
    more = f" and {len(damage) - TOLD_MAX} more" if len(damage) > TOLD_MAX else ""
    message = f"cannot be sealed, as they cannot be read: snapshots {'; '.join(told)}{more}"
    if all(isinstance(error, StorageError) for error in damage.values()):
        return StorageError(message, engine.name)
    return CorruptionError(message, engine.name, volume=engine.name)


def _name(engine: Engine, number: int) -> str:
    """The name of a snapshot; its id if not even that can be read."""
    with suppress(CowEngineError), engine.lock:
        record = engine.lineage.get(number)
        if record is not None:
            return repr(record.name)
    return f"id {number}"


def _is_sealed(engine: Engine, number: int) -> bool:
    with engine.lock:
        record = engine.lineage.get(number)
    return record is not None and bool(record.flags & LINEAGE_SEALED)


def unsealable_count(engine: Engine) -> int:
    """Of how many unsealed snapshots it is known that they cannot be sealed: they could not be read. Lock held."""
    return 0 if engine.closed else sum(number in engine.lineage.unsealed() for number in list(engine.unsealable))


def unsealed_bytes(engine: Engine) -> int:
    """Bytes of blocks that snapshots reach and that have no seal: a walk over what is not sealed; exact."""
    with engine.lock:
        engine.path.check_state()
        numbers = list(engine.lineage.unsealed())
    blocks = 0
    for walk in disjoint_walks(engine, numbers):
        with suppress(NotFoundError):  # deleted meanwhile
            while extent := walk.next(engine):
                position, found = unsealed_blocks(engine.path, walk.root, *extent)
                walk.passed(position)
                blocks += found
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
        if self._more and self._thread is not None:
            return  # it has not looked since somebody said so, and does
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
        engine = self._engine()
        work = Work(set() if engine is None else engine.unsealable)
        del engine
        while not self._stop.wait(rest):
            with self._lock:
                self._more = False
            engine = self._engine()
            began = time.monotonic()
            more = engine is not None and _piece(engine, work)
            del engine
            rest = min(REST * (time.monotonic() - began), REST_SECONDS_MAX)
            with self._lock:
                if not more and not self._more:
                    self._thread = None
                    return
                if not more:
                    rest = QUIET_SECONDS


def _piece(engine: Engine, work: Work) -> bool:
    """Does one piece; whether there may be more to do."""
    try:
        return work.piece(engine) is not None
    except NoSpaceError as error:
        logger.debug("%s: sealing waits for space: %s", engine.name, error)
    except CowEngineError as error:
        if not engine.closed and engine.failure is None:
            _tell(engine, 0, "what is to be sealed cannot be found", error)
    return False


def _stop_all() -> None:
    """At the end of the interpreter: a daemon must not be in the middle of anything."""
    for sealer in list(_sealers):
        sealer.stop()


atexit.register(_stop_all)
