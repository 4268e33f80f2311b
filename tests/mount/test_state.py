"""Records: what a command that died leaves is found, and what is not a record harms nobody."""

from __future__ import annotations

import json
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from cowengine.mount import sweep
from cowengine.mount.kernel import is_mounted, users_of
from cowengine.mount.state import Record, mounts_folder, new_record, one_at_a_time, records, remove_unrecorded
from cowengine.mounts import all_mounts


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COWENGINE_MOUNTS", str(tmp_path / "mounts"))
    return Path(mounts_folder())


def test_a_record_is_what_was_saved(folder):
    record = new_record(str(folder), "disk.cow", snapshot="monday", directory="/mnt", read_only=True)
    record.begin("server")
    record.begin("fuse")
    (found,) = records(str(folder))
    assert found == record
    assert found.steps == ["server", "fuse"]
    assert Path(found.block_file).stat().st_size == 0


def test_what_is_no_record_is_passed_over(folder):
    good = new_record(str(folder), "disk.cow")
    for name, text in (("one", "{"), ("two", "[1]"), ("three", '"text"'), ("four", "{}")):
        (folder / name).mkdir()
        (folder / name / "record.json").write_text(text)
    (folder / "five").mkdir()
    (folder / "file").write_text("")
    assert [each.id for each in records(str(folder))] == [good.id]
    with one_at_a_time(str(folder)):
        remove_unrecorded(str(folder))
    assert not (folder / "five").exists()
    assert (folder / "one").exists()


def test_a_field_of_a_later_release_is_passed_over(folder):
    made = new_record(str(folder), "disk.cow")
    path = folder / made.id / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "later": 1}))
    assert records(str(folder)) == [made]


def test_the_sweep_takes_what_a_dead_command_left(folder):
    """A record that nobody holds and that is not ready was left half made."""
    held, left = new_record(str(folder), "a"), new_record(str(folder), "b")
    with held.held():
        assert [each.id for each in sweep()] == [left.id]
        assert [each.id for each in records(str(folder))] == [held.id]


def test_what_is_just_being_made_is_not_taken_for_left(folder):
    """Its maker has not taken hold of it yet."""
    swept: list[list[Record]] = []
    sweeping = threading.Thread(target=lambda: swept.append(sweep()))
    with ExitStack() as stack:
        with one_at_a_time(str(folder)):
            made = new_record(str(folder), "a")
            sweeping.start()
            sweeping.join(0.5)  # it waits
            stack.enter_context(made.held())
        sweeping.join()
    assert swept == [[]]
    assert [each.id for each in records(str(folder))] == [made.id]


def test_the_sweep_takes_what_was_before_the_system_started(folder):
    record = new_record(str(folder), "a", directory="/", state="ready")
    record.boot = "another"
    record.save()
    assert [each.id for each in sweep()] == [record.id]
    assert is_mounted("/")  # whose mount it is not


def test_the_sweep_leaves_what_another_table_of_mounts_has(folder):
    record = new_record(str(folder), "a")
    record.namespace = "mnt:[1]"
    record.save()
    assert sweep() == []
    assert [each.id for each in records(str(folder))] == [record.id]


def test_the_kernel_is_asked_who_uses_what(tmp_path):
    assert any(each.point == "/proc" and each.type == "proc" for each in all_mounts())
    assert users_of([], below=str(tmp_path)) == []
    with open(tmp_path / "file", "w"):
        (user,) = users_of([], below=str(tmp_path))
        assert user.startswith("process ")
        assert users_of([str(tmp_path / "file")]) == [user]


def test_a_record_has_the_name_of_its_folder():
    record = Record("/run/cowengine/mounts/12345678", "disk.cow")
    assert (record.id, record.block_file) == ("12345678", "/run/cowengine/mounts/12345678/disk")
