"""Which slots are given out next, and when freed ones come back.

A run of free slots is picked at a time (the *runway*), so the data path places redirected blocks one after the other.
Below the end of the used part of the file free slots are reused where they are a good part of their span; else the file
grows. No decision looks at more than a few spans, however large the file is.
Home slots are never given out here.

Freed slots come back when no read can need them any more (they wait two eras) and, if wanted, after they were punched.

Threads   `runway` may be called by any writer; the rest under the engine's commit lock.
"""

from __future__ import annotations

import errno
import logging
import struct
import threading
from collections import deque
from collections.abc import Iterable

from cowengine.core import slotmap
from cowengine.core.datapath import DataPath
from cowengine.errors import CorruptionError, NoSpaceError, StorageError
from cowengine.format import SLOT_BYTES, Region

logger = logging.getLogger("cowengine.engine")

RUNWAY_SLOTS = 256  # 1 MiB
SPAN_SLOTS = 32768  # what one leaf of the free map spans
SPANS_A_PICK = 4
REUSE_SHARE = 4  # reuse a span's free slots when they are more than one in so many
PUNCH_SLOTS_MIN = 16  # smaller runs are punched only where a snapshot was deleted, or together with their neighbours
PREWRITE_SLOTS = 256
REFUSED_MAX = 64  # runs without space that are tried before a full file system is believed
RUNWAY_SLOTS_MAX = 4096  # where many blocks are placed between two commits
FREQUENT_BLOCKS = 64  # placed since the last commit but one: fewer, and a runway is written with zeros first
PAIR = struct.Struct("<QQ")

Run = tuple[int, int]


def runs_of(packed: bytes) -> list[Run]:
    """The (slot, count) pairs of a record's array."""
    return list(PAIR.iter_unpack(packed))


def packed(runs: Iterable[Run]) -> bytes:
    """Runs as a record's array."""
    return b"".join(PAIR.pack(*run) for run in runs)


class Allocator:
    """Free slots outside the home regions."""

    def __init__(self, path: DataPath, regions: Iterable[Region], file_slots: int, reserve_slots: int) -> None:
        self._path = path
        self.block_slots = path.block_bytes // SLOT_BYTES
        self._lock = threading.Lock()
        self._gaps: list[Run] = []  # [start, end) between home regions; the last part, behind them, has no end
        self._first = min(region.slot for region in regions)  # before it lie superblocks and log, which are never free
        self._tail_start = self._first
        self.limit = file_slots  # slots from here on were never given out
        for region in sorted(regions, key=lambda region: region.slot):
            self.keep_off(region)
        self._cursor = 0
        self._placed_at_commits = (0, 0)  # the last two
        self._tight = False  # the file system has been full
        self._scraps: list[Run] = []  # busy, in front of runways
        self._reserve: list[Run] = []  # busy, written with zeros: for the nodes of a checkpoint on a full file system
        self._reserve_slots = reserve_slots
        self._unpunched: list[bytes] = []  # runs, packed: free, and still take space
        self.waiting: deque[tuple[int, bytes, int]] = deque()  # (era, runs, packed; punch from this many slots on)

    # -- giving out ---------------------------------------------------------------------------------------------------
    def _pick(self, wanted: int, multiple: int) -> Run:
        """A run of 1 to `wanted` slots, marked busy. The caller holds the lock."""
        slots = self._path.slots
        found = self._reusable(wanted, multiple)
        if found is not None:
            return self._taken(found)
        wanted = max(wanted - wanted % multiple, multiple)
        if wanted >= RUNWAY_SLOTS and self.limit % RUNWAY_SLOTS:
            # Runways begin at a multiple of their size, for large folios in the page cache; nodes take what is left
            # before.
            scrap = (self.limit, RUNWAY_SLOTS - self.limit % RUNWAY_SLOTS)
            self.limit += scrap[1]  # first: Ctrl-C between the two may lose slots, not give them out twice
            self._scraps.append(self._taken(scrap))
        run = (self.limit, wanted)
        if slots.count_busy(self.limit, self.limit + wanted):
            raise CorruptionError("slots behind the end of the file are in use: it was cut short")
        self.limit += wanted
        return self._taken(run)

    def _reusable(self, wanted: int, multiple: int) -> Run | None:
        """Free slots from the cursor on, where a good part of a span is free. Looks at a few spans: each is a node."""
        slots = self._path.slots
        for _ in range(SPANS_A_PICK):
            start, stop = self._piece()
            free = stop - start - slots.count_busy(start, stop)
            if (self._tight and free) or free > max(4 * RUNWAY_SLOTS, (stop - start) // REUSE_SHARE):
                found = slots.find_free(self._cursor, stop, wanted, multiple)
                if found is not None:
                    self._cursor = found[0] + found[1]
                    return found
            self._cursor = stop
        return None

    def _piece(self) -> Run:
        """The part of a span that may be given out, from the cursor on: it goes there."""
        if self._cursor >= self.limit:
            self._cursor = 0
        start, end = next(part for part in self._parts() if self._cursor < part[1])
        self._cursor = max(self._cursor, start)
        span = self._cursor - self._cursor % SPAN_SLOTS
        return max(start, span), min(end, span + SPAN_SLOTS)

    def _parts(self) -> list[Run]:
        """[start, end) of all that may be given out without making the file longer."""
        return [*self._gaps, (self._tail_start, self.limit)]

    def tighten(self) -> bool:
        """The file system is full: every free slot gives its space back now, and the moment it is freed from now on,
        and is reused before the file grows. Returns False if that was so before.
        """
        with self._lock:
            before, self._tight = self._tight, True
        if not before:
            self._punch_free()
        return not before

    @property
    def is_tight(self) -> bool:
        """Whether the file system has been full."""
        return self._tight

    def _taken(self, run: Run) -> Run:
        self._path.slots.mark_busy(*run)
        return run

    def runway(self, slots: int) -> None:
        """Gives the data path at least `slots` slots to place blocks in, or as many runs as it has room for."""
        with self._lock:
            missing = max(slots, RUNWAY_SLOTS) - self._path.runway_slots()
            placed = self._path.blocks_placed - self._placed_at_commits[0]
            # The more is placed between commits, the more at once: a writer who has to come here is late.
            wanted = min(placed * self.block_slots, RUNWAY_SLOTS_MAX) // RUNWAY_SLOTS * RUNWAY_SLOTS
            while missing > 0:
                run = self._pick(max(wanted, RUNWAY_SLOTS, self.block_slots), self.block_slots)
                if placed < FREQUENT_BLOCKS:
                    # A barrier over space that was written before costs half of one that has to allocate it.
                    self._zeroed(run)
                missing -= run[1]
                left = self._path.add_runway([run])
                if left:
                    self._return(left)
                    return

    def take_block(self, data: bytes) -> Run:
        """Slots for one block, written with `data`. Raises NoSpaceError and StorageError; then nothing was taken."""
        with self._lock:
            run = self._pick(self.block_slots, self.block_slots)
            if not self._written(run, data):
                self._return([run])
                raise NoSpaceError("no space left on the file system; nothing acknowledged was lost")
            return run

    # -- homes --------------------------------------------------------------------------------------------------------
    def take_homes(self, blocks: int) -> int:
        """Slots behind all others for so many blocks to be at home in: the first of them.

        The file reaches to their end. Raises OSError, and nothing was taken.
        """
        with self._lock:
            slot = -(-self.limit // RUNWAY_SLOTS) * RUNWAY_SLOTS
            self._path.io.truncate(self._path.fd, (slot + blocks * self.block_slots) * SLOT_BYTES)
            self._pass_over(slot, blocks)
            self._path.slots.reach(self._tail_start)
        return slot

    def keep_off(self, region: Region) -> None:
        """Nothing is given out in this region, which lies behind all others."""
        with self._lock:
            if region.slot >= self._tail_start:  # else `take_homes` has seen to it
                self._pass_over(region.slot, region.block_count)

    def _pass_over(self, slot: int, blocks: int) -> None:
        if slot > self._tail_start:
            self._gaps.append((self._tail_start, slot))
        self._tail_start = slot + blocks * self.block_slots
        self.limit = max(self.limit, self._tail_start)

    def committed(self) -> None:
        """A record was acknowledged."""
        self._placed_at_commits = (self._placed_at_commits[1], self._path.blocks_placed)

    # -- for nodes ----------------------------------------------------------------------------------------------------
    def take(self, count: int, *, dispensable: bool = False) -> list[Run]:
        """Slots for `count` nodes, written with zeros so that writing them later needs no space.

        When the file system is full they come from the reserve, then from free slots that still have their space (P8);
        none do for nodes that are `dispensable`. Raises NoSpaceError; then nothing was taken.
        """
        taken: list[Run] = []
        refused: list[Run] = []
        with self._lock:
            try:
                while count > 0:
                    enough = bool(refused) and dispensable
                    run = None if enough else self._pick_for_nodes(count, full=bool(refused))
                    if run is None or len(refused) > REFUSED_MAX:
                        raise NoSpaceError("no space left on the file system; nothing acknowledged was lost")
                    if self._zeroed(run):
                        taken.append(run)
                        count -= run[1]
                    else:
                        refused.append(run)
            except BaseException:
                self._keep(taken)
                raise
            finally:
                self._return(refused)
        return taken

    def _pick_for_nodes(self, wanted: int, *, full: bool) -> Run | None:
        if not full:
            return _cut(self._scraps, wanted) or self._pick(min(wanted, PREWRITE_SLOTS), 1)
        kept = _cut(self._reserve, wanted)
        if kept is not None:
            return kept
        found = (self._path.slots.find_free(*part, 1) for part in self._parts())
        run = next((run for run in found if run is not None), None)
        return None if run is None else self._taken(run)

    def _zeroed(self, run: Run) -> bool:
        return self._written(run, bytes(run[1] * SLOT_BYTES))

    def _written(self, run: Run, data: bytes) -> bool:
        """Writes a run of new slots; False, and no space used, if the file system is full."""
        try:
            self._path.io.pwrite(self._path.fd, data, run[0] * SLOT_BYTES)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                self._punch(*run)
                return False
            self._return([run])
            number = error.errno or errno.EIO
            raise StorageError(f"a write of new space failed: {error.strerror}", number=number) from error
        return True

    def recycle(self, runs: list[Run]) -> None:
        """Slots of nodes that no checkpoint needs any more; the reserve keeps as many as it lacks."""
        with self._lock:
            self._keep(runs)

    def _keep(self, runs: list[Run]) -> None:
        missing = self._reserve_slots - sum(count for _, count in self._reserve)
        for slot, count in runs:
            part = max(0, min(count, missing))
            missing -= part
            if part:
                self._reserve.append((slot, part))
            if part < count:
                self._return([(slot + part, count - part)])

    def fill_reserve(self) -> None:
        """After an open: the reserve takes free slots at the end of the file, and only then new ones."""
        with self._lock:
            missing = self._reserve_slots
            while missing > 0:
                run = self._path.slots.find_free(max(self._tail_start, self.limit - SPAN_SLOTS), self.limit, missing)
                if run is None:
                    run = (self.limit, missing)
                    self.limit += missing
                self._taken(run)
                if not self._zeroed(run):
                    self._return([run])
                    return  # full already: what deletes give back will do
                self._keep([run])
                missing -= run[1]

    def give_back(self, runs: list[Run]) -> None:
        """Returns slots that nothing was written to that counts."""
        with self._lock:
            self._return(runs)

    def _return(self, runs: list[Run]) -> None:
        self._path.slots.release(runs)

    # -- coming back --------------------------------------------------------------------------------------------------
    def retire(self, runs: bytes, *, punch_all: bool) -> None:
        """Slots freed by a commit that was acknowledged (I7), packed: they come back when no read can need them.

        With `punch_all` they come back first, and `take_unpunched` tells who punches them then.
        """
        if runs:
            punch_from = 1 if punch_all else PUNCH_SLOTS_MIN
            self.waiting.append((self._path.turn_era(), slotmap.merged(runs), punch_from))
        self.settle(punch_later=punch_all)

    def settle(self, *, punch_later: bool = False) -> None:
        """Gives back what has waited long enough (I5), punched, or to be punched later."""
        if not self.waiting:
            return
        era = max(self._path.turn_era(), self._path.turn_era())
        while self.waiting and self.waiting[0][0] + 2 <= era:
            _, retired, punch_from = self.waiting.popleft()
            if punch_later:
                self._path.slots.release_packed(retired)
                self._unpunched.append(retired)
                continue
            runs = runs_of(retired)
            punch_from = 1 if self._tight else punch_from
            for slot, count in runs:
                if count >= punch_from:
                    self._punch(slot, count)
            self.give_back(runs)
            if punch_from > 1:
                self._punch_windows(runs)

    def _punch_windows(self, runs: list[Run]) -> None:
        """What was freed bit by bit gives its space back when the last bit of an aligned 64 KiB is free.

        The windows are busy meanwhile, for else somebody might write what is punched.
        """
        with self._lock:
            taken = self._path.slots.take_windows(runs, self._first)
            for run in merged(taken):
                self._punch(*run)
            self._return(taken)

    def take_unpunched(self, least: int = 1) -> bytes:
        """What came back and still takes space, packed, if that are at least so many runs: for `punch_free`."""
        if sum(map(len, self._unpunched)) < least * PAIR.size:
            return b""
        runs, self._unpunched = slotmap.merged(b"".join(self._unpunched)), []
        return runs

    def _punch_free(self) -> None:
        """Every free slot gives its space back."""
        self.punch_free(self._first, self.limit - self._first)

    def punch_free(self, slot: int, count: int) -> None:
        """What is free of these slots gives its space back, as in `_punch_windows`; a call for each run of them."""
        end = slot + count
        while slot < end:
            with self._lock:  # a run at a time, as writers wait for it
                run = self._path.slots.find_free(slot, end, SPAN_SLOTS, take=True)
                if run is None:
                    return
                self._punch(*run)
                self._return([run])
                slot = sum(run)

    def _punch(self, slot: int, count: int) -> None:
        try:
            self._path.io.punch(self._path.fd, slot * SLOT_BYTES, count * SLOT_BYTES)
        except OSError as error:
            # The slots are free in the map whatever the file system does with them.
            logger.debug("punching %d slots failed: %s", count, error)


def merged(runs: list[Run]) -> list[Run]:
    """The same slots in as few runs as possible, ascending."""
    result: list[Run] = []
    for slot, count in sorted(runs):
        if result and result[-1][0] + result[-1][1] == slot:
            result[-1] = (result[-1][0], result[-1][1] + count)
        else:
            result.append((slot, count))
    return result


def _cut(runs: list[Run], wanted: int) -> Run | None:
    """Takes up to `wanted` slots off the last of some runs."""
    if not runs:
        return None
    slot, count = runs.pop()
    if count > wanted:
        runs.append((slot + wanted, count - wanted))
    return slot, min(count, wanted)
