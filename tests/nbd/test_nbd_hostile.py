"""Clients that break off, lie, never read, or come in hundreds: nobody else is held up, and nothing is lost."""

from __future__ import annotations

import random
import resource
import select
import socket
import struct
import threading
import time

import pytest
from nbd_wire import Wire

from cowengine import Store, Volume
from cowengine.nbd.client import Client

from .conftest import MIB
from .test_exported import until

E_PERM, E_INVAL, E_NOSPC = 1, 22, 28


@pytest.mark.parametrize(
    ("kind", "offset", "length", "flags", "error"),
    [
        (0, 0, (32 << 20) + 1, 0, E_INVAL),
        (0, 32 * MIB, 1, 0, E_INVAL),
        (0, (1 << 64) - 4096, 8192, 0, E_INVAL),
        (0, 0, 512, 2, E_INVAL),
        (4, 32 * MIB - 100, 200, 0, E_INVAL),
        (4, 1 << 63, 1, 0, E_INVAL),
        (5, 0, 33 << 20, 0, E_INVAL),
        (6, 32 * MIB - 100, 200, 0, E_NOSPC),
        (6, 0, 4096, 1 << 9, E_INVAL),
        (7, 0, 4096, 0, E_INVAL),
        (8, 0, 4096, 0, E_INVAL),
        (77, 0, 0, 0, E_INVAL),
        (0xFFFF, 5, 5, 0xFFFF, E_INVAL),
    ],
)
def test_a_request_that_cannot_be_is_answered_and_the_next_one_served(
    volume, serve, sock, kind, offset, length, flags, error
):
    serve(volume)
    before = volume.pread(volume.size, 0)
    with Wire(sock) as wire:
        wire.go()
        wire.request(kind, offset, length, flags=flags, cookie=0xFFFFFFFFFFFFFFFF)
        assert wire.answer() == (error, 0xFFFFFFFFFFFFFFFF)
        wire.request(0, 0, 4096, cookie=3)
        assert wire.answer() == (0, 3)
        assert wire.take(4096) == before[:4096]
    assert volume.pread(volume.size, 0) == before


@pytest.mark.parametrize(("offset", "length"), [(32 * MIB - 8, 16), (1 << 63, 4096), (0, (32 << 20) + 4096)])
def test_the_data_of_a_write_that_cannot_be_is_passed_over(volume, serve, sock, offset, length):
    serve(volume)
    with Wire(sock) as wire:
        wire.go()
        wire.request(1, offset, length)
        wire.send(bytes(length))
        assert wire.answer()[0] in (E_INVAL, E_NOSPC)
        wire.request(3)
        assert wire.answer() == (0, 7)


def test_a_write_to_a_snapshot_is_not_permitted(tmp_path, serve, sock):
    with Store.create(tmp_path / "store") as store:
        store.create_volume("v", MIB).snapshot("s")
        serve(store)
        with Wire(sock) as wire:
            wire.go("v@s")
            for kind in (1, 4, 6):
                wire.request(kind, 0, 4096)
                if kind == 1:
                    wire.send(b"x" * 4096)
                assert wire.answer() == (E_PERM, 7)
            wire.request(3)
            assert wire.answer() == (0, 7)


def test_what_is_no_request_ends_the_connection(volume, serve, sock):
    server = serve(volume)
    for said in (bytes(28), b"\x25\x60\x95\x14" + bytes(24), struct.pack(">IHHQQQ", 0x21E41C71, 0, 0, 1, 0, 512)):
        with Wire(sock) as wire:
            wire.go()
            wire.send(said)
            assert wire.ends()
    until(lambda: server.connections == 0)


def test_a_request_that_breaks_off_anywhere_leaves_the_volume_whole(volume, serve, sock):
    server = serve(volume)
    request = struct.pack(">IHHQQI", 0x25609513, 0, 1, 1, 8 * MIB, 8192) + b"n" * 8192
    for count in (*range(0, 28, 3), 28, 29, 4000, 4124, 8000, len(request) - 1):
        with Wire(sock) as wire:
            wire.go()
            wire.send(request[:count])
    until(lambda: server.connections == 0)
    assert set(volume.pread(8192, 8 * MIB)) <= {0, ord("n")}
    assert volume.check().ok
    with Client(sock, "disk") as client:
        assert client.pread(4, 30 * MIB) == b"dddd"


def test_who_leaves_with_requests_under_way_leaves_nothing_else(volume, serve, sock):
    server = serve(volume)
    for _ in range(20):
        with Wire(sock) as wire:
            wire.go()
            wire.requests(0, 64, 4 * MIB)
            wire.request(3)
    until(lambda: server.connections == 0)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cowengine-nbd-helper")]


def test_a_client_that_never_reads_holds_up_nobody(volume, serve, sock):
    server = serve(volume, send_seconds=5)
    with Wire(sock) as greedy, Client(sock, "disk", timeout=30) as other:
        greedy.go()
        greedy.sock.settimeout(0.5)
        with pytest.raises(OSError):  # until the server takes no more
            for cookie in range(1_000_000):
                greedy.request(0, 0, 8 * MIB, cookie=cookie)
        for turn in range(50):
            other.pwrite(bytes([turn]) * 4096, 9 * MIB)
            assert other.pread(4096, 9 * MIB) == bytes([turn]) * 4096
        other.flush()
        volume.snapshot("meanwhile")
        until(lambda: server.connections == 1)  # who takes nothing for that long is left
        assert other.pread(1, 9 * MIB) == bytes([49])


def test_a_client_that_sends_nothing_is_left_if_so_told(volume, serve, sock):
    server = serve(volume, idle_seconds=0.3)
    with Wire(sock) as wire:
        wire.go()
        assert wire.ends()
    until(lambda: server.connections == 0)


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_of_a_thousand_connections_only_so_many_are_served(volume, serve, sock):
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed < 2048:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(2048, most), most))
    server = serve(volume, connections=200, handshake_seconds=300)
    before = resident_bytes()
    wires = []
    try:
        for _ in range(1000):
            wire = socket.socket(socket.AF_UNIX)
            wires.append(wire)
            wire.connect(str(sock))
            wire.settimeout(60)
        greeted = [wire for wire in wires if wire.recv(18, socket.MSG_WAITALL)]
        assert len(greeted) == 200 == server.connections
        for wire in greeted:  # all of them to the transmission
            wire.sendall(struct.pack(">I", 3) + struct.pack(">QII", 0x49484156454F5054, 1, 4) + b"disk")
            wire.recv(10, socket.MSG_WAITALL)
            wire.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 1, 0, 65536))
        for wire in greeted:
            assert len(wire.recv(16 + 65536, socket.MSG_WAITALL)) == 16 + 65536
        assert resident_bytes() - before < 200 * 2 * MIB
        with pytest.raises(OSError):
            Client(sock, "disk", timeout=10)
    finally:
        for wire in wires:
            wire.close()
    until(lambda: server.connections == 0)
    with Client(sock, "disk") as client:
        assert client.pread(4, 30 * MIB) == b"dddd"


def test_random_requests_never_end_the_server_nor_break_the_volume(volume, serve, sock):
    serve(volume)
    chance = random.Random(8)
    for _ in range(60):
        with Wire(sock, patience=60) as wire:
            wire.go(structured=chance.random() < 0.5)
            wire.sock.settimeout(1)  # it does not read: the server waits, then it does
            try:
                for _ in range(chance.randrange(1, 30)):
                    kind = chance.choice([0, 1, 3, 4, 5, 6, 7, 9])
                    length = chance.choice([0, 1, 512, 5000, 300_000])
                    wire.request(kind, chance.randrange(33 * MIB), length, flags=chance.randrange(32))
                    if kind == 1:
                        wire.send(chance.randbytes(length))
                    if chance.random() < 0.02:
                        wire.send(chance.randbytes(chance.randrange(60)))
            except OSError:
                pass
    assert volume.check().ok
    with Client(sock, "disk") as client:
        client.pread(MIB, 0)


def test_the_end_answers_what_was_received_and_takes_nobody_more(tmp_path, serve, sock):
    with Volume.create(tmp_path / "v.cow", 64 * MIB) as volume:
        server = serve(volume)
        with Wire(sock) as wire, Wire(sock) as greeted:
            wire.go()
            for cookie in range(40):
                wire.request(1, cookie * MIB, 65536, cookie=cookie)
                wire.send(bytes([cookie + 1]) * 65536)
            answered = {wire.answer()[1] for _ in range(10)}
            began = time.monotonic()
            assert server.drain(20)
            assert time.monotonic() < began + 20
            try:
                while True:
                    answered.add(wire.answer()[1])
            except (EOFError, ConnectionResetError):
                pass
            assert greeted.ends()
        assert len(answered) >= 10
        for cookie in answered:
            assert volume.pread(65536, cookie * MIB) == bytes([cookie + 1]) * 65536
        assert not sock.exists()
        with pytest.raises(FileNotFoundError):
            Wire(sock)


def test_the_end_cuts_off_who_never_reads(volume, serve, sock):
    server = serve(volume)
    with Wire(sock) as greedy:
        greedy.go()
        greedy.requests(0, 100, 8 * MIB)
        assert select.select([greedy.sock], [], [], 60)[0]  # an answer has begun, which is more than a socket takes
        assert server.drain(0.5) is False
        assert server.connections == 0
