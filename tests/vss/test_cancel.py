"""Cancel and Ctrl-C at any phase: everybody thawed, no set, and the next job works."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest
from scripted_writers import Journal, ScriptedWriter

from cowengine.errors import CancelledError
from cowengine.vss import EngineProvider, JobView, Requestor

PHASES = ("identify", "prepare_backup", "prepare_snapshot", "freeze", "thaw", "post_snapshot")


class Stopper(ScriptedWriter):
    """Calls back in the middle of one event."""

    def __init__(self, journal: Journal, event: str, callback: Any, **attributes: Any) -> None:
        super().__init__(journal, "stopper", level="back-end", delays={event: 0.15}, **attributes)
        self.event = event
        self.callback = callback

    def _do(self, event: str, job: JobView | None) -> Any:
        if event == self.event:
            self.callback()
        return super()._do(event, job)


def assert_undone(store: Any, journal: Journal, *names: str) -> None:
    assert store.snapshot_sets() == []
    for name in names:
        for _, thawed_at in journal.freezes(name):
            assert thawed_at is not None, f"{name} is still frozen"
        if journal.events(name)[1:]:
            assert "abort" in journal.events(name)
            assert journal.events(name)[-1] == "backup_shutdown"


@pytest.mark.parametrize("event", PHASES)
def test_cancel_in_the_middle_of_an_event_undoes_everything(store: Any, journal: Journal, event: str) -> None:
    jobs: list[Any] = []
    ready = threading.Event()

    def cancel() -> None:
        ready.wait(10)
        jobs[0].cancel()

    others = [ScriptedWriter(journal, "front"), ScriptedWriter(journal, "system", level="system")]
    requestor = Requestor(store, [*others, Stopper(journal, event, cancel)])
    jobs.append(requestor.start_snapshot(name="cancelled"))
    ready.set()
    with pytest.raises(CancelledError):
        jobs[0].wait(20)
    assert jobs[0].state == "cancelled"
    assert jobs[0].ledger["outcome"] == "cancelled"
    assert_undone(store, journal, "front", "stopper", "system")
    assert not jobs[0].cancel(), "it has ended"
    Requestor(store, others).snapshot(name="cancelled")


@pytest.mark.parametrize("event", ["begin_prepare", "commit", "post_final_commit"])
def test_cancel_while_the_provider_works_leaves_no_set(store: Any, journal: Journal, event: str) -> None:
    jobs: list[Any] = []
    ready = threading.Event()

    class Provider(EngineProvider):
        def _stop(self, name: str) -> None:
            if name == event:
                ready.wait(10)
                jobs[0].cancel()
                time.sleep(0.1)

        def begin_prepare(self, job: JobView) -> None:
            super().begin_prepare(job)
            self._stop("begin_prepare")

        def commit(self, job: JobView) -> Any:
            taken = super().commit(job)
            self._stop("commit")
            return taken

        def post_final_commit(self, job: JobView) -> None:
            self._stop("post_final_commit")

    writer = ScriptedWriter(journal, "w")
    jobs.append(Requestor(store, [writer], Provider(store)).start_snapshot(name="cancelled"))
    ready.set()
    with pytest.raises(CancelledError):
        jobs[0].wait(20)
    assert_undone(store, journal, "w")
    Requestor(store, [writer]).snapshot(name="cancelled")


def test_ctrl_c_while_waiting_cancels_thaws_everybody_and_goes_on_as_keyboard_interrupt(
    store: Any, journal: Journal
) -> None:
    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    front = ScriptedWriter(journal, "front")
    requestor = Requestor(store, [front, Stopper(journal, "freeze", interrupt)])
    with pytest.raises(KeyboardInterrupt):
        requestor.snapshot()
    assert_undone(store, journal, "front", "stopper")


def test_ctrl_c_at_the_terminal_does_not_reach_an_isolated_writer(store: Any, journal: Journal) -> None:
    """The terminal signals the whole process group; the writer's process leaves it to its requestor."""
    writer = ScriptedWriter(journal, "w", delays={"freeze": 0.4}, isolated=True)
    job = Requestor(store, [writer]).start_snapshot()
    deadline = time.monotonic() + 20
    while "freeze" not in journal.events("w"):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(journal.lines("w")[0].pid, signal.SIGINT)
    job.wait(20)
    assert ("freeze", "end") in [(line.event, line.stage) for line in journal.lines("w")]


def test_wait_with_a_timeout_leaves_the_job_running(store: Any, journal: Journal) -> None:
    job = Requestor(store, [ScriptedWriter(journal, "w", delays={"freeze": 0.3})]).start_snapshot()
    with pytest.raises(TimeoutError, match="goes on"):
        job.wait(0.05)
    assert job.state == "running"
    job.wait(20)
    assert (job.state, job.done, job.progress.fraction) == ("done", True, 1.0)


def test_progress_never_goes_back_and_names_the_phases(store: Any, journal: Journal) -> None:
    seen: list[Any] = []
    delays = dict.fromkeys(("prepare_snapshot", "freeze", "post_snapshot"), 0.1)
    job = Requestor(store, [ScriptedWriter(journal, "w", delays=delays)]).start_snapshot()
    while not job.done:
        seen.append(job.progress)
        time.sleep(0.01)
    job.wait()
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert {"prepare_snapshot", "freeze", "post_snapshot"} <= {progress.phase for progress in seen}
