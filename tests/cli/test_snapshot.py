"""The verbs of snapshot on real files."""

from __future__ import annotations

import hashlib

import pytest

from cowengine import Volume

MiB = 1 << 20


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "disk.cow"
    with Volume.create(str(path), 2 * MiB + 512) as volume:
        volume.pwrite(b"a" * 8192, 0)
    return path


def overwrite(path, data, offset):
    with Volume.open(str(path)) as volume:
        volume.pwrite(data, offset)


def test_create_list_and_show_agree(run, path):
    made = run("snapshot", "create", f"{path}@monday", "--metadata", "ticket=4711", "--json").document
    run("snapshot", "create", f"{path}@tuesday")
    listed = run("snapshot", "list", path, "--json").document["snapshots"]
    assert [row["name"] for row in listed] == ["monday", "tuesday"]
    assert run("snapshot", "show", f"{path}@monday", "--json").document == listed[0] == made
    assert made["size"] == 2 * MiB + 512
    assert made["metadata"] == {"ticket": "4711"}
    text = run("snapshot", "list", path).out.splitlines()
    assert [line.split()[-1] for line in text] == ["monday", "tuesday"]
    assert "monday" in run("snapshot", "show", f"{path}@monday").out


def test_a_snapshot_is_found_by_its_id(run, path):
    made = run("snapshot", "create", f"{path}@odd@name".replace("odd@name", "odd"), "--json").document
    assert run("snapshot", "show", f"{path}@#{made['id']}", "--json").document == made


@pytest.mark.parametrize("address", ["{}", "{}@", "@monday"])
def test_an_address_without_a_snapshot_exits_with_2(run, path, address):
    assert "VOLUME@NAME" in run("snapshot", "show", address.format(path), expect=2).err


def test_an_unknown_snapshot_exits_with_1(run, path):
    run("snapshot", "show", f"{path}@friday", expect=1)
    run("snapshot", "show", f"{path}@#999", expect=1)


def test_a_duplicate_name_exits_with_1(run, path):
    run("snapshot", "create", f"{path}@monday")
    run("snapshot", "create", f"{path}@monday", expect=1)
    assert len(run("snapshot", "list", path, "--json").document["snapshots"]) == 1


def test_a_hostile_name_is_refused_in_few_words(run, path):
    outcome = run("snapshot", "create", f"{path}@{'x' * 10_000}", expect=2)
    assert len(outcome.err) < 1000
    assert run("snapshot", "list", path).out == ""


def test_cat_writes_the_snapshots_bytes(run, run_process, path, tmp_path):
    run("snapshot", "create", f"{path}@monday")
    overwrite(path, b"b" * 4096, 4096)
    expected = b"a" * 8192 + bytes(2 * MiB + 512 - 8192)
    piped = run_process("snapshot", "cat", f"{path}@monday", "--json")
    assert hashlib.sha256(piped.stdout).digest() == hashlib.sha256(expected).digest()
    assert b'"length": 2097664' in piped.stderr
    run("snapshot", "cat", f"{path}@monday", "--output", tmp_path / "raw")
    assert (tmp_path / "raw").read_bytes() == expected
    part = run_process("snapshot", "cat", f"{path}@monday", "--start", "8190", "--length", "4")
    assert part.stdout == b"aa\0\0"


def test_cat_overwrites_nothing_and_leaves_no_part(run, path, tmp_path):
    run("snapshot", "create", f"{path}@monday")
    (tmp_path / "mine").write_bytes(b"mine")
    run("snapshot", "cat", f"{path}@monday", "--output", tmp_path / "mine", expect=1)
    assert (tmp_path / "mine").read_bytes() == b"mine"
    run("snapshot", "cat", f"{path}@monday", "--start", "4G", "--output", tmp_path / "other", expect=2)
    assert not (tmp_path / "other").exists()


def test_rollback_brings_the_old_bytes_back_and_keeps_the_new(run, path):
    run("snapshot", "create", f"{path}@monday")
    overwrite(path, b"b" * 4096, 0)
    planned = run("snapshot", "rollback", f"{path}@monday", "--dry-run", "--json").document
    assert planned["changed_bytes"] == 4096
    assert planned["kept"] is None
    done = run("snapshot", "rollback", f"{path}@monday", "--json").document
    with Volume.open(str(path)) as volume:
        assert volume.pread(4096, 0) == b"a" * 4096
        assert volume.get_snapshot(done["kept"]["id"]).pread(4096, 0) == b"b" * 4096


def test_delete_removes_only_after_the_dry_run(run, path):
    run("snapshot", "create", f"{path}@monday")
    assert run("snapshot", "delete", f"{path}@monday", "--dry-run", "--json").document["deleted"] is False
    assert "monday" in run("snapshot", "list", path).out
    assert run("snapshot", "delete", f"{path}@monday", "--json").document["deleted"] is True
    assert run("snapshot", "list", path, "--json").document["snapshots"] == []
    run("snapshot", "delete", f"{path}@monday", expect=1)


def test_an_anchor_is_listed_as_one_and_still_answers_what_changed(run, path):
    made = run("snapshot", "create", f"{path}@monday", "--json").document
    overwrite(path, b"b" * 4096, 4096)
    run("snapshot", "anchor", f"{path}@monday", "--dry-run")
    assert not run("snapshot", "show", f"{path}@monday", "--json").document["anchor"]
    shown = run("snapshot", "anchor", f"{path}@monday", "--json").document
    assert shown == {**made, "anchor": True}
    assert run("snapshot", "list", path, "--json").document["snapshots"] == [shown]
    assert "anchor" in run("snapshot", "list", path).out
    for base in ("monday", "#1", made["change_id"]):
        rows = run("volume", "changes", path, "--since", base, "--json").document["extents"]
        assert rows == [{"offset": 4096, "length": 4096}]
    for verb in ("cat", "rollback"):
        assert "anchor" in run("snapshot", verb, f"{path}@monday", expect=1).err
    run("snapshot", "delete", f"{path}@monday")
    assert run("snapshot", "list", path, "--json").document["snapshots"] == []


def test_a_base_that_is_none_exits_with_2_or_3(run, path):
    uuid, epoch, tag = run("snapshot", "create", f"{path}@monday", "--json").document["change_id"].split("/")
    for base in ("a/b", "a/b/c", f"{uuid}/{epoch}/1/2"):
        assert "change id" in run("volume", "changes", path, "--since", base, expect=2).err
    run("volume", "changes", path, "--since", f"{uuid}/99/{tag}", expect=3)


def test_a_clone_is_made_listed_and_deleted(run, path):
    run("snapshot", "create", f"{path}@monday")
    made = run("snapshot", "clone", f"{path}@monday", "trial", "--json").document
    assert (made["head"], made["size"], made["snapshot"]["name"]) == ("trial", 2 * MiB + 512, "monday")
    assert run("volume", "heads", path).out.split() == ["live", "trial"]
    assert "clone 'trial' stands on it" in run("snapshot", "delete", f"{path}@monday", expect=5).err
    assert run("volume", "delete-head", path, "trial", "--dry-run", "--json").document["deleted"] is False
    assert run("volume", "delete-head", path, "trial", "--json").document["deleted"] is True
    assert run("volume", "heads", path, "--json").document["heads"] == [{"name": "live"}]
    run("volume", "delete-head", path, "trial", expect=1)
    run("volume", "delete-head", path, "live", expect=5)
    run("snapshot", "delete", f"{path}@monday")
