"""The frame of the benchmarks: turns, ratios, who is left out, and what the table and the page say of it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import race as racing
from page import page
from race import Budget, Lane, Race
from result import Line, quantity, tenths
from subjects.field import Field, all_subjects, started
from subjects.raw_file import RawFile
from subjects.subject import Disk, NotOffered, Subject
from table import cowengine_table, peers_table
from workload import MiB, Workload


class Clock:
    """Time that passes only where a lane says so."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(racing, "time", made)
    monkeypatch.setattr(racing.os, "sync", lambda: None)
    return made


def new_race(seconds=1e9, field=None):
    benchmark = SimpleNamespace(pedantic=lambda run: run(), stats=None, extra_info={})
    return Race(benchmark, field or Field(), Workload("a test"), Budget(seconds, seconds / 2, least=5), [])


def taking(clock, seconds, log=None, name=""):
    def run() -> None:
        clock.now += seconds
        if log is not None:
            log.append(name)

    return Lane(run)


def test_every_entry_has_its_neighbour_and_the_order_rotates(clock):
    log = []
    race = new_race()
    race.against(taking(clock, 1.0, log, "raw"))
    for name in "abc":
        race.enter_lane(taking(clock, 1.0, log, name), name)
    race.run("", "turns", rounds=3)
    rounds = ["".join(log[start : start + 6]) for start in range(0, len(log), 6)]
    assert rounds[1:] == ["arawbrawcraw", "rawbrawcrawa", "crawarawbraw"]  # the first one warmed up


def test_a_ratio_is_the_median_of_pairs_and_of_rates_upside_down(clock):
    slow = iter([9.0] + [2.0, 3.0, 50.0] * 10)
    race = new_race()

    def run() -> None:
        clock.now += next(slow)

    race.against(taking(clock, 2.0))
    race.enter_lane(Lane(run, operations=2), goal=0.7)
    race.run("7", "writes", rounds=20)
    (line,) = race.lines
    assert (line.value, line.base, line.ratio, line.low, line.high) == (1.5, 2.0, 0.75, 0.5, 12.5)
    assert line.missed and line.goal_text == "≤ 0.7 MISSED"
    faster = Line("8", "writes", "", "cowengine", 1.5, base=2.0, ratio=2.0 / 1.5, rate=True, goal=0.95)
    assert not faster.missed and faster.goal_text == "≥ 0.95"


def test_who_uses_up_his_time_sits_out_but_has_some_rounds(clock):
    race = new_race(10.0)
    race.against(taking(clock, 0.001))
    race.enter_lane(taking(clock, 0.001), "quick")
    race.enter_lane(taking(clock, 100.0), "very slow")
    for subject in "cowengine", "a peer":
        race.enter_lane(taking(clock, 0.5), "slow", subject=subject)
    race.run("", "time", rounds=100)
    assert [len(entry.pairs) for entry in race.entries] == [100, 5, 19, 9]


def test_what_is_durable_faster_than_a_barrier_is_told(clock, monkeypatch):
    monkeypatch.setattr(Race, "_barrier", lambda self: taking(clock, 1.0))
    race = new_race()
    race.against(taking(clock, 1.0))
    race.enter_lane(taking(clock, 0.69), "too fast")
    race.enter_lane(taking(clock, 0.71), "fast")
    race.run("1", "snapshot", rounds=10, durable=True)
    assert [line.note[:5] for line in race.lines] == ["BELOW", ""]


class Poor(Subject):
    """Offers nothing, or fails."""

    settings = "none"

    def __init__(self, name: str, error: Exception | None, missing: str = "") -> None:
        self.name, self.error, self.missing = name, error, missing

    def why_missing(self) -> str:
        return self.missing

    @contextmanager
    def running(self, folder):
        if self.name == "broken":
            raise OSError("no daemon")
        yield

    def create(self, folder, name, size):
        if self.error is not None:
            raise self.error
        return PoorDisk()


class PoorDisk(Disk):
    def close(self) -> None:
        """Nothing."""


def test_what_is_not_offered_is_a_dash_with_its_reason_and_who_is_missing_is_named(clock, tmp_path, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    subjects = [
        RawFile(), Poor("poor", None), Poor("failing", OSError("disk full")),
        Poor("absent", None, "apt install it"), Poor("broken", None),
    ]  # fmt: skip
    with started(subjects, tmp_path, at_once=False) as field:
        assert field.missing == {"absent": "apt install it", "broken": "it did not start: no daemon"}
        race = new_race(field=field)
        with race.disks:
            race.against(lambda raw, workload: Lane(lambda: raw.pwrite(b"x", 0)), 4096)
            race.enter(lambda disk, workload: Lane(lambda: disk.snapshot("s")), 4096, among=race.racers()[1:])
            race.run("1", "snapshot", rounds=3)
    lines = race.lines
    assert [line.note for line in lines] == ["it has no snapshots", "failed: OSError('disk full')"]
    assert any("poor, snapshot: it has no snapshots" in row for row in peers_table(lines))
    assert cowengine_table(lines)[2:] == []
    monkeypatch.setenv("CI", "true")
    with pytest.raises(OSError, match="disk full"):
        racing.why(OSError("disk full"), "failing")


def test_a_peer_that_is_ahead_is_told():
    own = Line("1", "snapshot", "", "cowengine", 2.0, base=1.0, ratio=2.0, low=1.9, high=2.1)
    peer = Line("1", "snapshot", "", "peer", 1.5, base=1.0, ratio=1.5, low=1.4, high=1.6)
    assert peers_table([own, peer])[-1] == "BEHIND in 1 snapshot: peer has 1.50, cowengine 2.00"
    assert not any("BEHIND" in row for row in peers_table([peer, Line(**{**vars(own), "ratio": 1.0})]))


def test_subjects_keep_the_contract_that_rows_count_on(tmp_path):
    """Bytes come back, a snapshot keeps its own, what differs is listed; nothing stays behind."""
    with started([each for each in all_subjects() if not each.why_missing()], tmp_path, at_once=True) as field:
        for subject in field.running:
            folder = field.folders[subject.name]
            before = set(os.listdir(folder))
            disk = subject.create(folder, "contract", 8 * MiB)
            keep_the_contract(disk)
            disk.close()
            assert set(os.listdir(folder)) == before, subject.name


def keep_the_contract(disk):
    buffer = bytearray(4096)
    for offset in range(0, 8 * MiB, MiB):
        disk.pwrite(b"a" * MiB, offset)
    disk.flush()
    try:
        disk.snapshot("one")
        disk.pwrite(b"b" * 4096, 4 * MiB)
        disk.snapshot("two")
    except NotOffered:
        return
    for name, expected in ("one", b"a"), ("two", b"b"):
        try:
            view = disk.open_snapshot(name)
        except NotOffered:
            continue
        view.pread_into(buffer, 4 * MiB)
        view.close()
        assert bytes(buffer) == expected * 4096
    disk.pread_into(buffer, 4 * MiB)
    assert bytes(buffer) == b"b" * 4096
    for act, expected in (lambda: disk.changed("one", "two"), 1), (lambda: disk.delete("one"), None):
        try:
            assert act() == expected
        except NotOffered:
            continue


class Loads(HTMLParser):
    """Notes everything in a page that would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.fetched = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href", "data", "srcset")]


def test_the_page_of_a_run_loads_nothing_and_says_what_is_missing():
    lines = [
        Line("1", "snapshot", f"{size} MiB", "cowengine", 2e-4, "s", 1e-4, 2.0, 1.9, 2.1, False, 1.15, "",
             {"volume size": size * MiB}) for size in (1, 64)
    ]  # fmt: skip
    lines += [Line("2", "snap & <write>", "", "peer", note="it has none")]
    document = {
        "benchmarks": [
            {"extra_info": {"lines": [vars(line) for line in lines], "rounds": {"cowengine": [[1e-4, 2e-4]] * 50}}}
        ],
        "machine_info": {"machine": "m", "cpu_count": 2, "release": "6", "file_system": "ext4", "python_version": "3"},
        "commit_info": {"id": "0123456789abcdef", "dirty": False},
        "datetime": "2026-01-01T00:00:00", "quick": False, "seed": 1, "subjects": {"cowengine": "here"},
        "missing": {"absent": "apt install absent"},
    }  # fmt: skip
    made = page(document)
    loads = Loads()
    loads.feed(made)
    assert loads.fetched == [] and "script" not in loads.tags and "link" not in loads.tags
    assert loads.tags.count("svg") == 2
    assert "Missing: apt install absent" in made and "snap &amp; &lt;write&gt;: it has none" in made
    assert "≤ 1.15 MISSED" in made


def test_numbers_are_spelt_with_fitting_units():
    assert [quantity(value, "s") for value in (2.0, 2e-3, 2e-6, 2e-9)] == ["2.00 s", "2.00 ms", "2.00 µs", "2 ns"]
    assert [quantity(value, "bytes") for value in (63.5, 12345.6)] == ["63.5 bytes", "12,346 bytes"]
    assert tenths(list(range(11))) == (1, 5, 9)
