"""A user without rights: what is refused, how, and that nothing is lost by it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forked_child import told_in_child
from other_user import NOBODY
from raw_images import write_image

from cowengine import Store, Volume
from cowengine.backup import list_backups, restore, write_backup
from cowengine.cli.main import main
from cowengine.engine.check import check_file

pytestmark = pytest.mark.privileged()
SIZE = 1 << 20


def by_nobody(work: Callable[[], object]) -> str:
    """What a user without rights is told."""
    return told_in_child(work, uid=NOBODY)


def write_and_close(path: Path) -> None:
    with Volume.open(path) as volume:
        volume.pwrite(b"new", 0)


def read(path: Path) -> None:
    with Volume.open(path, read_only=True) as volume:
        assert volume.get_snapshot("s").pread(4, 0) == b"data"
        assert volume.check().ok


def a_volume(path: Path, mode: int = 0o600) -> Path:
    with Volume.create(path, SIZE) as volume:
        volume.pwrite(b"data", 0)
        volume.snapshot("s")
    path.chmod(mode)
    return path


def test_a_volume_of_somebody_else_is_refused_and_the_message_says_what_to_do(public: Path) -> None:
    path = a_volume(public / "v")
    before = path.read_bytes()
    told = by_nobody(lambda: write_and_close(path))
    assert told.startswith("ReadOnlyError: ") and "run as its owner" in told and str(path) in told
    told = by_nobody(lambda: read(path))
    assert told.startswith("StorageError: ") and "run as its owner" in told and str(path) in told
    assert "run as its owner" in by_nobody(lambda: check_file(str(path)))
    assert path.read_bytes() == before


@pytest.mark.parametrize("mode", [0o444, 0o644])
def test_a_volume_that_may_be_read_is_read_and_not_written(public: Path, mode: int) -> None:
    path = a_volume(public / "v", mode)
    before = path.read_bytes()
    told = by_nobody(lambda: write_and_close(path))
    assert told.startswith("ReadOnlyError: ") and "open it read-only" in told
    assert by_nobody(lambda: read(path)) == "nothing"
    assert path.read_bytes() == before


def test_a_volume_of_somebody_else_that_may_be_written_is_and_keeps_owner_and_mode(sticky: Path) -> None:
    path = a_volume(sticky / "v", 0o666)
    assert by_nobody(lambda: write_and_close(path)) == "nothing"
    assert (path.stat().st_uid, path.stat().st_mode & 0o7777) == (0, 0o666)
    with Volume.open(path) as volume:
        assert volume.pread(3, 0) == b"new"


def test_a_file_of_mode_zero_is_refused_to_its_owner(nobodys: Path) -> None:
    path = a_volume(nobodys / "v", 0)
    os.chown(path, NOBODY, NOBODY)
    assert by_nobody(lambda: write_and_close(path)).startswith("ReadOnlyError: ")
    assert by_nobody(lambda: read(path)).startswith("StorageError: ")


def test_a_folder_that_may_not_be_searched_is_refused(public: Path) -> None:
    folder = public / "shut"
    folder.mkdir(mode=0o700)
    path = a_volume(folder / "v", 0o666)
    for work in (lambda: write_and_close(path), lambda: read(path), lambda: Volume.create(folder / "w", SIZE)):
        told = by_nobody(work)
        assert told.startswith(("ReadOnlyError: ", "StorageError: ")), told


MAKERS: dict[str, Callable[[Path, Path], object]] = {
    "create": lambda source, folder: Volume.create(folder / "new", SIZE),
    "flatten": lambda source, folder: Volume.open(source, read_only=True).get_snapshot("s").flatten(folder / "new"),
    "export": lambda source, folder: Volume.open(source, read_only=True).get_snapshot("s").export(folder / "new"),
    "salvage": lambda source, folder: Volume.salvage(source, folder / "new"),
    "store": lambda source, folder: Store.create(folder / "new"),
    "backup": lambda source, folder: write_backup(
        folder / "new", {"v": Volume.open(source, read_only=True).get_snapshot("s")}, kind="full"
    ),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_a_folder_that_may_not_be_written_takes_nothing_new(public: Path, maker: str) -> None:
    source = a_volume(public / "v", 0o644)
    before = sorted(os.listdir(public))
    told = by_nobody(lambda: MAKERS[maker](source, public))
    assert told.startswith("ReadOnlyError: "), told
    assert sorted(os.listdir(public)) == before


def test_an_image_in_a_folder_that_may_not_be_written_stays_raw(public: Path) -> None:
    path = public / "image"
    data = write_image(path, SIZE)
    path.chmod(0o666)
    told = by_nobody(lambda: Volume.adopt(path))
    assert told.startswith("ReadOnlyError: "), told
    assert path.read_bytes() == data and os.listdir(public) == ["image"]


def test_a_volume_in_a_folder_that_may_not_be_written_is_not_made_raw(public: Path) -> None:
    path = public / "image"
    data = write_image(path, SIZE)
    Volume.adopt(path).close()
    path.chmod(0o666)

    def flatten() -> None:
        with Volume.open(path) as volume:
            volume.flatten()

    assert by_nobody(flatten).startswith("ReadOnlyError: ")
    assert os.listdir(public) == ["image"]
    with Volume.open(path) as volume:
        assert volume.pread(SIZE, 0) == data and volume.check().ok


def test_a_volume_of_somebody_else_in_a_sticky_folder_is_not_replaced(sticky: Path) -> None:
    """Flattening one that was created writes a copy that takes its name: no name of others may be taken."""
    path = sticky / "v"
    with Volume.create(path, SIZE) as volume:
        volume.pwrite(b"data", 0)
    path.chmod(0o666)

    def flatten() -> None:
        with Volume.open(path) as volume:
            volume.flatten()

    told = by_nobody(flatten)
    assert told.startswith("ReadOnlyError: "), told
    assert os.listdir(sticky) == ["v"]
    with Volume.open(path) as volume:
        assert volume.pread(4, 0) == b"data" and volume.check().ok


def planted(path: Path) -> None:
    """A file that somebody else laid there beforehand, and can write."""
    path.write_bytes(b"planted")
    os.chown(path, NOBODY, NOBODY)
    path.chmod(0o666)


def test_what_somebody_laid_in_the_place_of_a_copy_is_not_written(sticky: Path, public: Path) -> None:
    planted(sticky / "new.part")
    with Volume.open(a_volume(public / "v")) as volume:
        volume.get_snapshot("s").flatten(sticky / "new")
    assert ((sticky / "new").stat().st_uid, (sticky / "new").stat().st_mode & 0o7777) == (0, 0o600)


def test_what_somebody_laid_in_the_place_of_a_restored_file_is_not_written(sticky: Path, public: Path) -> None:
    planted(sticky / ".v.raw.restoring")
    os.link(sticky / ".v.raw.restoring", sticky / "kept open")
    with Volume.open(a_volume(public / "v")) as volume:
        write_backup(public / "target", {"v": volume.get_snapshot("s")}, kind="full")
    restore(public / "target", list_backups(public / "target")[0].id, sticky)
    restored = sticky / "v.raw"
    assert (restored.stat().st_uid, restored.stat().st_mode & 0o7777, restored.stat().st_nlink) == (0, 0o600, 1)
    assert (sticky / "kept open").read_bytes() == b"planted"


def test_a_hard_link_in_the_place_of_a_restored_file_does_not_harm_what_it_names(sticky: Path, public: Path) -> None:
    (public / "victim").write_bytes(b"theirs")
    os.link(public / "victim", sticky / ".v.raw.restoring")
    with Volume.open(a_volume(public / "v")) as volume:
        write_backup(public / "target", {"v": volume.get_snapshot("s")}, kind="full")
    restore(public / "target", list_backups(public / "target")[0].id, sticky)
    assert (public / "victim").read_bytes() == b"theirs"


# -- stores and backups of others --------------------------------------------------------------------------------------
def test_a_store_of_somebody_else_is_refused(public: Path) -> None:
    with Store.create(public / "store") as store:
        store.create_volume("x", SIZE).close()
    for read_only in (False, True):
        told = by_nobody(lambda read_only=read_only: Store.open(public / "store", read_only=read_only).close())
        assert told.startswith(("ReadOnlyError: ", "StorageError: ")), told


def test_a_store_that_may_be_read_is_read(public: Path) -> None:
    with Store.create(public / "store") as store:
        store.create_volume("x", SIZE).close()
        store.snapshot(["x"], "set")
    subprocess.run(["chmod", "-R", "a+rX", str(public / "store")], check=True)

    def look() -> None:
        with Store.open(public / "store", read_only=True) as store:
            assert store.volumes() == ["x"] and store.check().ok
            assert [found.name for found in store.snapshot_sets()] == ["set"]

    assert by_nobody(look) == "nothing"
    assert by_nobody(lambda: Store.open(public / "store").close()).startswith("ReadOnlyError: ")
    with Store.open(public / "store") as store:
        assert store.problems == []


def test_backups_of_somebody_else_are_refused(public: Path, nobodys: Path) -> None:
    with Volume.open(a_volume(public / "v")) as volume:
        write_backup(public / "target", {"v": volume.get_snapshot("s")}, kind="full")
        backup = list_backups(public / "target")[0].id
    for work in (
        lambda: list_backups(public / "target"),
        lambda: restore(public / "target", backup, nobodys / "restored"),
    ):
        assert by_nobody(work).startswith("ReadOnlyError: ")
    assert os.listdir(nobodys) == []


def test_the_command_line_says_it_with_its_exit_status(public: Path) -> None:
    path = a_volume(public / "v")

    def work() -> None:
        assert main(["snapshot", "list", str(path)]) == 1
        assert main(["snapshot", "create", f"{path}@t"]) == 1
        assert main(["volume", "delete", str(path), "--with-snapshots"]) == 1

    assert by_nobody(work) == "nothing"
    assert path.exists()


# -- what even root may not ------------------------------------------------------------------------------------------
@pytest.fixture
def read_only_mount(public: Path) -> Iterator[Path]:
    """A read-only view of a folder with a volume, an image and a store."""
    real, place = public / "real", public / "mounted"
    real.mkdir()
    place.mkdir()
    a_volume(real / "v")
    write_image(real / "image", SIZE)
    with Store.create(real / "store") as store:
        store.create_volume("x", SIZE).close()
    with Volume.create(real / "crashed first", SIZE, background=False) as volume:
        volume.pwrite(b"data", 0)
        volume.snapshot("s")
        shutil.copy(real / "crashed first", real / "crashed")
    subprocess.run(["mount", "--bind", "-o", "ro", str(real), str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.privileged("mount", "umount")
@pytest.mark.parametrize("name", ["v", "crashed"])
def test_a_volume_on_a_read_only_file_system_is_read(read_only_mount: Path, name: str) -> None:
    read(read_only_mount / name)
    told = told_in_child(lambda: write_and_close(read_only_mount / name))
    assert told.startswith("ReadOnlyError: ") and "Read-only file system" in told


@pytest.mark.privileged("mount", "umount")
def test_nothing_is_made_on_a_read_only_file_system(read_only_mount: Path) -> None:
    for work in (
        lambda: Volume.create(read_only_mount / "new", SIZE),
        lambda: Store.create(read_only_mount / "new"),
        lambda: Volume.adopt(read_only_mount / "image"),
        lambda: Store.open(read_only_mount / "store"),
        lambda: Volume.repair(read_only_mount / "v"),
        lambda: MAKERS["flatten"](read_only_mount / "v", read_only_mount),
    ):
        assert told_in_child(work).startswith("ReadOnlyError: ")
    with Store.open(read_only_mount / "store", read_only=True) as store:
        assert store.volumes() == ["x"] and store.check().ok
