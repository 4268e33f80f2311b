"""Volumes that move from one store to another, by the store's own hand or behind its back."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cowengine import Store, Volume
from cowengine.core.iotable import IOTable
from cowengine.errors import (
    BusyError,
    ClosedError,
    ExistsError,
    FormatError,
    NotFoundError,
    OutOfRangeError,
    ReadOnlyError,
    StorageError,
)

SIZE = 65536
MakeStore = Callable[..., Store]


@pytest.fixture
def two(make_store: MakeStore, tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    """A store with volumes `a` and `b` and a set over them, and another store."""
    first = make_store("a", "b")
    first.open_volume("a").pwrite(b"x" * 512, 0)
    first.snapshot(["a", "b"], "s", metadata={"why": "test"})
    first.open_volume("a").close()
    with Store.create(tmp_path / "second", background=False) as second:
        yield first, second


def test_a_volume_moves_to_another_store_with_its_snapshots_and_back(two: tuple[Store, Store]) -> None:
    first, second = two
    volume = second.attach(first.detach("a"), "moved")
    assert (first.volumes(), second.volumes()) == (["b"], ["moved"])
    assert volume.pread(512, 0) == volume.get_snapshot("s").pread(512, 0) == b"x" * 512
    volume.pwrite(b"y" * 512, 0)
    set_ = second.get_snapshot_set("s")
    assert (set_.id, set_.volumes) == (first.get_snapshot_set("s").id, ["moved"])
    assert set_.snapshots["moved"].metadata == {"why": "test"}
    second.snapshot(["moved"], "t")
    volume.close()
    back = first.attach(second.detach("moved"), "a")
    assert back.pread(512, 0) == b"y" * 512
    assert sorted(first.get_snapshot_set("s").snapshots) == ["a", "b"]
    assert [found.name for found in first.snapshot_sets()] == ["s", "t"]
    assert first.problems == second.problems == []
    for store in two:
        known = [(found.name, found.volumes, sorted(found.snapshots)) for found in store.snapshot_sets()]
        path = store.path
        store.close()
        Store.rebuild(path)
        with Store.open(path) as store:
            assert store.problems == []
            assert store.check().ok
            if store.volumes():
                assert [(f.name, f.volumes, sorted(f.snapshots)) for f in store.snapshot_sets()] == known


def test_the_name_is_the_files_unless_told(two: tuple[Store, Store]) -> None:
    first, second = two
    path = first.detach("a")
    second.create_volume("a", SIZE)
    for name in (None, "a"):
        with pytest.raises(ExistsError, match="already"):
            second.attach(path, name)
    for name in ("", "x/y", "..", "n" * 300):
        with pytest.raises(OutOfRangeError):
            second.attach(path, name)
    assert os.path.exists(path)
    assert first.attach(path).path.endswith("volumes/a.cow")


def test_what_cannot_become_a_volume_of_the_store_stays_where_it_is(two: tuple[Store, Store], tmp_path: Path) -> None:
    first, second = two
    garbage = tmp_path / "garbage.cow"
    garbage.write_bytes(b"garbage" * 2000)
    link = tmp_path / "link.cow"
    path = first.detach("a")
    link.symlink_to(path)
    with pytest.raises(FormatError):
        second.attach(garbage)
    with pytest.raises(FormatError):
        second.attach(link)
    with pytest.raises(FormatError):
        second.attach(tmp_path)
    with pytest.raises(NotFoundError):
        second.attach(tmp_path / "none.cow")
    with Volume.open(path), pytest.raises(BusyError):
        second.attach(path)
    with pytest.raises(BusyError, match="detach it there first"):
        second.attach(first.volume_path("b"))
    with pytest.raises(ExistsError, match="of this store already"):
        first.attach(first.volume_path("b"), "c")
    copy = tmp_path / "copy.cow"
    shutil.copy(path, copy)
    first.attach(path).close()
    with pytest.raises(ExistsError, match="as 'a': a store holds a volume once"):
        first.attach(copy)
    assert garbage.exists()
    assert copy.exists()
    assert second.volumes() == []
    second.close()
    with pytest.raises(ClosedError):
        second.attach(copy)
    with Store.open(second.path, read_only=True) as looking, pytest.raises(ReadOnlyError):
        looking.attach(copy)


def test_another_file_system_is_named_and_nothing_moves(two: tuple[Store, Store]) -> None:
    first, second = two
    path = first.detach("a")
    second.close()

    class Apart(IOTable):
        def rename(self, source: str, target: str) -> None:
            if source == path:
                raise OSError(errno.EXDEV, "Invalid cross-device link")
            super().rename(source, target)

    with Store.open(second.path, io=Apart(), background=False) as apart:
        with pytest.raises(StorageError, match="another file system"):
            apart.attach(path)
        assert apart.volumes() == []
    assert first.attach(path).get_snapshot("s").pread(512, 0) == b"x" * 512


def crashed_copy(store: Store, name: str, target: Path) -> Path:
    """The file of a volume whose store is killed now: its last set is in the store's log only."""
    store.open_volume(name).pwrite(b"z" * 512, 0)
    store.open_volume(name).flush()
    store.snapshot([name], "late")
    shutil.copy(store.volume_path(name), target)
    return target


def test_a_volume_of_a_crashed_store_is_refused_unless_its_sets_may_be_lost(
    two: tuple[Store, Store], tmp_path: Path
) -> None:
    first, second = two
    path = crashed_copy(first, "b", tmp_path / "b.cow")
    with pytest.raises(BusyError, match=first.id):
        second.attach(path)
    assert path.exists()
    by_hand = Path(second.volume_path("hand"))
    shutil.copy(path, by_hand)
    with pytest.raises(BusyError, match=first.id):
        second.open_volume("hand")
    second.close()
    with Store.open(second.path, background=False) as again:
        assert any("'hand'" in text and first.id in text for text in again.problems)
        assert again.volumes() == ["hand"]
        by_hand.unlink()
        volume = again.attach(path, without_store=True)
        assert volume.pread(512, 0) == b"z" * 512
        assert [snapshot.name for snapshot in volume.snapshots()] == ["s"]


def test_a_volume_of_this_store_that_comes_back_gets_what_the_log_still_has_for_it(
    make_store: MakeStore, store_path: str, tmp_path: Path
) -> None:
    store = make_store("a", "b")
    path = crashed_copy(store, "a", tmp_path / "a.cow")
    log = Path(store_path, "store.log").read_bytes()
    store.close()
    Path(store_path, "store.log").write_bytes(log)  # as the kill left it; the volume's file was taken away
    Path(store_path, "volumes", "a.cow").unlink()
    with Store.open(store_path, background=False) as store:
        volume = store.attach(path)
        assert volume.get_snapshot("late").pread(512, 0) == b"z" * 512
        assert sorted(store.get_snapshot_set("late").snapshots) == ["a"]
        assert store.problems == []


def test_a_set_deleted_meanwhile_is_not_resurrected_by_its_volume(two: tuple[Store, Store]) -> None:
    first, _ = two
    path = first.detach("a")
    first.get_snapshot_set("s").delete()
    first.attach(path)
    assert first.snapshot_sets() == []
    assert first.open_volume("a").snapshots() == []


def test_a_file_moved_in_by_hand_is_a_volume_with_its_sets(two: tuple[Store, Store]) -> None:
    first, second = two
    path = first.detach("a")
    second.close()
    os.rename(path, second.volume_path("hand"))
    with Store.open(second.path, background=False) as again:
        assert again.volumes() == ["hand"]
        assert again.get_snapshot_set("s").snapshots["hand"].pread(512, 0) == b"x" * 512
        assert again.problems == []


def test_of_two_copies_the_one_that_the_store_knows_counts(make_store: MakeStore, store_path: str) -> None:
    store = make_store("mail")
    store.open_volume("mail").pwrite(b"x" * 512, 0)
    store.close()
    shutil.copy(store.volume_path("mail"), store.volume_path("a copy"))
    with Store.open(store_path, background=False) as store:
        assert store.open_volume("mail").pread(512, 0) == b"x" * 512
        with pytest.raises(ExistsError, match="copy of volume 'mail'"):
            store.open_volume("a copy")
