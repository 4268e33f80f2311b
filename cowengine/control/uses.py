"""Who uses which volume of a served store, so that none is closed or taken away under anybody.

A client's opened volumes count until it closes them or goes away; so do the members of a set that is being prepared,
and each call for as long as it runs. NBD clients are asked about by the exports.

Threads   Every method may be called from any thread. Whoever asks for a volume that is being deleted, renamed or closed
          waits until that is over.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

from cowengine.errors import BusyError, CowEngineError

if TYPE_CHECKING:
    from cowengine.store import Store


class Exports(Protocol):
    """What else serves the volumes of the store, in the same process."""

    def closed_for(self, volume: str) -> AbstractContextManager[object]:
        """Keeps new clients off a volume; BusyError if it has one."""


class VolumeUses:
    """The uses of the volumes of one served store."""

    def __init__(self, store: Store, exports: Exports | None) -> None:
        self._store = store
        self._exports = exports
        self._changed = threading.Condition()
        self._opened: Counter[tuple[str, int]] = Counter()  # by volume and session
        self._running: Counter[str] = Counter()
        self._everywhere = 0
        self._exclusive: set[str] = set()

    # -- calls ---------------------------------------------------------------------------------------------------------
    @contextmanager
    def running(self, *names: str) -> Iterator[None]:
        """While a call that uses these volumes runs."""
        with self._changed:
            self._changed.wait_for(lambda: not self._exclusive.intersection(names))
            self._running.update(names)
        try:
            yield
        finally:
            with self._changed:
                self._running.subtract(names)
                self._running = +self._running
                self._changed.notify_all()

    @contextmanager
    def running_everywhere(self) -> Iterator[None]:
        """While a call runs that may use any volume: none is closed meanwhile because nobody has it open."""
        with self._changed:
            self._everywhere += 1
        try:
            yield
        finally:
            with self._changed:
                self._everywhere -= 1
                self._changed.notify_all()

    # -- opened --------------------------------------------------------------------------------------------------------
    def open(self, name: str, session: int) -> None:
        """From now on a client has the volume open, once more. Call it while `running`."""
        with self._changed:
            self._opened[name, session] += 1

    def close(self, name: str, session: int) -> None:
        """It has it open once less; of the last use the volume is closed, durably. Raises what that raises."""
        with self._changed:
            if not self._opened[name, session]:
                del self._opened[name, session]
                return
            self._opened[name, session] -= 1
            self._opened = +self._opened
        self._close_idle(name)

    def close_all(self, session: int) -> None:
        """A client went away."""
        with self._changed:
            gone = [key for key in self._opened if key[1] == session]
            for key in gone:
                del self._opened[key]
        for name, _ in gone:
            try:
                self._close_idle(name)
            except (CowEngineError, OSError):
                continue  # whoever opens the volume next is told

    def _close_idle(self, name: str) -> None:
        with self._changed:
            used = self._everywhere or name in self._running or any(volume == name for volume, _ in self._opened)
            if used or name in self._exclusive:
                return
            self._exclusive.add(name)
        try:
            with self._not_exported(name):
                self._store.close_unused(name)
        except BusyError:
            return  # an NBD client has it, or the process itself
        finally:
            self._end_exclusive(name)

    # -- alone ---------------------------------------------------------------------------------------------------------
    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Nobody has the volume open, and nobody opens it meanwhile. Raises BusyError."""
        with self._changed:
            self._changed.wait_for(lambda: name not in self._exclusive)
            if any(volume == name for volume, _ in self._opened):
                raise BusyError(f"volume {name!r} is open: close it first")
            if name in self._running:
                raise BusyError(f"volume {name!r} is in use: try again later")
            self._exclusive.add(name)
        try:
            with self._not_exported(name):
                yield
        finally:
            self._end_exclusive(name)

    def _not_exported(self, name: str) -> AbstractContextManager[object]:
        return nullcontext() if self._exports is None else self._exports.closed_for(name)

    def _end_exclusive(self, name: str) -> None:
        with self._changed:
            self._exclusive.discard(name)
            self._changed.notify_all()
