"""The catalogue is an index: whatever happens to its file, the store knows the same."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cowengine import Store
from cowengine.store.layout import RING_BYTES_MIN

MakeStore = Callable[..., Store]


def knowledge(store: Store) -> dict[str, Any]:
    return {
        "volumes": store.volumes(),
        "sets": [
            (found.id, found.name, found.created, found.volumes, sorted(found.snapshots), found.ledger)
            for found in store.snapshot_sets()
        ],
        "documents": store.documents("policy"),
    }


@pytest.fixture
def filled(make_store: MakeStore, store_path: str) -> tuple[Path, dict[str, Any]]:
    """The path of a closed store, and what it knew."""
    store = make_store("a", "b", "c", log_size=RING_BYTES_MIN)
    for number in range(80):
        set_ = store.snapshot(["a", "b"] if number % 2 else ["c", "a"], f"s{number}")
        if number % 10 == 5:
            store.attach_ledger(set_.id, {"number": number})
    for number in range(0, 80, 7):
        store.get_snapshot_set(f"s{number}").delete()
    store.put_document("policy", "p", {"keep": 1})
    known = knowledge(store)
    store.close()
    return Path(store_path), known


def reopened(path: Path, **options: Any) -> tuple[dict[str, Any], list[str]]:
    with Store.open(path, **options) as store:
        return knowledge(store), store.problems


def test_a_deleted_catalogue_comes_back(filled: tuple[Path, dict[str, Any]]) -> None:
    path, known = filled
    for file in path.glob("catalogue.sqlite*"):
        file.unlink()
    assert reopened(path) == (known, [])
    assert (path / "catalogue.sqlite").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("content", [b"", b"garbage" * 1000, b"SQLite format 3\0" + b"\xff" * 8000])
def test_a_garbage_catalogue_is_replaced(filled: tuple[Path, dict[str, Any]], content: bytes) -> None:
    path, known = filled
    (path / "catalogue.sqlite").write_bytes(content)
    (path / "catalogue.sqlite-wal").write_bytes(content)
    assert reopened(path) == (known, [])
    assert reopened(path) == (known, [])


def test_a_catalogue_damaged_anywhere_is_replaced_or_right(filled: tuple[Path, dict[str, Any]]) -> None:
    path, known = filled
    file = path / "catalogue.sqlite"
    good = file.read_bytes()
    for offset in range(0, len(good), len(good) // 12):
        raw = bytearray(good)
        raw[offset : offset + 512] = b"\xa5" * len(raw[offset : offset + 512])
        file.write_bytes(raw)
        with Store.open(path) as store:
            try:
                assert knowledge(store)["volumes"] == known["volumes"]
            except OSError as error:  # found late: typed, and it says what to do
                assert "catalogue" in str(error)


def test_a_catalogue_of_another_store_is_replaced(filled: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path, known = filled
    with Store.create(tmp_path / "other") as other:
        other.create_volume("x", 65536)
        other.snapshot(["x"], "foreign")
    shutil.copy(tmp_path / "other" / "catalogue.sqlite", path / "catalogue.sqlite")
    assert reopened(path) == (known, [])


def test_a_catalogue_with_other_tables_is_replaced(filled: tuple[Path, dict[str, Any]]) -> None:
    path, known = filled
    with closing(sqlite3.connect(path / "catalogue.sqlite")) as connection:
        connection.execute("CREATE TRIGGER t AFTER INSERT ON sets BEGIN DELETE FROM sets; END")
    assert reopened(path) == (known, [])


def test_an_old_catalogue_catches_up(make_store: MakeStore, store_path: str, tmp_path: Path) -> None:
    """What it lacks is still in the store log, or only in the volumes: that does not show."""
    store = make_store("a", log_size=RING_BYTES_MIN)
    store.snapshot(["a"], "first")
    assert len(store.snapshot_sets()) == 1
    store.close()
    shutil.copy(Path(store_path) / "catalogue.sqlite", tmp_path / "old")
    for sets in (3, 100):
        with Store.open(store_path, background=False) as store:
            for number in range(sets):
                store.snapshot(["a"], f"{sets}-{number}")
            known = knowledge(store)
        shutil.copy(tmp_path / "old", Path(store_path) / "catalogue.sqlite")
        assert reopened(Path(store_path)) == (known, [])


def test_a_running_store_survives_a_catalogue_that_can_no_longer_be_written(
    make_store: MakeStore, store_path: str
) -> None:
    store = make_store("a")
    store.snapshot(["a"], "first")
    assert len(store.snapshot_sets()) == 1
    with closing(sqlite3.connect(Path(store_path) / "catalogue.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # another program holds it: every write of ours fails
        store._catalogue._connection.execute("PRAGMA busy_timeout = 1")
        store.snapshot(["a"], "second")
        assert [found.name for found in store.snapshot_sets()] == ["first", "second"]
        assert any("memory" in text for text in store.problems)
        store.get_snapshot_set("first").delete()
        known = knowledge(store)
        store.close()
    assert reopened(Path(store_path)) == (known, [])


def test_a_catalogue_that_cannot_be_made_is_kept_in_memory(filled: tuple[Path, dict[str, Any]]) -> None:
    path, known = filled
    (path / "catalogue.sqlite").unlink()
    (path / "catalogue.sqlite").mkdir()
    found, problems = reopened(path)
    assert found == known
    assert len(problems) == 1
    assert "memory" in problems[0]


def test_a_symbolic_link_is_not_followed(filled: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path, known = filled
    (tmp_path / "target").write_bytes(b"mine")
    (path / "catalogue.sqlite").unlink()
    (path / "catalogue.sqlite").symlink_to(tmp_path / "target")
    assert reopened(path) == (known, [])
    assert (tmp_path / "target").read_bytes() == b"mine"


def test_a_catalogue_in_memory_knows_the_same(filled: tuple[Path, dict[str, Any]]) -> None:
    path, known = filled
    assert reopened(path, catalogue=":memory:") == (known, [])
    assert reopened(path, read_only=True) == (known, [])
