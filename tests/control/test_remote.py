"""A served store from another process's side: everything that a store, a volume and a snapshot can do."""

from __future__ import annotations

import inspect
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy
import pytest

import cowengine
from cowengine import Snapshot, SnapshotSet, Store, Volume, connect
from cowengine.control import ControlServer
from cowengine.control.remote_set import RemotePendingSet, RemoteSnapshotSet
from cowengine.control.remote_snapshot import RemoteSnapshot
from cowengine.control.remote_store import RemoteStore
from cowengine.control.remote_volume import RemoteVolume
from cowengine.store import PendingSet

MIB = 1 << 20

# What needs nothing of the engine but what is overridden, or is not for clients: a classmethod, a static method.
INHERITED = {
    Store: {"create", "open", "rebuild", "release_set", "append", "find_member", "delete_set"},
    Volume: {"create", "open", "adopt", "undo_adoption", "salvage", "repair", "head"},
    Snapshot: {"open"},
    SnapshotSet: {"id", "name", "created", "volumes", "snapshots", "missing", "ledger", "put_ledger"},
    PendingSet: set(),
}


@pytest.mark.parametrize(
    ("local", "remote"),
    [
        (Store, RemoteStore),
        (Volume, RemoteVolume),
        (Snapshot, RemoteSnapshot),
        (SnapshotSet, RemoteSnapshotSet),
        (PendingSet, RemotePendingSet),
    ],
)
def test_every_method_has_its_remote_form(local: type, remote: type) -> None:
    public = {name for kind in local.__mro__[:-1] for name in vars(kind) if not name.startswith("_")}
    own = {name for name in vars(remote) if not name.startswith("_")}
    assert public - own == INHERITED[local]
    for name in public & own:
        mine, theirs = getattr(remote, name), getattr(local, name)
        if inspect.isfunction(mine) and inspect.isfunction(theirs):
            assert list(inspect.signature(mine).parameters) == list(inspect.signature(theirs).parameters), name


def test_the_bytes_of_a_volume(remote: Store) -> None:
    volume = remote.create_volume("a", 16 * MIB, block_size=8192)
    data = bytes(range(256)) * (20 * 1024)  # 5 MiB: more than a message carries
    assert volume.pwrite(data, 4099) == len(data)
    assert volume.pread(len(data), 4099) == data
    buffer = bytearray(len(data))
    assert volume.pread_into(buffer, 4099) == len(data)
    assert buffer == data
    assert volume.pread(0, 5) == b""
    volume.discard(8192, 8192)
    volume.write_zeroes(20000, 10)
    assert not any(volume.pread(8192, 8192) + volume.pread(10, 20000))
    both = bytearray(20)
    assert volume.pread_many(both, [(4099, 10), (30000, 10)]) == 20
    assert both == volume.pread(10, 4099) + volume.pread(10, 30000)
    volume.flush()
    volume.resize(8 * MIB)
    assert volume.size == 8 * MIB
    with pytest.raises(cowengine.OutOfRangeError, match="8388608"):
        volume.pread(10, 8 * MIB)
    with pytest.raises(cowengine.OutOfRangeError):
        volume.pwrite(b"x", -1)
    assert volume.block_size == 8192


def test_snapshots_are_read_from_the_file_and_decided_about_by_the_server(remote: Store) -> None:
    volume = remote.create_volume("a", MIB)
    volume.pwrite(b"first", 0)
    first = volume.snapshot("first", metadata={"ticket": 4711})
    volume.pwrite(b"second", 40960)
    second = volume.snapshot("second")
    volume.pwrite(b"third", 81920)
    assert (first.pread(5, 0), first.pread(6, 40960)) == (b"first", bytes(6))
    assert second.open().read(5) == b"first"
    assert second.changed_extents(first).tolist() == [[40960, 4096]]
    assert second.changed_extents("first").tolist() == second.changed_extents(first.change_id).tolist()
    assert second.changed_extents(first.id).tolist() == [[40960, 4096]]
    assert second.allocated_extents().tolist() == [[0, 4096], [40960, 4096]]
    assert volume.changed_extents(second).tolist() == [[81920, 4096]]
    assert volume.allocated_extents().tolist() == [[0, 4096], [40960, 4096], [81920, 4096]]
    assert volume.snapshots() == [first, second]
    assert volume.snapshots(1, 5) == [second]
    assert volume.get_snapshot("first") == volume.get_snapshot(first.id) == first
    assert first.metadata == {"ticket": 4711}
    with connect(remote.path) as other:
        there = other.open_volume("a", hand_out=False).get_snapshot("first")
    assert (there, there.size, there.epoch, there.created) == (first, MIB, first.epoch, first.created)
    assert first.space().exclusive_bytes == 0
    assert second.verify().ok
    assert volume.verify().counts["damaged"] == 0
    kept = volume.rollback(first)
    assert volume.pread(6, 40960) == bytes(6)
    assert kept.pread(5, 81920) == b"third"


def test_what_protects_a_snapshot(remote: Store) -> None:
    volume = remote.create_volume("a", MIB)
    snapshot, other = volume.snapshot("one"), volume.snapshot("two")
    snapshot.hold("audit")
    assert snapshot.hold_reason == "audit"
    with pytest.raises(cowengine.BusyError, match="audit"):
        snapshot.delete()
    with pytest.raises(cowengine.BusyError):
        snapshot.require_deletable()
    snapshot.release()
    until = datetime.now(UTC) + timedelta(days=1)
    other.retain_until = until
    assert other.retain_until is not None
    assert abs(other.retain_until - until) < timedelta(seconds=1)
    with pytest.raises(cowengine.RetentionError) as refused:
        other.delete()
    assert refused.value.errno == 1
    snapshot.pread(10, 0)  # pinned by this very client, which is no obstacle
    snapshot.to_anchor()
    assert snapshot.is_anchor
    with pytest.raises(cowengine.AnchorError):
        snapshot.pread(10, 0)
    snapshot.delete()
    with pytest.raises(cowengine.NotFoundError):
        snapshot.hold("gone")
    assert snapshot.name == "one"


def test_clones(remote: Store) -> None:
    volume = remote.create_volume("a", MIB)
    volume.pwrite(b"base", 0)
    snapshot = volume.snapshot("one")
    with snapshot.clone("trial") as clone:
        clone.pwrite(b"trial", 0)
        assert (clone.head, clone.pread(5, 0), volume.pread(5, 0)) == ("trial", b"trial", b"base\0")
        with pytest.raises(cowengine.BusyError):
            volume.open_head("trial")
        taken = clone.snapshot("of-the-clone")
        assert taken.pread(5, 0) == b"trial"
    with pytest.raises(cowengine.ClosedError):
        clone.pread(1, 0)
    with volume.open_head("trial") as again:
        assert again.pread(5, 0) == b"trial"
    assert volume.heads() == ["live", "trial"]
    volume.delete_head("trial")
    assert volume.heads() == ["live"]


def test_sets_and_documents(remote: Store) -> None:
    for name in ("a", "b"):
        remote.create_volume(name, MIB).pwrite(name.encode(), 0)
    taken = remote.snapshot(["b", "a"], "monday", metadata={"x": 1})
    assert {name: snapshot.pread(1, 0) for name, snapshot in taken.snapshots.items()} == {"a": b"a", "b": b"b"}
    assert taken.snapshots["a"].set_id == taken.id
    with remote.prepare_set(["a"], "tuesday") as pending:
        pending.flush()
        with pytest.raises(cowengine.ExistsError):
            remote.snapshot(["b"], "tuesday")
        later = pending.commit()
    assert pending.held_seconds > 0
    with pytest.raises(cowengine.ClosedError):
        pending.commit()
    assert remote.snapshot_sets() == [taken, later]
    assert remote.get_snapshot_set("tuesday") == remote.get_snapshot_set(later.id) == later
    assert taken.ledger is None
    taken.put_ledger({"entries": []})
    assert remote.get_snapshot_set("monday").ledger == {"entries": []}
    remote.put_document("policy", "one", {"ü": "\N{SNOWMAN}"})
    assert remote.get_document("policy", "one") == {"ü": "\N{SNOWMAN}"}
    assert remote.documents("policy") == ["one"]
    remote.delete_document("policy", "one")
    with pytest.raises(cowengine.NotFoundError):
        remote.get_document("policy", "one")
    taken.snapshots["b"].delete()
    assert taken.missing == ["b"]
    taken.delete()
    with pytest.raises(cowengine.NotFoundError):
        taken.delete()
    assert [found.name for found in remote.snapshot_sets()] == ["tuesday"]


def test_volumes_come_and_go(remote: Store, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"raw" + bytes(MIB - 3))
    volume = remote.adopt_volume("disk", image)
    assert volume.pread(3, 0) == b"raw"
    with pytest.raises(cowengine.BusyError, match="close it first"):
        remote.rename_volume("disk", "other")
    volume.close()
    remote.rename_volume("disk", "other")
    assert remote.volumes() == ["other"]
    with pytest.raises(cowengine.NotFoundError):
        remote.open_volume("disk")
    path = remote.detach("other")
    with Volume.open(path) as alone:
        assert alone.pread(3, 0) == b"raw"
    with remote.attach(path, "back") as back:
        back.flatten(tmp_path / "copy.img")
        assert back.export(tmp_path / "export.img").ok
        assert (tmp_path / "copy.img").read_bytes() == (tmp_path / "export.img").read_bytes()
    assert set(remote.du()) == {"back"}
    assert remote.check().ok
    remote.delete_volume("back")
    assert remote.volumes() == []
    with pytest.raises(cowengine.ExistsError):
        remote.create_volume("back", MIB).close()
        remote.create_volume("back", MIB)


def test_the_care_of_a_volume(remote: Store) -> None:
    volume = remote.create_volume("a", MIB)
    volume.pwrite(bytes(range(256)) * 16, 0)
    volume.snapshot("one")
    assert volume.policy(keep_newest=3).keep_newest == volume.policy().keep_newest == 3
    with pytest.raises(cowengine.OutOfRangeError):
        volume.policy(when_full="perhaps")
    assert volume.given_up() == []
    seen: list[int] = []
    sealed = volume.seal(progress=lambda done: seen.append(done.sealed_bytes))
    assert sealed.done
    assert volume.unsealed_bytes() == 0
    assert volume.compact().done
    assert volume.start_compaction().wait().done
    assert volume.check().ok
    assert volume.check(repair=True).ok
    assert volume.stats()["snapshots"] == 1
    assert volume.du().used_bytes == 4096
    volume.reclaim()
    volume.accept_clock()


def test_a_long_call_tells_how_far_it_is_and_can_be_stopped(remote: Store) -> None:
    volume = remote.create_volume("a", 8 * MIB)
    for offset in range(0, 8 * MIB, MIB):
        volume.pwrite(numpy.random.default_rng(1).bytes(MIB), offset)
    volume.snapshot("one")
    volume.seal()
    stop = threading.Event()
    told: list[int] = []

    def tell(report: cowengine.Report) -> None:
        told.append(report.counts["blocks"])
        stop.set()

    report = volume.verify(tell, rate=MIB, stop=stop)
    assert told
    assert 0 < report.counts["blocks"] < 2048
    assert volume.pread(1, 0)  # the connection goes on


def test_a_long_call_holds_up_nobody(remote: Store) -> None:
    volume = remote.create_volume("a", 8 * MIB)
    volume.pwrite(numpy.random.default_rng(1).bytes(8 * MIB), 0)
    volume.snapshot("one")
    stop = threading.Event()
    verifying = threading.Thread(target=lambda: volume.verify(rate=MIB, stop=stop))
    verifying.start()
    volume.snapshot("two")
    remote.snapshot(["a"], "three")
    assert verifying.is_alive()
    stop.set()
    verifying.join()


def test_read_only_changes_nothing(server: ControlServer) -> None:
    server.store.create_volume("a", MIB).close()
    with connect(server.store.path, read_only=True) as store, store.open_volume("a") as volume:
        assert store.read_only
        assert volume.pread(1, 0) == b"\0"
        for change in (
            lambda: volume.snapshot("one"),
            lambda: volume.pwrite(b"x", 0),
            lambda: store.create_volume("b", MIB),
            lambda: store.prepare_set(["a"], "set"),
            lambda: volume.policy(keep_newest=2),
        ):
            with pytest.raises(cowengine.ReadOnlyError):
                change()


def test_the_file_of_a_volume_of_a_store_is_not_flattened(remote: Store) -> None:
    volume = remote.create_volume("a", MIB)
    for words in ({"in_place": True}, {}):
        with pytest.raises(cowengine.BusyError, match="detach it first"):
            volume.flatten(**words)
    assert volume.pread(1, 0) == b"\0"
