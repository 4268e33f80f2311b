"""Whatever the umask: all files that cowengine makes are for their owner alone, and their owner can use them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forked_child import told_in_child
from other_user import NOBODY

from cowengine import Store, Volume
from cowengine.backup import list_backups, restore, verify_backup, write_backup
from cowengine.cli.main import main
from cowengine.convert import export_image
from cowengine.core.iotable import IOTable

SIZE = 1 << 20


class Modes(IOTable):
    """Looks at each file that it made when it is synced: also at those which are gone in the end."""

    def __init__(self) -> None:
        self.made: dict[str, int] = {}
        self.paths: dict[int, str] = {}

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        fd = super().open(path, flags, mode)
        if flags & os.O_CREAT:
            self.paths[fd] = path
        else:
            self.paths.pop(fd, None)
        return fd

    def fdatasync(self, fd: int) -> None:
        if fd in self.paths:
            self.made[self.paths[fd]] = os.fstat(fd).st_mode & 0o7777
        super().fdatasync(fd)


def a_volume(folder: Path) -> Volume:
    volume = Volume.create(folder / "source", SIZE)
    volume.pwrite(b"data", 0)
    volume.snapshot("s")
    return volume


def with_a_store(folder: Path) -> None:
    with Store.create(folder / "store") as store:
        volume = store.create_volume("x", SIZE)
        store.snapshot(["x"], "set")
        store.put_document("plan", "one", {"a": 1})
        volume.close()
        store.create_volume("y", SIZE).close()
        store.detach("y")
    with Store.open(folder / "store") as store:
        assert store.problems == [] and store.volumes() == ["x"]


def with_a_backup(folder: Path) -> None:
    with a_volume(folder) as volume, Store.create(folder / "store") as store:
        for _ in range(2):
            write_backup(folder / "target", {"v": volume.get_snapshot("s")}, kind="full")
        backup = list_backups(folder / "target")[0].id
        assert verify_backup(folder / "target", backup).ok
        restore(folder / "target", backup, folder / "restored")
        restore(folder / "target", backup, store)


def with_copies(folder: Path) -> None:
    with a_volume(folder) as volume:
        volume.get_snapshot("s").flatten(folder / "flat")
        volume.get_snapshot("s").export(folder / "exported")
    Volume.salvage(folder / "source", folder / "salvaged")


def with_a_command(folder: Path) -> None:
    volume = str(folder / "v")
    assert main(["volume", "create", volume, "1M"]) == 0
    assert main(["snapshot", "create", f"{volume}@s"]) == 0
    assert main(["snapshot", "cat", f"{volume}@s", "--output", str(folder / "cat")]) == 0


def with_another_format(folder: Path) -> None:
    with a_volume(folder) as volume:
        export_image(volume.get_snapshot("s"), folder / "image.qcow2", format="qcow2")


def with_a_database(folder: Path) -> None:
    from cowengine.sqlite import VFS, extract

    with Store.create(folder / "store") as store, VFS(store, capacity=1 << 30) as vfs:
        connection = vfs.connect("db")
        connection.execute("create table t(x)")
        vfs.export("db", folder / "exported")
        connection.close()
        extract(store.open_volume("db", hand_out=False).snapshot("now"), folder / "extracted")


MAKERS: dict[str, Callable[[Path], None]] = {
    "store": with_a_store,
    "backup": with_a_backup,
    "copies": with_copies,
    "command": with_a_command,
    "another format": pytest.param(with_another_format, marks=pytest.mark.needs("qemu-img")),  # type: ignore[dict-item]
    "database": pytest.param(with_a_database, marks=pytest.mark.needs(modules=["apsw"])),  # type: ignore[dict-item]
}


def made_in(folder: Path) -> Iterator[tuple[str, int]]:
    """All files and folders below a folder, with their modes."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            mode = os.lstat(os.path.join(place, name)).st_mode
            yield os.path.join(place, name), mode


@pytest.mark.privileged()
@pytest.mark.parametrize("mask", [0, 0o077, 0o777], ids=oct)
@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
def test_files_are_their_owners_alone_and_he_can_use_them(
    nobodys: Path, maker: Callable[[Path], None], mask: int
) -> None:
    def work() -> None:
        os.umask(mask)
        maker(nobodys)

    assert told_in_child(work, uid=NOBODY) == "nothing"
    found = dict(made_in(nobodys))
    assert len(found) >= 2
    wrong = {
        path: oct(mode)
        for path, mode in found.items()
        if stat.S_IMODE(mode) != (0o700 if stat.S_ISDIR(mode) else 0o600)
    }
    assert wrong == {}


@pytest.mark.parametrize("mask", [0, 0o777], ids=oct)
def test_so_are_those_that_are_gone_in_the_end(tmp_path: Path, mask: int) -> None:
    """The intent file of an adoption and of the way back, and what has not got its name yet."""
    io, before = Modes(), os.umask(mask)
    try:
        (tmp_path / "image").write_bytes(os.urandom(SIZE))
        os.chmod(tmp_path / "image", 0o600)
        with Volume.adopt(tmp_path / "image", raw=True, io=io) as volume:
            volume.snapshot("s").flatten(tmp_path / "flat")
            write_backup(tmp_path / "target", {"v": volume.get_snapshot("s")}, kind="full", io=io)
            volume.get_snapshot("s").delete()
            volume.reclaim()
            volume.flatten()
    finally:
        os.umask(before)
    names = {os.path.basename(path) for path in io.made}
    assert {"image.adopting", "flat.part", "stream", "manifest.json"} <= names
    assert set(io.made.values()) == {0o600}
