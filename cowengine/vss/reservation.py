"""Who may take a snapshot set of which volumes now: disjoint sets in parallel, overlapping ones one after another.

One queue per store object, shared by all its requestors in this process. First come, first served: a job waits for
every earlier one that wants a volume of its own, so that a stream of small sets cannot starve a large one.

Threads: any. Nobody blocks in here; a waiting job is called back when its turn comes.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Collection
from typing import Any

from cowengine.errors import BusyError


class Reservation:
    """A place in the queue: of volumes, once `granted`."""

    def __init__(self, volumes: Collection[str], when_granted: Callable[[], None]) -> None:
        self.volumes = frozenset(volumes)
        self.granted = False
        self.when_granted = when_granted


class VolumeQueue:
    """The reservations of one store, oldest first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reservations: list[Reservation] = []

    def enter(self, volumes: Collection[str], queue_limit: int, when_granted: Callable[[], None]) -> Reservation:
        """Take a place; `when_granted` is called, from any thread and perhaps at once, when the turn has come.

        Raises BusyError if it would have to wait and `queue_limit` jobs are waiting already.
        """
        reservation = Reservation(volumes, when_granted)
        with self._lock:
            waiting = sum(not other.granted for other in self._reservations)
            blockers = [other for other in self._reservations if other.volumes & reservation.volumes]
            if blockers and waiting >= queue_limit:
                names = ", ".join(sorted(blockers[0].volumes & reservation.volumes)[:3])
                raise BusyError(
                    f"another snapshot set of {names} is being made and {waiting} jobs wait already "
                    f"(queue_limit={queue_limit}): try again later or raise queue_limit"
                )
            self._reservations.append(reservation)
        self._grant()
        return reservation

    def leave(self, reservation: Reservation) -> None:
        """Give the place up, granted or not. Idempotent."""
        with self._lock:
            if reservation in self._reservations:
                self._reservations.remove(reservation)
        self._grant()

    def _grant(self) -> None:
        due: list[Reservation] = []
        with self._lock:
            taken: set[str] = set()
            for reservation in self._reservations:
                if not reservation.granted and not reservation.volumes & taken:
                    reservation.granted = True
                    due.append(reservation)
                taken |= reservation.volumes
        for reservation in due:
            reservation.when_granted()


_queues: weakref.WeakKeyDictionary[Any, VolumeQueue] = weakref.WeakKeyDictionary()
_queues_lock = threading.Lock()


def queue_of(store: Any) -> VolumeQueue:
    """The one queue of this store object."""
    with _queues_lock:
        queue = _queues.get(store)
        if queue is None:
            queue = _queues[store] = VolumeQueue()
        return queue
