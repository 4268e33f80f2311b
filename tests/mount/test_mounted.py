"""Real file systems on volumes: what was flushed is there again, snapshots stay as they were, users are not cut off."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import COMMAND, MIB, Bench, bench, cowengine, leftovers, run

from cowengine import BusyError, FormatError
from cowengine.mount import Record, mount_volume, mounted, unmount, unmount_all
from cowengine.mount.chain import Chain

pytestmark = pytest.mark.privileged("nbdfuse", "fusermount3", "losetup", "mkfs.ext4", "nbdkit", "setpriv")

EXT4 = ("mkfs.ext4", "-q", "-F")
XFS = ("mkfs.xfs", "-q", "-f")
BTRFS = ("mkfs.btrfs", "-q", "-f")


@pytest.fixture
def place() -> Iterator[Bench]:
    """A folder in which nothing is left behind."""
    with bench() as made:
        yield made


def disk(place: Bench, mkfs: tuple[str, ...] = EXT4, size: int = 64 * MIB, name: str = "disk.cow") -> Path:
    """A volume file with a new file system."""
    path = place.folder / name
    cowengine("volume", "create", path, size)
    place.format(path, *mkfs)
    return path


def write_flushed(path: Path, data: bytes) -> None:
    """Written, and flushed with its folder."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def number_of(record: Record, name: str) -> int:
    number = getattr(Chain(record), name).number()
    assert number is not None
    return number


def kill(record: Record, name: str) -> None:
    """One of its programs, at once, and waits until it is gone."""
    program = getattr(Chain(record), name)
    os.kill(number_of(record, name), signal.SIGKILL)
    assert program.wait(60)


def snapshot_bytes(volume: Path, name: str) -> str:
    done = subprocess.run([*COMMAND, "snapshot", "cat", f"{volume}@{name}"], capture_output=True, check=True)
    return hashlib.sha256(done.stdout).hexdigest()


def dirty_snapshot(place: Bench, volume: Path, data: bytes) -> None:
    """A snapshot `monday` of a volume whose server was killed while it was mounted: its journal is not empty."""
    record = mount_volume(str(volume), str(place.directory("before")))
    write_flushed(place.folder / "before" / "file", data)
    kill(record, "server")
    unmount(record.id)
    cowengine("snapshot", "create", f"{volume}@monday")


# -- live volumes ------------------------------------------------------------------------------------------------------
def test_a_volume_is_a_file_system_as_long_as_it_is_mounted(place):
    volume, point = disk(place), place.directory("point")
    for number in range(2):
        document = cowengine("mount", volume, point)
        assert document["directory"] == str(point)
        assert document["own_server"]
        assert not document["overlay"]
        assert run(*COMMAND, "mount").strip() == f"{point}: {volume}"
        assert os.path.ismount(point)
        (point / f"file{number}").write_bytes(b"x" * 1_000_000)
        assert cowengine("umount", point)["id"] == document["id"]
        assert os.listdir(point) == []
    document = cowengine("mount", volume, point, "--read-only", "-o", "noatime")
    assert sorted(path.name for path in point.iterdir()) == ["file0", "file1", "lost+found"]
    assert "ro,noatime" in Path("/proc/self/mounts").read_text().split(str(point))[1].splitlines()[0]
    with pytest.raises(OSError, match="Read-only"):
        (point / "more").touch()
    cowengine("umount", document["device"])
    assert leftovers(place.folder) == []
    assert cowengine("volume", "check", volume)["ok"]


@pytest.mark.parametrize("of", ["server", "fuse"])
def test_what_was_flushed_is_there_after_a_kill(place, of):
    """fsync, the loop device's flush, nbdfuse's, NBD's and a commit of the volume are one."""
    volume, point = disk(place), place.directory("point")
    record = mount_volume(str(volume), str(point))
    data = os.urandom(3_000_000)
    write_flushed(point / "file", data)
    kill(record, of)
    with pytest.raises(OSError, match=r"Input/output|Read-only"):
        write_flushed(point / "later", b"x" * 1_000_000)
    again = place.directory("again")
    mount_volume(str(volume), str(again))  # the sweep takes the dead one down
    assert not os.path.ismount(point)
    assert (again / "file").read_bytes() == data
    unmount(str(again))
    assert cowengine("volume", "check", volume)["ok"]
    loop = mount_volume(str(volume), loop=True)
    run("fsck.ext4", "-n", "-f", loop.device)
    unmount(loop.device or "")


def test_the_space_of_deleted_files_is_given_back(place):
    volume, point = disk(place), place.directory("point")
    mount_volume(str(volume), str(point))
    write_flushed(point / "file", os.urandom(20 * MIB))
    unmount(str(point))
    full = volume.stat().st_blocks * 512
    mount_volume(str(volume), str(point))
    (point / "file").unlink()
    run("sync", "-f", point)
    run("fstrim", point)
    unmount(str(point))
    assert volume.stat().st_blocks * 512 < full - 16 * MIB


def test_a_block_file_and_a_loop_device(place):
    volume = disk(place)
    path = run(*COMMAND, "mount", volume, "--device").strip()
    with open(path, "r+b") as file:
        file.seek(8 * MIB)
        file.write(b"through the file")
        file.flush()
        os.fsync(file.fileno())
        with pytest.raises(BusyError, match=f"process {os.getpid()}"):
            unmount(path)
    assert os.path.getsize(path) == 64 * MIB
    unmount(path)
    device = run(*COMMAND, "mount", volume, "--loop").strip()
    with open(device, "rb") as file:
        file.seek(8 * MIB)
        assert file.read(16) == b"through the file"
        with pytest.raises(BusyError, match=f"process {os.getpid()}"):
            unmount(device)
    unmount(device)
    assert leftovers(place.folder) == []


def test_a_volume_is_mounted_once(place):
    volume, point, other = disk(place), place.directory("point"), place.directory("other")
    mount_volume(str(volume), str(point))
    with pytest.raises(BusyError, match=f"mounted at {point}"):
        mount_volume(str(volume), str(other))
    with pytest.raises(BusyError, match="mounted there already"):
        mount_volume(str(volume), str(point))
    other.rmdir()
    os.symlink(point, other)
    with pytest.raises(BusyError, match="mounted there already"):
        mount_volume(str(volume), str(other))
    assert len(mounted()) == 1


# -- snapshots ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("mkfs", "size"), [(EXT4, 64), (XFS, 320), (BTRFS, 128)], ids=["ext4", "xfs", "btrfs"])
@pytest.mark.privileged("mkfs.xfs", "mkfs.btrfs")
def test_a_snapshot_is_mounted_and_stays_as_it_was(place, mkfs, size):
    """Its file system has a journal to replay, for its server was killed: that goes to the overlay."""
    volume, data = disk(place, mkfs, size * MIB), os.urandom(3_000_000)
    dirty_snapshot(place, volume, data)
    before = snapshot_bytes(volume, "monday"), cowengine("volume", "info", volume)["epoch"]
    point = place.directory("point")
    for options in ([], ["--writable"]):
        document = cowengine("mount", f"{volume}@monday", point, *options)
        assert document["overlay"]
        assert document["read_only"] == (not options)
        assert (point / "file").read_bytes() == data
        if options:
            write_flushed(point / "thrown away", b"x" * 1_000_000)
        else:
            with pytest.raises(OSError, match="Read-only"):
                (point / "more").touch()
        cowengine("umount", point)
    assert (snapshot_bytes(volume, "monday"), cowengine("volume", "info", volume)["epoch"]) == before
    assert cowengine("volume", "check", volume)["ok"]


def test_a_clean_snapshot_needs_no_overlay(place):
    volume, point = disk(place), place.directory("point")
    cowengine("snapshot", "create", f"{volume}@monday")
    document = cowengine("mount", f"{volume}@monday", point)
    assert not document["overlay"]
    assert Path(f"/sys/block/{Path(document['device']).name}/ro").read_text().strip() == "1"
    cowengine("umount", point)


# -- in use, or not to be mounted --------------------------------------------------------------------------------------
def test_who_uses_a_mount_keeps_it(place):
    volume, point = disk(place), place.directory("point")
    record = mount_volume(str(volume), str(point))
    with (point / "file").open("wb") as file:
        with pytest.raises(BusyError, match=rf"process {os.getpid()} .*nothing was undone"):
            unmount(str(point))
        done, ((left, error),) = unmount_all()
        assert (done, left.id, type(error)) == ([], record.id, BusyError)
        refused = subprocess.run([*COMMAND, "umount", "--all"], capture_output=True, text=True)
        assert refused.returncode == 5
        assert str(os.getpid()) in refused.stderr
        file.write(b"it works")
        file.flush()
        os.fsync(file.fileno())
    assert (point / "file").read_bytes() == b"it works"
    with subprocess.Popen(["sleep", "60"], cwd=point) as sleeper:
        with pytest.raises(BusyError, match=rf"process {sleeper.pid} \(sleep\)"):
            unmount(str(point))
        sleeper.kill()
    inner = point / "inner"
    inner.mkdir()
    run("mount", "-t", "tmpfs", "none", inner)
    with pytest.raises(BusyError, match=f"mounted at {inner}"):
        unmount(str(point))
    run("umount", inner)
    unmount(str(point))
    assert leftovers(place.folder) == []


def test_a_mount_over_the_mount_is_not_touched(place):
    volume, point = disk(place), place.directory("point")
    mount_volume(str(volume), str(point))
    run("mount", "-t", "tmpfs", "none", point)
    try:
        with pytest.raises(BusyError, match="mounted over"):
            unmount(str(point))
    finally:
        run("umount", point)
    unmount(str(point))


def test_a_volume_without_a_file_system(place):
    point = place.directory("point")
    cowengine("volume", "create", place.folder / "empty.cow", 8 * MIB)
    with pytest.raises(FormatError, match="no file system"):
        mount_volume(str(place.folder / "empty.cow"), str(point))
    assert (mounted(), leftovers(place.folder)) == ([], [])


def test_a_volume_that_somebody_owns(place):
    """The server's own error comes through."""
    from cowengine import Volume

    volume, point = disk(place), place.directory("point")
    with Volume.open(volume), pytest.raises(BusyError, match="open"):
        mount_volume(str(volume), str(point))
    assert (mounted(), leftovers(place.folder)) == ([], [])
