"""A disk that fails under a database leaves nothing open."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import apsw
import pytest

import cowengine
from cowengine.core.iotable import IOTable
from cowengine.errors import PoisonedError, StorageError
from cowengine.sqlite import VFS


class FailingTable(IOTable):
    """Calls of these names fail."""

    failing: tuple[str, ...] = ()

    def _fail(self, name: str) -> None:
        if name in self.failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def pwrite(self, fd: int, data: object, offset: int) -> None:
        self._fail("pwrite")
        super().pwrite(fd, data, offset)

    def fdatasync(self, fd: int) -> None:
        self._fail("fdatasync")


def bank(folder: Path, table: IOTable) -> tuple[VFS, apsw.Connection]:
    store = cowengine.Store.create(folder / "store", io=table, background=False)
    vfs = VFS(store, f"failing-{id(store):x}", capacity=1 << 20)
    connection = vfs.connect("bank.db")
    connection.execute("CREATE TABLE t (v)")
    return vfs, connection


def test_a_journal_that_could_not_be_made_does_not_keep_the_database_open(tmp_path: Path) -> None:
    table = FailingTable()
    vfs, connection = bank(tmp_path, table)
    table.failing = ("pwrite",)
    with pytest.raises(StorageError):
        connection.execute("INSERT INTO t VALUES (1)")
    table.failing = ()
    connection.close()
    assert not vfs.in_use("bank.db")
    vfs.close()
    vfs.store.close()


def test_a_vfs_with_a_poisoned_volume_can_be_closed(tmp_path: Path) -> None:
    table = FailingTable()
    vfs, connection = bank(tmp_path, table)
    table.failing = ("fdatasync",)
    with pytest.raises(apsw.Error):
        connection.execute("INSERT INTO t VALUES (1)")
    table.failing = ()
    connection.close()
    with pytest.raises(PoisonedError):
        vfs.close()
    assert vfs.name not in apsw.vfs_names()
    VFS(vfs.store, vfs.name).close()
    vfs.store.close()
