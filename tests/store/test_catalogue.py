"""The catalogue is an index: whatever happens to its file, the store knows the same."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cowengine import Store
from cowengine.errors import CorruptionError
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


@pytest.mark.unserved("it looks inside the store")
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


def test_a_flipped_bit_anywhere_is_found_and_all_is_known_again(filled: tuple[Path, dict[str, Any]]) -> None:
    """SQLite has no checksums: it would believe a name or an id that rotted."""
    path, known = filled
    file, seal = path / "catalogue.sqlite", path / "catalogue.sqlite.sum"
    good, sum_ = file.read_bytes(), seal.read_bytes()
    chance = random.Random(1)
    for _ in range(12):
        raw = bytearray(good)
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        file.write_bytes(raw)
        seal.write_bytes(sum_)
        with Store.open(path, background=False) as store:
            assert knowledge(store) == known
            assert store.rebuilt is not None
            assert "damaged" in store.rebuilt.reason


@pytest.mark.parametrize("damage", ["truncated", "zeroed", "random", "without its mark"])
def test_a_damaged_catalogue_is_rebuilt_with_a_warning_and_a_report(
    filled: tuple[Path, dict[str, Any]], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, known = filled
    file = path / "catalogue.sqlite"
    raw = file.read_bytes()
    if damage == "without its mark":  # as after a kill: SQLite's own check has to find it
        (path / "catalogue.sqlite.sum").unlink()
    other = {
        "truncated": raw[: len(raw) // 2],
        "zeroed": bytes(len(raw)),
        "random": random.Random(2).randbytes(len(raw)),
    }
    file.write_bytes(other.get(damage, raw[:4096] + bytes(len(raw) - 4096)))
    with caplog.at_level("WARNING", "cowengine.store"), Store.open(path, background=False) as store:
        assert knowledge(store) == known
        assert store.problems == []
        report = store.rebuilt
    assert report is not None
    assert report.ok
    assert "damaged" in report.reason
    assert report.counts["sets"] == len(known["sets"])
    assert report.counts["documents"] > len(known["documents"])
    assert [record.message for record in caplog.records if "the catalogue was rebuilt" in record.message] != []
    with Store.open(path, background=False) as store:
        assert store.rebuilt is None


def test_an_older_copy_knows_the_volumes_and_documents_of_today(make_store: MakeStore, store_path: str) -> None:
    """They change without a record in the store log, so the log does not say that the copy is old."""
    store = make_store("a", "b", "c")
    store.snapshot(["a", "b"], "s")
    store.put_document("policy", "old", {})
    store.close()
    old = (Path(store_path) / "catalogue.sqlite").read_bytes()
    sum_ = (Path(store_path) / "catalogue.sqlite.sum").read_bytes()
    with Store.open(store_path, background=False) as store:
        store.put_document("policy", "new", {})
        store.delete_document("policy", "old")
        store.rename_volume("c", "d")
        known = knowledge(store)
    (Path(store_path) / "catalogue.sqlite").write_bytes(old)
    (Path(store_path) / "catalogue.sqlite.sum").write_bytes(sum_)
    with Store.open(store_path, background=False) as store:
        assert knowledge(store) == known
        assert set(store._catalogue.volume_names().values()) == {"a", "b", "d"}
        assert store.rebuilt is None


def test_a_catalogue_of_the_same_store_at_another_time_is_replaced(make_store: MakeStore, store_path: str) -> None:
    """Two copies of a store went on differently: as many records, but others."""
    make_store("a").close()
    twin = store_path + "-twin"
    shutil.copytree(store_path, twin)
    for path, name in ((store_path, "mine"), (twin, "its")):
        with Store.open(path, background=False) as store:
            store.snapshot(["a"], name)
    for suffix in ("", ".sum"):
        shutil.copy(f"{twin}/catalogue.sqlite{suffix}", f"{store_path}/catalogue.sqlite{suffix}")
    with Store.open(store_path, background=False) as store:
        assert [found.name for found in store.snapshot_sets()] == ["mine"]
        assert store.rebuilt is not None
        assert "another time" in store.rebuilt.reason
        assert [text for text in store.rebuilt.unknown if "'its'" in text] != []


def test_what_only_the_catalogue_knew_is_named(make_store: MakeStore, store_path: str) -> None:
    store = make_store("a", "b", "c", log_size=RING_BYTES_MIN)
    store.snapshot(["a", "b", "c"], "s")
    store.snapshot(["a", "c"], "t")
    store.open_volume("b").get_snapshot("s").delete()
    store.open_volume("c").close()
    store.delete_volume("c")
    assert sorted(store.get_snapshot_set("s").missing) == ["b", "c"]
    store.close()
    report = Store.rebuild(store_path)
    assert report.reason == "it was asked for"
    assert [text.partition("volume ")[2][:3] for text in report.unknown] == ["'b'", "'c'", "'c'"]
    assert report.counts == {"volumes": 2, "sets": 2, "members": 2, "documents": 0}
    with Store.open(store_path, background=False) as store:
        assert store.get_snapshot_set("s").missing == []
        assert sorted(store.get_snapshot_set("s").snapshots) == ["a"]
        assert store.rebuilt is None
    (Path(store_path) / "catalogue.sqlite").unlink()
    assert Store.rebuild(store_path).unknown == [
        "members of snapshot sets whose volume or snapshot is not there, if there were any"
    ]


def test_a_new_store_has_nothing_to_rebuild(make_store: MakeStore, caplog: pytest.LogCaptureFixture) -> None:
    assert make_store("a").rebuilt is None
    assert caplog.records == []


def test_a_catalogue_that_takes_nothing_in_is_a_typed_error_and_keeps_no_store(
    filled: tuple[Path, dict[str, Any]],
) -> None:
    """What SQLite raised came out as it was, from a copy in memory; and the store log stayed owned by nobody."""
    path, known = filled
    store = Store.open(path)
    store.snapshot(["a"], "new")
    with closing(sqlite3.connect(path / "catalogue.sqlite")) as other:
        other.execute("DROP TABLE sets")
    with pytest.raises(CorruptionError, match="the catalogue is damaged"):
        store.snapshot_sets()
    with pytest.raises(CorruptionError, match="the catalogue is damaged"):
        store.close()
    again, problems = reopened(path)
    assert problems == []
    assert [found[1] for found in again["sets"]] == [*(found[1] for found in known["sets"]), "new"]
