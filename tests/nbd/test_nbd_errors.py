"""What goes wrong below comes to the client as an error of the protocol, and to the log as what it was."""

from __future__ import annotations

import errno
import logging

import pytest
from failing_table import FailingTable
from small_disk_table import SmallDisk

from cowengine import CorruptionError, NoSpaceError, PoisonedError, StorageError, Volume
from cowengine.errors import BusyError, ClosedError, OutOfRangeError, ReadOnlyError
from cowengine.nbd.client import Client
from cowengine.nbd.commands import errno_of
from cowengine.nbd.exports import Exports
from cowengine.nbd.protocol import Errno, Replies

from .conftest import MIB

FORMS = pytest.mark.parametrize("replies", list(Replies), ids=lambda form: form.name)


@FORMS
def test_a_full_disk_is_enospc_and_goes_on_when_there_is_space(tmp_path, serve, sock, replies, caplog):
    disk = SmallDisk()
    with Volume.create(tmp_path / "v.cow", 8 * MIB, io=disk, background=False) as volume:
        serve(volume)
        with Client(sock, replies=replies) as client:
            client.pwrite(b"1" * MIB, 0)
            client.flush()
            disk.free = 16
            with caplog.at_level(logging.WARNING, "cowengine.nbd"), pytest.raises(NoSpaceError, match="ENOSPC"):
                client.pwrite(b"2" * MIB, 4 * MIB)
            assert "write of" in caplog.text
            assert "no space left" in caplog.text
            assert client.pread(MIB, 0) == b"1" * MIB
            disk.free = 1 << 40
            client.pwrite(b"3" * MIB, 4 * MIB)
            client.flush()
            assert volume.pread(MIB, 4 * MIB) == b"3" * MIB


def test_a_policy_makes_space_for_a_write_over_nbd(tmp_path, serve, sock):
    disk = SmallDisk()
    with Volume.create(tmp_path / "v.cow", 8 * MIB, io=disk, background=False) as volume:
        volume.policy(when_full="give-up")
        for name in ("old", "new"):
            volume.pwrite(name.encode() * MIB, 0)
            volume.snapshot(name)
        volume.pwrite(b"now" * MIB, 0)
        volume.flush()
        disk.free = 16
        serve(volume)
        with Client(sock) as client:
            client.pwrite(b"x" * MIB, 4 * MIB)
            client.flush()
        assert [each.name for each in volume.snapshots()] == ["new"]
        assert volume.pread(MIB, 4 * MIB) == b"x" * MIB


@FORMS
def test_a_damaged_block_is_eio_and_its_neighbours_are_read(tmp_path, serve, sock, replies, caplog):
    with Volume.create(tmp_path / "v.cow", 4 * MIB, background=False) as volume:
        volume.pwrite(b"good" * MIB, 0)
        snapshot = volume.snapshot("s")
        assert volume.seal().done
        slot, _ = volume.engine.path.place(100, volume.engine.lineage.root(snapshot.id))
        with open(volume.path, "r+b") as file:
            file.seek(slot * 4096)
            file.write(b"rot")
        serve(Exports.of_volume(volume, snapshot))
        with Client(sock, replies=replies) as client:
            whole = [] if replies == Replies.SIMPLE else [(0, MIB)]  # there an error behind the beginning is the end
            for offset, length in ((100 * 4096, 4096), (100 * 4096 + 5, 1), (90 * 4096, 65536), *whole):
                with caplog.at_level(logging.WARNING, "cowengine.nbd"), pytest.raises(StorageError, match="EIO"):
                    client.pread(length, offset)
            assert f"the block at byte {100 * 4096} " in caplog.text
            assert client.pread(4096, 99 * 4096) == b"good" * 1024
            assert client.pread(4096, 101 * 4096) == b"good" * 1024


def test_a_simple_reply_that_cannot_be_finished_is_the_end_of_the_connection(tmp_path, serve, sock):
    with Volume.create(tmp_path / "v.cow", 4 * MIB, background=False) as volume:
        volume.pwrite(b"good" * MIB, 0)
        snapshot = volume.snapshot("s")
        assert volume.seal().done
        with open(volume.path, "r+b") as file:
            file.seek(volume.engine.path.place(1000, volume.engine.lineage.root(snapshot.id))[0] * 4096)
            file.write(b"rot")
        serve(Exports.of_volume(volume, snapshot))
        client = Client(sock, replies=Replies.SIMPLE)
        with pytest.raises(StorageError, match="is lost"):
            client.pread(4 * MIB, 0)
        assert client.closed


def test_a_flush_that_fails_is_eio_and_so_is_everything_after_it(tmp_path, serve, sock, caplog):
    table = FailingTable()
    with Volume.create(tmp_path / "v.cow", 4 * MIB, io=table, background=False) as volume:
        serve(volume)
        with Client(sock) as client:
            client.pwrite(b"1" * 4096, 0)
            client.flush()
            client.pwrite(b"2" * 4096, 4096)
            table.fail_at, table.number, table.for_ever = table.calls + 1, errno.EIO, True
            for call in (
                client.flush, client.flush, lambda: client.pwrite(b"x", 0, fua=True), lambda: client.pread(1, 0),
            ):  # fmt: skip
                with caplog.at_level(logging.WARNING, "cowengine.nbd"), pytest.raises(StorageError, match="EIO"):
                    call()
            assert "flush failed" in caplog.text
            assert "close the volume and open it again" in caplog.text


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (ReadOnlyError("x"), Errno.EPERM),
        (OutOfRangeError("x"), Errno.EINVAL),
        (NoSpaceError("x"), Errno.ENOSPC),
        (ClosedError("x"), Errno.ESHUTDOWN),
        (CorruptionError("x"), Errno.EIO),
        (PoisonedError("x"), Errno.EIO),
        (BusyError("x"), Errno.EIO),
        (StorageError("x", number=errno.EDQUOT), Errno.ENOSPC),
        (StorageError("x", number=errno.ENOMEM), Errno.ENOMEM),
        (MemoryError(), Errno.ENOMEM),
        (OSError(errno.ENXIO, "x"), Errno.EIO),
    ],
)
def test_every_error_has_a_number(error, number):
    assert errno_of(error) == number
