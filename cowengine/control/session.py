"""What one client of a served store has: volumes and clones that it opened, and sets that it is preparing.

A client may have several connections; it is gone when the last of them is, and then all that it had is given up:
nothing that it did not commit is there, nothing stays open or reserved.

Threads   Every method may be called from any thread.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from cowengine.control.methods import VolumeRef
from cowengine.control.protocol import Message
from cowengine.errors import BusyError, ClosedError, CowEngineError, NotFoundError
from cowengine.volume import Volume

if TYPE_CHECKING:
    from cowengine.control.uses import VolumeUses
    from cowengine.store import PendingSet, Store

logger = logging.getLogger("cowengine.control")

LIVE = "live"
PENDING_MAX = 64
HEADS_MAX = 255
_numbers = itertools.count(1)


class Session:
    """One client."""

    def __init__(self, store: Store, uses: VolumeUses, *, read_only: bool) -> None:
        self.store = store
        self.uses = uses
        self.read_only = read_only
        self.token = secrets.token_hex(16)
        self.number = next(_numbers)
        self.connections = 0
        self._lock = threading.Lock()
        self._ended = False
        self._pending: dict[int, tuple[PendingSet, ExitStack]] = {}
        self._heads: dict[tuple[str, str], Volume] = {}

    # -- volumes -------------------------------------------------------------------------------------------------------
    @contextmanager
    def volume(self, ref: VolumeRef) -> Iterator[Volume]:
        """The volume or clone that a call is about, for as long as it runs. Raises NotFoundError."""
        with self.uses.running(ref.name):
            volume = self.store.open_volume(ref.name, hand_out=False)
            if ref.id is not None and volume.id != ref.id:
                raise NotFoundError(f"the store has no volume {ref.name!r} of id {ref.id}", self.store.path)
            yield volume if ref.head == LIVE else self._head(ref)

    def _head(self, ref: VolumeRef) -> Volume:
        with self._lock:
            head = self._heads.get((ref.name, ref.head))
        if head is None or head.closed:
            raise ClosedError(f"clone {ref.head!r} of volume {ref.name!r} is not open: open it first")
        return head

    def keep_head(self, name: str, head: Volume) -> None:
        """The client has a clone open. Its volume stays open as long."""
        with self._lock:
            full = self._ended or len(self._heads) >= HEADS_MAX
            if not full:
                self._heads[name, head.head] = head
        if full:
            head.close()
            raise BusyError(f"{HEADS_MAX} clones are open already: close some")
        self.uses.open(name, self.number)

    def close_head(self, ref: VolumeRef) -> None:
        """The client has closed it. Idempotent."""
        with self._lock:
            head = self._heads.pop((ref.name, ref.head), None)
        if head is not None:
            try:
                head.close()
            finally:
                self.uses.close(ref.name, self.number)

    # -- pending sets --------------------------------------------------------------------------------------------------
    def keep_pending(self, number: int, pending: PendingSet) -> None:
        """The client is preparing a set; its members are in use until it ends."""
        held = ExitStack()
        held.enter_context(self.uses.running(*pending.volumes))
        with self._lock:
            full = self._ended or len(self._pending) >= PENDING_MAX
            if not full:
                self._pending[number] = (pending, held)
        if full:
            held.close()
            pending.abort()
            raise BusyError(f"{PENDING_MAX} snapshot sets are being prepared already: commit or abort some")

    def pending(self, number: int) -> PendingSet:
        """A set that the client is preparing. Raises ClosedError if it ended."""
        with self._lock:
            found = self._pending.get(number)
        if found is None:
            raise ClosedError("this snapshot set was committed or aborted")
        return found[0]

    @contextmanager
    def ending(self, number: int) -> Iterator[PendingSet | None]:
        """A set that ends with this call; None if it ended before."""
        with self._lock:
            found = self._pending.pop(number, None)
        if found is None:
            yield None
            return
        with found[1]:
            yield found[0]

    # -- the end -------------------------------------------------------------------------------------------------------
    def end(self) -> None:
        """The client is gone: gives up all that it had."""
        with self._lock:
            self._ended = True
            pending, self._pending = list(self._pending.values()), {}
            heads, self._heads = list(self._heads.values()), {}
        for each, held in pending:
            self._quietly(each.abort)
            held.close()
        for head in heads:
            self._quietly(head.close)
        self.uses.close_all(self.number)

    def _quietly(self, work: Callable[[], object]) -> None:
        try:
            work()
        except (CowEngineError, OSError) as error:
            logger.warning("what a client left could not be given up: %s", error)


class Call:
    """One request while it runs: whose it is, how far it says it is, and whether it shall end early."""

    def __init__(self, session: Session, tell: Callable[[Message], None] | None, look: Callable[[], bool]) -> None:
        self.session = session
        self.store = session.store
        self.stop = threading.Event()
        self._tell = tell
        self._look = look

    def progress(self, encode: Callable[[Any], Message]) -> Callable[[Any], None]:
        """What a long operation calls about once a second: tells the client, and ends early if it wants that."""

        def report(done: Any) -> None:
            if self._look():
                self.stop.set()
            elif self._tell is not None:
                self._tell(encode(done))

        return report
