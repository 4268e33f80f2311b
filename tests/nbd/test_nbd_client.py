"""The client of cowengine, in all three forms of replies, against the server."""

from __future__ import annotations

import socket
import threading

import pytest

from cowengine import (
    BusyError,
    ClosedError,
    FormatError,
    NotFoundError,
    OutOfRangeError,
    ReadOnlyError,
    StorageError,
    Store,
    Volume,
)
from cowengine.nbd.client import Client
from cowengine.nbd.exports import Exports
from cowengine.nbd.protocol import Replies, TransmissionFlag

from .conftest import MIB

CONTEXTS = ("base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:monday", "qemu:dirty-bitmap:tuesday")
FORMS = pytest.mark.parametrize("replies", list(Replies), ids=lambda form: form.name)


@FORMS
def test_a_client_does_to_a_volume_what_the_volume_does(volume, serve, sock, replies):
    serve(volume)
    with Client(sock, "disk", replies=replies) as client:
        assert (client.size, client.block_size) == (volume.size, volume.block_size)
        assert client.description.startswith("volume")
        assert client.pwrite(b"x" * 70_000, 1000) == 70_000
        assert volume.pread(70_000, 1000) == b"x" * 70_000
        assert client.pread(100_000, 0) == volume.pread(100_000, 0)
        buffer = bytearray(3 * MIB)
        assert client.pread_into(buffer, 512) == len(buffer)
        assert buffer == volume.pread(len(buffer), 512)
        client.trim(0, 65536)
        client.write_zeroes(70_000, 10)
        client.write_zeroes(MIB, 65536, no_hole=True)
        client.write_zeroes(2 * MIB, 65536, fast=True)
        client.cache(0, MIB)
        client.flush()
        client.pwrite(b"y", volume.size - 1, fua=True)
        assert volume.pread(65536, 0) == bytes(65536)
        assert volume.pread(12, 69_999) == b"x" + bytes(10) + b"x"
        assert [list(row) for row in volume.allocated_extents(MIB, 65536).tolist()] == [[MIB, 65536]]
        assert len(volume.allocated_extents(2 * MIB, 65536)) == 0
        assert client.pread(0, 0) == b""
        assert client.pwrite(b"", 0) == 0
        with pytest.raises(OutOfRangeError, match="ENOTSUP"):
            client.write_zeroes(0, 4096, no_hole=True, fast=True)
        for beyond in (
            lambda: client.pread(4096, volume.size),
            lambda: client.trim(volume.size - 1, 2),
            lambda: client.cache(1 << 62, 1),
            lambda: client.pread(1, -1),
            lambda: client.pread(1, 1 << 63),
        ):
            with pytest.raises(OutOfRangeError):
                beyond()
        assert client.pread(5, 30 * MIB) == b"ddddd"


@FORMS
def test_what_is_larger_than_a_request_goes_in_several(tmp_path, serve, sock, replies):
    with Volume.create(tmp_path / "large.cow", 80 * MIB) as volume:
        serve(volume)
        with Client(sock, replies=replies) as client:
            data = bytes(range(256)) * (70 * MIB // 256)
            assert client.pwrite(data, 4096) == len(data)
            assert client.pread(len(data), 4096) == data
            assert volume.pread(len(data), 4096) == data


def test_block_status_is_the_same_in_both_forms(volume, serve, sock):
    serve(volume)
    with (
        Client(sock, "disk", CONTEXTS, replies=Replies.STRUCTURED) as structured,
        Client(sock, "disk", CONTEXTS, replies=Replies.EXTENDED) as extended,
    ):
        for offset, length in ((0, volume.size), (0, 1), (4097, 4095), (MIB - 1, 3 * MIB), (volume.size - 1, 1)):
            told = structured.block_status(offset, length)
            assert told == extended.block_status(offset, length)
            assert set(told) == set(CONTEXTS)
            for states in told.values():
                assert sum(count for count, _ in states) == length
            one = structured.block_status(offset, length, one=True)
            assert one == {name: states[:1] for name, states in told.items()}
        assert told["base:allocation"] == [(1, 3)]
        assert structured.block_status(0, 8192)["qemu:dirty-bitmap:tuesday"] == [(8192, 1)]
        for client in (structured, extended):
            with pytest.raises(OutOfRangeError):
                client.block_status(volume.size, 1)
            with pytest.raises(OutOfRangeError):
                client.block_status(0, 0)


def test_an_answer_ends_where_it_would_be_too_long(tmp_path, serve, sock):
    with Volume.create(tmp_path / "many.cow", 256 * MIB) as volume:
        volume.snapshot("before")
        for block in range(0, 20_000, 2):
            volume.pwrite(b"x", block * 4096)
        serve(volume)
        contexts = ("base:allocation", "qemu:dirty-bitmap:before", "qemu:allocation-depth")
        with Client(sock, "", contexts) as client:
            told = client.block_status(0, volume.size)
            for name in contexts:
                assert len(told[name]) == 8192
                assert {count for count, _ in told[name]} == {4096}
            at, rows = 0, []
            while at < volume.size:
                states = client.block_status(at, volume.size - at)["base:allocation"]
                rows += [(at + 4096 * i, flags) for i, (count, flags) in enumerate(states) if flags == 0]
                at += sum(count for count, _ in states)
            assert rows == [(block * 4096, 0) for block in range(0, 20_000, 2)]


def test_many_contexts_share_a_reply(tmp_path, serve, sock):
    """So that a client which asks and does not read takes no more memory."""
    with Volume.create(tmp_path / "many.cow", 64 * MIB) as volume:
        names = [volume.snapshot(f"s{number}").name for number in range(32)]
        for block in range(0, 8192, 2):
            volume.pwrite(b"x", block * 4096)
        serve(volume)
        with Client(sock, "", [f"qemu:dirty-bitmap:{name}" for name in names]) as client:
            told = client.block_status(0, volume.size)
            assert len(told) == 32
            for states in told.values():
                assert states == [(4096, (at + 1) % 2) for at in range(1024)]


def test_status_of_more_than_four_gigabytes_at_once(tmp_path, serve, sock):
    with Volume.create(tmp_path / "wide.cow", 1 << 40) as volume:
        volume.pwrite(b"x", 1 << 39)
        serve(volume)
        with Client(sock, "", ("base:allocation",), replies=Replies.EXTENDED) as client:
            states = client.block_status(0, client.size)["base:allocation"]
            assert states == [(1 << 39, 3), (4096, 0), ((1 << 39) - 4096, 3)]
            client.trim(0, client.size)
            assert client.block_status(0, client.size)["base:allocation"] == [(1 << 40, 3)]


@FORMS
def test_a_snapshot_cannot_be_written(volume, serve, sock, replies):
    serve(Exports.of_volume(volume, volume.get_snapshot("monday")))
    with Client(sock, "disk@monday", replies=replies) as client:
        assert client.flags & TransmissionFlag.READ_ONLY
        assert client.pread(2 * MIB, 0) == b"a" * 2 * MIB
        for change in (
            lambda: client.pwrite(b"x", 0), lambda: client.trim(0, 4096), lambda: client.write_zeroes(0, 4096),
        ):  # fmt: skip
            with pytest.raises(ReadOnlyError, match="EPERM"):
                change()
        client.flush()
        assert client.pread(MIB, 0) == b"a" * MIB


def test_what_the_server_refuses_has_a_class(volume, tmp_path, serve, sock):
    with pytest.raises(NotFoundError, match="nobody serves"):
        Client(sock, "disk")
    with Store.create(tmp_path / "store") as store:
        store.create_volume("v", MIB)
        exports = Exports.of_store(store)
        serve(exports)
        for name in ("", "other", "v@none"):
            with pytest.raises(NotFoundError, match="there is no export"):
                Client(sock, name)
        with exports.closed_for("v"), pytest.raises(BusyError, match="takes no clients"):
            Client(sock, "v")
        Client(sock, "v").close()


def test_a_connection_that_breaks_is_an_error_and_then_closed(volume, serve, sock):
    server = serve(volume)
    client = Client(sock, "disk")
    server.close()
    with pytest.raises(StorageError, match="is lost"):
        client.pread(512, 0)
    with pytest.raises(ClosedError):
        client.pread(512, 0)
    client.close()
    client.close()


def test_what_is_no_server_is_a_format_error():
    for said in (b"HTTP/1.0 200 OK\r\n\r\n", b"NBDMAGIC" + bytes(200), b"NBDMAGICIHAVEOPT\0\3" + bytes(200)):
        mine, other = socket.socketpair()
        with other:
            other.sendall(said)
            with pytest.raises(FormatError, match="does not speak NBD"):
                Client(mine, "disk")


def test_a_server_that_says_nothing_is_waited_for_as_long_as_told():
    mine, other = socket.socketpair()
    with other, pytest.raises(StorageError, match="is lost"):
        Client(mine, "disk", timeout=0.1)


@pytest.mark.parametrize(
    "reply",
    [
        bytes(28),
        (0x668E33EF).to_bytes(4) + bytes(24),
        (0x668E33EF).to_bytes(4) + b"\0\1\0\1" + (1).to_bytes(8) + b"\xff\xff\xff\xff" + bytes(8),
        (0x668E33EF).to_bytes(4) + b"\0\1\0\1" + (1).to_bytes(8) + (9).to_bytes(4) + (600).to_bytes(8) + b"x",
        (0x668E33EF).to_bytes(4) + b"\0\1\0\2" + (1).to_bytes(8) + (12).to_bytes(4) + bytes(8) + b"\xff\0\0\0",
        (0x668E33EF).to_bytes(4) + b"\0\1\0\0" + (1).to_bytes(8) + bytes(4),
    ],
    ids=["magic", "cookie", "length", "offset", "hole", "nothing"],
)
def test_a_server_that_answers_nonsense_is_left(reply):
    mine, other = socket.socketpair()
    handshake = b"NBDMAGICIHAVEOPT\0\3"
    for option, kind, data in (
        (8, 1, b""), (7, 3, b"\0\0" + (MIB).to_bytes(8) + b"\0\1"), (7, 1, b""),
    ):  # fmt: skip
        handshake += (
            (0x3E889045565A9).to_bytes(8) + option.to_bytes(4) + kind.to_bytes(4) + len(data).to_bytes(4) + data
        )
    with other:
        other.sendall(handshake + reply)
        client = Client(mine, "disk", timeout=5)
        with pytest.raises(FormatError, match="does not speak NBD"):
            client.pread(512, 0)
        assert client.closed


def test_threads_take_turns(volume, serve, sock):
    serve(volume)
    failures = []
    with Client(sock, "disk", timeout=60) as client:

        def work(number):
            for turn in range(50):
                offset = (8 + number) * MIB + turn * 8192
                client.pwrite(bytes([number, turn]) * 2048, offset)
                if client.pread(4096, offset) != bytes([number, turn]) * 2048:
                    failures.append((number, turn))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def test_a_flush_covers_what_other_connections_wrote(volume, serve, sock):
    serve(volume)
    with Client(sock, "disk") as one, Client(sock, "disk") as other:
        one.pwrite(b"w" * 4096, 9 * MIB)
        before = volume.stats()["commits"]
        other.flush()
        assert volume.stats()["commits"] > before
        assert other.pread(4096, 9 * MIB) == b"w" * 4096
