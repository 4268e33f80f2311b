"""The verbs of volume on real files."""

from __future__ import annotations

import os

import pytest

from cowengine import Snapshot, Store, Volume

MiB = 1 << 20


@pytest.fixture
def path(tmp_path):
    return tmp_path / "disk.cow"


@pytest.fixture
def written(path):
    """A volume with data before and after the snapshot `monday`."""
    with Volume.create(str(path), 4 * MiB) as volume:
        volume.pwrite(b"a" * 8192, 0)
        volume.snapshot("monday")
        volume.pwrite(b"b" * 4096, 4096)
        volume.pwrite(b"c" * 4096, MiB)
        volume.flush()
    return path


def test_create_makes_a_volume_of_the_asked_size_and_block_size(run, path):
    made = run("volume", "create", path, "4M", "--block-size", "64K", "--json").document
    assert made["size"] == 4 * MiB
    assert made["block_size"] == 65536
    shown = run("volume", "info", path, "--json").document
    assert [shown[key] for key in ("size", "block_size", "id")] == [made[key] for key in ("size", "block_size", "id")]
    assert shown["snapshot_count"] == 0
    assert "4.0 MiB" in run("volume", "info", path).out


@pytest.mark.parametrize("size", ["0", "100", "4097"])
def test_create_refuses_a_size_that_cannot_be_with_2(run, path, size):
    run("volume", "create", path, size, expect=2)
    assert not path.exists()


def test_create_refuses_to_overwrite_with_1(run, path):
    path.write_bytes(b"mine")
    outcome = run("volume", "create", path, "1M", "--json", expect=1)
    assert path.read_bytes() == b"mine"
    (line,) = outcome.log
    assert line["error"] == "ExistsError"
    assert line["exit_code"] == 1
    assert outcome.out == ""


def test_info_of_what_is_not_there_exits_with_1_and_names_it(run, path):
    assert str(path) in run("volume", "info", path, expect=1).err


@pytest.mark.parametrize("content", [b"", b"no volume" * 10_000], ids=["empty", "other"])
def test_info_of_what_is_no_volume_exits_with_4(run, path, content):
    path.write_bytes(content)
    run("volume", "info", path, expect=4)
    assert path.read_bytes() == content


def test_map_lists_allocated_extents_of_volume_and_snapshot(run, written):
    live = run("volume", "map", written, "--json").document["extents"]
    assert live == [{"offset": 0, "length": 8192}, {"offset": MiB, "length": 4096}]
    assert run("volume", "map", f"{written}@monday", "--json").document["extents"] == [{"offset": 0, "length": 8192}]
    part = run("volume", "map", written, "--start", "4K", "--length", "4K", "--json").document["extents"]
    assert part == [{"offset": 4096, "length": 4096}]
    assert run("volume", "map", written).out.split()[-2:] == [str(MiB), "4096"]


def test_changes_lists_what_changed_and_can_say_so_by_exit_code(run, written):
    document = run("volume", "changes", written, "--since", "monday", "--json").document
    assert document["extents"] == [{"offset": 4096, "length": 4096}, {"offset": MiB, "length": 4096}]
    run("volume", "changes", written, "--since", "monday", "--exit-code", expect=3)
    run("volume", "changes", written, "--since", "monday", "--until", "monday", "--exit-code", expect=0)


def test_changes_takes_a_change_id(run, written):
    change_id = run("snapshot", "show", f"{written}@monday", "--json").document["change_id"]
    by_name = run("volume", "changes", written, "--since", "monday", "--json").document["extents"]
    assert run("volume", "changes", written, "--since", change_id, "--json").document["extents"] == by_name


def test_changes_of_a_snapshot_larger_than_the_live_volume_are_all_listed(run, written):
    run("snapshot", "create", f"{written}@tuesday")
    run("volume", "resize", written, "64K")
    rows = run("volume", "changes", written, "--since", "monday", "--until", "tuesday", "--json").document["extents"]
    assert rows == [{"offset": 4096, "length": 4096}, {"offset": MiB, "length": 4096}]


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_changes_that_nobody_can_tell_print_no_empty_list(run, written, form):
    with Volume.open(written, read_only=True) as volume:
        unknown = f"{volume.id}/99/{'0' * 16}"
    assert run("volume", "changes", written, "--since", unknown, *form, expect=3).out == ""


def test_changes_since_an_unknown_snapshot_exits_with_1(run, written):
    assert "friday" in run("volume", "changes", written, "--since", "friday", expect=1).err


def test_check_of_a_sound_volume_is_ok(run, written):
    report = run("volume", "check", written, "--json").document
    assert report["ok"] is True
    assert report["problems"] == []
    assert "ok" in run("volume", "check", written).out


def test_check_of_a_damaged_volume_exits_with_4(run, written):
    with written.open("r+b") as file:
        file.write(os.urandom(64 * 1024))
    run("volume", "check", written, expect=4)


def test_resize_changes_the_live_volume_and_no_snapshot(run, written):
    document = run("volume", "resize", written, "512K", "--json").document
    assert (document["size"], document["size_before"]) == (MiB // 2, 4 * MiB)
    assert run("snapshot", "show", f"{written}@monday", "--json").document["size"] == 4 * MiB
    assert "8.0 MiB, was 512.0 KiB" in run("volume", "resize", written, "8M").out
    changed = run("volume", "changes", written, "--since", "monday", "--json").document["extents"]
    assert changed[-1]["offset"] + changed[-1]["length"] == 8 * MiB


@pytest.mark.parametrize("size", ["0", "1000", "2E"])
def test_resize_to_a_size_that_cannot_be_exits_with_2(run, written, size):
    run("volume", "resize", written, size, expect=2)
    assert run("volume", "info", written, "--json").document["size"] == 4 * MiB


def test_delete_refuses_a_volume_with_snapshots_with_5(run, written):
    assert "--with-snapshots" in run("volume", "delete", written, expect=5).err
    assert written.exists()


def test_delete_with_dry_run_deletes_nothing(run, written):
    before = written.read_bytes()
    document = run("volume", "delete", written, "--with-snapshots", "--dry-run", "--json").document
    assert document["deleted"] is False
    assert document["snapshot_count"] == 1
    assert written.read_bytes() == before


def test_delete_removes_the_file(run, written):
    assert run("volume", "delete", written, "--with-snapshots", "--json").document["deleted"] is True
    assert not written.exists()


def test_delete_asks_each_snapshot_once(run, store, monkeypatch):
    """It asked all of them, and then the store asked all of them again."""
    with Store.open(store) as opened, opened.open_volume("mail") as volume:
        volume.snapshot("one")
        volume.snapshot("two").hold("audit")
    asked = []
    require = Snapshot.require_deletable
    monkeypatch.setattr(Snapshot, "require_deletable", lambda self: (asked.append(self.name), require(self)))
    assert "audit" in run("volume", "delete", f"{store}:mail", "--with-snapshots", expect=5).err
    assert asked == ["one", "two"]
    assert "audit" in run("volume", "delete", f"{store}:mail", "--with-snapshots", "--dry-run", expect=5).err
    with Store.open(store) as opened:
        assert opened.volumes() == ["index", "mail"]


def test_delete_of_what_is_no_volume_leaves_it_alone(run, path):
    path.write_bytes(b"mine")
    run("volume", "delete", path, "--with-snapshots", expect=4)
    assert path.read_bytes() == b"mine"


def test_a_volume_that_another_owner_has_open_exits_with_5(run, run_process, written):
    with Volume.open(str(written)):
        assert run_process("snapshot", "create", f"{written}@now").returncode == 5
        run("volume", "delete", written, "--with-snapshots", expect=5)
    assert written.exists()


def test_du_shows_what_each_takes_alone_and_what_they_share(run, written):
    document = run("volume", "du", written, "--json").document
    assert (document["used_bytes"], document["live_bytes"], document["shared_bytes"]) == (16384, 8192, 4096)
    (monday,) = document["snapshots"]
    assert (monday["name"], monday["exclusive_bytes"], monday["freed_by_delete_bytes"]) == ("monday", 4096, 4096)
    text = run("volume", "du", written).out
    assert "16.0 KiB" in text
    assert "monday" in text


def test_compact_moves_what_a_deleted_snapshot_displaced(run, written):
    assert run("volume", "compact", written, "--json").document["moved_bytes"] == 0
    run("snapshot", "delete", f"{written}@monday")
    assert run("volume", "compact", written, "--rate", "100M", "--json").document["moved_bytes"] == 4096
    assert "0 B moved" in run("volume", "compact", written).out
    run("volume", "compact", written, "--rate", "0", expect=2)


def test_seal_and_verify_find_a_damaged_block(run, written):
    document = run("volume", "seal", written, "--rate", "100M", "--json").document
    assert (document["sealed_bytes"], document["snapshots"], document["unsealed_bytes"]) == (8192, 1, 0)
    assert "0 B sealed" in run("volume", "seal", written).out
    snapshot = f"{written}@monday"
    counts = run("snapshot", "verify", snapshot, "--json").document["counts"]
    assert counts == {"blocks": 2, "verified": 2, "unsealed": 0, "damaged": 0}
    with Volume.open(written, read_only=True) as volume:
        slot, _ = volume.engine.path.place(0, volume.engine.lineage.root(volume.get_snapshot("monday").id))
    with open(written, "r+b") as file:
        file.seek(slot * 4096)
        file.write(b"rotten")
    for what in (("snapshot", "verify", snapshot), ("volume", "verify", written)):
        report = run(*what, "--json", expect=4).document
        assert report["counts"]["damaged"] == 1 and f"in slot {slot}, byte {slot * 4096}" in report["problems"][0]
        assert "1 problems" in run(*what, expect=4).out
    run("snapshot", "cat", snapshot, "--output", str(written) + ".raw", expect=4)


def test_policy_shows_and_changes_what_happens_when_space_runs_out(run, written):
    default = {"volume": str(written), "when_full": "fail", "keep_newest": 1, "snapshot_bytes_max": 0}
    assert run("volume", "policy", written, "--json").document.items() >= default.items()
    words = ("--when-full", "give-up", "--keep-newest", "3", "--snapshot-bytes-max", "50G")
    changed = {**default, "when_full": "give-up", "keep_newest": 3, "snapshot_bytes_max": 50 << 30}
    assert run("volume", "policy", written, *words, "--json").document.items() >= changed.items()
    text = run("volume", "policy", written).out
    assert "give-up" in text and "50.0 GiB" in text
    assert "no limit" in run("volume", "policy", written, "--snapshot-bytes-max", "0").out
    with Volume.open(str(written)) as volume:
        assert volume.policy() == ("give-up", 3, 0)


@pytest.mark.parametrize(
    "words", [("--keep-newest", "0"), ("--keep-newest", "x"), ("--when-full", "never"), ("--snapshot-bytes-max", "-1")]
)
def test_what_is_no_policy_exits_with_2(run, written, words):
    run("volume", "policy", written, *words, expect=2)


def test_given_up_lists_what_was_lost(run, written):
    assert run("volume", "given-up", written, "--json").document["given_up"] == []
    with Volume.open(str(written)) as volume:
        change_id = volume.get_snapshot("monday").change_id
        volume.engine.delete(1, give_up=True)
    document = run("volume", "given-up", written, "--json").document
    assert document["snapshots_given_up"] == 1
    (loss,) = document["given_up"]
    assert (loss["id"], loss["name"], loss["change_id"]) == (1, "monday", change_id)
    assert "monday" in run("volume", "given-up", written).out
