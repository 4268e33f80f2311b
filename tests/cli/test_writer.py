"""The verbs of writer and provider, with the SQLite writer that cowengine brings."""

from __future__ import annotations

import pytest

from cowengine import Store


@pytest.fixture
def store(run, tmp_path):
    path = tmp_path / "store"
    run("store", "create", path)
    return path


@pytest.fixture
def bank(store):
    """A store with a SQLite database on it."""
    import apsw

    from cowengine.sqlite import VFS

    with Store.open(str(store)) as opened:
        vfs = VFS(opened)
        database = apsw.Connection("bank", vfs=vfs.name)
        database.execute("create table account (id integer primary key, balance integer)")
        database.execute("insert into account values (1, 100)")
        database.close()
    return store


def test_the_shipped_writer_is_listed(run):
    names = [row["name"] for row in run("writer", "list", "--json").document["writers"]]
    assert "sqlite" in names
    assert "sqlite" in run("writer", "list").out.split()


def test_writers_that_need_an_argument_are_listed_as_such(run):
    rows = {row["name"]: row["needs_argument"] for row in run("writer", "list", "--json").document["writers"]}
    assert (rows["sqlite"], rows["hook"]) == (False, True)
    assert "hook=ARGUMENT" in run("writer", "list").out.split()


def test_a_writer_with_an_argument_freezes_for_a_set(run, store, tmp_path):
    folder = tmp_path / "hook.d"
    folder.mkdir(mode=0o755)
    (folder / "10-web").write_text(f"#!/bin/sh\necho $1 >>{tmp_path}/journal\n")
    (folder / "10-web").chmod(0o755)
    run("volume", "create", f"{store}:web", "1MiB")
    run("set", "create", store, "monday", "--writer", f"hook={folder}")
    assert (tmp_path / "journal").read_text().split() == ["freeze", "thaw"]


def test_providers_are_listed(run):
    assert isinstance(run("provider", "list", "--json").document["providers"], list)


def test_the_provider_can_be_chosen(run, bank):
    run("set", "create", bank, "monday", "--provider", "engine")
    assert "nobody" in run("set", "create", bank, "tuesday", "--provider", "nobody", expect=1).err
    assert [row["name"] for row in run("set", "list", bank, "--json").document["sets"]] == ["monday"]


def test_an_unknown_writer_exits_with_1_and_makes_no_set(run, bank):
    assert "nobody" in run("set", "create", bank, "monday", "--writer", "nobody", expect=1).err
    assert run("set", "list", bank, "--json").document["sets"] == []


def test_status_shows_the_writer(run, bank):
    rows = run("writer", "status", bank, "--writer", "sqlite", "--json").document["writers"]
    assert any("bank" in str(row) for row in rows)


def test_rehearse_freezes_and_makes_no_snapshot(run, bank):
    ledger = run("writer", "rehearse", bank, "--writer", "sqlite", "--json").document
    assert {"freeze", "thaw"} <= {entry["phase"] for entry in ledger["entries"]}
    assert ledger["predicted_freeze_seconds"] >= 0
    assert run("set", "list", bank, "--json").document["sets"] == []
    assert "freeze" in run("writer", "rehearse", bank, "--writer", "sqlite").out


def test_a_set_with_a_writer_keeps_its_ledger(run, bank):
    run("set", "create", bank, "monday", "--writer", "sqlite")
    ledger = run("set", "show", bank, "monday", "--json").document["ledger"]
    assert {"freeze", "thaw"} <= {entry["phase"] for entry in ledger["entries"] if entry["role"] == "writer"}
