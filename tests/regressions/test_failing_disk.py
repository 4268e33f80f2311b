"""What a disk that fails for good once made of errors."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cowengine import Store, Volume
from cowengine.core.iotable import IOTable
from cowengine.errors import StorageError


class Dying(IOTable):
    """The file system fails at a barrier of a directory, and is read-only from then on, as btrfs does."""

    dead = False

    def sync_directory(self, path: str) -> None:
        self.dead = True
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def unlink(self, path: str) -> None:
        if self.dead:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        super().unlink(path)

    def rmdir(self, path: str) -> None:
        if self.dead:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        super().rmdir(path)


class FailsReads(IOTable):
    fails = False

    def names(self, path: str) -> list[str]:
        if self.fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().names(path)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        if self.fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().pread(fd, length, offset)


def test_a_volume_that_could_be_neither_made_nor_removed_says_what_failed_first(tmp_path: Path) -> None:
    """The error of the removal came out instead, without a type."""
    with pytest.raises(StorageError) as caught:
        Volume.create(tmp_path / "v", 1 << 20, io=Dying())
    assert caught.value.errno == errno.EIO


def test_a_store_that_could_be_neither_made_nor_removed_says_what_failed_first(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        Store.create(tmp_path / "s", io=Dying())
    assert caught.value.errno == errno.EIO


def test_a_store_whose_folders_cannot_be_read_is_refused_with_a_type(tmp_path: Path) -> None:
    """A bare OSError came out."""
    table = FailsReads()
    Store.create(tmp_path / "s", io=table).close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FailsReads, "pread", IOTable.pread)
        table.fails = True
        with pytest.raises(StorageError) as caught:
            Store.open(tmp_path / "s", io=table)
    assert caught.value.errno == errno.EIO


def test_a_store_whose_log_cannot_be_read_is_refused_with_a_type(tmp_path: Path) -> None:
    """A bare OSError came out."""
    table = FailsReads()
    Store.create(tmp_path / "s", io=table).close()
    table.fails = True
    with pytest.raises(StorageError) as caught:
        Store.open(tmp_path / "s", io=table)
    assert caught.value.errno == errno.EIO
    table.fails = False
    Store.open(tmp_path / "s", io=table).close()


def test_metadata_of_a_snapshot_that_cannot_be_read_is_a_typed_error(tmp_path: Path) -> None:
    """The error of the system came out."""
    table = FailsReads()
    with Volume.create(tmp_path / "v", 1 << 20, background=False) as volume:
        volume.snapshot("s", metadata={"a": 1})
    with Volume.open(tmp_path / "v", io=table, background=False) as volume:
        table.fails = True
        with pytest.raises(StorageError):
            _ = volume.get_snapshot("s").metadata
        table.fails = False
        assert volume.get_snapshot("s").metadata == {"a": 1}
