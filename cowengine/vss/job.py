"""Job: the handle of work that runs by itself: wait for it, watch it, cancel it.

Threads: any number may wait, watch and cancel. The work has a thread of its own, which a process that ends waits for.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from cowengine.errors import CancelledError
from cowengine.vss.coordinator import Message

Result = TypeVar("Result", covariant=True)
State = Literal["queued", "running", "done", "failed", "cancelled"]

_INTERRUPT_SECONDS = 30.0  # after Ctrl-C: long enough to thaw everybody; a second Ctrl-C ends the wait at once


class Progress(NamedTuple):
    """The phase a job is in, and the fraction (0 to 1) of the whole job that is done."""

    phase: str
    fraction: float


class Job(Generic[Result]):
    """A snapshot or backup under way. Made by Requestor.start_snapshot and start_backup."""

    def __init__(self, kind: str, volumes: tuple[str, ...]) -> None:
        self.id = uuid.uuid4().hex
        self.kind = kind
        self.volumes = volumes
        self.inbox: SimpleQueue[Message] = SimpleQueue()
        self.cancel_event = threading.Event()
        self.report_ledger: Callable[[], dict[str, Any]] = dict
        self._progress = Progress("queued", 0.0)
        self._finished = threading.Event()
        self._result: Any = None
        self._error: BaseException | None = None

    @property
    def state(self) -> State:
        """ "queued", "running", "done", "failed" or "cancelled"."""
        if not self._finished.is_set():
            return "queued" if self._progress.phase == "queued" else "running"
        if self._error is None:
            return "done"
        return "cancelled" if isinstance(self._error, CancelledError) else "failed"

    @property
    def done(self) -> bool:
        """Whether it has ended, well or badly."""
        return self._finished.is_set()

    @property
    def progress(self) -> Progress:
        """Where it is now."""
        return self._progress

    @property
    def ledger(self) -> dict[str, Any]:
        """The freeze ledger so far, as JSON types (schema "freeze-ledger")."""
        return self.report_ledger()

    def wait(self, timeout: float | None = None) -> Result:
        """The result; raises what made the job fail. `timeout` in seconds: TimeoutError if it is not done by then.

        Ctrl-C cancels the job, waits until everybody is thawed and goes on as KeyboardInterrupt.
        """
        try:
            finished = self._finished.wait(timeout)
        except KeyboardInterrupt:
            self.cancel()
            self._finished.wait(_INTERRUPT_SECONDS)
            raise
        if not finished:
            raise TimeoutError(f"job {self.id} is still at {self._progress.phase} after {timeout} s; it goes on")
        if self._error is not None:
            raise self._error
        result: Result = self._result
        return result

    def cancel(self) -> bool:
        """Ask the job to stop and undo what it began; False if it has ended. wait() then raises CancelledError.

        A job that is already past its last undoable step ends as done.
        """
        if self._finished.is_set():
            return False
        self.cancel_event.set()
        self.inbox.put("cancel")
        return True

    def set_progress(self, phase: str, fraction: float) -> None:
        """For the job's own thread. Never goes back."""
        self._progress = Progress(phase, max(self._progress.fraction, min(fraction, 1.0)))

    def start(self, work: Callable[[], Any]) -> None:
        """Run `work` in the job's thread."""
        threading.Thread(target=self._run, args=(work,), name=f"cowengine job {self.id[:8]}").start()

    def _run(self, work: Callable[[], Any]) -> None:
        try:
            self._result = work()
            self._progress = Progress("done", 1.0)
        except BaseException as error:
            self._error = error
        finally:
            self._finished.set()
