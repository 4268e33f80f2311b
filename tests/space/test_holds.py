"""Holds: a held snapshot cannot be given back by anybody, and the hold outlives the process."""

from __future__ import annotations

from pathlib import Path

import pytest

from cowengine import Store, Volume
from cowengine.cli.main import main
from cowengine.errors import BusyError, NotFoundError, OutOfRangeError, ReadOnlyError

SIZE = 1 << 20


def test_a_held_snapshot_cannot_be_deleted_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "v"
    with Volume.create(path, SIZE) as volume:
        volume.pwrite(b"kept", 0)
        snapshot = volume.snapshot("one")
        assert snapshot.hold_reason is None
        snapshot.hold("audit 2026")
        with pytest.raises(BusyError, match="audit 2026"):
            snapshot.delete()
    with Volume.open(path) as volume:
        snapshot = volume.get_snapshot("one")
        assert snapshot.hold_reason == "audit 2026"
        with pytest.raises(BusyError, match="audit 2026"):
            snapshot.delete()
        assert snapshot.pread(4, 0) == b"kept"
        snapshot.release()
        assert snapshot.hold_reason is None
        snapshot.delete()
        with pytest.raises(NotFoundError):
            snapshot.hold("too late")
        assert volume.check().ok


def test_who_holds_for_another_reason_is_refused_and_the_same_reason_changes_nothing(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "v", SIZE) as volume:
        snapshot = volume.snapshot("one")
        snapshot.release()  # not held: without effect
        snapshot.hold("backup 17")
        commits = volume.stats()["commits"]
        snapshot.hold("backup 17")
        assert volume.stats()["commits"] == commits
        with pytest.raises(BusyError, match="backup 17"):
            snapshot.hold("clone")
        assert snapshot.hold_reason == "backup 17"


@pytest.mark.parametrize("reason", ["", "x" * 65, "ü" * 33, "a\0b", "\ud800", 7, None])
def test_what_is_no_reason_is_refused(tmp_path: Path, reason: object) -> None:
    with Volume.create(tmp_path / "v", SIZE) as volume:
        snapshot = volume.snapshot("one")
        with pytest.raises(OutOfRangeError):
            snapshot.hold(reason)  # type: ignore[arg-type]
        snapshot.hold("ü" * 32)
        assert snapshot.hold_reason == "ü" * 32


def test_a_read_only_volume_shows_holds_and_takes_none(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "v", SIZE) as volume:
        volume.snapshot("one").hold("why")
    with Volume.open(tmp_path / "v", read_only=True) as volume:
        assert volume.get_snapshot("one").hold_reason == "why"
        with pytest.raises(ReadOnlyError):
            volume.get_snapshot("one").release()


def test_a_set_with_a_held_member_is_not_deleted_in_part(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store") as store:
        for name in "ab":
            store.create_volume(name, SIZE)
        found = store.snapshot(["a", "b"], "set")
        found.snapshots["b"].hold("audit")
        with pytest.raises(BusyError, match="audit"):
            found.delete()
        assert found.missing == [] and [each.name for each in store.snapshot_sets()] == ["set"]
        found.snapshots["b"].release()
        found.delete()
        assert store.snapshot_sets() == []


def test_the_command_line_holds_and_releases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "v")
    with Volume.create(path, SIZE) as volume:
        volume.snapshot("one")
    target = f"{path}@one"
    assert main(["snapshot", "hold", target, "--reason", "audit"]) == 0
    assert main(["snapshot", "delete", target]) == 5
    assert main(["volume", "delete", path, "--with-snapshots"]) == 5
    assert main(["snapshot", "show", target]) == 0
    out, err = capsys.readouterr()
    assert "audit" in out and "audit" in err
    assert main(["snapshot", "release", target]) == 0
    assert main(["snapshot", "delete", target]) == 0
