"""A raw image becomes a volume where it lies; what is none, or in use, is refused and left as it was."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from raw_images import write_image

from cowengine import (
    BusyError,
    ExistsError,
    FormatError,
    NoSpaceError,
    NotFoundError,
    OutOfRangeError,
    PoisonedError,
    Store,
    Volume,
)
from cowengine.core.iotable import IOTable
from cowengine.engine import adopt as adopting

MIB = 1 << 20


@pytest.mark.parametrize("size", [512, 100 * 512, 300 * 1024 + 512, 5 * MIB, 20 * MIB + 512])
@pytest.mark.parametrize("block_size", [4096, 65536, MIB])
def test_an_adopted_image_is_a_volume_with_the_same_bytes(tmp_path: Path, size: int, block_size: int) -> None:
    path = tmp_path / "disk.img"
    data = write_image(path, size)
    with Volume.adopt(path, block_size=block_size) as volume:
        assert (volume.size, volume.block_size) == (size, block_size)
        assert volume.pread(size, 0) == data
        assert volume.check().ok
        snapshot = volume.snapshot("before")
        volume.pwrite(b"x" * min(size, 9000), 0)
        volume.discard(0, size)
        assert snapshot.pread(size, 0) == data
        volume.rollback(snapshot)
    assert os.listdir(tmp_path) == ["disk.img"]
    with Volume.open(path) as volume:
        assert volume.pread(size, 0) == data
        assert volume.check().ok


def test_holes_stay_holes_and_data_stays_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
        for start in (0, 32 * MIB, 1 << 39):
            file.seek(start)
            file.write(b"d" * 65536)
    before = os.stat(path)
    with Volume.adopt(path) as volume:
        assert volume.allocated_extents().tolist() == [[0, 65536], [32 * MIB, 65536], [1 << 39, 65536]]
        assert volume.path == str(path)
    after = os.stat(path)
    assert after.st_ino == before.st_ino
    assert after.st_blocks * 512 < 48 * MIB


def test_a_map_with_more_nodes_than_fit_in_memory_is_written_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adopting, "DIRTY_NODES_MAX", 4)
    monkeypatch.setattr(adopting, "DELTAS_AT_ONCE", 8)
    path = tmp_path / "disk.img"
    data = write_image(path, 64 * MIB, pieces=60)
    with Volume.adopt(path) as volume:
        assert volume.pread(len(data), 0) == data
        assert volume.check().ok
        volume.pwrite(b"y" * MIB, 7 * MIB)
    with Volume.open(path) as volume:
        assert volume.check().ok


def test_the_volume_can_get_another_name(tmp_path: Path) -> None:
    path, target = tmp_path / "disk.img", tmp_path / "disk.cow"
    data = write_image(path, MIB)
    target.write_bytes(b"mine")
    with pytest.raises(ExistsError):
        Volume.adopt(path, target)
    with pytest.raises(NotFoundError):
        Volume.adopt(path, tmp_path / "nowhere" / "disk.cow")
    assert path.read_bytes() == data
    target.unlink()
    with Volume.adopt(path, target) as volume:
        assert volume.path == str(target)
        assert volume.pread(MIB, 0) == data
    assert os.listdir(tmp_path) == ["disk.cow"]


def test_another_file_system_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    class TwoFileSystems(IOTable):
        def same_file_system(self, path: str, other: str) -> bool:
            return False

    path = tmp_path / "disk.img"
    data = write_image(path, MIB)
    with pytest.raises(OutOfRangeError, match="another file system"):
        Volume.adopt(path, tmp_path / "disk.cow", io=TwoFileSystems())
    assert path.read_bytes() == data


def empty(path: Path) -> None:
    path.write_bytes(b"")


def odd(path: Path) -> None:
    path.write_bytes(bytes(1000))


def link(path: Path) -> None:
    write_image(path.with_suffix(".real"), MIB)
    path.symlink_to(path.with_suffix(".real"))


def pipe(path: Path) -> None:
    os.mkfifo(path)


def volume_file(path: Path) -> None:
    Volume.create(path, MIB).close()


def damaged_volume(path: Path) -> None:
    Volume.create(path, MIB).close()
    with open(path, "r+b") as file:
        for slot in (0, 1):
            file.seek(slot * 4096 + 100)
            file.write(b"rot")


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (empty, OutOfRangeError),
        (odd, OutOfRangeError),
        (link, FormatError),
        (Path.mkdir, FormatError),
        (pipe, FormatError),
        (volume_file, FormatError),
        (damaged_volume, FormatError),
        (lambda path: None, NotFoundError),
    ],
)
def test_what_is_no_raw_image_is_refused(tmp_path: Path, make: Callable[[Path], None], error: type[Exception]) -> None:
    path = tmp_path / "disk.img"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(error):
        Volume.adopt(path, raw=True)
    assert before is None or path.read_bytes() == before
    assert not path.with_name("disk.img.adopting").exists()


@pytest.mark.parametrize(
    ("magic", "offset", "name"),
    [
        (b"QFI\xfb", 0, "qcow"),
        (b"vhdxfile", 0, "VHDX"),
        (b"KDMV", 0, "VMDK"),
        (b"conectix", MIB - 512, "VHD"),
        (b"\x1f\x8b\x08", 0, "gzip"),
    ],
)
def test_what_only_looks_raw_needs_an_explicit_word(tmp_path: Path, magic: bytes, offset: int, name: str) -> None:
    path = tmp_path / "disk.img"
    data = bytearray(MIB)
    data[offset : offset + len(magic)] = magic
    path.write_bytes(data)
    with pytest.raises(FormatError, match=name):
        Volume.adopt(path)
    assert path.read_bytes() == data
    with Volume.adopt(path, raw=True) as volume:
        assert volume.pread(MIB, 0) == data


def test_a_file_that_anybody_has_open_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    data = write_image(path, MIB)
    for mode in ("rb", "r+b"):
        with open(path, mode), pytest.raises(BusyError, match="open elsewhere"):
            Volume.adopt(path)
    with open(path, "rb") as file:
        child = subprocess.Popen(["sleep", "100"], stdin=file)
    with child:
        with pytest.raises(BusyError):
            Volume.adopt(path)
        child.kill()
    assert path.read_bytes() == data


@pytest.mark.privileged("losetup")
def test_a_file_behind_a_loop_device_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    data = write_image(path, MIB)
    device = subprocess.run(
        ["losetup", "-f", "--show", path], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        with pytest.raises(BusyError):
            Volume.adopt(path)
        with pytest.raises(FormatError):
            Volume.adopt(device)
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
    assert path.read_bytes() == data


def test_two_that_adopt_at_once_are_one(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    data = write_image(path, MIB)

    class Second(IOTable):
        """Adopts in the middle of the adoption."""

        refused = 0

        def truncate(self, fd: int, size: int) -> None:
            with pytest.raises(BusyError):
                Volume.adopt(path)
            Second.refused += 1
            super().truncate(fd, size)

    with Volume.adopt(path, io=Second()) as volume:
        assert volume.pread(MIB, 0) == data
        with pytest.raises(BusyError):
            Volume.adopt(path)
    assert Second.refused


def test_of_processes_that_adopt_at_once_exactly_one_does(tmp_path: Path) -> None:
    """The others are told that one has the file, or, if they come late, that it is a volume by now."""
    path = tmp_path / "disk.img"
    data = write_image(path, MIB)
    met = {True: 0, False: 0}
    for number in range(40):
        path.write_bytes(data)
        keeps_open = number % 2 == 0
        ends = adopting_at_once(path, 8, keeps_open)
        assert sorted(set(ends)) in (["", "busy"], ["", "busy", "volume"], ["", "volume"]), ends
        assert ends.count("") == 1
        met[keeps_open] += ends.count("busy")
        with Volume.open(path, background=False) as volume:
            assert volume.pread(MIB, 0) == data
            assert volume.check().ok
        assert os.listdir(tmp_path) == ["disk.img"]
    assert met[True] == 20 * 7, "while the winner has it open, all others are told that"
    assert met[False], "no two ever met"


def adopting_at_once(path: Path, count: int, keeps_open: bool) -> list[str]:
    """What so many processes say that adopt at the same time; the one that does keeps the volume until all are done."""
    waiting, begin = os.pipe()
    said, says = os.pipe()
    over, end = os.pipe()
    children = []
    for _ in range(count):
        child = os.fork()
        if child == 0:
            os.close(begin)
            os.close(end)
            adopting_child(path, waiting, says, over if keeps_open else None)
        children.append(child)
    os.close(begin)  # all of them go now
    words = b""
    while words.count(b"\n") < count:
        words += os.read(said, 4096)
    os.close(end)
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for fd in (waiting, said, says, over):
        os.close(fd)
    return words.decode().split("\n")[:-1]


def adopting_child(path: Path, waiting: int, says: int, over: int | None) -> None:
    """Adopts once nobody holds the other end of `waiting`, and says how that ended."""
    try:
        os.read(waiting, 1)
        try:
            volume = Volume.adopt(path, background=False)
        except BusyError as error:
            known = "open already" in str(error) or "taking the file over" in str(error)
            os.write(says, b"busy\n" if known else f"{error}\n".encode())
        except FormatError as error:
            os.write(says, b"volume\n" if "volume already" in str(error) else f"{error}\n".encode())
        except BaseException as error:
            os.write(says, f"{error!r}\n".encode())
        else:
            os.write(says, b"\n")
            if over is not None:
                os.read(over, 1)
            volume.close()
    finally:
        os._exit(0)


def test_a_full_disk_leaves_the_raw_image(tmp_path: Path) -> None:
    class Full(IOTable):
        left = 0

        def pwrite(self, fd: int, data: bytes, offset: int) -> None:
            Full.left -= 1
            if Full.left == 0:
                raise OSError(28, os.strerror(28))
            super().pwrite(fd, data, offset)

    path = tmp_path / "disk.img"
    data = write_image(path, MIB)
    for calls in range(1, 8):
        Full.left = calls
        with pytest.raises((NoSpaceError, PoisonedError)):  # the second where space is expected to be there
            Volume.adopt(path, io=Full())
        assert path.read_bytes() == data
        assert os.listdir(tmp_path) == ["disk.img"]


def interrupted(path: Path) -> None:
    """Adopts as a process that dies just before the superblocks are written."""
    from cowengine.engine import engine

    class Death(BaseException):
        pass

    def die(*_: object) -> None:
        raise Death

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.Engine, "write_superblock", die)
        patch.setattr(adopting, "put_back", die)
        with pytest.raises(Death):
            Volume.adopt(path)


def test_an_interrupted_adoption_says_what_to_do_and_can_be_undone_or_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    data = write_image(path, MIB)
    interrupted(path)
    assert path.read_bytes() != data
    with pytest.raises(FormatError, match="undo"):
        Volume.open(path)
    Volume.undo_adoption(path)
    assert path.read_bytes() == data
    with pytest.raises(NotFoundError):
        Volume.undo_adoption(path)
    interrupted(path)
    with Volume.adopt(path) as volume:
        assert volume.pread(MIB, 0) == data
    assert os.listdir(tmp_path) == ["disk.img"]


def test_an_image_that_was_changed_since_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    data = write_image(path, MIB)
    interrupted(path)
    path.write_bytes(bytearray(data[:20000] + b"new" + data[20003:]))
    with pytest.raises(FormatError, match="changed since"):
        Volume.undo_adoption(path)
    with pytest.raises(FormatError, match="changed since"):
        Volume.adopt(path)
    assert path.read_bytes()[20000:20003] == b"new"


def test_a_file_of_the_intent_s_name_that_is_none_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    data = write_image(path, MIB)
    beside = tmp_path / "disk.img.adopting"
    beside.write_bytes(b"my notes")
    with pytest.raises(ExistsError):
        Volume.adopt(path)
    assert (path.read_bytes(), beside.read_bytes()) == (data, b"my notes")


def test_a_store_adopts(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    data = write_image(path, MIB)
    with Store.create(tmp_path / "store") as store:
        store.create_volume("taken", MIB)
        with pytest.raises(ExistsError):
            store.adopt_volume("taken", path)
        with pytest.raises(OutOfRangeError):
            store.adopt_volume("a/b", path)
        assert path.read_bytes() == data
        volume = store.adopt_volume("mail", path)
        assert volume.pread(MIB, 0) == data
        assert store.volumes() == ["mail", "taken"]
        assert store.snapshot(["mail", "taken"], "both").snapshots["mail"].pread(MIB, 0) == data
        assert not path.exists()
    with Store.open(tmp_path / "store") as store:
        assert store.open_volume("mail").pread(MIB, 0) == data
        assert store.check().ok
