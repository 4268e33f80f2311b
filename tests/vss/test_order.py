"""The order of events, across levels, writers and provider, and what the ledger says about it."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

from scripted_writers import EVENTS, Journal, ScriptedWriter

from cowengine.vss import EngineProvider, JobView, Requestor, schema

LEVELS = ("front-end", "back-end", "system")


class RecordingProvider(EngineProvider):
    """The engine, and a journal of what was asked of it."""

    def __init__(self, store: Any, journal: Journal) -> None:
        super().__init__(store)
        self._journal = journal


def _recorded(event: str) -> Any:
    def method(self: RecordingProvider, job: JobView) -> Any:
        self._journal.add("provider", event, "begin", job.id)
        return getattr(EngineProvider, event)(self, job)

    return method


PROVIDER_EVENTS = (
    "begin_prepare",
    "end_prepare",
    "pre_commit",
    "hold",
    "commit",
    "release",
    "post_commit",
    "pre_final_commit",
    "post_final_commit",
)
for _name in PROVIDER_EVENTS:
    setattr(RecordingProvider, _name, _recorded(_name))


def test_events_come_in_the_documented_order(store: Any, journal: Journal) -> None:
    writers = [ScriptedWriter(journal, level, level=level) for level in LEVELS]
    Requestor(store, writers, RecordingProvider(store, journal)).snapshot()
    order = [(line.writer, line.event) for line in journal.lines() if line.stage == "begin"]
    position = {step: index for index, step in enumerate(order)}
    assert len(position) == len(order), "an event came twice"

    def step(writer_event: str) -> list[tuple[str, str]]:
        return [(level, writer_event) for level in LEVELS]

    def provider(*events: str) -> list[list[tuple[str, str]]]:
        return [[("provider", event)] for event in events]

    stages = [
        step("identify"),
        step("prepare_backup"),
        *provider("begin_prepare"),
        step("prepare_snapshot"),
        *provider("end_prepare"),
        *[[(level, "freeze")] for level in LEVELS],
        *provider("pre_commit", "hold", "commit", "release", "post_commit"),
        *[[(level, "thaw")] for level in reversed(LEVELS)],
        step("post_snapshot"),
        *provider("pre_final_commit", "post_final_commit"),
        step("backup_shutdown"),
    ]
    for earlier, later in itertools.pairwise(stages):
        assert max(position[s] for s in earlier) < min(position[s] for s in later), (earlier, later)
    assert sum(map(len, stages)) == len(order)


def test_writers_of_one_level_freeze_at_the_same_time_and_levels_one_after_another(
    store: Any, journal: Journal
) -> None:
    """Each takes 0.2 s to freeze; three in one level take 0.2 s together, and the next level waits for all."""
    level = [ScriptedWriter(journal, f"front{i}", delays={"freeze": 0.2}) for i in range(3)]
    system = ScriptedWriter(journal, "system", level="system")
    Requestor(store, [system, *level]).snapshot()
    frozen = [journal.freezes(f"front{i}")[0][0] for i in range(3)]
    began = [line.at for line in journal.lines() if (line.event, line.stage) == ("freeze", "begin")]
    assert max(began[:3]) < min(frozen), "they froze one after another"
    assert began[3] > max(frozen), "the system level did not wait"


def test_all_events_of_a_job_come_from_one_thread_of_the_writer(store: Any, journal: Journal) -> None:
    import threading

    seen: set[int] = set()

    class Writer(ScriptedWriter):
        def _do(self, event: str, job: JobView | None) -> Any:
            seen.add(threading.get_ident())
            return super()._do(event, job)

    Requestor(store, [Writer(journal, "w")]).snapshot()
    assert len(seen) == 1
    assert threading.get_ident() not in seen


def test_isolated_writers_live_in_a_process_of_their_own(store: Any, journal: Journal) -> None:
    import os

    Requestor(store, [ScriptedWriter(journal, "w", isolated=True)]).snapshot()
    pids = {line.pid for line in journal.lines("w")}
    assert len(pids) == 1
    assert os.getpid() not in pids


def test_a_writer_takes_part_if_its_volumes_are_in_the_set(store: Any, journal: Journal) -> None:
    concerned = ScriptedWriter(journal, "concerned", volumes=("a",))
    elsewhere = ScriptedWriter(journal, "elsewhere", volumes=("c",))
    everywhere = ScriptedWriter(journal, "everywhere")
    Requestor(store, [concerned, elsewhere, everywhere]).snapshot(["a", "b"])
    assert journal.events("elsewhere") == ["identify"]
    snapshot_events = [event for event in EVENTS if event not in ("backup_complete", "abort")]
    assert journal.events("concerned") == snapshot_events
    assert journal.events("everywhere") == snapshot_events


def test_the_ledger_names_every_writer_and_phase_with_start_duration_limit_and_outcome(
    store: Any, journal: Journal
) -> None:
    slow = ScriptedWriter(journal, "slow", delays={"freeze": 0.1}, level="back-end", freeze_limit=5.0)
    optional = ScriptedWriter(journal, "optional", {"prepare_snapshot": "raise"}, required=False)
    began = time.time()
    taken = Requestor(store, [slow, optional], hold_limit=7.0, event_limit=99.0).snapshot()
    ledger = taken.ledger
    assert ledger is not None
    json.dumps(schema.check(ledger, "freeze-ledger"))
    assert ledger["outcome"] == "ok"
    assert ledger["volumes"] == ["a", "b", "c"]
    assert 0.1 <= ledger["freeze_window_seconds"] < 3.0
    assert 0.0 < ledger["hold_window_seconds"] <= ledger["freeze_window_seconds"]
    found = {(e["name"], e["phase"]): e for e in ledger["entries"]}
    freeze = found["slow", "freeze"]
    assert (freeze["role"], freeze["level"], freeze["required"], freeze["outcome"]) == (
        "writer",
        "back-end",
        True,
        "ok",
    )
    assert 0.1 <= freeze["duration_seconds"] < 3.0
    assert freeze["limit_seconds"] == 5.0
    assert began <= freeze["wall"] <= time.time()
    assert (
        freeze["wall"] - ledger["started"] == freeze["offset_seconds"]
        or abs(freeze["wall"] - ledger["started"] - freeze["offset_seconds"]) < 1e-3
    )
    assert 4.0 < found["engine", "commit"]["limit_seconds"] < 5.0, "what is left of the freeze window"
    assert found["slow", "prepare_backup"]["limit_seconds"] == 99.0
    vetoed = found["optional", "prepare_snapshot"]
    assert (vetoed["outcome"], vetoed["required"]) == ("veto", False)
    assert "scripted veto" in vetoed["message"]
    assert ("slow", "backup_shutdown") in found
    offsets = [entry["offset_seconds"] for entry in ledger["entries"]]
    assert offsets == sorted(offsets)


def test_the_ledger_stays_with_the_set(store: Any, journal: Journal) -> None:
    job = Requestor(store, [ScriptedWriter(journal, "w")]).start_snapshot(name="kept")
    job.wait()
    assert store.get_snapshot_set("kept").ledger == job.ledger


def test_a_rehearsal_freezes_everybody_predicts_the_window_and_makes_no_set(store: Any, journal: Journal) -> None:
    requestor = Requestor(store, [ScriptedWriter(journal, "w", delays={"freeze": 0.1})])
    ledger = requestor.rehearse()
    assert 0.1 <= ledger["predicted_freeze_seconds"] < 3.0
    assert ledger["kind"] == "rehearsal"
    assert store.snapshot_sets() == []
    assert journal.events("w")[-3:] == ["thaw", "abort", "backup_shutdown"]
    requestor.snapshot(name="real")


def test_writer_status_tells_the_last_job_and_forgets_a_failure_with_the_next(store: Any, journal: Journal) -> None:
    import pytest

    from cowengine.errors import WriterVeto

    requestor = Requestor(store, [ScriptedWriter(journal, "w", {"freeze": "raise"}, volumes=("a",))])
    [status] = requestor.writer_status()
    assert (status["name"], status["level"], status["state"], status["last_job"]) == ("w", "front-end", "stable", None)
    assert status["components"][0]["volumes"] == ["a"]
    with pytest.raises(WriterVeto):
        requestor.snapshot()
    [status] = requestor.writer_status()
    assert status["outcome"] == "veto"
    assert "scripted veto" in status["last_error"]
    requestor.snapshot()
    [status] = requestor.writer_status()
    assert (status["outcome"], status["last_error"]) == ("ok", None)


def test_what_events_return_is_refused_if_json_cannot_hold_it(store: Any, journal: Journal) -> None:
    import pytest

    from cowengine.errors import WriterVeto

    for bad in ({"x": object()}, {"x": float("nan")}, {"x": "y" * (2 << 20)}):
        writer = ScriptedWriter(journal, "w", returns={"post_snapshot": bad})
        with pytest.raises(WriterVeto, match="post_snapshot"):
            Requestor(store, [writer]).snapshot()
    assert store.snapshot_sets() == []


def test_writer_status_never_fails_and_says_who_does(store: Any, journal: Journal) -> None:
    faults = [ScriptedWriter(journal, fault, {"identify": fault}) for fault in ("raise", "hang", "die")]
    killed = ScriptedWriter(journal, "killed", {"identify": "die"}, isolated=True)
    fine = ScriptedWriter(journal, "fine", volumes=("a",))
    requestor = Requestor(store, [*faults, killed, fine], event_limit=0.5)
    states = {status["name"]: status["state"] for status in requestor.writer_status()}
    assert states.pop("fine") == "stable"
    assert all("identify" in state for state in states.values()), states
    assert len(states) == 4
