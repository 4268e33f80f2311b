"""What cannot be mounted is refused before anything is started, with an error that says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cowengine import BusyError, ExistsError, NotFoundError, OutOfRangeError, Volume
from cowengine.mount import mount_volume, mounted, unmount, unmount_all
from cowengine.mount.state import mounts_folder, new_record, one_at_a_time


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the records of these tests lie."""
    monkeypatch.setenv("COWENGINE_MOUNTS", str(tmp_path / "mounts"))
    return tmp_path / "mounts"


@pytest.fixture
def volume(tmp_path: Path) -> str:
    with Volume.create(tmp_path / "disk.cow", 1 << 20) as made:
        made.snapshot("monday")
    return str(tmp_path / "disk.cow")


@pytest.fixture
def empty(tmp_path: Path) -> str:
    (tmp_path / "empty").mkdir()
    return str(tmp_path / "empty")


def test_a_directory_that_cannot_be_one(volume, tmp_path):
    with pytest.raises(NotFoundError, match="make it first"):
        mount_volume(volume, str(tmp_path / "none"))
    with pytest.raises(OutOfRangeError, match="this is a file"):
        mount_volume(volume, volume)
    with pytest.raises(ExistsError, match="not empty"):
        mount_volume(volume, str(tmp_path))
    with pytest.raises(BusyError, match="mounted there already"):
        mount_volume(volume, "/proc")
    assert mounted() == []


@pytest.mark.privileged()
def test_a_volume_or_snapshot_that_is_not_there(volume, empty, tmp_path):
    with pytest.raises(NotFoundError, match="no such volume"):
        mount_volume(str(tmp_path / "none.cow"), empty)
    with pytest.raises(NotFoundError, match="tuesday"):
        mount_volume(volume, empty, snapshot="tuesday")
    with pytest.raises(OutOfRangeError, match="writable is for snapshots"):
        mount_volume(volume, empty, writable=True)
    assert mounted() == []


@pytest.mark.privileged()
@pytest.mark.parametrize("missing", ["nbdfuse", "nbdkit", "losetup", "fusermount3"])
def test_a_missing_program_is_named_with_its_package(volume, empty, missing, tmp_path, monkeypatch):
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in {"nbdfuse", "nbdkit", "losetup", "fusermount3", "setsid", "mount", "umount"} - {missing}:
        (programs / name).symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(NotFoundError, match=rf"{missing} \(Debian, Ubuntu"):
        mount_volume(volume, empty, snapshot="monday", writable=True)
    assert mounted() == []


@pytest.mark.privileged("setpriv")
def test_another_user_gets_no_mount(volume, tmp_path):
    code = (
        "import os, sys; from cowengine.mount import mount_volume; os.setuid(65534)\n"
        "try: mount_volume(sys.argv[1], sys.argv[2])\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    place = tmp_path / "theirs"
    place.mkdir()
    for path in (tmp_path, *tmp_path.parents[:2]):
        os.chmod(path, 0o755)
    records = tmp_path / "records"
    records.mkdir()
    os.chown(records, 65534, 65534)
    environment = {**os.environ, "COWENGINE_MOUNTS": str(records)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, volume, str(place)], capture_output=True, text=True, env=environment
    )
    assert "OutOfRangeError mounts and loop devices need root" in done.stdout, done.stderr
    assert "--device" in done.stdout


def test_a_folder_of_records_that_others_write_to_is_refused(volume, folder):
    folder.mkdir()
    os.chmod(folder, 0o777)
    with pytest.raises(OutOfRangeError, match="nobody else may write"):
        mount_volume(volume)


@pytest.mark.parametrize("user", [0, 1000])
def test_records_lie_where_nobody_else_writes(user, tmp_path, monkeypatch):
    monkeypatch.delenv("COWENGINE_MOUNTS")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    made: list[str] = []
    monkeypatch.setattr(os, "makedirs", lambda path, **_: made.append(path))
    monkeypatch.setattr(os, "stat", lambda _: SimpleNamespace(st_uid=user, st_mode=0o700))
    if user == 0:
        assert mounts_folder() == made[0] == "/run/cowengine/mounts"
        return
    with pytest.raises(OutOfRangeError, match="XDG_RUNTIME_DIR"):
        mounts_folder()
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert mounts_folder() == made[0] == "/run/user/1000/cowengine/mounts"


def test_what_is_not_mounted_cannot_be_unmounted(tmp_path, run):
    with pytest.raises(NotFoundError, match="nothing that cowengine mounted"):
        unmount(str(tmp_path))
    assert unmount_all() == ([], [])
    assert run("umount", "--all", "--json").document == {"left": [], "unmounted": []}
    assert run("mount", "--json").document == {"mounts": []}


def test_the_command_wants_one_of_two(volume, empty, run):
    for words in (
        ["mount", volume],
        ["mount", volume, empty, "--device"],
        ["umount"],
        ["umount", empty, "--all"],
    ):
        assert "one of the two" in run(*words, expect=2).err


def test_a_record_that_somebody_works_on_is_left_alone(folder, volume):
    with one_at_a_time(mounts_folder()):
        record = new_record(mounts_folder(), volume)
    with record.held():
        with pytest.raises(BusyError, match="another command"):
            unmount(record.id)
        assert [each.id for each in mounted()] == [record.id]
    assert unmount(record.id).id == record.id
    assert mounted() == []
    with pytest.raises(NotFoundError, match="meanwhile"), record.held():
        pass
