"""Retention: who may write cannot give a retained snapshot back before its date, whatever the system's clock says."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from cowengine import Snapshot, Store, Volume
from cowengine.cli.main import main
from cowengine.engine import retention
from cowengine.errors import BusyError, NotFoundError, OutOfRangeError, ReadOnlyError, RetentionError

SIZE = 1 << 20
DAY = datetime.timedelta(days=1)


def in_days(days: float) -> datetime.datetime:
    return (datetime.datetime.now(datetime.UTC) + days * DAY).replace(microsecond=0)


def ways_to_give_back(snapshot: Snapshot) -> list[Callable[[], object]]:
    return [snapshot.delete, snapshot.to_anchor, snapshot.require_deletable]


def test_a_retained_snapshot_is_not_given_back_also_after_a_reopen(tmp_path: Path) -> None:
    until = in_days(400)
    with Volume.create(tmp_path / "v", SIZE) as volume:
        volume.pwrite(b"kept", 0)
        snapshot = volume.snapshot("one")
        assert snapshot.retain_until is None
        snapshot.retain_until = until
        assert snapshot.retain_until == until
    with Volume.open(tmp_path / "v") as volume:
        snapshot = volume.get_snapshot("one")
        assert snapshot.retain_until == until
        for give_back in ways_to_give_back(snapshot):
            with pytest.raises(RetentionError, match="retained until"):
                give_back()
        volume.rollback(snapshot)
        volume.resize(SIZE // 2)
        assert snapshot.pread(4, 0) == b"kept" and volume.check().ok


def test_a_retention_is_extended_and_never_shortened(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "v", SIZE) as volume:
        snapshot = volume.snapshot("one")
        snapshot.retain_until = in_days(10)
        commits = volume.stats()["commits"]
        snapshot.retain_until = snapshot.retain_until  # the same date: nothing to do
        assert volume.stats()["commits"] == commits
        with pytest.raises(RetentionError, match="never shortened"):
            snapshot.retain_until = in_days(9)
        snapshot.retain_until = until = in_days(11)
        assert snapshot.retain_until == until


def test_what_is_no_date_to_retain_until_is_refused(tmp_path: Path) -> None:
    naive = datetime.datetime(2100, 1, 1)
    late = datetime.datetime(2262, 6, 1, tzinfo=datetime.UTC)
    with Volume.create(tmp_path / "v", SIZE) as volume:
        snapshot = volume.snapshot("one")
        for date in (in_days(-1), naive, late, 7, None, "2100-01-01"):
            with pytest.raises(OutOfRangeError):
                snapshot.retain_until = date  # type: ignore[assignment]
        assert snapshot.retain_until is None
        snapshot.delete()
        with pytest.raises(NotFoundError):
            snapshot.retain_until = in_days(1)


def test_it_ends_at_its_date(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "v", SIZE) as volume:
        snapshot = volume.snapshot("one")
        snapshot.retain_until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=0.3)
        with pytest.raises(RetentionError):
            snapshot.delete()
        time.sleep(0.4)
        snapshot.delete()
        assert volume.snapshots() == []


def test_a_read_only_volume_shows_it_and_changes_nothing(tmp_path: Path) -> None:
    until = in_days(10)
    with Volume.create(tmp_path / "v", SIZE) as volume:
        volume.snapshot("one").retain_until = until
        with Volume.open(tmp_path / "v", read_only=True) as beside:
            assert beside.get_snapshot("one").retain_until == until
    with Volume.open(tmp_path / "v", read_only=True) as volume:
        assert volume.get_snapshot("one").retain_until == until
        with pytest.raises(ReadOnlyError):
            volume.get_snapshot("one").retain_until = in_days(20)
        with pytest.raises(ReadOnlyError):
            volume.accept_clock()


def test_it_is_in_the_log_before_any_checkpoint(tmp_path: Path) -> None:
    until = in_days(10)
    volume = Volume.create(tmp_path / "v", SIZE, background=False)
    snapshot = volume.snapshot("one")
    snapshot.retain_until = until
    shutil.copy(tmp_path / "v", tmp_path / "crashed")
    volume.close()
    with Volume.open(tmp_path / "crashed") as volume:
        assert volume.get_snapshot("one").retain_until == until
        with pytest.raises(RetentionError):
            volume.get_snapshot("one").delete()
        assert volume.check().ok


def test_no_set_no_volume_and_no_policy_gives_it_back(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store") as store:
        for name in "ab":
            store.create_volume(name, SIZE).close()
        found = store.snapshot(["a", "b"], "set")
        found.snapshots["b"].retain_until = in_days(10)
        with pytest.raises(RetentionError):
            found.delete()
        assert found.missing == []
        volume = store.open_volume("b")
        volume.policy(when_full="give-up", snapshot_bytes_max=1)
        for number in range(40):
            volume.pwrite(os.urandom(4096), number * 4096)
        volume.snapshot("two")
        assert "set" in [snapshot.name for snapshot in volume.snapshots()]
        volume.close()
        with pytest.raises(RetentionError):
            store.delete_volume("b")
        assert store.volumes() == ["a", "b"]
        store.delete_volume("a")


def test_a_store_does_not_delete_a_volume_with_a_held_snapshot(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store") as store:
        with store.create_volume("a", SIZE) as volume:
            volume.snapshot("one").hold("audit")
        with pytest.raises(BusyError, match="audit"):
            store.delete_volume("a")
        with store.open_volume("a") as volume:
            volume.get_snapshot("one").release()
        store.delete_volume("a")
        assert store.volumes() == []


class Clocks:
    """The system's clocks as the volume's sees them; moved by the test."""

    def __init__(self) -> None:
        self.system = time.time_ns()
        self.boot = 10**15
        self.boot_id = bytes(15) + b"1"

    def put_into(self, monkeypatch: pytest.MonkeyPatch) -> Clocks:
        monkeypatch.setattr(retention, "_system_ns", lambda: self.system)
        monkeypatch.setattr(retention, "_boot_ns", lambda: self.boot)
        monkeypatch.setattr(retention, "_boot_id", lambda: self.boot_id)
        return self

    def run(self, days: float) -> None:
        self.boot += int(days * 86400 * 10**9)

    def set_ahead(self, days: float) -> None:
        self.system += int(days * 86400 * 10**9)

    def restart(self) -> None:
        self.boot, self.boot_id = 10**9, os.urandom(16)


def is_kept(path: Path) -> bool:
    with Volume.open(path) as volume:
        try:
            volume.get_snapshot("one").require_deletable()
        except RetentionError:
            return True
        return False


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clocks:
    """And a volume with a snapshot that is retained for ten days."""
    clocks = Clocks().put_into(monkeypatch)
    with Volume.create(tmp_path / "v", SIZE) as volume:
        volume.snapshot("one").retain_until = in_days(10)
    return clocks


def test_setting_the_clock_ahead_ends_no_retention(clocks: Clocks, tmp_path: Path) -> None:
    clocks.set_ahead(400)
    assert is_kept(tmp_path / "v")
    clocks.run(11)  # of those it knows
    assert not is_kept(tmp_path / "v")


def test_setting_the_clock_back_neither_ends_nor_lengthens_it(clocks: Clocks, tmp_path: Path) -> None:
    clocks.set_ahead(-400)
    assert is_kept(tmp_path / "v")
    clocks.run(11)
    assert not is_kept(tmp_path / "v")


def test_a_restart_goes_by_the_systems_clock_if_that_is_plausible(clocks: Clocks, tmp_path: Path) -> None:
    clocks.restart()
    clocks.set_ahead(9)
    assert is_kept(tmp_path / "v")
    clocks.restart()
    clocks.set_ahead(2)
    assert not is_kept(tmp_path / "v")


def test_a_restart_with_the_clock_far_ahead_needs_a_persons_word(clocks: Clocks, tmp_path: Path) -> None:
    clocks.restart()
    clocks.set_ahead(400)
    assert is_kept(tmp_path / "v")
    assert is_kept(tmp_path / "v")  # nor does opening it again and again
    with Volume.open(tmp_path / "v") as volume:
        with pytest.raises(RetentionError, match="accept_clock"):
            volume.get_snapshot("one").delete()
        volume.accept_clock()
    clocks.set_ahead(-400)
    assert not is_kept(tmp_path / "v")


def test_a_restart_with_the_clock_set_back_keeps_what_was_seen(clocks: Clocks, tmp_path: Path) -> None:
    clocks.run(9)
    with Volume.open(tmp_path / "v"):
        pass  # and its close tells the time
    clocks.restart()
    clocks.set_ahead(-4000)
    assert is_kept(tmp_path / "v")
    clocks.run(1.5)
    assert not is_kept(tmp_path / "v")


@pytest.mark.needs("faketime")
def test_a_process_with_a_wrong_clock_deletes_nothing(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "v", SIZE) as volume:
        volume.snapshot("one").retain_until = in_days(10)
    delete = [sys.executable, "-P", "-m", "cowengine", "snapshot", "delete", f"{tmp_path / 'v'}@one"]
    environment = {**os.environ, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    wrong = subprocess.run(["faketime", "-f", "+400d", *delete], env=environment, capture_output=True, text=True)
    assert wrong.returncode == 5, wrong.stderr
    assert "retained until" in wrong.stderr and "accept_clock" in wrong.stderr


def test_the_command_line_retains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "v")
    with Volume.create(path, SIZE) as volume:
        volume.snapshot("one")
    year = datetime.datetime.now(datetime.UTC).year + 1
    assert main(["snapshot", "retain", f"{path}@one", "--until", f"{year}-12-31T18:00+01:00"]) == 0
    assert main(["snapshot", "show", f"{path}@one", "--json"]) == 0
    assert f"{year}-12-31T17:00:00" in capsys.readouterr().out
    assert main(["snapshot", "delete", f"{path}@one"]) == 5
    assert main(["volume", "delete", path, "--with-snapshots"]) == 5
    assert main(["snapshot", "retain", f"{path}@one", "--until", "2001-01-01"]) == 5
    assert main(["snapshot", "retain", f"{path}@one", "--until", "next year"]) == 2
    assert main(["volume", "accept-clock", path]) == 0


@pytest.mark.parametrize("boot_id", [None, "no uuid", ""])
def test_a_machine_that_does_not_say_which_boot_this_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot_id: str | None
) -> None:
    """Each process takes it for a boot of its own; the retention holds all the same, here and behind an open."""
    if boot_id is not None:
        (tmp_path / "boot_id").write_text(boot_id)
    monkeypatch.setattr(retention, "BOOT_ID", str(tmp_path / "boot_id"))
    retention._boot_id.cache_clear()
    try:
        first = retention._boot_id()
        assert retention._boot_id() == first
        retention._boot_id.cache_clear()
        assert retention._boot_id() != first
        with Volume.create(tmp_path / "v", SIZE) as volume:
            volume.snapshot("one").retain_until = in_days(10)
        with Volume.open(tmp_path / "v") as volume:
            for give_back in ways_to_give_back(volume.get_snapshot("one")):
                with pytest.raises(RetentionError, match="retained until"):
                    give_back()
    finally:
        retention._boot_id.cache_clear()


def test_only_where_nobody_moves_the_boot_clock_is_the_machine_asked_which_boot_this_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = uuid.uuid4()
    (tmp_path / "boot_id").write_text(f"{told}\n")
    monkeypatch.setattr(retention, "BOOT_ID", str(tmp_path / "boot_id"))
    here, found = os.stat(retention.TIME_NAMESPACE).st_ino, list[bytes]()
    for machines_own in (here, here + 1):
        monkeypatch.setattr(retention, "MACHINES_OWN", machines_own)
        for _ in range(2):
            retention._boot_id.cache_clear()
            found.append(retention._boot_id())
    retention._boot_id.cache_clear()
    assert found[:2] == [told.bytes] * 2
    assert len({*found}) == 3, "elsewhere each process takes it for a boot of its own"
