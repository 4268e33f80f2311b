"""Mounts of a served store: several of one volume and its snapshots at once, and after the server was killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import MIB, Bench, bench, cowengine, leftovers, run, served_store

from cowengine import BusyError, NotFoundError
from cowengine.mount import mount_volume, mounted, unmount, unmount_all

pytestmark = pytest.mark.privileged("nbdfuse", "fusermount3", "losetup", "mkfs.ext4", "nbdkit", "setpriv")

EXT4 = ("mkfs.ext4", "-q", "-F")
XFS = ("mkfs.xfs", "-q", "-f")
BTRFS = ("mkfs.btrfs", "-q", "-f")


@pytest.fixture
def place() -> Iterator[Bench]:
    """A folder in which nothing is left behind."""
    with bench() as made:
        for name in ("live", "monday", "other"):
            made.directory(name)
        yield made


def written(place: Bench, store: Path, mkfs: tuple[str, ...]) -> None:
    """A file system on the served volume, mounted at `live`, with a flushed file and a snapshot `monday` of it."""
    place.format("disk", *mkfs, store=store)
    mount_volume("disk", str(place.folder / "live"), store=str(store))
    (place.folder / "live" / "file").write_bytes(b"monday")
    run("sync", "-f", place.folder / "live")
    cowengine("snapshot", "create", f"{store}:disk@monday")
    (place.folder / "live" / "file").write_bytes(b"tuesday")


@pytest.mark.parametrize(("mkfs", "size"), [(EXT4, 64), (XFS, 320)], ids=["ext4", "xfs"])
@pytest.mark.privileged("mkfs.xfs")
def test_a_snapshot_beside_its_origin(place, mkfs, size):
    store = place.store("store", disk=size * MIB)
    monday, live = place.folder / "monday", place.folder / "live"
    with served_store(store):
        written(place, store, mkfs)
        before = cowengine("volume", "info", f"{store}:disk")["epoch"]
        document = cowengine("mount", f"{store}:disk@monday", monday)
        assert (document["overlay"], document["own_server"]) == (True, False)
        assert (monday / "file").read_bytes() == b"monday"
        assert (live / "file").read_bytes() == b"tuesday"
        with pytest.raises(BusyError, match="mounted once"):
            mount_volume("disk", str(place.folder / "other"), store=str(store))
        trial = mount_volume("disk", str(place.folder / "other"), store=str(store), snapshot="monday", writable=True)
        (place.folder / "other" / "file").write_bytes(b"never")
        assert (monday / "file").read_bytes() == b"monday"
        unmount(trial.id)
        unmount(str(monday))
        assert cowengine("volume", "info", f"{store}:disk")["epoch"] == before
        done, left = unmount_all()
        assert (len(done), left) == (1, [])
    assert cowengine("store", "check", store)["ok"]


@pytest.mark.privileged("mkfs.xfs")
def test_an_xfs_and_its_copy(place):
    """The kernel refuses a second one of the same id, unless told."""
    store = place.store("store", disk=320 * MIB)
    with served_store(store):
        written(place, store, XFS)
        unmount(str(place.folder / "live"))
    run("cp", "--sparse=always", store / "volumes" / "disk.cow", place.folder / "copy.cow")
    cowengine("store", "attach", place.store("second"), place.folder / "copy.cow", "--name", "copy", "--without-store")
    with served_store(store), served_store(place.folder / "second"):
        mount_volume("disk", str(place.folder / "live"), store=str(store))
        with pytest.raises(BusyError, match=r"same id .* add -o nouuid"):
            mount_volume("copy", str(place.folder / "other"), store=str(place.folder / "second"))
        mount_volume("copy", str(place.folder / "other"), store=str(place.folder / "second"), options="nouuid")
        assert (place.folder / "other" / "file").read_bytes() == b"tuesday"
        unmount_all()


@pytest.mark.privileged("mkfs.btrfs")
def test_btrfs_beside_its_origin_is_refused(place):
    store = place.store("store", disk=128 * MIB)
    monday = place.folder / "monday"
    with served_store(store):
        written(place, store, BTRFS)
        with pytest.raises(BusyError, match="same id"):
            mount_volume("disk", str(monday), store=str(store), snapshot="monday")
        assert [record.directory for record in mounted()] == [str(place.folder / "live")]
        unmount(str(place.folder / "live"))
        mount_volume("disk", str(monday), store=str(store), snapshot="monday")
        assert (monday / "file").read_bytes() == b"monday"
        unmount(str(monday))


def test_the_server_is_killed(place):
    """What was flushed is there; the dead mount is taken down, and the next server has the volume again."""
    store, live = place.store("store", disk=64 * MIB), place.folder / "live"
    with served_store(store) as server:
        written(place, store, EXT4)
        data = os.urandom(2_000_000)
        with (live / "flushed").open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        server.kill()
    with pytest.raises(OSError, match=r"Input/output|Read-only"), (live / "later").open("wb") as file:
        file.write(bytes(2_000_000))
        file.flush()
        os.fsync(file.fileno())
    unmount(str(live))
    assert leftovers(place.folder) == []
    with served_store(store):
        mount_volume("disk", str(live), store=str(store))
        assert (live / "flushed").read_bytes() == data
        assert cowengine("umount", "--all")["left"] == []
    assert cowengine("store", "check", store)["ok"]


def test_a_store_with_a_long_path(place):
    """Longer than the path of a socket may be."""
    deep = place.folder / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    store = place.store(str(deep / "store"), disk=64 * MIB)
    with served_store(store):
        written(place, store, EXT4)
        cowengine("mount", f"{store}:disk@monday", place.folder / "monday")
        assert (place.folder / "monday" / "file").read_bytes() == b"monday"
        unmount_all()


def test_what_the_server_does_not_have(place):
    store = place.store("store", disk=64 * MIB)
    with served_store(store):
        with pytest.raises(NotFoundError, match="no such volume"):
            mount_volume("none", store=str(store))
        with pytest.raises(NotFoundError, match="tuesday"):
            mount_volume("disk", store=str(store), snapshot="tuesday")
    assert mounted() == []
