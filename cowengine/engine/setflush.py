"""Events of snapshot sets reach their members' own logs: within a second, if nothing else commits before.

One thread does so for all volumes of the process, one after the other. It is there while there is anything to do, keeps
no volume alive, and passes over those that were closed meanwhile.

Threads   Any thread may call anything here.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING
from weakref import ref

if TYPE_CHECKING:
    from cowengine.engine.engine import Engine

logger = logging.getLogger("cowengine.engine")

FLUSH_EVENTS_AFTER = 1.0  # seconds


def flush_events(engine: Engine) -> None:
    """Writes outstanding events of snapshot sets into the volume's own log. Durable when it returns."""
    with engine.lock:
        engine.flush_scheduled = False
        if engine.closed or engine.failure is not None or not engine.pending_events:
            return
        engine.make_room(for_delete=True)
        engine.commit(room_made=True)


class Flusher:
    """The volumes whose events are to be flushed, and the thread that does it."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self.renew()

    def renew(self) -> None:
        """In the child of a fork: thread and volumes are the parent's."""
        self._lock = threading.Lock()
        self._due: deque[tuple[float, ref[Engine]]] = deque()
        self._thread: threading.Thread | None = None

    def schedule(self, engines: Iterable[Engine]) -> None:
        """These are flushed in a while, as far as they are not waiting for it already."""
        due = time.monotonic() + FLUSH_EVENTS_AFTER
        with self._lock:
            for engine in engines:
                if engine.background and not engine.flush_scheduled:
                    engine.flush_scheduled = True
                    self._due.append((due, ref(engine)))
            if not self._due or self._thread is not None or self._stop.is_set():
                return
            thread = threading.Thread(target=self._run, name="cowengine-set-events", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                logger.debug("no thread for the events of sets: %s", error)  # the next set tries again
                return
            self._thread = thread

    def stop(self) -> None:
        """At the end of the interpreter: nothing is begun any more; waits for what is under way."""
        with self._lock:
            self._stop.set()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _next(self) -> tuple[float, ref[Engine]] | None:
        with self._lock:
            if self._due and not self._stop.is_set():
                return self._due.popleft()
            self._thread = None
            return None

    def _run(self) -> None:
        try:
            while (found := self._next()) is not None:
                due, engine = found
                if not self._stop.wait(max(0.0, due - time.monotonic())):
                    _flush(engine())
        except BaseException:
            with self._lock:
                self._thread = None  # the next set begins anew
            raise


def _flush(engine: Engine | None) -> None:
    if engine is None:
        return
    try:
        flush_events(engine)
    except OSError:
        return  # the events are in the store log; whoever uses the volume next is told
    engine.sealer.wake()


flusher = Flusher()
atexit.register(flusher.stop)
os.register_at_fork(after_in_child=flusher.renew)
