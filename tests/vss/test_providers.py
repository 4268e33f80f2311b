"""Providers: chosen per volume, required by naming them, refusing, failing; and several in one set."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from scripted_writers import Journal, ScriptedWriter

from cowengine.errors import ExistsError, NotFoundError, OutOfRangeError, ProviderError
from cowengine.vss import EngineProvider, JobView, Provider, Requestor, provider_names, writer_names


@dataclass
class ArrayProvider(Provider):
    """A provider that makes its snapshots elsewhere: in a list of names."""

    name: str = "array"
    can_hold: bool = True
    steps: list[str] = field(default_factory=list)
    made: list[Any] = field(default_factory=list)
    refuses: str = ""
    fails: str = ""

    def _step(self, event: str, job: JobView) -> None:
        self.steps.append(f"{self.name} {event} {'+'.join(job.volumes)}")
        if self.fails == event:
            raise OSError(5, "the array does not answer")

    def is_volume_supported(self, job: JobView, volume: str) -> bool:
        return volume != self.refuses

    def hold(self, job: JobView) -> None:
        self._step("hold", job)

    def commit(self, job: JobView) -> Any:
        self._step("commit", job)
        snapshots = {volume: f"{self.name}:{volume}" for volume in job.volumes}
        made = SimpleNamespace(id=self.name, name=job.set_name, created=0, snapshots=snapshots)
        self.made.append(made)
        return made

    def release(self, job: JobView) -> None:
        self._step("release", job)

    def abort(self, job: JobView) -> None:
        self._step("abort", job)

    def delete(self, job: JobView) -> None:
        self.made.remove(job.snapshot_set)


def test_a_provider_that_refuses_a_volume_fails_the_set_before_any_writer_is_disturbed(
    store: Any, journal: Journal
) -> None:
    writer = ScriptedWriter(journal, "w")
    with pytest.raises(ProviderError, match="'array' does not support volume 'b'"):
        Requestor(store, [writer], ArrayProvider(refuses="b")).snapshot()
    assert journal.events("w") == ["identify"]


def test_the_provider_is_chosen_per_volume(store: Any) -> None:
    array = ArrayProvider()
    requestor = Requestor(store, provider={"c": array})
    assert requestor.snapshot(["c"]).snapshots == {"c": "array:c"}
    taken = requestor.snapshot(["a", "b"], "engine's")
    assert store.snapshot_sets() == [taken]


def test_several_providers_hold_all_before_any_commits(store: Any) -> None:
    steps: list[str] = []
    one, two = ArrayProvider("one", steps=steps), ArrayProvider("two", steps=steps)
    taken = Requestor(store, provider={"a": one, "b": two, "c": one}).snapshot()
    assert steps == ["one hold a+c", "two hold b", "one commit a+c", "two commit b", "one release a+c", "two release b"]
    assert taken.snapshots == {"a": "one:a", "c": "one:c", "b": "two:b"}
    taken.delete()
    assert one.made == two.made == []


def test_a_mixed_set_is_refused_if_one_provider_cannot_hold(store: Any) -> None:
    """The engine's fence holds nobody, so a set with another provider would not be one instant."""
    with pytest.raises(ProviderError, match="engine cannot: make one set for each provider"):
        Requestor(store, provider={"c": ArrayProvider()}).snapshot()
    assert store.snapshot_sets() == []


@pytest.mark.parametrize("event", ["hold", "commit"])
def test_if_one_of_several_providers_fails_the_others_are_undone(store: Any, journal: Journal, event: str) -> None:
    steps: list[str] = []
    one, two = ArrayProvider("one", steps=steps), ArrayProvider("two", steps=steps, fails=event)
    writer = ScriptedWriter(journal, "w")
    with pytest.raises(ProviderError, match="does not answer"):
        Requestor(store, [writer], {"a": one, "b": two}).snapshot(["a", "b"])
    assert one.made == two.made == []
    assert {"one release a", "two release b", "one abort a", "two abort b"} <= set(steps)
    assert journal.freezes("w")[0][1] is not None


def test_a_provider_may_raise_anything_anywhere(store: Any, journal: Journal) -> None:
    class Odd(EngineProvider):
        event = ""

        def _maybe(self, event: str) -> None:
            if event == self.event:
                raise SystemExit(1)

        def pre_commit(self, job: JobView) -> None:
            self._maybe("pre_commit")

        def post_commit(self, job: JobView) -> None:
            self._maybe("post_commit")

        def pre_final_commit(self, job: JobView) -> None:
            self._maybe("pre_final_commit")

        def keep_ledger(self, job: JobView, ledger: dict[str, Any]) -> None:
            self._maybe("keep_ledger")

        def abort(self, job: JobView) -> None:
            super().abort(job)
            raise ValueError("nor can it abort")

    for event in ("pre_commit", "post_commit", "pre_final_commit", "keep_ledger"):
        provider = Odd(store)
        provider.event = event
        writer = ScriptedWriter(journal, f"w-{event}")
        with pytest.raises(ProviderError, match=event):
            Requestor(store, [writer], provider).snapshot(name="odd")
        assert store.snapshot_sets() == []
        assert journal.freezes(writer.name)[0][1] is not None
        assert journal.events(writer.name)[-1] == "backup_shutdown"


def test_a_providers_own_typed_error_goes_through(store: Any, journal: Journal) -> None:
    requestor = Requestor(store, [ScriptedWriter(journal, "w")])
    requestor.snapshot(name="taken")
    with pytest.raises(ExistsError):
        requestor.snapshot(name="taken")
    assert [taken.name for taken in store.snapshot_sets()] == ["taken"]


def test_bad_arguments_are_refused_before_anything_happens(store: Any, journal: Journal) -> None:
    requestor = Requestor(store, [ScriptedWriter(journal, "w")])
    with pytest.raises(NotFoundError, match="'nowhere'"):
        requestor.snapshot(["a", "nowhere"])
    with pytest.raises(OutOfRangeError, match="list of names"):
        requestor.snapshot("a")
    with pytest.raises(OutOfRangeError, match="at least one"):
        requestor.snapshot([])
    with pytest.raises(OutOfRangeError, match="Provider or a name"):
        Requestor(store, provider={"a": 7}).snapshot()  # type: ignore[dict-item]
    with pytest.raises(NotFoundError, match=r"cowengine\.providers"):
        Requestor(store, provider="no such provider").snapshot()
    with pytest.raises(NotFoundError, match=r"cowengine\.writers"):
        Requestor(store, ["no such writer"])
    with pytest.raises(OutOfRangeError, match="two writers are named 'w'"):
        Requestor(store, [ScriptedWriter(journal, "w"), ScriptedWriter(journal, "w")])
    for bad in ({"name": ""}, {"name": "x" * 300}, {"name": "a\nb"}, {"level": "middle"}):
        with pytest.raises(OutOfRangeError):
            Requestor(store, [ScriptedWriter(journal, **{"name": "w", **bad})])
    with pytest.raises(OutOfRangeError, match="no Writer"):
        Requestor(store, [object()])  # type: ignore[list-item]
    assert journal.lines() == []


def test_a_writer_that_says_something_else_at_identify_is_refused(store: Any, journal: Journal) -> None:
    from cowengine.errors import WriterVeto
    from cowengine.vss import Component, Writer, WriterMetadata

    class Odd(Writer):
        name = "odd"
        answer: Any = None

        def identify(self) -> WriterMetadata:
            return self.answer  # type: ignore[no-any-return]

    for answer in (None, {"writer": "odd"}, WriterMetadata("odd", [Component("", ["a"])]), WriterMetadata("", [])):
        writer = Odd()
        writer.answer = answer
        with pytest.raises(WriterVeto, match="identify"):
            Requestor(store, [writer]).snapshot()
    half = ScriptedWriter(journal, "half", volumes=("a", "c"))
    with pytest.raises(WriterVeto, match=r"also needs the volumes \['c'\]"):
        Requestor(store, [half]).snapshot(["a", "b"])


def test_an_isolated_writer_that_cannot_travel_is_a_typed_error(store: Any, journal: Journal) -> None:
    from cowengine.errors import WriterVeto

    stuck = ScriptedWriter(journal, "stuck", isolated=True)
    stuck.delays = {"x": lambda: None}  # type: ignore[dict-item]
    with pytest.raises(WriterVeto, match="cannot be pickled"):
        Requestor(store, [stuck]).snapshot()

    class Local(ScriptedWriter):
        """Its class cannot be imported by another process."""

    with pytest.raises(WriterVeto, match="Local"):
        Requestor(store, [Local(journal, "local", isolated=True)]).snapshot()


def test_installed_writers_and_providers_are_found_by_name(
    store: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A distribution on the path, as a third party would install it; imported only when it is asked for."""
    (tmp_path / "thirdparty.py").write_text(
        "from cowengine.vss import EngineProvider, Writer, WriterMetadata\n"
        "class W(Writer):\n"
        "    name = 'theirs'\n"
        "    def identify(self): return WriterMetadata('theirs')\n"
        "class P(EngineProvider): name = 'their-provider'\n"
        "def writers(store): return [W()]\n"
        "def wrong(store): return 7\n"
        "def broken(store): raise KeyError('x')\n"
    )
    folder = tmp_path / "thirdparty-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: thirdparty\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        "[cowengine.writers]\ntheirs = thirdparty:writers\nwrong = thirdparty:wrong\nbroken = thirdparty:broken\n"
        "[cowengine.providers]\ntheirs = thirdparty:P\nwrong = thirdparty:wrong\nbroken = thirdparty:broken\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import sys

    from cowengine.errors import WriterError

    assert {"theirs", "wrong", "broken"} <= set(writer_names())
    assert provider_names()[0] == "engine"
    assert "thirdparty" not in sys.modules
    taken = Requestor(store, ["theirs"], "theirs").snapshot()
    assert taken.ledger is not None
    assert {"theirs", "their-provider"} == {entry["name"] for entry in taken.ledger["entries"]}
    for name in ("wrong", "broken"):
        with pytest.raises(WriterError, match=name):
            Requestor(store, [name])
        with pytest.raises(ProviderError, match=name):
            Requestor(store, provider=name).snapshot()
