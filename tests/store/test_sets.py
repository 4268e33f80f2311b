"""Snapshot sets: one point in time over all members, all or none, and what happens to them later."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cowengine import Snapshot, Store, Volume
from cowengine.core.iotable import IOTable
from cowengine.errors import (
    BusyError,
    ClosedError,
    ExistsError,
    NotFoundError,
    OutOfRangeError,
    PoisonedError,
)
from cowengine.store.layout import RING_BYTES_MIN

MakeStore = Callable[..., Store]
SIZE = 1024 * 1024


def number_at(source: Volume | Snapshot, offset: int = 0) -> int:
    return int.from_bytes(source.pread(8, offset), "little")


def put_number(volume: Volume, number: int, offset: int = 0) -> None:
    volume.pwrite(number.to_bytes(8, "little"), offset)


def killed(store: Store, where: Path) -> str:
    """A copy of the store's files as they are now: what a killed owner leaves."""
    shutil.copytree(store.path, where)
    return str(where)


def test_a_set_of_eight_volumes_is_there_with_every_write_that_returned_before(
    make_store: MakeStore, store_path: str
) -> None:
    names = [f"v{index}" for index in range(8)]
    store = make_store(*names)
    before = datetime.now(UTC)
    for number in (1, 2):
        for index, name in enumerate(names):
            put_number(store.open_volume(name), 100 * number + index)
        store.snapshot(names, f"s{number}", metadata={"why": "night"} if number == 2 else None)
    for name in names:
        put_number(store.open_volume(name), 999)
    store.close()
    with Store.open(store_path) as store:
        assert [found.name for found in store.snapshot_sets()] == ["s1", "s2"]
        for number in (1, 2):
            found = store.get_snapshot_set(f"s{number}")
            assert found == store.get_snapshot_set(found.id)
            assert found.volumes == names
            assert found.missing == []
            assert [number_at(found.snapshots[name]) for name in names] == [100 * number + i for i in range(8)]
            assert {snapshot.name for snapshot in found.snapshots.values()} == {f"s{number}"}
            assert found.snapshots["v3"].metadata == ({"why": "night"} if number == 2 else {})
            assert before - timedelta(seconds=1) <= found.created <= datetime.now(UTC)
            assert abs(found.snapshots["v0"].created - found.created) < timedelta(milliseconds=1)
        assert number_at(store.open_volume("v5")) == 999
        assert store.check().ok


def test_no_set_holds_a_later_write_to_one_volume_without_the_earlier_write_to_another(make_store: MakeStore) -> None:
    """Pairs of volumes; each thread writes its counter to the first, then to the second, flushing now and then."""
    names = ["a0", "b0", "a1", "b1", "a2", "b2"]
    store = make_store(*names)
    stop = threading.Event()
    failures: list[BaseException] = []

    def count(pair: int) -> None:
        first, second = store.open_volume(f"a{pair}"), store.open_volume(f"b{pair}")
        number = 0
        try:
            while not stop.is_set():
                number += 1
                offset = 4096 * (number % 50) + 8
                for volume in (first, second):
                    put_number(volume, number, offset)
                    put_number(volume, number)
                if number % 200 == 0:
                    first.flush()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=count, args=(pair,)) for pair in range(3)]
    for thread in threads:
        thread.start()
    sets = []
    for index in range(60):
        sets.append(store.snapshot(names if index % 2 else names[:4], f"s{index}"))
        time.sleep(0.005)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    counts = []
    for set_ in sets:
        snapshots = set_.snapshots
        for pair in range(len(snapshots) // 2):
            first, second = number_at(snapshots[f"a{pair}"]), number_at(snapshots[f"b{pair}"])
            assert first in (second, second + 1), set_.name
            for source, number in ((snapshots[f"a{pair}"], first), (snapshots[f"b{pair}"], second)):
                assert number == 0 or number_at(source, 4096 * (number % 50) + 8) == number
        counts.append(number_at(snapshots["a0"]))
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]


def test_every_check_is_clean_while_sets_are_taken(make_store: MakeStore) -> None:
    store = make_store("a", "b")
    for number in range(6):
        if number != 3:
            put_number(store.open_volume("a"), number)
        store.snapshot(["a", "b"] if number != 4 else ["b"], f"s{number}")
        assert store.check().problems == []
    store.get_snapshot_set("s2").delete()
    assert store.check().problems == []


class CountingTable(IOTable):
    """Counts barriers."""

    def __init__(self) -> None:
        self.count = 0

    def fdatasync(self, fd: int) -> None:
        self.count += 1
        super().fdatasync(fd)


@pytest.mark.parametrize("members", [1, 8])
def test_a_set_over_quiet_volumes_costs_one_barrier_whatever_their_number(store_path: str, members: int) -> None:
    table = CountingTable()
    names = [f"v{index}" for index in range(members)]
    with Store.create(store_path, io=table, background=False) as store:
        for name in names:
            put_number(store.create_volume(name, SIZE), 7)
            store.open_volume(name).flush()
        for number in range(5):
            before = table.count
            store.snapshot(names, f"s{number}")
            assert table.count - before == 1
    with Store.open(store_path) as store:
        for number in range(5):
            assert {number_at(found) for found in store.get_snapshot_set(f"s{number}").snapshots.values()} == {7}


def test_disjoint_sets_from_many_threads_all_commit(make_store: MakeStore, store_path: str) -> None:
    names = [f"v{index}" for index in range(4)]
    store = make_store(*names)
    failures: list[BaseException] = []

    def take(thread: int) -> None:
        try:
            for index in range(40):
                put_number(store.open_volume(names[thread]), index)
                members = [names[thread]] if index % 5 else [names[thread], names[(thread + 1) % 4]]
                store.snapshot(members, f"t{thread}-{index}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=take, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    store.close()
    with Store.open(store_path) as store:
        assert len(store.snapshot_sets()) == 160
        for thread in range(4):
            assert number_at(store.get_snapshot_set(f"t{thread}-39").snapshots[names[thread]]) == 39


@pytest.mark.parametrize("names", [[], "ab", b"ab", ["a", "a"], ["a", "b", "a"]])
def test_members_are_distinct_and_at_least_one(make_store: MakeStore, names: list[str]) -> None:
    store = make_store("a", "b")
    with pytest.raises(OutOfRangeError):
        store.snapshot(names, "s")
    assert store.snapshot_sets() == []


@pytest.mark.parametrize("name", ["", "a/b", "a\0b", "x" * 256, "x" * 10_240, None, 7])
def test_a_hostile_set_name_is_refused(make_store: MakeStore, name: object) -> None:
    store = make_store("a")
    with pytest.raises(OutOfRangeError):
        store.snapshot(["a"], name)  # type: ignore[arg-type]
    with pytest.raises(NotFoundError):
        store.get_snapshot_set(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("metadata", [[], b"x", {"a": "x" * 4097}, {"a": {1}}])
def test_metadata_has_its_bounds(make_store: MakeStore, metadata: object) -> None:
    store = make_store("a")
    with pytest.raises(OutOfRangeError, match="metadata"):
        store.snapshot(["a"], "s", metadata=metadata)  # type: ignore[arg-type]


def test_a_taken_name_is_refused_also_if_only_a_member_has_it(make_store: MakeStore) -> None:
    store = make_store("a", "b")
    store.snapshot(["a"], "s")
    with pytest.raises(ExistsError):
        store.snapshot(["b"], "s")
    store.open_volume("b").snapshot("own")
    with pytest.raises(ExistsError, match="'b'"):
        store.snapshot(["a", "b"], "own")
    assert [found.name for found in store.snapshot_sets()] == ["s"]
    with store.prepare_set(["a"], "t"), pytest.raises(ExistsError):
        store.prepare_set(["b"], "t")
    store.snapshot(["b"], "t")  # the name is free again after the abort


def test_a_snapshot_taken_between_prepare_and_commit_fails_the_set_and_nothing_else(make_store: MakeStore) -> None:
    store = make_store("a", "b")
    pending = store.prepare_set(["a", "b"], "s")
    store.open_volume("b").snapshot("s")
    with pytest.raises(ExistsError):
        pending.commit()
    assert store.snapshot_sets() == []
    assert store.open_volume("a").snapshots() == []
    store.snapshot(["a", "b"], "t")


def test_flushing_before_the_commit_changes_nothing_but_the_wait(make_store: MakeStore) -> None:
    store = make_store("a", "b")
    put_number(store.open_volume("a"), 1)
    with store.prepare_set(["a", "b"], "s") as pending:
        pending.flush()
        put_number(store.open_volume("b"), 2)
        snapshots = pending.commit().snapshots
    assert (number_at(snapshots["a"]), number_at(snapshots["b"])) == (1, 2)


def test_a_pending_set_ends_once(make_store: MakeStore) -> None:
    store = make_store("a")
    pending = store.prepare_set(["a"], "s")
    set_ = pending.commit()
    assert 0 < pending.held_seconds < 10
    pending.abort()
    with pytest.raises(ClosedError):
        pending.commit()
    assert store.snapshot_sets() == [set_]
    aborted = store.prepare_set(["a"], "t")
    aborted.abort()
    aborted.abort()
    with pytest.raises(ClosedError):
        aborted.commit()
    assert store.snapshot_sets() == [set_]


def test_a_deleted_set_is_gone_with_its_snapshots_and_its_ledger(make_store: MakeStore, store_path: str) -> None:
    store = make_store("a", "b")
    kept, gone = store.snapshot(["a", "b"], "kept"), store.snapshot(["a", "b"], "gone")
    store.attach_ledger(gone.id, {"outcome": "ok"})
    kept.put_ledger({"outcome": "unknown"})
    kept.put_ledger({"outcome": "ok"})
    gone.delete()
    assert gone.name == "gone"
    assert gone.snapshots == {}
    with pytest.raises(NotFoundError):
        gone.delete()
    with pytest.raises(NotFoundError):
        store.attach_ledger(gone.id, {})
    for again in (False, True):
        if again:
            store.close()
            store = Store.open(store_path)
        assert store.snapshot_sets() == [kept]
        assert [snapshot.name for snapshot in store.open_volume("a").snapshots()] == ["kept"]
        assert os.listdir(os.path.join(store_path, "documents")) == [f"ledger.{kept.id}.json"]
        assert store.get_snapshot_set("kept").ledger == {"outcome": "ok"}
    store.snapshot(["a", "b"], "gone")
    store.close()


def test_a_member_snapshot_deleted_alone_is_missing_and_the_rest_stays(make_store: MakeStore, store_path: str) -> None:
    store = make_store("a", "b", "c")
    set_ = store.snapshot(["a", "b", "c"], "s")
    set_.snapshots["b"].delete()
    store.open_volume("c").close()
    store.delete_volume("c")
    assert (list(set_.snapshots), set_.missing) == (["a"], ["b", "c"])
    store.close()
    with Store.open(store_path) as store:
        set_ = store.get_snapshot_set("s")
        assert (list(set_.snapshots), set_.missing) == (["a"], ["b", "c"])
        set_.delete()
        assert store.snapshot_sets() == []
        assert store.open_volume("a").snapshots() == []


@pytest.mark.unserved("it copies the store as a killed owner leaves it")
def test_a_killed_owner_loses_no_set_and_no_deletion(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store("a", "b")
    for number in range(1, 6):
        put_number(store.open_volume("a"), number)
        if number % 2:
            put_number(store.open_volume("b"), number)
        store.snapshot(["a", "b"], f"s{number}")
        if number == 3:
            store.open_volume("a").flush()
    store.get_snapshot_set("s2").delete()
    put_number(store.open_volume("a"), 99)
    where = killed(store, tmp_path / "killed")
    for _ in range(2):
        with Store.open(where, background=False) as after:
            assert after.problems == []
            assert [found.name for found in after.snapshot_sets()] == ["s1", "s3", "s4", "s5"]
            for number in (1, 3, 4, 5):
                found = after.get_snapshot_set(f"s{number}").snapshots
                assert number_at(found["a"]) == number
                assert number_at(found["b"]) == number - 1 + number % 2
            assert after.check().ok


@pytest.mark.unserved("it copies the store as a killed owner leaves it")
def test_a_set_that_no_member_took_in_yet_survives_a_kill_after_which_only_one_member_is_used(
    make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store("a", "b")
    put_number(store.open_volume("a"), 1)
    store.snapshot(["a", "b"], "s")
    where = killed(store, tmp_path / "killed")
    with Store.open(where, background=False) as after:
        put_number(after.open_volume("a"), 2)
        after.snapshot(["a"], "t")
        where = killed(after, tmp_path / "again")
    with Store.open(where, background=False) as after:
        assert {name: number_at(found) for name, found in after.get_snapshot_set("s").snapshots.items()} == {
            "a": 1,
            "b": 0,
        }
        assert number_at(after.get_snapshot_set("t").snapshots["a"]) == 2


@pytest.mark.unserved("it copies the store as a killed owner leaves it")
def test_a_look_at_what_a_killed_owner_left_says_what_it_cannot_show(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store("a", "b")
    store.snapshot(["a"], "s1")
    store.open_volume("a").flush()
    store.snapshot(["a", "b"], "s2")
    where = killed(store, tmp_path / "killed")
    with Store.open(where, read_only=True) as after:
        assert [found.name for found in after.snapshot_sets()] == ["s1", "s2"]
        assert list(after.get_snapshot_set("s1").snapshots) == ["a"]
        assert after.get_snapshot_set("s2").missing == ["a", "b"]
        assert [name in text for name, text in zip("ab", after.problems, strict=True)] == [True, True]
    with Store.open(where, background=False) as after:
        assert after.get_snapshot_set("s2").missing == []


@pytest.mark.unserved("it copies the store as a killed owner leaves it")
def test_a_member_written_without_its_store_lacks_the_set_and_the_store_says_so(
    make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store("a", "b")
    store.snapshot(["a", "b"], "s")
    where = killed(store, tmp_path / "killed")
    with Volume.open(os.path.join(where, "volumes", "a.cow"), without_store=True) as volume:
        put_number(volume, 7)
    with Store.open(where, background=False) as after:
        assert ["'a'" in text and "'s'" in text for text in after.problems] == [True]
        assert after.get_snapshot_set("s").missing == ["a"]
        assert list(after.get_snapshot_set("s").snapshots) == ["b"]
        assert number_at(after.open_volume("a")) == 7


@pytest.mark.unserved("it copies the store as a killed owner leaves it")
def test_a_member_that_cannot_be_opened_keeps_its_records_and_gets_them_when_it_can(
    make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store("a", "b")
    store.snapshot(["a", "b"], "s")
    where = killed(store, tmp_path / "killed")
    file = Path(where) / "volumes" / "a.cow"
    good = file.read_bytes()
    file.write_bytes(b"\0" * 8192 + good[8192:])
    with Store.open(where, background=False) as after:
        assert any("'a'" in text for text in after.problems)
        after.snapshot(["b"], "t")
    file.write_bytes(good)
    with Store.open(where, background=False) as after:
        assert sorted(after.get_snapshot_set("s").snapshots) == ["a", "b"]


def test_the_smallest_log_takes_any_number_of_sets_and_deletions(make_store: MakeStore, store_path: str) -> None:
    store = make_store("a", "b", log_size=RING_BYTES_MIN)
    for number in range(150):
        put_number(store.open_volume("a"), number)
        store.snapshot(["a", "b"], f"s{number}")
        if number % 3 == 2:
            store.get_snapshot_set(f"s{number - 1}").delete()
    store.close()
    with Store.open(store_path) as store:
        assert [found.name for found in store.snapshot_sets()] == [f"s{n}" for n in range(150) if n % 3 != 1]
        assert number_at(store.get_snapshot_set("s147").snapshots["a"]) == 147


def test_a_set_larger_than_the_logs_records_is_refused(make_store: MakeStore) -> None:
    store = make_store(log_size=RING_BYTES_MIN)
    store.create_volume("a", SIZE, log_size=1024 * 1024)
    with pytest.raises(OutOfRangeError, match="too many"):
        store.snapshot(["a"], "s", metadata={"m": "m" * 4000})
    store.snapshot(["a"], "s", metadata={"m": "m" * 3900})


def test_pending_sets_that_keep_the_whole_log_make_others_wait_then_busy(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cowengine.store.store.ROOM_WAIT_SECONDS", 0.1)
    store = make_store("a", log_size=RING_BYTES_MIN)
    held = []
    with pytest.raises(BusyError, match="being prepared"):
        for index in range(100):
            held.append(store.prepare_set(["a"], f"s{index}"))
    for pending in held:
        pending.abort()
    store.snapshot(["a"], "s0")


class FailingLog(IOTable):
    """Fails fdatasync of the file that is told, from the n-th call on."""

    def __init__(self) -> None:
        self.path = ""
        self.left = -1
        self._paths: dict[int, str] = {}

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        fd = super().open(path, flags, mode)
        self._paths[fd] = path
        return fd

    def fdatasync(self, fd: int) -> None:
        if self._paths[fd].endswith(self.path) and self.left >= 0:
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.EIO, "injected")
        super().fdatasync(fd)


def test_a_failed_sync_of_the_store_log_poisons_the_store_and_the_members_and_no_others(store_path: str) -> None:
    table = FailingLog()
    store = Store.create(store_path, io=table, background=False)
    for name in ("a", "b", "c"):
        store.create_volume(name, SIZE)
    store.snapshot(["a", "b"], "before")
    table.path, table.left = "store.log", 0
    put_number(store.open_volume("a"), 5)
    with pytest.raises(PoisonedError):
        store.snapshot(["a", "b"], "unknown")
    table.left = -1
    for call in (
        lambda: store.snapshot(["c"], "later"),
        lambda: store.open_volume("a").flush(),
        lambda: store.open_volume("b").snapshot("own"),
    ):
        with pytest.raises(PoisonedError):
            call()
    put_number(store.open_volume("c"), 3)
    store.open_volume("c").flush()
    store.close()
    with Store.open(store_path, io=table, background=False) as store:
        sets = {found.name: found.snapshots for found in store.snapshot_sets()}
        assert list(sets) in (["before"], ["before", "unknown"])
        assert all(sorted(snapshots) == ["a", "b"] for snapshots in sets.values())
        assert store.problems == []
        assert number_at(store.open_volume("c")) == 3
        store.snapshot(["a", "b", "c"], "after")


def test_a_failed_sync_of_a_member_fails_the_set_as_a_whole(store_path: str) -> None:
    table = FailingLog()
    with Store.create(store_path, io=table, background=False) as store:
        for name in ("a", "b"):
            put_number(store.create_volume(name, SIZE), 1)
        table.path, table.left = "b.cow", 0
        with pytest.raises(PoisonedError):
            store.snapshot(["a", "b"], "s")
        table.left = -1
        assert store.snapshot_sets() == []
        for name in ("a", "b"):
            store.open_volume(name).close()
            assert store.open_volume(name).snapshots() == []
            put_number(store.open_volume(name), 2)
        store.snapshot(["a", "b"], "s")
    with Store.open(store_path, io=table, background=False) as store:
        assert [number_at(snapshot) for snapshot in store.get_snapshot_set("s").snapshots.values()] == [2, 2]


class LookingOn(IOTable):
    """While the store log's record is on its way to the disk, another thread looks on."""

    def __init__(self) -> None:
        self.log = -1
        self.look: Callable[[], None] | None = None

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        fd = super().open(path, flags, mode)
        if path.endswith("store.log"):
            self.log = fd
        return fd

    def fdatasync(self, fd: int) -> None:
        if fd == self.log and self.look is not None:
            look, self.look = self.look, None
            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
        super().fdatasync(fd)


def test_nobody_sees_a_set_before_its_record_is_durable(store_path: str) -> None:
    """Its snapshots are in the members' lineage by then: behind their locks."""
    table = LookingOn()
    seen: list[object] = []
    with Store.create(store_path, io=table, background=False) as store:
        volumes = [store.create_volume(name, SIZE) for name in ("a", "b")]

        def look() -> None:
            seen.extend(volume.engine.lineage.next_id for volume in volumes)
            seen.extend(volume.engine.lock.acquire(blocking=False) for volume in volumes)
            seen.append([found.name for found in store.snapshot_sets()])

        table.look = look
        store.snapshot(["a", "b"], "set")
        assert seen == [2, 2, False, False, []]
        assert [found.name for found in store.snapshot_sets()] == ["set"]


def test_a_set_that_is_interrupted_while_its_record_is_on_its_way_ends_the_members(store_path: str) -> None:
    table = LookingOn()
    with Store.create(store_path, io=table, background=False) as store:
        volumes = [store.create_volume(name, SIZE) for name in ("a", "b")]
        volumes[1].engine.taken = interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            store.snapshot(["a", "b"], "set")
        for volume in volumes:
            with pytest.raises(PoisonedError):
                volume.flush()
        with pytest.raises(PoisonedError):
            store.snapshot(["a"], "other")


def interrupted(*arguments: object, **named: object) -> None:
    raise KeyboardInterrupt


def test_the_name_of_a_set_is_free_when_it_was_deleted_and_not_before(make_store: MakeStore) -> None:
    store = make_store("a")
    for _ in range(2):
        store.snapshot(["a"], "set")
        with pytest.raises(ExistsError):
            store.snapshot(["a"], "set")
        store.get_snapshot_set("set").delete()
