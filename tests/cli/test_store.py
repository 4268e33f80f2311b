"""The verbs of store and set, and volumes by STORE:NAME, on a real store."""

from __future__ import annotations

from cowengine import Store

MiB = 1 << 20


def test_create_refuses_what_is_there(run, store):
    run("store", "create", store, expect=1)


def test_info_and_list_show_the_volumes(run, store):
    document = run("store", "info", store, "--json").document
    assert [volume["name"] for volume in document["volumes"]] == ["index", "mail"]
    assert document["size"] == 4 * MiB
    assert document["snapshot_set_count"] == 0
    assert "mail" in run("store", "info", store).out
    listed = run("volume", "list", store, "--json").document["volumes"]
    assert [volume["name"] for volume in listed] == ["index", "mail"]


def test_what_is_no_store_exits_with_1_or_4(run, tmp_path):
    run("store", "info", tmp_path / "none", expect=1)
    (tmp_path / "empty").mkdir()
    assert run("store", "info", tmp_path / "empty", expect=4).out == ""


def test_a_volume_of_a_store_has_every_verb_of_a_volume(run, store):
    address = f"{store}:mail"
    assert run("volume", "info", address, "--json").document["size"] == 2 * MiB
    run("snapshot", "create", f"{address}@monday")
    assert [row["name"] for row in run("snapshot", "list", address, "--json").document["snapshots"]] == ["monday"]
    assert run("volume", "changes", address, "--since", "monday", "--json").document["extents"] == []
    assert run("volume", "check", address, "--json").document["ok"] is True
    run("volume", "delete", address, expect=5)
    run("volume", "delete", address, "--with-snapshots", "--dry-run")
    run("volume", "delete", address, "--with-snapshots")
    run("volume", "info", address, expect=1)
    assert [volume["name"] for volume in run("volume", "list", store, "--json").document["volumes"]] == ["index"]


def test_check_of_a_sound_store_is_ok(run, store):
    assert run("store", "check", store, "--json").document["ok"] is True
    assert "ok" in run("store", "check", store).out


def test_a_set_is_created_listed_shown_and_deleted(run, store):
    made = run("set", "create", store, "monday", "--json").document
    assert sorted(made["volumes"]) == ["index", "mail"]
    assert made["ledger"]["outcome"]
    run("set", "create", store, "tuesday", "mail")
    listed = run("set", "list", store, "--json").document["sets"]
    assert [(row["name"], row["volumes"]) for row in listed] == [("monday", made["volumes"]), ("tuesday", ["mail"])]
    assert "tuesday" in run("set", "list", store).out
    shown = run("set", "show", store, "monday", "--json").document
    assert sorted(shown["snapshots"]) == ["index", "mail"]
    assert run("set", "show", store, made["id"], "--json").document == shown
    assert "freeze window" in run("set", "show", store, "monday").out
    assert run("set", "delete", store, "monday", "--dry-run", "--json").document["deleted"] is False
    assert run("set", "delete", store, "monday", "--json").document["deleted"] is True
    assert [row["name"] for row in run("set", "list", store, "--json").document["sets"]] == ["tuesday"]
    run("set", "show", store, "monday", expect=1)


def test_a_set_over_an_unknown_volume_exits_with_1(run, store):
    run("set", "create", store, "monday", "none", expect=1)
    assert run("set", "list", store, "--json").document["sets"] == []


def test_a_store_with_another_owner_exits_with_5(run_process, store):
    with Store.open(str(store)):
        done = run_process("set", "create", store, "monday")
    assert done.returncode == 5
    assert len(done.stderr.decode().splitlines()) == 1


def test_du_sums_up_the_volumes(run, store):
    with Store.open(store) as opened:
        opened.open_volume("mail").pwrite(b"a" * 8192, 0)
        opened.snapshot(["mail", "index"], "monday")
        opened.open_volume("mail").pwrite(b"b" * 4096, 0)
    document = run("store", "du", store, "--json").document
    assert document["used_bytes"] == 12288
    mail = document["volumes"][1]
    assert (mail["name"], mail["live_bytes"], mail["snapshots_bytes"]) == ("mail", 4096, 4096)
    assert "12.0 KiB" in run("store", "du", store).out


def test_a_volume_moves_from_one_store_to_another(run, store, tmp_path):
    run("snapshot", "create", f"{store}:mail@monday")
    path = run("store", "detach", store, "mail", "--json").document["path"]
    other = tmp_path / "other"
    run("store", "create", other)
    run("store", "attach", other, path, "--name", "post")
    listed = run("snapshot", "list", f"{other}:post", "--json").document["snapshots"]
    assert [row["name"] for row in listed] == ["monday"]
    run("store", "attach", other, path, expect=1)
    run("store", "attach", other, store / "volumes" / "index.cow", expect=5)
    assert [volume["name"] for volume in run("volume", "list", store, "--json").document["volumes"]] == ["index"]


def test_check_rebuilds_the_catalogue_when_asked(run, store):
    run("set", "create", store, "monday")
    result = run("store", "check", store, "--rebuild", "--json")
    assert result.document["counts"] == {"volumes": 2, "sets": 1}
    assert "it was asked for" in result.err
