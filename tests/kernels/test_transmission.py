"""The transmission kernel against a client that speaks it byte by byte: what a library would never send as well."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cowengine import Volume
from cowengine.core.iotable import KERNEL
from cowengine.core.transmission import Transmission

SIZE = 8 << 20
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = 1, 2, 4, 8, 16, 32
SIMPLE, STRUCTURED, EXTENDED = range(3)
MODES = pytest.mark.parametrize("replies", [SIMPLE, STRUCTURED, EXTENDED])


class Commands:
    """What the layer above would do, and a record of it."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.asked: list[tuple[int, int, int, int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def carry_out(self, kind: int, flags: int, offset: int, length: int) -> int:
        self.gate.wait()
        self.asked.append((kind, flags, offset, length))
        if kind == FLUSH:
            self.volume.flush()
        elif kind == TRIM:
            self.volume.discard(offset, length)
        elif kind == ZEROES:
            self.volume.write_zeroes(offset, length)
        return 0

    def block_status(self, flags: int, offset: int, length: int) -> list[bytes] | int:
        if offset == 4096:
            return errno.EIO
        return [struct.pack(">III", 7, length, 1), struct.pack(">III", 8, length, 0)]

    def failed_read(self, status: int) -> int:
        return errno.EIO

    def failed_write(self, data: memoryview, offset: int, status: int) -> int:
        self.volume.pwrite(data, offset)  # as often as it takes
        return 0

    def trim_memory(self) -> None:
        self.asked.append((-1, 0, 0, 0))


class Peer:
    """The client's end."""

    def __init__(self, sock: socket.socket, replies: int) -> None:
        self.sock, self.replies = sock, replies
        self.sock.settimeout(60)

    def request(self, kind: int, cookie: int, offset: int = 0, length: int = 0, flags: int = 0) -> bytes:
        if self.replies == EXTENDED:
            return struct.pack(">IHHQQQ", 0x21E41C71, flags, kind, cookie, offset, length)
        return struct.pack(">IHHQQI", 0x25609513, flags, kind, cookie, offset, length)

    def ask(self, kind: int, cookie: int, offset: int = 0, length: int = 0, flags: int = 0, data: bytes = b"") -> None:
        self.sock.sendall(self.request(kind, cookie, offset, length, flags) + data)

    def take(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            part = self.sock.recv(count - len(parts))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)

    def reply(self, length: int = 0) -> tuple[int, int, dict[int, bytes]]:
        """(cookie, error, data by offset) of the next reply, whose data, in a simple one, have so many bytes."""
        data: dict[int, bytes] = {}
        while True:
            (magic,) = struct.unpack(">I", self.take(4))
            if magic == 0x67446698:
                error, cookie = struct.unpack(">IQ", self.take(12))
                assert self.replies != EXTENDED
                return cookie, error, {} if error or not length else {0: self.take(length)}
            if self.replies == EXTENDED:
                assert magic == 0x6E8A278C
                flags, kind, cookie, _, count = struct.unpack(">HHQQQ", self.take(28))
            else:
                assert magic == 0x668E33EF
                flags, kind, cookie, count = struct.unpack(">HHQI", self.take(16))
            payload = self.take(count)
            error = 0
            if kind == 1:
                data[struct.unpack(">Q", payload[:8])[0]] = payload[8:]
            elif kind in (5, 6):
                data[struct.unpack(">I", payload[:4])[0]] = payload[4:]
            elif kind & 0x8000:
                error, text = struct.unpack(">IH", payload[:6])
                assert text == count - 6
            if flags & 1:
                return cookie, error, data

    def read(self, offset: int, length: int, flags: int = 0) -> bytes:
        self.ask(READ, 77, offset, length, flags)
        cookie, error, data = self.reply(length)
        assert (cookie, error) == (77, 0)
        return b"".join(data[at] for at in sorted(data))


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    with Volume.create(tmp_path / "v.cow", SIZE, background=False) as volume:
        yield volume


@contextmanager
def serving(
    volume: Volume, replies: int, *, snapshot: str | None = None, in_flight_max: int = 4
) -> Iterator[tuple[Peer, Commands, Transmission, list[str]]]:
    ours, theirs = socket.socketpair()
    commands, ends = Commands(volume), []
    root = volume._head if snapshot is None else volume.get_snapshot(snapshot)._root()
    transmission = Transmission(
        ours.fileno(), volume._path, root, SIZE, commands,
        replies=replies, writable=snapshot is None, in_flight_max=in_flight_max,
    )  # fmt: skip

    def run() -> None:
        ends.append(transmission.run())
        ours.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield Peer(theirs, replies), commands, transmission, ends
    finally:
        commands.gate.set()
        theirs.close()
        thread.join(60)
        assert not thread.is_alive()


@MODES
def test_what_is_written_is_read_in_every_form_of_reply(volume: Volume, replies: int) -> None:
    data = os.urandom(3 << 20)
    flags = PAYLOAD_LEN if replies == EXTENDED else 0
    with serving(volume, replies) as (peer, commands, transmission, ends):
        peer.ask(WRITE, 1, 1000, len(data), flags | FUA, data)
        assert peer.reply() == (1, 0, {})
        assert commands.asked[-1] == (FLUSH, 0, 0, 0)
        assert peer.read(1000, len(data)) == data
        assert peer.read(999, 4098) == b"\0" + data[:4097]
        if replies != SIMPLE:
            assert peer.read(1000, len(data), DF) == data
        peer.ask(DISC, 9)
        with pytest.raises(EOFError):
            peer.take(1)
    assert ends == ["disconnected"]
    assert transmission.bytes_written == len(data) and transmission.bytes_read >= len(data)
    assert volume.pread(len(data), 1000) == data


@MODES
def test_requests_that_come_together_are_all_answered(volume: Volume, replies: int) -> None:
    volume.pwrite(bytes(range(256)) * 4096, 0)
    wanted = {cookie: (cookie * 37 % 1000 * 512, 512 + cookie) for cookie in range(1, 301)}
    with serving(volume, replies) as (peer, _, _, _):
        peer.sock.sendall(b"".join(peer.request(READ, c, at, length) for c, (at, length) in wanted.items()))
        for _ in range(len(wanted)):
            if replies == SIMPLE:
                magic, error, cookie = struct.unpack(">IIQ", peer.take(16))
                assert (magic, error) == (0x67446698, 0)
                data = peer.take(wanted[cookie][1])
            else:
                cookie, error, parts = peer.reply()
                assert error == 0
                (data,) = parts.values()
            at, length = wanted.pop(cookie)
            assert data == volume.pread(length, at)
    assert not wanted


def test_reads_of_what_is_not_in_memory_are_right(volume: Volume) -> None:
    data = os.urandom(SIZE)
    volume.pwrite(data, 0)
    volume.snapshot("s")
    with serving(volume, STRUCTURED, snapshot="s") as (peer, _, _, _):
        for at in range(0, SIZE, 1 << 20):
            KERNEL.forget(volume._path.fd)
            assert peer.read(at, 200_000) == data[at : at + 200_000]
            assert peer.read(at, 1 << 20) == data[at : at + (1 << 20)]


def test_scattered_blocks_that_are_not_in_memory(volume: Volume) -> None:
    data = os.urandom(64 * 4096)
    for block in reversed(range(64)):
        volume.pwrite(data[block * 4096 : (block + 1) * 4096], block * 4096)
    volume.snapshot("s")
    with serving(volume, STRUCTURED, snapshot="s") as (peer, _, _, _):
        for _ in range(3):
            KERNEL.forget(volume._path.fd)
            assert peer.read(100, len(data) - 200) == data[100:-100]


def test_sealed_and_unsealed_blocks_in_one_read(volume: Volume) -> None:
    data = bytearray(os.urandom(16 * 4096))
    volume.pwrite(data, 0)
    volume.snapshot("s")
    assert volume.seal().done
    data[4 * 4096 : 5 * 4096] = os.urandom(4096)
    volume.pwrite(data[4 * 4096 : 5 * 4096], 4 * 4096)
    volume.pwrite(data[5 * 4096 : 5 * 4096 + 512], 5 * 4096)  # a part: the rest of the block comes along
    with serving(volume, STRUCTURED) as (peer, _, _, _):
        for offset, length in ((0, 16 * 4096), (4 * 4096 + 7, 20), (3 * 4096 + 7, 3 * 4096), (4096, 4 * 4096 - 9)):
            assert peer.read(offset, length) == data[offset : offset + length]


def test_sealed_blocks_are_verified(volume: Volume) -> None:
    data = os.urandom(1 << 20)
    volume.pwrite(data[: 1 << 19], 0)
    volume.pwrite(data[1 << 19 :], 5 << 20)  # and a hole between
    snapshot = volume.snapshot("s")
    assert volume.seal().done
    whole = data[: 1 << 19] + bytes(5 * (1 << 20) - (1 << 19)) + data[1 << 19 :]
    with serving(volume, STRUCTURED, snapshot="s") as (peer, _, _, _):
        for offset, length in ((0, 200_000), (100, 5000), (100, 100), ((1 << 19) - 4096, 8192), (4095, 1 << 18)):
            assert peer.read(offset, length) == whole[offset : offset + length]
        slot, _ = volume._path.place(20, snapshot._root())
        with open(volume.path, "r+b") as file:
            file.seek(slot * 4096 + 17)
            file.write(b"\xaa\x55\xaa\x55")
        for offset, length in ((20 * 4096, 4096), (20 * 4096 + 100, 100), (0, 1 << 18), (0, 1 << 19)):
            peer.ask(READ, 5, offset, length)
            cookie, error, _ = peer.reply()
            assert (cookie, error) == (5, errno.EIO)
        assert peer.read(0, 20 * 4096) == data[: 20 * 4096]


@MODES
def test_wrong_requests_get_their_errors_and_the_connection_goes_on(volume: Volume, replies: int) -> None:
    wrong = [
        (READ, SIZE - 1, 2, 0, errno.EINVAL), (READ, 1 << 63, 1, 0, errno.EINVAL), (READ, 0, 33 << 20, 0, errno.EINVAL),
        (WRITE, SIZE - 1, 2, 0, errno.ENOSPC), (ZEROES, SIZE, 1, 0, errno.ENOSPC), (TRIM, 1, SIZE, 0, errno.EINVAL),
        (CACHE, SIZE, 4096, 0, errno.EINVAL), (STATUS, 0, 0, 0, errno.EINVAL), (99, 0, 0, 0, errno.EINVAL),
        (READ, 0, 512, NO_HOLE, errno.EINVAL), (TRIM, 0, 512, DF, errno.EINVAL), (FLUSH, 0, 0, 1 << 15, errno.EINVAL),
    ]  # fmt: skip
    with serving(volume, replies) as (peer, commands, _, _):
        for kind, offset, length, flags, error in wrong:
            flags |= PAYLOAD_LEN if kind == WRITE and replies == EXTENDED else 0
            peer.ask(kind, 3, offset, length, flags, bytes(length) if kind == WRITE else b"")
            assert peer.reply() == (3, error, {}), (kind, offset, length, flags)
        assert not commands.asked
        assert peer.read(0, 512) == bytes(512)


def test_a_payload_where_none_belongs_is_thrown_away(volume: Volume) -> None:
    with serving(volume, EXTENDED) as (peer, _, _, _):
        peer.ask(TRIM, 3, 0, 4096, PAYLOAD_LEN, b"x" * 4096)
        assert peer.reply() == (3, errno.EINVAL, {})
        assert peer.read(0, 512) == bytes(512)


@MODES
def test_a_snapshot_is_not_written(volume: Volume, replies: int) -> None:
    volume.pwrite(b"x" * 8192, 0)
    volume.snapshot("s")
    with serving(volume, replies, snapshot="s") as (peer, _, _, _):
        for kind in (WRITE, TRIM, ZEROES):
            flags = PAYLOAD_LEN if kind == WRITE and replies == EXTENDED else 0
            peer.ask(kind, kind, 0, 4096, flags, b"y" * 4096 if kind == WRITE else b"")
            assert peer.reply() == (kind, errno.EPERM, {})
        assert peer.read(0, 8192) == b"x" * 8192


@MODES
def test_what_is_not_bytes_is_asked_of_python(volume: Volume, replies: int) -> None:
    volume.pwrite(b"x" * 65536, 0)
    with serving(volume, replies) as (peer, commands, _, _):
        for kind, flags in ((TRIM, 0), (ZEROES, FUA | NO_HOLE), (CACHE, 0), (FLUSH, 0)):
            peer.ask(kind, kind, 4096, 8192, flags)
            assert peer.reply() == (kind, 0, {})
        assert commands.asked == [
            (TRIM, 0, 4096, 8192), (ZEROES, FUA | NO_HOLE, 4096, 8192), (FLUSH, 0, 0, 0), (CACHE, 0, 4096, 8192),
            (FLUSH, 0, 4096, 8192),
        ]  # fmt: skip
        assert peer.read(0, 16384) == b"x" * 4096 + bytes(8192) + b"x" * 4096


@pytest.mark.parametrize("replies", [STRUCTURED, EXTENDED])
def test_block_status_has_a_chunk_for_each_context(volume: Volume, replies: int) -> None:
    with serving(volume, replies) as (peer, _, _, _):
        peer.ask(STATUS, 1, 0, 65536, REQ_ONE)
        descriptors = struct.pack(">II", 65536, 1), struct.pack(">II", 65536, 0)
        assert peer.reply() == (1, 0, {7: descriptors[0], 8: descriptors[1]})
        peer.ask(STATUS, 2, 4096, 4096)
        assert peer.reply() == (2, errno.EIO, {})


def test_a_write_that_says_that_nothing_follows_is_refused(volume: Volume) -> None:
    with serving(volume, EXTENDED) as (peer, _, _, _):
        peer.ask(WRITE, 1, 0, 4096)
        assert peer.reply() == (1, errno.EINVAL, {})
        assert peer.read(0, 4096) == bytes(4096)


def test_a_flush_holds_up_no_read(volume: Volume) -> None:
    volume.pwrite(b"x" * 4096, 0)
    with serving(volume, STRUCTURED, in_flight_max=16) as (peer, commands, _, _):
        commands.gate.clear()
        for cookie in range(10):
            peer.ask(FLUSH, cookie)
        assert peer.read(0, 4096) == b"x" * 4096
        commands.gate.set()
        assert sorted(peer.reply()[0] for _ in range(10)) == list(range(10))


def test_more_than_may_be_under_way_wait_their_turn(volume: Volume) -> None:
    with serving(volume, STRUCTURED, in_flight_max=2) as (peer, commands, transmission, _):
        commands.gate.clear()
        for cookie in range(40):  # less than the socket takes
            peer.ask(FLUSH, cookie)
        while transmission.requests < 2:
            time.sleep(0.001)
        time.sleep(0.1)
        assert transmission.requests == 2
        commands.gate.set()
        assert sorted(peer.reply()[0] for _ in range(40)) == list(range(40))
        assert peer.read(0, 4096) == bytes(4096)


def test_what_was_received_is_answered_when_it_is_stopped(volume: Volume) -> None:
    with serving(volume, SIMPLE) as (peer, commands, transmission, ends):
        commands.gate.clear()
        peer.ask(FLUSH, 1)
        while transmission.requests == 0:
            time.sleep(0.001)
        transmission.stop()
        commands.gate.set()
        assert peer.reply() == (1, 0, {})
        with pytest.raises(EOFError):
            peer.take(1)
    assert ends == ["stopped"]


@pytest.mark.parametrize(
    ("sent", "end"),
    [(b"", "closed"), (b"\x25\x60\x95", "closed"), (b"GET / HTTP/1.1\r\nHost: nowhere\r\n\r\n", "protocol: ")],
)
def test_garbage_and_silence_end_it(volume: Volume, sent: bytes, end: str) -> None:
    with serving(volume, STRUCTURED) as (peer, _, _, ends):
        peer.sock.sendall(sent)
        if not end.startswith("protocol"):
            peer.sock.shutdown(socket.SHUT_WR)
        with pytest.raises(EOFError):
            peer.take(1)
    assert ends[0].startswith(end)


def test_a_write_that_breaks_off_leaves_what_came_and_no_answer(volume: Volume) -> None:
    with serving(volume, SIMPLE) as (peer, _, _, ends):
        peer.ask(WRITE, 1, 0, 1 << 20, data=b"x" * 300_000)
        peer.sock.shutdown(socket.SHUT_WR)
        with pytest.raises(EOFError):
            peer.take(1)
    assert ends == ["closed"]
    assert volume.pread(4096, 1 << 19) == bytes(4096)


def test_a_client_that_takes_no_replies_is_dropped(volume: Volume) -> None:
    volume.pwrite(b"x" * SIZE, 0)
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 200_000))
    transmission = Transmission(
        ours.fileno(), volume._path, volume._head, SIZE, Commands(volume), replies=SIMPLE, writable=True
    )
    peer = Peer(theirs, SIMPLE)
    for cookie in range(40):
        peer.ask(READ, cookie, 0, 1 << 18)
    assert transmission.run().startswith("broken")
    ours.close()
    theirs.close()


def test_a_client_that_is_silent_for_too_long_is_idle(volume: Volume) -> None:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 100_000))
    transmission = Transmission(
        ours.fileno(), volume._path, volume._head, SIZE, Commands(volume), replies=SIMPLE, writable=True
    )
    assert transmission.run() == "idle"
    ours.close()
    theirs.close()


def test_a_closed_volume_answers_with_errors(volume: Volume) -> None:
    with serving(volume, STRUCTURED) as (peer, _, _, _):
        volume.close()
        peer.ask(READ, 1, 0, 4096)
        assert peer.reply() == (1, errno.EIO, {})


def test_arguments_that_cannot_be(volume: Volume) -> None:
    for replies, in_flight in ((3, 1), (-1, 1), (0, 0)):
        with pytest.raises(ValueError):
            Transmission(
                0, volume._path, volume._head, SIZE, Commands(volume),
                replies=replies, writable=True, in_flight_max=in_flight,
            )  # fmt: skip
    volume.snapshot("s")
    with pytest.raises(TypeError):
        Transmission(
            0, volume._path, volume.get_snapshot("s")._root(), SIZE, Commands(volume), replies=0, writable=True
        )
