"""Worker: one thread that runs the events of one writer, or of the providers of one job, in order.

The coordinator posts a `Call` and goes on; the worker puts it into the coordinator's inbox when it is done. Whoever
runs the event may raise, hang or die; the coordinator's own clock decides how long it waits. A worker that hangs is
abandoned: its thread is a daemon, and should a freeze return after all, the worker thaws and aborts by itself, so
that nobody stays frozen unnoticed.

Threads: `post`, `abandon` and `close` are called by one coordinator.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol

from cowengine.vss.ledger import Outcome
from cowengine.vss.writer import JobView, Writer


class WorkerDied(Exception):
    """The process behind a worker is gone."""


class Invoker(Protocol):
    """Runs one event at a time, where the writer or provider lives."""

    def invoke(self, event: str, argument: Any) -> Any:
        """Run it; its value, or its exception. Raises WorkerDied if nobody is left to run it."""

    def kill(self) -> None:
        """Stop whatever runs, if that is possible. From any thread."""

    def close(self) -> None:
        """Free what is held. From the worker's thread."""


class LocalInvoker:
    """Runs the events of a writer in this process."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def invoke(self, event: str, argument: Any) -> Any:
        """Call the writer."""
        if event == "start":
            return None
        if event == "identify":
            return self._writer.identify()
        return getattr(self._writer, event)(argument)

    def kill(self) -> None:
        """A thread cannot be killed."""

    def close(self) -> None:
        """Nothing is held."""


@dataclass(eq=False)
class Call:
    """One event on its way: posted, then finished by the worker, then settled (judged) by the coordinator."""

    actor: Any
    event: str
    argument: Any
    started: float  # time.monotonic; when posted, then when begun
    deadline: float
    ended: float = 0.0
    finished: bool = False
    settled: bool = False
    outcome: Outcome = "ok"
    value: Any = None
    error: BaseException | None = None

    @property
    def limit(self) -> float:
        """Seconds it may take, from when it was posted."""
        return self.deadline - self.posted

    def __post_init__(self) -> None:
        self.posted = self.started


class Worker:
    """The thread of one writer or provider group, started with its first call."""

    def __init__(self, name: str, invoker: Invoker, deliver: Callable[[Call], None]) -> None:
        self.frozen = False  # a freeze returned and its thaw has not begun
        self._invoker = invoker
        self._deliver = deliver
        self._requests: SimpleQueue[Call | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._unfinished = 0
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, name=f"cowengine {name}", daemon=True)

    def post(self, call: Call) -> None:
        """Run `call` after those posted before."""
        with self._lock:
            self._unfinished += 1
        self._requests.put(call)
        if self._thread.ident is None:
            self._thread.start()

    def abandon(self) -> bool:
        """Give up on a worker that is busy; False if it is idle, and then nothing was done."""
        with self._lock:
            if self._unfinished == 0:
                return False
            self._abandoned = True
        self._requests.put(None)
        self._invoker.kill()
        return True

    def close(self) -> None:
        """End the thread after the calls posted so far."""
        self._requests.put(None)
        if self._thread.ident is None:
            self._invoker.close()

    def _run(self) -> None:
        try:
            while (call := self._requests.get()) is not None:
                self._perform(call)
                with self._lock:
                    self._unfinished -= 1
                    abandoned = self._abandoned
                if abandoned:
                    self._undo_late(call)
                    return
                self._deliver(call)
                if call.outcome == "died":
                    return
        finally:
            self._invoker.close()

    def _perform(self, call: Call) -> None:
        call.started = time.monotonic()
        if call.event == "thaw":
            if not self.frozen:
                call.outcome = "skipped"
            self.frozen = False
        if call.outcome == "ok":
            try:
                call.value = self._invoker.invoke(call.event, call.argument)
                self.frozen = self.frozen or call.event == "freeze"
            except Exception as error:
                call.outcome = "died" if isinstance(error, WorkerDied) else "veto"
                call.error = error
            except BaseException as error:  # a writer that calls sys.exit ends its thread, not the job
                call.outcome, call.error = "died", error
        call.ended = time.monotonic()
        call.finished = True

    def _undo_late(self, call: Call) -> None:
        """The call came back after everybody had gone: leave nobody frozen. The coordinator sent an abort already."""
        if call.actor.role != "writer" or not isinstance(call.argument, JobView):
            return
        for event in ("thaw", "abort") if self.frozen else ("abort",):
            try:
                self._invoker.invoke(event, call.argument)
            except Exception:
                continue  # nobody is left to tell
