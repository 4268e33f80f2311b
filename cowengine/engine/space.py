"""What happens when space runs out: who is asked for room, what is given up, and what is told.

A write that finds the file system full fails, unless somebody makes room: first the embedder's callback, then, if the
volume's policy says so, its oldest unheld snapshots. The policy and the list of what was given up are durable
(docs/format.md section 3); callbacks and the forecast belong to the open volume.

Callbacks run in the thread that needs the space, with no lock of the engine held, so they may use the volume.

Threads   Any. `policy` and `losses` change under the commit lock; `_one` lets one thread give up at a time, so that two
          writers who find the disk full together cost one snapshot, not two.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from cowengine.engine.forecast import Forecast, full_in_seconds
from cowengine.engine.holds import why_kept
from cowengine.errors import NoSpaceError
from cowengine.format import (
    LINEAGE_ANCHOR,
    WHEN_FULL_GIVE_UP,
    GiveUpEvent,
    LineageRecord,
    Loss,
    PolicyEvent,
    Superblock,
    newest_losses,
)

if TYPE_CHECKING:
    from cowengine.engine.engine import Engine

logger = logging.getLogger("cowengine.engine")

T = TypeVar("T")
WHEN_FULL = ("fail", "give-up")  # by the numbers of the format
PAGE = 64  # snapshots looked at together


class Policy(NamedTuple):
    """A volume's policy; see `Volume.policy`."""

    when_full: str = "fail"
    """Or "give-up"."""
    keep_newest: int = 1
    snapshot_bytes_max: int = 0
    """0: no limit."""

    @classmethod
    def of(cls, source: PolicyEvent | Superblock) -> Policy:
        """The policy that an event or a superblock says."""
        return cls(WHEN_FULL[source.when_full], max(1, source.keep_newest), source.snapshot_bytes_max)

    @property
    def gives_up(self) -> bool:
        """Whether snapshots may be given up."""
        return WHEN_FULL.index(self.when_full) == WHEN_FULL_GIVE_UP


class SpaceNeeded(NamedTuple):
    """What a callback is told when a call found the file system full."""

    needed_bytes: int
    """What the call has to write, at most."""
    free_bytes: int
    """What the file system has left for this user."""
    deadline: float
    """`time.monotonic()` until which to be back; then the call fails."""


class SpaceLow(NamedTuple):
    """What a callback is told when free space falls below its share."""

    free_bytes: int
    total_bytes: int
    """Of the file system."""


class Space:
    """The space of one open volume."""

    def __init__(self, engine: Engine, superblock: Superblock) -> None:
        self._engine = engine
        self.policy = Policy.of(superblock)
        self.losses = superblock.given_up
        self.losses_count = superblock.given_up_count
        self._needed: Callable[[SpaceNeeded], object] | None = None
        self._needed_seconds = 0.0
        self._low: Callable[[SpaceLow], object] | None = None
        self._low_share = 0.0
        self._low_told = False
        self._inside = threading.local()  # `.callback`: this thread runs a callback
        self._one = threading.Lock()
        self._looking = threading.Lock()
        self._forecast = Forecast()
        self._held: tuple[int, int, int] | None = None  # what snapshots held; kept_blocks and leaps at that time

    # -- what is durable ---------------------------------------------------------------------------------------------
    def superblock_fields(self) -> dict[str, Any]:
        """The fields of the next superblock that are kept here."""
        policy = self.policy
        return {
            "when_full": WHEN_FULL.index(policy.when_full), "keep_newest": policy.keep_newest,
            "snapshot_bytes_max": policy.snapshot_bytes_max, "given_up_count": self.losses_count,
            "given_up": self.losses,
        }  # fmt: skip

    def set_policy(self, policy: Policy) -> None:
        """Durable when it returns; works on a full file system."""
        engine = self._engine
        with engine.lock:
            if policy == self.policy:
                return
            engine.require_writable()
            engine.make_room(for_delete=True)
            event = PolicyEvent(WHEN_FULL.index(policy.when_full), policy.keep_newest, policy.snapshot_bytes_max)
            with engine.undivided():
                engine.commit([event], room_made=True)
                self.policy = policy

    def lose(self, event: GiveUpEvent) -> None:
        """A snapshot is given up, as a commit or a record of the log says."""
        lineage = self._engine.lineage
        lineage.delete(event.id)
        record = lineage.get(event.id)
        assert record is not None
        loss = Loss(record.id, record.epoch, record.tag, event.given_up_ns, record.name)
        self.losses = newest_losses([*self.losses, loss])
        self.losses_count += 1

    # -- room for a call that found the file system full -----------------------------------------------------------
    def on_needed(self, callback: Callable[[SpaceNeeded], object] | None, seconds: float) -> None:
        """Registers who is asked for room; None: nobody."""
        self._needed, self._needed_seconds = callback, seconds

    def retried(self, error: NoSpaceError, needed_bytes: int, work: Callable[[], T]) -> T:
        """Does `work` again, as often as somebody makes room for it; raises the last error when nobody does.

        No lock of the engine is held, and all that `work` did in part may be done again.
        """
        deadline = time.monotonic() + self._needed_seconds
        self.look(now=True)
        losses = self.losses_count
        tighten = self._engine.allocator.tighten
        while tighten() or self._ask(needed_bytes, deadline) or self._give_up_for_call(losses):
            losses = self.losses_count
            try:
                return work()
            except NoSpaceError as again:
                error = again
        raise error

    def _ask(self, needed_bytes: int, deadline: float) -> bool:
        callback = self._needed
        if callback is None or time.monotonic() >= deadline or getattr(self._inside, "callback", False):
            return False
        self._inside.callback = True
        try:
            return bool(callback(SpaceNeeded(needed_bytes, self._disk()[1], deadline)))
        finally:
            self._inside.callback = False

    def _give_up_for_call(self, losses_before: int) -> bool:
        """Gives up one snapshot, unless another thread has since this one saw the disk full."""
        if not self.policy.gives_up:
            return False
        with self._one:
            return self.losses_count != losses_before or self._give_up_oldest("the file system is full")

    # -- giving up ---------------------------------------------------------------------------------------------------
    def _give_up_oldest(self, why: str) -> bool:
        """Deletes the oldest snapshot that may go and gives its space back; False if there is none."""
        engine = self._engine
        with engine.lock:
            engine.require_writable()
            record = self._oldest_that_may_go()
            if record is None:
                return False
            engine.delete(record.id, give_up=True)
        logger.warning("%s: gave up snapshot %r (id %d): %s", engine.name, record.name, record.id, why)
        engine.reclaim()
        return True

    def _oldest_that_may_go(self) -> LineageRecord | None:
        """Not the newest ones, nor what is held or read, nor a branch point: deleting that gives nothing back."""
        lineage = self._engine.lineage
        end = self._newest_kept()
        for start in range(0, end, PAGE):
            for record in lineage.snapshots(start, min(start + PAGE, end)):
                is_branch_point = len(lineage.children(record.id)) > 1
                if not record.flags & LINEAGE_ANCHOR and not is_branch_point and why_kept(self._engine, record) is None:
                    return record
        return None

    def _newest_kept(self) -> int:
        """The position in the list from which on all snapshots are kept. Anchors, which have no data, do not count."""
        lineage, left = self._engine.lineage, self.policy.keep_newest
        position = lineage.count()
        while position > 0:
            for record in reversed(lineage.snapshots(max(0, position - PAGE), position)):
                position -= 1
                left -= not record.flags & LINEAGE_ANCHOR
                if left == 0:
                    return position
        return 0

    # -- the limit of what snapshots hold --------------------------------------------------------------------------
    def held_bytes(self) -> int:
        """What snapshots hold and no head reaches, in bytes of blocks.

        Found by a walk over all maps at first, and after a rollback, a shrink or a discard of whole subtrees; else
        counted. What is written while the walk runs may count twice or not at all. Beside clones only walks can tell,
        as what one head leaves another may still reach.
        """
        path = self._engine.path
        leaps = self._engine.counters["rollbacks"] + path.map.kept_uncounted
        if self._held is None or self._held[2] != leaps or len(path.heads) > 1:
            from cowengine.engine.usage import held_by_snapshots

            kept = path.map.kept_blocks
            self._held = (held_by_snapshots(self._engine), kept, leaps)
        return max(0, self._held[0] + (path.map.kept_blocks - self._held[1]) * path.block_bytes)

    def keep_limit(self) -> None:
        """Before a snapshot: what snapshots hold is below the limit, or NoSpaceError."""
        limit = self.policy.snapshot_bytes_max
        if not limit or self.held_bytes() <= limit:
            return
        self._give_up_to(limit)
        if self.held_bytes() > limit:
            raise NoSpaceError(
                f"snapshots hold {self.held_bytes()} bytes, more than the policy's limit of {limit}; delete some",
                self._engine.name,
            )

    def on_growth(self) -> None:
        """Called by who places blocks, now and then: looks ahead, and keeps to the limit if the policy gives up."""
        self.look()
        policy = self.policy
        if policy.gives_up and policy.snapshot_bytes_max:
            self._give_up_to(policy.snapshot_bytes_max)

    def _give_up_to(self, limit: int) -> None:
        """Gives up snapshots, as far as the policy lets it, until the rest holds no more than `limit` bytes."""
        with self._one:
            while self.policy.gives_up and self.held_bytes() > limit:
                if not self._give_up_oldest(f"snapshots hold more than {limit} bytes"):
                    return

    # -- looking ahead -------------------------------------------------------------------------------------------------
    def on_low(self, callback: Callable[[SpaceLow], object] | None, share: float) -> None:
        """Registers who is told when free space falls below a share of the file system; None: nobody."""
        self._low, self._low_share, self._low_told = callback, share, False

    def look(self, *, now: bool = False) -> None:
        """Takes a sample if one is due, or now, and tells who wants to know that space is low. No lock is held.

        Costs two system calls a second at most; a callback that raises is logged, as the call it came in on is done.
        """
        moment = time.monotonic()
        if not (now or moment >= self._forecast.due) or not self._looking.acquire(blocking=False):
            return
        try:
            taken, free, total = self._disk()
            self._forecast.add(moment, taken)
            is_low = total > 0 and free < self._low_share * total
            tell = self._low if is_low and not self._low_told else None
            self._low_told = is_low
        finally:
            self._looking.release()
        if tell is not None:
            try:
                tell(SpaceLow(free, total))
            except Exception:
                logger.exception("%s: the callback for low space failed", self._engine.name)

    def _disk(self) -> tuple[int, int, int]:
        """What the file takes, and what the file system has free and in all, in bytes; zeros if it cannot be said."""
        engine = self._engine
        try:
            return (0, 0, 0) if engine.closed else engine.io.space(engine.fd)
        except OSError as error:
            logger.debug("%s: the file system does not say how full it is: %s", engine.name, error)
            return 0, 0, 0

    def stats(self) -> dict[str, int | None]:
        """The part of `Volume.stats` that is known here."""
        now = time.monotonic()
        taken, free, _ = self._disk()
        with self._looking:
            self._forecast.add(now, taken)
            rate = self._forecast.bytes_a_minute(now, taken)
        return {
            "taken_bytes": taken,
            "free_bytes": free,
            "new_bytes_a_minute": rate,
            "full_in_seconds": full_in_seconds(free, rate),
            "snapshots_given_up": self.losses_count,
        }
