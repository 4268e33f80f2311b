"""Descriptors and locks: what a child of fork or exec gets, and what closing another descriptor gives away."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forked_child import in_child, told_in_child

from cowengine import Store, Volume
from cowengine.backup import write_backup
from cowengine.core.iotable import IOTable
from cowengine.errors import BusyError, ClosedError

SIZE = 1 << 20
OWN = Path("/proc/self/fd")


def fds() -> set[int]:
    return {int(name) for name in os.listdir(OWN)}


class Inheritable(IOTable):
    """Notes each descriptor that a program started now would inherit."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def look(self) -> None:
        for fd in fds():
            try:
                if os.get_inheritable(fd) and fd > 2:
                    self.found.add(os.readlink(OWN / str(fd)))
            except OSError:
                continue  # the one of the listing

    def fdatasync(self, fd: int) -> None:
        self.look()
        super().fdatasync(fd)

    def rename(self, source: str, target: str) -> None:
        self.look()
        super().rename(source, target)

    def sync_directory(self, path: str) -> None:
        self.look()
        super().sync_directory(path)


def everything(folder: Path, io: IOTable) -> None:
    (folder / "image").write_bytes(os.urandom(SIZE))
    Volume.adopt(folder / "image", raw=True, io=io).close()
    with Volume.create(folder / "v", SIZE, io=io) as volume, Store.create(folder / "store", io=io) as store:
        snapshot = volume.snapshot("s")
        snapshot.flatten(folder / "flat")
        write_backup(folder / "target", {"v": snapshot}, kind="full", io=io)
        store.create_volume("x", SIZE)
        store.snapshot(["x"], "set")
        store.put_document("plan", "one", {})
        volume.start_compaction().wait()


def test_no_step_has_a_descriptor_that_a_program_could_inherit(tmp_path: Path) -> None:
    io = Inheritable()
    before = {os.readlink(OWN / str(fd)) for fd in fds() if fd > 2 and (OWN / str(fd)).is_symlink()}
    everything(tmp_path, io)
    assert io.found <= before


def test_a_program_started_while_all_is_open_gets_none_of_it(tmp_path: Path) -> None:
    """Asked of the program itself: files below the folder that it has open."""
    with Volume.create(tmp_path / "v", SIZE) as volume, Store.create(tmp_path / "store") as store:
        snapshot = volume.snapshot("s")
        store.create_volume("x", SIZE)
        store.snapshot(["x"], "set")
        with Volume.open(tmp_path / "v", read_only=True) as reader, snapshot.open() as file, snapshot.clone("c"):
            file.read(1)
            reader.get_snapshot("s").pread(1, 0)
            program = "import os; [print(os.path.realpath('/proc/self/fd/' + n)) for n in os.listdir('/proc/self/fd')]"
            ended = subprocess.run(
                [sys.executable, "-c", program], close_fds=False, capture_output=True, text=True, check=True
            )
    assert str(tmp_path) not in ended.stdout


WAYS_TO_CLOSE: dict[str, Callable[[Volume, Path], object]] = {
    "a dup": lambda volume, path: os.close(os.dup(volume.engine.fd)),
    "another open": lambda volume, path: os.close(os.open(path, os.O_RDWR)),
    "a read of the whole file": lambda volume, path: path.read_bytes(),
    "a reader": lambda volume, path: Volume.open(path, read_only=True).close(),
    "an owner that was refused": lambda volume, path: in_child(lambda: Volume.open(path)),
    "a forked child": lambda volume, path: in_child(lambda: None),
    "a forked child that closes all": lambda volume, path: in_child(lambda: (os.closerange(3, 256), os._exit(0))),
    "a forked child that closes the volume": lambda volume, path: in_child(volume.close),
    "a program": lambda volume, path: subprocess.run(["true"], close_fds=False, check=True),
    "a posix lock of another": lambda volume, path: posix_lock(path),
}


def posix_lock(path: Path) -> None:
    """Locks as other programs take them, and lets go."""
    import fcntl

    with open(path, "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_SH, 16, 0)
        fcntl.lockf(file, fcntl.LOCK_UN)
        fcntl.flock(file, fcntl.LOCK_EX)


@pytest.mark.parametrize("way", WAYS_TO_CLOSE)
def test_closing_something_else_gives_no_lock_away(tmp_path: Path, way: str) -> None:
    path = tmp_path / "v"
    with Volume.create(path, SIZE) as volume:
        snapshot = volume.snapshot("s")
        reader = Volume.open(path, read_only=True)
        held = reader.get_snapshot("s")
        WAYS_TO_CLOSE[way](volume, path)
        with pytest.raises(BusyError):
            Volume.open(path)
        assert in_child(lambda: Volume.open(path)) == "BusyError"
        with pytest.raises(BusyError):
            snapshot.delete()
        assert held.pread(1, 0) == b"\0"
        reader.close()
        volume.flush()
    assert in_child(lambda: Volume.open(path).close()) == "nothing"


STORE_CALLS: dict[str, Callable[[Store], object]] = {
    "volumes": lambda store: store.volumes(),
    "create a volume": lambda store: store.create_volume("y", SIZE),
    "open a volume": lambda store: store.open_volume("x"),
    "delete a volume": lambda store: store.delete_volume("x"),
    "rename a volume": lambda store: store.rename_volume("x", "z"),
    "detach": lambda store: store.detach("x"),
    "snapshot": lambda store: store.snapshot(["x"], "set"),
    "list sets": lambda store: store.snapshot_sets(),
    "put a document": lambda store: store.put_document("plan", "one", {}),
    "check": lambda store: store.check(),
}


@pytest.mark.parametrize("call", STORE_CALLS)
def test_a_forked_child_cannot_use_the_parents_store(tmp_path: Path, call: str) -> None:
    with Store.create(tmp_path / "store") as store:
        store.create_volume("x", SIZE).close()
        assert in_child(lambda: STORE_CALLS[call](store)) == ClosedError.__name__
        assert in_child(lambda: Store.open(tmp_path / "store")) == BusyError.__name__
        store.snapshot(["x"], "afterwards")
        assert store.volumes() == ["x"] and store.check().ok


def test_a_forked_child_that_closes_the_store_leaves_it_to_the_parent(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store") as store:
        store.create_volume("x", SIZE).pwrite(b"mine", 0)
        assert told_in_child(store.close) == "nothing"
        assert in_child(lambda: Store.open(tmp_path / "store")) == BusyError.__name__
        store.snapshot(["x"], "afterwards")
    with Store.open(tmp_path / "store") as store:
        assert store.problems == [] and len(store.snapshot_sets()) == 1
