"""V1: a writer that raises, hangs or dies at any event leaves nobody frozen, no half set, and a working requestor."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted_writers import Journal, ScriptedWriter

from cowengine.errors import WriterError, WriterTimeout, WriterVeto
from cowengine.vss import Requestor

LIMIT = 1.0  # seconds, for freeze and every other event, where somebody hangs
SLACK = 1.0  # how much later than its limit the coordinator may come on a machine that is busy

FAULTS = {"raise": WriterVeto, "hang": WriterTimeout, "die": WriterError}
EVENTS = ("identify", "prepare_backup", "prepare_snapshot", "freeze", "thaw", "post_snapshot")


def make(store: Any, *writers: Any, fault: str = "hang") -> Requestor:
    """Short limits only where they are needed: a busy machine may take its time for an honest flush."""
    if fault != "hang":
        return Requestor(store, writers)
    return Requestor(store, writers, freeze_limit=LIMIT, event_limit=LIMIT, abort_limit=LIMIT)


def neighbours(journal: Journal) -> tuple[ScriptedWriter, ScriptedWriter]:
    """One that freezes before a back-end writer and one that freezes after it."""
    return ScriptedWriter(journal, "before"), ScriptedWriter(journal, "after", level="system")


def assert_nobody_is_frozen(journal: Journal, *names: str) -> None:
    for name in names:
        for frozen_at, thawed_at in journal.freezes(name):
            assert thawed_at is not None, f"{name} is still frozen"
            assert thawed_at - frozen_at <= LIMIT + SLACK, f"{name} was frozen for {thawed_at - frozen_at:.3f} s"


@pytest.mark.parametrize("isolated", [False, True], ids=["thread", "process"])
@pytest.mark.parametrize("required", [True, False], ids=["required", "optional"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("event", EVENTS)
def test_a_writer_that_fails_leaves_nobody_frozen_and_no_half_set(
    store: Any, journal: Journal, event: str, fault: str, required: bool, isolated: bool
) -> None:
    before, after = neighbours(journal)
    faulty = ScriptedWriter(
        journal, "faulty", {event: fault}, level="back-end", required=required, isolated=isolated, volumes=("a",)
    )
    requestor = make(store, before, faulty, after, fault=fault)
    job = requestor.start_snapshot(["a", "b"], "first")
    if required:
        with pytest.raises(FAULTS[fault], match=f"'faulty'.*{event}") as caught:
            job.wait(30)
        assert isinstance(caught.value, WriterError)
        assert (caught.value.writer, caught.value.phase) == ("faulty", event)
        assert store.snapshot_sets() == []
        assert all("abort" in journal.events(name) for name in ("before", "after") if journal.events(name)[1:])
    else:
        assert set(job.wait(30).snapshots) == {"a", "b"}
        assert [found.name for found in store.snapshot_sets()] == ["first"]
        assert "abort" not in journal.events("before") + journal.events("after")
    assert_nobody_is_frozen(journal, "before", "faulty", "after")
    for name in ("before", "after"):  # the thaw itself, and not only the abort that may follow
        assert journal.events(name).count("thaw") == len(journal.freezes(name)) <= 1
    outcome = {"raise": "veto", "hang": "timeout", "die": "died"}[fault]
    entries = [e for e in job.ledger["entries"] if e["name"] == "faulty" and e["outcome"] not in ("ok", "skipped")]
    assert [(entry["phase"], entry["outcome"]) for entry in entries] == [(event, outcome)]
    if event != "identify":  # abort reaches the writer itself, if need be in another thread or process
        assert journal.events("faulty").count("abort") == 1
        assert journal.events("faulty")[-1] == "backup_shutdown"
    Requestor(store, requestor.writers).snapshot(["a", "b"], "second")
    assert_nobody_is_frozen(journal, "before", "faulty", "after")


@pytest.mark.parametrize("isolated", [False, True], ids=["thread", "process"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("event", ["abort", "backup_shutdown"])
def test_a_writer_that_fails_at_the_end_fails_nobody_else(
    store: Any, journal: Journal, event: str, fault: str, isolated: bool
) -> None:
    """Both events come when the outcome is decided; their failure is written down and changes nothing."""
    script = {event: fault} if event == "backup_shutdown" else {event: fault, "post_snapshot": "raise"}
    faulty = ScriptedWriter(journal, "faulty", script, isolated=isolated)
    before, after = neighbours(journal)
    requestor = make(store, before, faulty, after, fault=fault)
    job = requestor.start_snapshot(["a"], "first")
    if event == "abort":
        with pytest.raises(WriterVeto, match="post_snapshot"):
            job.wait(90)
    else:
        job.wait(90)
    outcome = {"raise": "veto", "hang": "timeout", "die": "died"}[fault]
    found = [(e["phase"], e["outcome"]) for e in job.ledger["entries"] if e["name"] == "faulty"]
    assert (event, outcome) in found
    assert journal.events("before")[-1] == "backup_shutdown"
    assert_nobody_is_frozen(journal, "before", "faulty", "after")
    Requestor(store, requestor.writers).snapshot(["a"], "second")


def test_a_freeze_that_returns_after_it_was_given_up_is_thawed(store: Any, journal: Journal) -> None:
    """The writer's thread comes back from a hang when the job is long over: it must not stand still for ever."""
    faulty = ScriptedWriter(journal, "faulty", {"freeze": "hang"})
    with pytest.raises(WriterTimeout):
        make(store, faulty).snapshot(["a"])
    assert journal.freezes("faulty") == []
    journal.path.with_name("release").touch()
    _until(lambda: journal.events("faulty").count("abort") == 2)
    assert journal.events("faulty").count("thaw") == 1
    assert_nobody_is_frozen(journal, "faulty")


def test_two_writers_that_hang_cost_the_job_no_more_than_one(store: Any, journal: Journal) -> None:
    writers = [ScriptedWriter(journal, f"hangs{i}", {"freeze": "hang", "abort": "hang"}) for i in range(3)]
    first = ScriptedWriter(journal, "fine")
    began = time.monotonic()
    with pytest.raises(WriterTimeout):
        make(store, first, *writers).snapshot(["a"])
    assert time.monotonic() - began < 3 * LIMIT + 2 * SLACK
    assert_nobody_is_frozen(journal, "fine")


def test_a_hung_system_writer_does_not_keep_the_front_end_from_its_thaw(store: Any, journal: Journal) -> None:
    """Thaw begins with the system level; if it hangs there, the front-end still goes on within its limit."""
    front = ScriptedWriter(journal, "front")
    system = ScriptedWriter(journal, "system", {"thaw": "hang"}, level="system")
    with pytest.raises(WriterTimeout, match="thaw"):
        make(store, front, system).snapshot(["a"])
    [(frozen_at, thawed_at)] = journal.freezes("front")
    assert thawed_at is not None
    assert thawed_at - frozen_at < LIMIT
    assert store.snapshot_sets() == []


PROGRAM = """
import sys
sys.path[:] = {path!r}
from pathlib import Path
from cowengine.store import Store
from cowengine.vss import Requestor
from scripted_writers import Journal, ScriptedWriter
journal = Journal(Path({journal!r}))
store = Store.create({store!r})
store.create_volume("a", 1 << 20)
frozen = ScriptedWriter(journal, "frozen", isolated=True)
hangs = ScriptedWriter(journal, "hangs", {{"freeze": "hang"}}, level="system")
Requestor(store, [frozen, hangs], freeze_limit={limit}).snapshot()
"""


@pytest.mark.parametrize(("kill", "limit"), [(signal.SIGKILL, 60.0), (signal.SIGSTOP, 1.5)], ids=["dies", "stalls"])
def test_an_isolated_writer_whose_requestor_is_gone_aborts_by_itself(
    tmp_path: Path, journal: Journal, kill: signal.Signals, limit: float
) -> None:
    """Between freeze and thaw: the writer's process sees that its requestor is dead, or late by its own clock."""
    text = PROGRAM.format(path=sys.path, journal=str(journal.path), store=str(tmp_path / "other"), limit=limit)
    process = subprocess.Popen([sys.executable, "-c", text], cwd=tmp_path)
    try:
        _until(lambda: "freeze" in journal.events("hangs"))
        process.send_signal(kill)
        _until(lambda: "abort" in journal.events("frozen"))
    finally:
        process.kill()
        process.wait()
    [(frozen_at, thawed_at)] = journal.freezes("frozen")
    assert thawed_at is not None
    assert thawed_at - frozen_at < limit + 1.0 + SLACK


def _until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
