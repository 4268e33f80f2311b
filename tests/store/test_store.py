"""A store as a directory of volumes: one owner, names, making and removing volumes, what stands in the way."""

from __future__ import annotations

import errno
import gc
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cowengine import Store, Volume, connect
from cowengine.core.iotable import IOTable
from cowengine.errors import (
    BusyError,
    ClosedError,
    CowEngineError,
    ExistsError,
    FormatError,
    NoSpaceError,
    NotFoundError,
    OutOfRangeError,
    ReadOnlyError,
)

MakeStore = Callable[..., Store]
SIZE = 1024 * 1024


def test_volumes_and_their_bytes_come_back(make_store: MakeStore, store_path: str) -> None:
    store = make_store("b", "a", "Übung 1")
    store.open_volume("a").pwrite(b"x" * 4096, 8192)
    store.close()
    with Store.open(store_path) as store:
        assert store.volumes() == ["a", "b", "Übung 1"]
        assert store.open_volume("a").pread(4096, 8192) == b"x" * 4096
        assert store.open_volume("a").size == SIZE
        assert store.problems == []
        assert store.check().ok


def test_directory_and_files_are_private(make_store: MakeStore, store_path: str) -> None:
    make_store("a").close()
    assert stat.S_IMODE(os.stat(store_path).st_mode) == 0o700
    for folder, folders, files in os.walk(store_path):
        for name in folders:
            assert stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) == 0o700
        for name in files:
            assert stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) & 0o077 == 0, name


def test_a_store_is_made_only_where_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "folder").mkdir()
    for name in ("file", "folder"):
        with pytest.raises(ExistsError, match="new directory"):
            Store.create(tmp_path / name)
    with pytest.raises(NotFoundError, match="does not exist"):
        Store.create(tmp_path / "missing" / "store")
    with pytest.raises(OutOfRangeError):
        Store.create(tmp_path / "small", log_size=1)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_what_is_no_store_is_refused_by_type(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"\0" * 10000)
    (tmp_path / "garbage").mkdir()
    (tmp_path / "garbage" / "store.log").write_bytes(b"garbage" * 5000)
    with pytest.raises(NotFoundError):
        Store.open(tmp_path / "missing")
    for name in ("empty", "file", "garbage"):
        with pytest.raises(FormatError, match="store"):
            Store.open(tmp_path / name)


@pytest.mark.unserved("others connect to one that is served")
def test_a_second_owner_is_refused_in_this_process_and_in_another(make_store: MakeStore, store_path: str) -> None:
    store = make_store("a")
    for attempt in (Store.open, connect):
        with pytest.raises(BusyError, match="owned"):
            attempt(store_path)
    code = f"import cowengine\ntry:\n cowengine.Store.open({store_path!r})\nexcept cowengine.BusyError: print('busy')"
    found = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "busy\n"
    store.close()
    connect(store_path).close()


def test_a_child_process_cannot_use_its_parents_store_nor_keep_it_owned(make_store: MakeStore, store_path: str) -> None:
    store = make_store("a")
    waits, ends = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ends)
        os.read(waits, 1)
        try:
            store.volumes()
        except ClosedError:
            store.close()
            os._exit(7)
        os._exit(1)
    assert store.volumes() == ["a"]
    store.close()
    with Store.open(store_path) as again:  # while the child lives
        assert again.volumes() == ["a"]
    os.close(waits)
    os.close(ends)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7


def test_a_forgotten_store_warns_and_gives_up_its_ownership(store_path: str) -> None:
    store = Store.create(store_path)
    with pytest.warns(ResourceWarning, match="unclosed"):
        del store
        gc.collect()
    Store.open(store_path).close()


BAD_NAMES = [
    "", ".", "..", "a/b", "/", "../a", "a\0b", "a\nb", "\x7f", "\x85", "ä" * 101, "x" * 201, "x" * 10_240,
    "\udc80", None, 7, b"bytes", ("a",),
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: ascii(name)[:12])
def test_a_hostile_name_is_refused_everywhere(make_store: MakeStore, store_path: str, name: object) -> None:
    store = make_store("a")
    before = sorted(os.walk(store_path))
    calls: list[Callable[[], object]] = [
        lambda: store.create_volume(name, SIZE),  # type: ignore[arg-type]
        lambda: store.open_volume(name),  # type: ignore[arg-type]
        lambda: store.delete_volume(name),  # type: ignore[arg-type]
        lambda: store.detach(name),  # type: ignore[arg-type]
        lambda: store.rename_volume("a", name),  # type: ignore[arg-type]
        lambda: store.snapshot(["a", name], "s"),  # type: ignore[list-item]
    ]
    for call in calls:
        with pytest.raises(OutOfRangeError) as caught:
            call()
        assert len(str(caught.value)) < 2000
    assert sorted(os.walk(store_path)) == before


@pytest.mark.parametrize(
    "name", ["x" * 200, "ä" * 100, " ", "-rf", ".hidden", "a.cow", "con", "a\\b", "'; drop table sets"]
)
def test_an_odd_name_is_a_name(make_store: MakeStore, store_path: str, name: str) -> None:
    store = make_store(name)
    store.snapshot([name], "s")
    store.close()
    with Store.open(store_path) as store:
        assert store.volumes() == [name]
        assert list(store.get_snapshot_set("s").snapshots) == [name]


@pytest.mark.parametrize("size", [0, -512, 513, 2**60])
def test_an_impossible_size_leaves_no_volume(make_store: MakeStore, store_path: str, size: int) -> None:
    store = make_store()
    with pytest.raises(CowEngineError):
        store.create_volume("a", size)
    assert store.volumes() == []
    assert os.listdir(os.path.join(store_path, "volumes")) == []
    store.create_volume("a", SIZE)


def test_a_taken_name_is_refused_and_what_has_it_is_unharmed(make_store: MakeStore) -> None:
    store = make_store("a", "b")
    store.open_volume("a").pwrite(b"x" * 512, 0)
    with pytest.raises(ExistsError):
        store.create_volume("a", SIZE)
    store.open_volume("b").close()
    with pytest.raises(ExistsError):
        store.rename_volume("b", "a")
    assert store.open_volume("a").pread(512, 0) == b"x" * 512


def test_an_open_volume_is_one_object_and_opens_anew_after_close(make_store: MakeStore) -> None:
    store = make_store("a")
    volume = store.open_volume("a")
    assert store.open_volume("a") is volume
    volume.pwrite(b"x" * 512, 0)
    volume.close()
    again = store.open_volume("a")
    assert again is not volume
    assert again.pread(512, 0) == b"x" * 512


def test_unknown_volumes_are_not_found(make_store: MakeStore) -> None:
    store = make_store("a")
    calls: list[Callable[[], object]] = [
        lambda: store.open_volume("b"),
        lambda: store.delete_volume("b"),
        lambda: store.detach("b"),
        lambda: store.rename_volume("b", "c"),
        lambda: store.snapshot(["a", "b"], "s"),
    ]
    for call in calls:
        with pytest.raises(NotFoundError):
            call()
    assert store.snapshot_sets() == []


def test_a_volume_is_deleted_renamed_or_detached_only_when_closed(make_store: MakeStore, store_path: str) -> None:
    store = make_store("a")
    for call in (lambda: store.delete_volume("a"), lambda: store.detach("a"), lambda: store.rename_volume("a", "b")):
        with pytest.raises(BusyError, match="close it first"):
            call()
    store.open_volume("a").close()
    assert store.open_volume("a", hand_out=False).size == SIZE  # a look is no use
    store.rename_volume("a", "b")
    assert store.volumes() == ["b"]
    assert store.open_volume("b").size == SIZE
    store.open_volume("b").close()
    store.delete_volume("b")
    assert store.volumes() == []
    store.close()
    with Store.open(store_path) as store:
        assert store.volumes() == []


def test_a_detached_volume_stands_alone_with_its_snapshots(make_store: MakeStore, store_path: str) -> None:
    store = make_store("a", "b")
    store.open_volume("a").pwrite(b"x" * 512, 0)
    store.snapshot(["a", "b"], "s")
    store.open_volume("a").close()
    path = store.detach("a")
    assert store.volumes() == ["b"]
    assert store.get_snapshot_set("s").missing == ["a"]
    with Volume.open(path) as volume:
        assert volume.get_snapshot("s").pread(512, 0) == b"x" * 512
        volume.pwrite(b"y" * 512, 0)
    store.create_volume("a", SIZE).close()
    with pytest.raises(ExistsError, match="detached"):
        store.detach("a")
    assert store.volumes() == ["a", "b"]


def test_a_member_opened_without_its_store_is_refused_for_writing_and_shows_its_own_log(
    make_store: MakeStore, store_path: str
) -> None:
    store = make_store("a")
    store.open_volume("a").pwrite(b"x" * 512, 0)
    store.open_volume("a").flush()
    copy = store.volume_path("a") + ".copy"
    Path(copy).write_bytes(Path(store.volume_path("a")).read_bytes())  # as a crash would leave it
    with pytest.raises(BusyError, match="store"):
        Volume.open(copy)
    with Volume.open(copy, read_only=True) as volume:
        assert volume.snapshots() == []
    with Volume.open(copy, without_store=True) as volume:
        assert volume.pread(512, 0) == b"x" * 512
    store.close()
    with Volume.open(store.volume_path("a")) as volume:  # closed cleanly it needs nobody
        assert volume.pread(512, 0) == b"x" * 512


def test_a_foreign_file_among_the_volumes_is_a_problem_by_name_and_harms_no_other(
    make_store: MakeStore, store_path: str
) -> None:
    make_store("a", "b").close()
    volumes = Path(store_path) / "volumes"
    (volumes / "garbage.cow").write_bytes(b"garbage" * 1000)
    (volumes / "empty.cow").write_bytes(b"")
    (volumes / "copy.cow").write_bytes((volumes / "a.cow").read_bytes())
    (volumes / "notes.txt").write_text("not a volume")
    (volumes / "half.new").write_bytes(b"half")
    with Store.open(store_path) as store:
        assert store.volumes() == ["a", "b", "copy", "empty", "garbage"]
        assert [name for name in ("copy", "empty", "garbage") if not any(name in text for text in store.problems)] == []
        for name in ("empty", "garbage"):
            with pytest.raises(CowEngineError):
                store.open_volume(name)
        store.open_volume("a")
        with pytest.raises(ExistsError, match="copy"):
            store.open_volume("copy")
        store.snapshot(["a", "b"], "s")
        assert not store.check().ok
    assert not (volumes / "half.new").exists()


def test_a_closed_store_says_so_and_closes_twice(make_store: MakeStore) -> None:
    store = make_store("a")
    volume = store.open_volume("a")
    store.close()
    store.close()
    assert volume.closed
    calls: list[Callable[[], object]] = [
        store.volumes,
        store.snapshot_sets,
        lambda: store.open_volume("a"),
        lambda: store.create_volume("b", SIZE),
        lambda: store.snapshot(["a"], "s"),
        lambda: store.put_document("policy", "p", {}),
    ]
    for call in calls:
        with pytest.raises(ClosedError):
            call()


def test_read_only_shows_everything_and_writes_nothing(make_store: MakeStore, store_path: str) -> None:
    store = make_store("a", "b")
    store.open_volume("a").pwrite(b"x" * 512, 0)
    set_ = store.snapshot(["a", "b"], "s")
    store.attach_ledger(set_.id, {"outcome": "ok"})
    store.close()

    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in Path(store_path).rglob("*") if path.is_file()}

    before = contents()
    with Store.open(store_path, read_only=True) as store:
        assert store.volumes() == ["a", "b"]
        (found,) = store.snapshot_sets()
        assert found == set_
        assert found.ledger == {"outcome": "ok"}
        assert found.snapshots["a"].pread(512, 0) == b"x" * 512
        for call in (
            lambda: store.create_volume("c", SIZE),
            lambda: store.snapshot(["a"], "t"),
            lambda: store.delete_volume("a"),
            lambda: store.detach("a"),
            found.delete,
            lambda: store.put_document("policy", "p", {}),
        ):
            with pytest.raises(ReadOnlyError):
                call()
    assert contents() == before


def test_many_threads_open_one_volume_once(make_store: MakeStore, store_path: str) -> None:
    make_store("a", "b").close()
    with Store.open(store_path) as store:
        found: list[Volume] = []
        threads = [threading.Thread(target=lambda: found.append(store.open_volume("a"))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8
        assert len({id(volume) for volume in found}) == 1


# ---- documents ----


def test_documents_survive_and_are_replaced_whole(make_store: MakeStore, store_path: str) -> None:
    store = make_store()
    store.put_document("policy", "daily", {"keep": 7})
    store.put_document("policy", "daily", {"keep": 8, "name": "täglich"})
    store.put_document("backup", "b.1", {})
    store.close()
    with Store.open(store_path) as store:
        assert store.documents("policy") == ["daily"]
        assert store.get_document("policy", "daily") == {"keep": 8, "name": "täglich"}
        store.delete_document("policy", "daily")
        assert store.documents("policy") == []
        for call in (store.get_document, store.delete_document):
            with pytest.raises(NotFoundError):
                call("policy", "daily")


@pytest.mark.parametrize(
    ("kind", "document_id"), [("", "a"), ("Policy", "a"), ("p", ""), ("p", "a/b"), ("p", "x" * 129)]
)
def test_a_hostile_document_name_is_refused(make_store: MakeStore, kind: str, document_id: str) -> None:
    store = make_store()
    for call in (lambda: store.put_document(kind, document_id, {}), lambda: store.get_document(kind, document_id)):
        with pytest.raises(OutOfRangeError):
            call()


@pytest.mark.parametrize("document", [[], "text", {"a": {1, 2}}, {"a": float("nan")}, {"a": b"bytes"}])
def test_what_is_not_json_is_refused_and_the_old_document_stays(make_store: MakeStore, document: object) -> None:
    store = make_store()
    store.put_document("policy", "p", {"old": True})
    with pytest.raises(OutOfRangeError):
        store.put_document("policy", "p", document)  # type: ignore[arg-type]
    assert store.get_document("policy", "p") == {"old": True}


def test_a_damaged_document_is_an_error_and_the_store_opens(make_store: MakeStore, store_path: str) -> None:
    store = make_store()
    store.put_document("policy", "p", {"old": True})
    store.close()
    (Path(store_path) / "documents" / "policy.p.json").write_bytes(b"\xff{")
    with Store.open(store_path) as store, pytest.raises(OSError, match="not JSON"):
        store.get_document("policy", "p")


class RefusingTable(IOTable):
    """Refuses to make files, as a full or read-only file system does."""

    def __init__(self) -> None:
        self.refusal = 0

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        if self.refusal and flags & os.O_CREAT:
            raise OSError(self.refusal, os.strerror(self.refusal))
        return super().open(path, flags, mode)


@pytest.mark.parametrize(("refusal", "error"), [(errno.ENOSPC, NoSpaceError), (errno.EROFS, ReadOnlyError)])
def test_a_full_or_read_only_file_system_is_named_and_what_is_there_stays(
    store_path: str, refusal: int, error: type[CowEngineError]
) -> None:
    table = RefusingTable()
    table.refusal = refusal
    with pytest.raises(error):
        Store.create(store_path, io=table)
    assert not os.path.exists(store_path)
    table.refusal = 0
    with Store.create(store_path, io=table, background=False) as store:
        store.create_volume("a", SIZE)
        table.refusal = refusal
        with pytest.raises(error):
            store.create_volume("b", SIZE)
        with pytest.raises(error):
            store.put_document("policy", "p", {})
        set_ = store.snapshot(["a"], "s")  # needs no new file
        set_.delete()
        assert store.volumes() == ["a"]
