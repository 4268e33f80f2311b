"""Files that are in the way, are no volumes, or belong to somebody else."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from forked_child import in_child

from cowengine import Volume
from cowengine.core.checksum import xxh64
from cowengine.engine.check import check_file
from cowengine.errors import (
    BusyError,
    ClosedError,
    CorruptionError,
    CowEngineError,
    ExistsError,
    FormatError,
    NotFoundError,
    OutOfRangeError,
    ReadOnlyError,
    StorageError,
    UnsupportedVersionError,
)

SIZE = 1 << 20
SLOT = 4096
NOBODY = 65534


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Fails what hangs instead of waiting for it."""

    def hangs(*_: object) -> None:
        raise AssertionError(f"hangs for {seconds} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def put(path: Path, kind: str) -> None:
    """Something that is no volume."""
    if kind == "directory":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "symbolic link to a volume":
        Volume.create(path.with_name("real"), SIZE).close()
        path.symlink_to("real")
    elif kind == "dangling symbolic link":
        path.symlink_to("nothing")
    else:
        path.write_bytes(CONTENTS[kind])


CONTENTS = {
    "empty file": b"",
    "one byte": b"\0",
    "text": b"no volume\n" * 2000,
    "zeros": bytes(100_000),
    "random bytes": random.Random(1).randbytes(100_000),
    "another image format": b"QFI\xfb\0\0\0\3" + bytes(70_000),
    "magic alone": b"COWENG\r\n",
    "magic and zeros": b"COWENG\r\n" + bytes(100_000),
}
SPECIAL = ["directory", "FIFO", "socket", "symbolic link to a volume", "dangling symbolic link"]


def tree(path: Path) -> dict[str, tuple[int, bytes]]:
    """What lies in a directory."""
    return {
        name: (os.lstat(path / name).st_mode, (path / name).read_bytes() if (path / name).is_file() else b"")
        for name in os.listdir(path)
    }


@pytest.mark.parametrize("kind", [*SPECIAL, *CONTENTS])
def test_creating_a_volume_replaces_nothing(tmp_path: Path, kind: str) -> None:
    put(tmp_path / "v", kind)
    before = tree(tmp_path)
    with pytest.raises(ExistsError, match="in the way"), at_most(5):
        Volume.create(tmp_path / "v", SIZE)
    assert tree(tmp_path) == before


def checked(path: Path) -> None:
    """What the verifier raises, or reports of a damaged file."""
    report = check_file(str(path))
    if not report.ok:
        raise CorruptionError(report.problems[0], str(path))


OPENINGS: dict[str, Callable[[Path], object]] = {
    "open": Volume.open,
    "open read-only": lambda path: Volume.open(path, read_only=True),
    "check": lambda path: checked(path),
}


@pytest.mark.parametrize("kind", [*SPECIAL, *CONTENTS])
@pytest.mark.parametrize("how", OPENINGS)
def test_what_is_no_volume_is_not_opened_and_not_changed(tmp_path: Path, kind: str, how: str) -> None:
    put(tmp_path / "v", kind)
    before = tree(tmp_path)
    with pytest.raises((FormatError, CorruptionError)) as caught, at_most(5):
        OPENINGS[how](tmp_path / "v")
    assert type(caught.value) in ((FormatError, CorruptionError) if kind.startswith("magic") else (FormatError,))
    assert str(tmp_path / "v") in str(caught.value)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero", "/dev/full", "/dev/urandom"])
@pytest.mark.parametrize("how", OPENINGS)
def test_a_device_is_no_volume(device: str, how: str) -> None:
    with pytest.raises(FormatError), at_most(5):
        OPENINGS[how](Path(device))
    with pytest.raises(ExistsError):
        Volume.create(device, SIZE)


@pytest.mark.parametrize("how", OPENINGS)
def test_what_does_not_exist_is_not_found(tmp_path: Path, how: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for path in (tmp_path / "v", tmp_path / "no" / "v", tmp_path / "file" / "v"):
        with pytest.raises(NotFoundError):
            OPENINGS[how](path)
    with pytest.raises(NotFoundError, match="directory"):
        Volume.create(tmp_path / "no" / "v", SIZE)


@pytest.mark.parametrize("how", OPENINGS)
def test_a_path_too_long_for_the_system_is_a_storage_error(tmp_path: Path, how: str) -> None:
    for path in (tmp_path / ("x" * 300), Path("x/" * 3000 + "v")):
        with pytest.raises(StorageError, match="too long"):
            OPENINGS[how](path)
        with pytest.raises(StorageError, match="too long"):
            Volume.create(path, SIZE)


# -- newer versions ---------------------------------------------------------------------------------------------------
def patched(path: Path, offset: int, layout: str, value: int, slots: tuple[int, ...] = (0, 1)) -> None:
    """Writes a field of superblocks, with the right checksum."""
    data = bytearray(path.read_bytes())
    for slot in slots:
        block = data[slot * SLOT : (slot + 1) * SLOT]
        struct.pack_into(layout, block, offset, value)
        struct.pack_into("<Q", block, SLOT - 8, xxh64(bytes(block[: SLOT - 8]), 0))
        data[slot * SLOT : (slot + 1) * SLOT] = block
    path.write_bytes(data)


NEWER = [(8, "<I", 2), (8, "<I", 2**32 - 1), (8, "<I", 0), (16, "<Q", 1 << 40), (16, "<Q", 1 << 63)]


@pytest.mark.parametrize("slots", [(0, 1), (0,), (1,)], ids=str)
@pytest.mark.parametrize(("offset", "layout", "value"), NEWER)
def test_a_volume_of_a_newer_version_is_refused_and_not_changed(
    tmp_path: Path, offset: int, layout: str, value: int, slots: tuple[int, ...]
) -> None:
    path = tmp_path / "v"
    Volume.create(path, SIZE).close()
    patched(path, offset, layout, value, slots)
    before = path.read_bytes()
    for opening in OPENINGS.values():
        with pytest.raises(UnsupportedVersionError, match="upgrade"):
            opening(path)
    assert path.read_bytes() == before


# -- owners -----------------------------------------------------------------------------------------------------------
def test_a_volume_has_one_owner_whatever_the_way_to_its_file(tmp_path: Path) -> None:
    path, other = tmp_path / "v", tmp_path / "hard link"
    with Volume.create(path, SIZE, background=False) as volume:
        volume.pwrite(b"mine", 0)
        os.link(path, other)
        for name in (path, other, os.path.relpath(path), tmp_path / "." / "v"):
            with pytest.raises(BusyError):
                Volume.open(name)
            assert in_child(lambda name=name: Volume.open(name)) == "BusyError"
            with pytest.raises(BusyError):
                check_file(str(name))
            with Volume.open(name, read_only=True) as reader, pytest.raises(BusyError, match="only its snapshots"):
                reader.pread(4, 0)
        with open(path, "rb"):
            pass  # closing another descriptor of the file does not give the lock away
        assert in_child(lambda: Volume.open(path)) == "BusyError"
        volume.flush()
        assert volume.pread(4, 0) == b"mine"
    Volume.open(other).close()


def test_readers_share_a_volume_and_keep_writers_out(tmp_path: Path) -> None:
    path = tmp_path / "v"
    with Volume.create(path, SIZE) as volume:
        volume.pwrite(b"seen", 0)
        volume.snapshot("s")
    before = path.read_bytes()
    with Volume.open(path, read_only=True) as one, Volume.open(path, read_only=True) as two:
        assert one.pread(4, 0) == two.get_snapshot("s").pread(4, 0) == b"seen"
        with pytest.raises(BusyError):
            Volume.open(path)
        for change in CHANGES.values():
            with pytest.raises(ReadOnlyError):
                change(one)
        assert one.check().ok
    assert path.read_bytes() == before


CHANGES: dict[str, Callable[[Volume], object]] = {
    "pwrite": lambda volume: volume.pwrite(b"x", 0),
    "pwrite of nothing": lambda volume: volume.pwrite(b"", 0),
    "discard": lambda volume: volume.discard(0, 4096),
    "write_zeroes": lambda volume: volume.write_zeroes(0, 4096),
    "snapshot": lambda volume: volume.snapshot("new"),
    "delete": lambda volume: volume.get_snapshot("s").delete(),
    "rollback": lambda volume: volume.rollback("s"),
}


def test_a_volume_opened_read_only_after_a_crash_is_replayed_in_memory_and_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "v"
    with Volume.create(path, SIZE, background=False) as volume:
        volume.pwrite(b"flushed", 0)
        volume.snapshot("s")
        shutil.copy(path, tmp_path / "crashed")
    before = (tmp_path / "crashed").read_bytes()
    with Volume.open(tmp_path / "crashed", read_only=True) as volume:
        assert volume.pread(7, 0) == volume.get_snapshot("s").pread(7, 0) == b"flushed"
    assert (tmp_path / "crashed").read_bytes() == before


def test_after_close_every_call_says_closed(tmp_path: Path) -> None:
    volume = Volume.create(tmp_path / "v", SIZE)
    snapshot = volume.snapshot("s", metadata={"a": 1})
    volume.close()
    volume.close()
    calls = {
        **{name: lambda change=change: change(volume) for name, change in CHANGES.items()},
        "pread": lambda: volume.pread(1, 0),
        "pread of nothing": lambda: volume.pread(0, 0),
        "pread_into": lambda: volume.pread_into(bytearray(1), 0),
        "flush": volume.flush,
        "snapshots": volume.snapshots,
        "get_snapshot": lambda: volume.get_snapshot("s"),
        "allocated_extents": volume.allocated_extents,
        "changed_extents": lambda: volume.changed_extents("s"),
        "check": volume.check,
        "reclaim": volume.reclaim,
        "read of a snapshot": lambda: snapshot.pread(1, 0),
        "metadata of a snapshot": lambda: snapshot.metadata,
        "extents of a snapshot": snapshot.allocated_extents,
        "changes of a snapshot": lambda: snapshot.changed_extents("s"),
        "open of a snapshot": snapshot.open,
        "delete of a snapshot": snapshot.delete,
    }
    for name, call in calls.items():
        with pytest.raises(ClosedError):
            call()
            pytest.fail(f"{name} worked on a closed volume")
    assert volume.closed
    assert (snapshot.name, snapshot.size, snapshot.id) == ("s", SIZE, 1)
    assert volume.size == SIZE
    repr(volume), repr(snapshot), volume.stats()


# -- permissions ------------------------------------------------------------------------------------------------------
@pytest.fixture
def public(tmp_path: Path) -> Iterator[Path]:
    """A directory that any user may enter."""
    for path in (tmp_path, *tmp_path.parents):
        if path.owner() == "root" and path.name.startswith(("pytest", "test_")):
            path.chmod(0o755)
    folder = tmp_path / "public"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    yield folder


@pytest.mark.privileged()
def test_a_directory_that_may_not_be_written_takes_no_volume(public: Path) -> None:
    assert in_child(lambda: Volume.create(public / "v", SIZE), uid=NOBODY) == "ReadOnlyError"
    assert list(public.iterdir()) == []


@pytest.mark.privileged()
def test_a_file_that_may_only_be_read_is_opened_read_only_or_not_at_all(public: Path) -> None:
    path = public / "v"
    with Volume.create(path, SIZE) as volume:
        volume.pwrite(b"seen", 0)
    path.chmod(0o444)

    def read() -> None:
        with Volume.open(path, read_only=True) as volume:
            assert volume.pread(4, 0) == b"seen"
            assert volume.check().ok

    assert in_child(lambda: Volume.open(path), uid=NOBODY) == "ReadOnlyError"
    assert in_child(read, uid=NOBODY) == "nothing"
    assert in_child(lambda: check_file(str(path)), uid=NOBODY) == "nothing"


@pytest.mark.privileged()
def test_a_file_that_may_not_even_be_read_is_a_storage_error(public: Path) -> None:
    Volume.create(public / "v", SIZE).close()
    assert in_child(lambda: Volume.open(public / "v", read_only=True), uid=NOBODY) == "StorageError"
    assert in_child(lambda: Volume.open(public / "v"), uid=NOBODY) in ("StorageError", "ReadOnlyError")


@pytest.mark.parametrize("mask", [0, 0o077, 0o777], ids=oct)
def test_a_volume_file_has_mode_0600_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with Volume.create(tmp_path / "v", SIZE) as volume:
            volume.snapshot("s")
    finally:
        os.umask(before)
    assert os.stat(tmp_path / "v").st_mode & 0o7777 == 0o600


# -- limits of the process --------------------------------------------------------------------------------------------
@contextmanager
def limit(kind: int, value: int) -> Iterator[None]:
    """A lower limit of the process."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


def test_a_process_without_descriptors_gets_a_storage_error(tmp_path: Path) -> None:
    Volume.create(tmp_path / "v", SIZE).close()
    with limit(resource.RLIMIT_NOFILE, len(os.listdir("/proc/self/fd"))):
        taken = []
        try:
            while True:
                taken.append(os.open(tmp_path, os.O_RDONLY))
        except OSError:
            pass
        try:
            for call in (lambda: Volume.open(tmp_path / "v"), lambda: Volume.create(tmp_path / "w", SIZE)):
                with pytest.raises(StorageError, match="Too many open files"):
                    call()
        finally:
            for fd in taken:
                os.close(fd)
    assert not (tmp_path / "w").exists()
    with Volume.open(tmp_path / "v") as volume:
        assert volume.check().ok


def test_a_limit_on_the_size_of_files_stops_creation_and_leaves_no_file(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with limit(resource.RLIMIT_FSIZE, 1 << 20), pytest.raises(OutOfRangeError, match="too large"):
            Volume.create(tmp_path / "v", 2 << 20)
    finally:
        signal.signal(signal.SIGXFSZ, before)
    assert list(tmp_path.iterdir()) == []


def test_a_limit_on_the_size_of_files_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "v"
    contents = random.Random(2).randbytes(SIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with Volume.create(path, SIZE, background=False) as volume:
            volume.pwrite(contents, 0)
            volume.snapshot("s")
            with limit(resource.RLIMIT_FSIZE, os.path.getsize(path) + 10_000):
                with pytest.raises((StorageError, OutOfRangeError, OSError)) as caught:
                    for number in range(100):
                        volume.pwrite(bytes([number]) * SIZE, 0)
                        volume.snapshot(f"more {number}")
                assert isinstance(caught.value, CowEngineError)
                assert volume.get_snapshot("s").pread(SIZE, 0) == contents
                live = volume.pread(SIZE, 0)
            assert volume.get_snapshot("s").pread(SIZE, 0) == contents
    finally:
        signal.signal(signal.SIGXFSZ, before)
    with Volume.open(path, background=False) as volume:
        assert volume.get_snapshot("s").pread(SIZE, 0) == contents
        assert volume.pread(SIZE, 0) == live
        volume.pwrite(b"again", 0)
        volume.flush()
        assert volume.check().ok


def test_openings_that_fail_keep_no_descriptor(tmp_path: Path) -> None:
    damaged, busy = tmp_path / "damaged", tmp_path / "busy"
    Volume.create(damaged, SIZE).close()
    newer = tmp_path / "newer"
    shutil.copy(damaged, newer)
    patched(newer, 8, "<I", 2)
    damaged.write_bytes(damaged.read_bytes()[: 5 * SLOT])
    for kind in ("text", "directory", "symbolic link to a volume"):
        put(tmp_path / kind, kind)
    with Volume.create(busy, SIZE):
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(84):
            for name in ("damaged", "busy", "newer", "text", "directory", "symbolic link to a volume"):
                with pytest.raises((CowEngineError, OSError)):
                    Volume.open(tmp_path / name)
                with pytest.raises((CowEngineError, OSError)):
                    Volume.create(tmp_path / name, SIZE)
        assert len(os.listdir("/proc/self/fd")) == before
