"""V2 to V4: the coordinator's own clock. Nothing outlasts its limit, and what comes too late is undone."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from scripted_writers import Journal, ScriptedWriter

from cowengine.errors import OutOfRangeError, ProviderError, WriterTimeout
from cowengine.vss import EngineProvider, JobView, Provider, Requestor

SLACK = 0.8  # how much later than its limit the coordinator may come on a machine that is busy


class SlowProvider(EngineProvider):
    """The engine, with a pause before or after one event."""

    def __init__(self, store: Any, event: str, seconds: float, *, after: bool = False) -> None:
        super().__init__(store)
        self._event, self._seconds, self._after = event, seconds, after

    def _run(self, event: str, job: JobView) -> Any:
        if event == self._event and not self._after:
            time.sleep(self._seconds)
        result = getattr(EngineProvider, event)(self, job)
        if event == self._event and self._after:
            time.sleep(self._seconds)
        return result

    def hold(self, job: JobView) -> None:
        self._run("hold", job)

    def pre_commit(self, job: JobView) -> None:
        self._run("pre_commit", job)

    def commit(self, job: JobView) -> Any:
        return self._run("commit", job)


@pytest.mark.parametrize(("event", "after"), [("hold", False), ("commit", False), ("commit", True)])
def test_past_the_hold_limit_there_is_no_set_and_nobody_frozen(
    store: Any, journal: Journal, event: str, after: bool
) -> None:
    """V3: also when the commit went through, but too late."""
    writer = ScriptedWriter(journal, "w")
    provider = SlowProvider(store, event, 1.2, after=after)
    job = Requestor(store, [writer], provider, hold_limit=0.2).start_snapshot(name="late")
    with pytest.raises(ProviderError, match=r"hold limit.* 0\.(1\d+|2) s"):
        job.wait(20)
    assert store.snapshot_sets() == []
    [(frozen_at, thawed_at)] = journal.freezes("w")
    assert thawed_at is not None
    assert thawed_at - frozen_at < 0.2 + SLACK, "the thaw waited for the slow provider"
    commit = next(e for e in job.ledger["entries"] if e["phase"] == "commit")
    assert (commit["outcome"], commit["limit_seconds"]) == ("timeout", 0.2)
    Requestor(store, [writer]).snapshot(name="late")


@pytest.mark.parametrize("event", ["pre_commit", "commit"])
def test_a_provider_is_held_to_the_writers_freeze_limit_as_well(store: Any, journal: Journal, event: str) -> None:
    """V2: the window is one; the hold limit alone would have allowed it."""
    writer = ScriptedWriter(journal, "w", freeze_limit=0.3)
    with pytest.raises(ProviderError):
        Requestor(store, [writer], SlowProvider(store, event, 1.5), hold_limit=10.0).snapshot()
    assert store.snapshot_sets() == []
    [(frozen_at, thawed_at)] = journal.freezes("w")
    assert thawed_at is not None
    assert thawed_at - frozen_at < 0.3 + SLACK


def test_the_freeze_limit_spans_the_window_and_not_each_writer_alone(store: Any, journal: Journal) -> None:
    """Each freeze keeps within the limit, but the first one would stand still for the sum of them."""
    writers = [
        ScriptedWriter(journal, level, level=level, delays={"freeze": 0.3}, freeze_limit=0.5)
        for level in ("front-end", "back-end", "system")
    ]
    with pytest.raises(WriterTimeout):
        Requestor(store, writers).snapshot()
    for writer in writers:
        for frozen_at, thawed_at in journal.freezes(writer.name):
            assert thawed_at is not None
            assert thawed_at - frozen_at < 0.5 + SLACK


def test_the_lower_of_the_writers_and_the_requestors_limit_counts(store: Any, journal: Journal) -> None:
    for own, requestors in ((60.0, 0.2), (0.2, 60.0)):
        writer = ScriptedWriter(journal, f"w{own:.0f}", {"freeze": "hang"}, freeze_limit=own)
        with pytest.raises(WriterTimeout, match=r"within 0\.(1\d+|2) s"):
            Requestor(store, [writer], freeze_limit=requestors).snapshot()


def test_an_optional_writer_that_hangs_leaves_the_others_time_to_finish(store: Any, journal: Journal) -> None:
    """V4: it may use half of what is left, so the required one is done within its own limit."""
    required = ScriptedWriter(journal, "required", freeze_limit=2.0)
    optional = ScriptedWriter(journal, "optional", {"freeze": "hang"}, required=False, level="back-end")
    taken = Requestor(store, [required, optional]).snapshot()
    assert store.snapshot_sets() == [taken]
    [(frozen_at, thawed_at)] = journal.freezes("required")
    assert thawed_at is not None
    assert 0.9 < thawed_at - frozen_at < 2.0


def test_an_optional_writer_whose_own_limit_passes_is_thawed_then_and_left_out(store: Any, journal: Journal) -> None:
    required = ScriptedWriter(journal, "required")
    optional = ScriptedWriter(journal, "optional", required=False, freeze_limit=0.2)
    Requestor(store, [required, optional], SlowProvider(store, "pre_commit", 1.2)).snapshot()
    [(frozen_at, thawed_at)] = journal.freezes("optional")
    assert thawed_at is not None
    assert thawed_at - frozen_at < 0.2 + SLACK
    assert "post_snapshot" not in journal.events("optional")
    assert "abort" in journal.events("optional")
    assert "post_snapshot" in journal.events("required")


def test_a_writer_that_is_slow_but_in_time_is_no_failure(store: Any, journal: Journal) -> None:
    slow = ScriptedWriter(journal, "slow", delays={"freeze": 0.2, "thaw": 0.2, "prepare_snapshot": 0.3})
    Requestor(store, [slow], freeze_limit=3.0, event_limit=3.0).snapshot()
    assert len(store.snapshot_sets()) == 1


def test_a_holding_provider_that_hangs_in_commit_is_released_from_outside(store: Any, journal: Journal) -> None:
    released = threading.Event()
    let_go = threading.Event()

    class Holding(Provider):
        name = "holding"
        can_hold = True

        def is_volume_supported(self, job: JobView, volume: str) -> bool:
            return True

        def commit(self, job: JobView) -> Any:
            let_go.wait(20)

        def delete(self, job: JobView) -> None:
            raise AssertionError("nothing was committed")

        def release(self, job: JobView) -> None:
            released.set()

    try:
        began = time.monotonic()
        with pytest.raises(ProviderError):
            Requestor(store, [], Holding(), hold_limit=0.2, abort_limit=0.3).snapshot()
        assert released.is_set(), "writes stay held for as long as the provider hangs"
        assert time.monotonic() - began < 0.2 + 2 * 0.3 + SLACK
    finally:
        let_go.set()


@pytest.mark.parametrize("limit", [0, -1.0, float("inf"), float("nan")])
def test_limits_that_cannot_be_are_refused(store: Any, journal: Journal, limit: float) -> None:
    for name in ("freeze_limit", "hold_limit", "event_limit", "abort_limit"):
        with pytest.raises(OutOfRangeError, match=name):
            Requestor(store, **{name: limit})
    with pytest.raises(OutOfRangeError, match="freeze_limit"):
        Requestor(store, [ScriptedWriter(journal, "w", freeze_limit=limit)])
