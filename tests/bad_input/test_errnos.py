"""What each error of the system means to who creates or opens a volume: the class says it, nothing is left behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cowengine import (
    BusyError,
    FormatError,
    NoSpaceError,
    NotFoundError,
    OutOfRangeError,
    PoisonedError,
    ReadOnlyError,
    StorageError,
    Volume,
)
from cowengine.core.iotable import IOTable

CREATING = {
    "EFBIG": OutOfRangeError, "EOVERFLOW": OutOfRangeError, "EINVAL": OutOfRangeError, "ENOSPC": NoSpaceError,
    "EDQUOT": NoSpaceError, "EACCES": ReadOnlyError, "EPERM": ReadOnlyError, "EROFS": ReadOnlyError,
    "ENOENT": NotFoundError, "ENOTDIR": NotFoundError, "EIO": StorageError, "ENFILE": StorageError,
}  # fmt: skip
OPENING = {
    "ENOENT": NotFoundError, "ENOTDIR": NotFoundError, "ELOOP": FormatError, "EISDIR": FormatError,
    "ENXIO": FormatError, "EAGAIN": BusyError, "EROFS": ReadOnlyError, "EACCES": ReadOnlyError, "EPERM": ReadOnlyError,
    "EIO": StorageError, "ENFILE": StorageError,
}  # fmt: skip


class Refusing(IOTable):
    """Opens nothing, and says why."""

    def __init__(self, name: str) -> None:
        self._number = getattr(errno, name)

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        raise OSError(self._number, os.strerror(self._number))


@pytest.mark.parametrize("name", CREATING)
def test_a_volume_that_cannot_be_created(tmp_path: Path, name: str) -> None:
    with pytest.raises(CREATING[name]) as caught:
        Volume.create(tmp_path / "v", 1 << 20, background=False, io=Refusing(name))
    assert type(caught.value) is CREATING[name]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", OPENING)
@pytest.mark.parametrize("read_only", [True, False])
def test_a_volume_that_cannot_be_opened(tmp_path: Path, name: str, read_only: bool) -> None:
    expected = OPENING[name]
    if read_only and expected is ReadOnlyError:
        expected = StorageError  # nobody wanted to write
    with pytest.raises(expected) as caught:
        Volume.open(tmp_path / "v", read_only=read_only, background=False, io=Refusing(name))
    assert type(caught.value) is expected


@pytest.mark.parametrize("block_size", [0, 2048, 4097, 12288, 2 << 20])
def test_blocks_of_impossible_size(tmp_path: Path, block_size: int) -> None:
    with pytest.raises(OutOfRangeError, match="block_size"):
        Volume.create(tmp_path / "v", 1 << 20, block_size=block_size, background=False)


@pytest.mark.parametrize("log_size", [0, 4096, 16384 + 512, 1 << 40])
def test_a_log_of_impossible_size(tmp_path: Path, log_size: int) -> None:
    with pytest.raises(OutOfRangeError, match="log_size"):
        Volume.create(tmp_path / "v", 1 << 20, log_size=log_size, background=False)
    assert os.listdir(tmp_path) == []


def test_an_engine_that_is_closed_twice_closes_its_descriptor_once(tmp_path: Path) -> None:
    volume = Volume.create(tmp_path / "v", 1 << 20, background=False)
    engine, number = volume.engine, volume.engine.fd
    volume.close()
    with open(tmp_path / "other", "wb") as other:
        assert other.fileno() == number  # the number is another file's now
        engine.close()
        other.write(b"still open")
    assert (tmp_path / "other").read_bytes() == b"still open"


@pytest.mark.parametrize(("name", "expected"), [("EFBIG", OutOfRangeError), ("ENOSPC", NoSpaceError)])
def test_a_file_that_cannot_be_made_as_long_as_the_volume_leaves_nothing(
    tmp_path: Path, name: str, expected: type[Exception]
) -> None:
    class Short(IOTable):
        def truncate(self, fd: int, size: int) -> None:
            raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

    with pytest.raises(expected):
        Volume.create(tmp_path / "v", 1 << 20, background=False, io=Short())
    assert os.listdir(tmp_path) == []


def test_a_create_whose_first_barrier_fails_leaves_nothing(tmp_path: Path) -> None:
    class NoBarrier(IOTable):
        def fdatasync(self, fd: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(PoisonedError):
        Volume.create(tmp_path / "v", 1 << 20, background=False, io=NoBarrier())
    assert os.listdir(tmp_path) == []
