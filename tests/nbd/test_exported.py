"""What is exported stays: snapshots, what they are compared with, and volumes."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from itertools import count

import pytest

from cowengine import BusyError, NotFoundError, Store
from cowengine.nbd.client import Client
from cowengine.nbd.exports import Exports

from .conftest import MIB


def until(holds, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def store(tmp_path):
    with Store.create(tmp_path / "store") as made:
        volume = made.create_volume("v", 4 * MIB)
        volume.pwrite(b"1" * MIB, 0)
        volume.snapshot("one")
        volume.pwrite(b"2" * MIB, 0)
        volume.snapshot("two")
        volume.close()  # its user is done with it; the store may still need it
        yield made


def test_a_snapshot_cannot_go_while_a_client_has_it(store, serve, sock):
    exports = Exports.of_store(store)
    serve(exports)
    one = store.open_volume("v", hand_out=False).get_snapshot("one")
    with Client(sock, "v@one") as first:
        with Client(sock, "v@one"):
            assert exports.users("v") == 2
            for end in (one.delete, one.to_anchor, one.require_deletable):
                with pytest.raises(BusyError, match="it is exported to 2 clients"):
                    end()
        until(lambda: exports.users("v") == 1)
        with pytest.raises(BusyError, match=r"it is exported to 1 client\b"):
            one.delete()
        assert first.pread(4, 0) == b"1111"
        store.open_volume("v", hand_out=False).get_snapshot("two").delete()
    until(lambda: exports.users("v") == 0)
    one.delete()
    with pytest.raises(NotFoundError):
        Client(sock, "v@one")


def test_what_a_client_compares_with_cannot_go(store, serve, sock):
    exports = Exports.of_store(store)
    serve(exports)
    one = store.open_volume("v", hand_out=False).get_snapshot("one")
    with Client(sock, "v", ("qemu:dirty-bitmap:one",)) as client:
        with pytest.raises(BusyError, match="exported"):
            one.delete()
        assert client.block_status(0, client.size)["qemu:dirty-bitmap:one"] == [(MIB, 1), (3 * MIB, 0)]
    until(lambda: exports.users("v") == 0)
    one.delete()


def test_snapshots_that_clients_have_are_not_given_up(tmp_path, serve, sock):
    with Store.create(tmp_path / "s") as store:
        volume = store.create_volume("v", 64 * MIB)
        for name in ("one", "two", "three"):
            volume.pwrite(name.encode() * MIB, 0)
            volume.snapshot(name)
        serve(store)
        with Client(sock, "v@one"):
            volume.policy(when_full="give-up", snapshot_bytes_max=4 * MIB)
            volume.snapshot("four")
            assert [each.name for each in volume.snapshots()] == ["one", "three", "four"]


def test_a_volume_cannot_go_while_a_client_has_it_or_a_snapshot_of_it(store, serve, sock):
    exports = Exports.of_store(store)
    serve(exports)
    for name in ("v", "v@two"):
        with Client(sock, name):
            for end in (
                lambda: store.delete_volume("v"),
                lambda: store.rename_volume("v", "w"),
                lambda: store.detach("v"),
            ):
                with pytest.raises(BusyError, match="exported to 1 client"):
                    end()
            with pytest.raises(BusyError, match="exported to 1 client"), exports.closed_for("v"):
                raise AssertionError("a client has it")
        until(lambda: exports.users("v") == 0)
    with exports.closed_for("v"):
        with pytest.raises(BusyError):
            Client(sock, "v")
        with pytest.raises(BusyError):
            Client(sock, "v@one")
        store.rename_volume("v", "w")
    with Client(sock, "w@one") as client:
        assert client.pread(1, 0) == b"1"
    with pytest.raises(NotFoundError):
        Client(sock, "v")


def test_an_anchor_can_be_compared_with_and_not_read(store, serve, sock):
    store.open_volume("v", hand_out=False).get_snapshot("one").to_anchor()
    serve(store)
    with pytest.raises(NotFoundError):
        Client(sock, "v@one")
    with Client(sock, "v", ("qemu:dirty-bitmap:one",)) as client:
        assert client.block_status(0, client.size)["qemu:dirty-bitmap:one"] == [(MIB, 1), (3 * MIB, 0)]


def test_a_snapshot_is_compared_with_a_newer_one(store, serve, sock):
    serve(store)
    with Client(sock, "v@one", ("qemu:dirty-bitmap:two", "qemu:dirty-bitmap:one")) as client:
        assert list(client.contexts.values()) == ["qemu:dirty-bitmap:two"]  # with itself it is not
        assert client.block_status(0, client.size) == {"qemu:dirty-bitmap:two": [(MIB, 1), (3 * MIB, 0)]}


def test_the_size_is_that_of_the_open(store, serve, sock):
    serve(store)
    volume = store.open_volume("v", hand_out=False)
    with Client(sock, "v", ("base:allocation",)) as client:
        volume.resize(8 * MIB)
        assert client.size == 4 * MIB
        with pytest.raises(OSError, match="EINVAL"):
            client.pread(1, 4 * MIB)
        with Client(sock, "v") as later:
            assert later.size == 8 * MIB
        volume.resize(2 * MIB)
        with pytest.raises(OSError, match="EINVAL"):
            client.pread(4096, 3 * MIB)
        with pytest.raises(OSError, match="EINVAL"):
            client.block_status(3 * MIB, 4096)
        with pytest.raises(OSError, match=r"EINVAL|ENOSPC"):
            client.pwrite(b"x", 3 * MIB)
        assert client.pread(4, 0) == b"2222"


def test_a_volume_that_is_closed_ends_what_its_clients_do(store, serve, sock):
    serve(store)
    with Client(sock, "v") as client:
        store.open_volume("v", hand_out=False).close()
        for call in (lambda: client.pread(512, 0), lambda: client.pwrite(b"x", 0), client.flush):
            with pytest.raises(OSError, match="ESHUTDOWN"):
                call()
    with Client(sock, "v") as client:  # the store opens it again
        assert client.pread(1, 0) == b"2"


def test_a_list_has_a_volume_that_is_closed_meanwhile(store, monkeypatch):
    """Its last user has closed it just between."""
    opened = []
    whole = store.open_volume

    def open_and_lose(name, **options):
        volume = whole(name, **options)
        opened.append(volume)
        if len(opened) < 3:
            store.close_unused(name)
        return volume

    monkeypatch.setattr(store, "open_volume", open_and_lose)
    assert [name for name, _ in Exports.of_store(store).list(10)] == ["v", "v@one", "v@two"]
    assert len(opened) == 3


def test_clients_of_snapshots_beside_who_takes_and_deletes_them_read_what_each_was(store, serve, sock):
    exports = Exports.of_store(store)
    serve(exports)
    volume = store.open_volume("v", hand_out=False)
    for snapshot in volume.snapshots():
        snapshot.delete()
    counts = Counter()
    wrong = []
    ended = threading.Event()

    def read():
        chance = random.Random(6)
        while not ended.is_set():
            names = [name for name, _ in exports.list(1000) if "@" in name] or ["v@none"]
            name, base = chance.choice(names), chance.choice(names).partition("@")[2]
            contexts = ("base:allocation", "qemu:allocation-depth", f"qemu:dirty-bitmap:{base}")
            try:
                with Client(sock, name, contexts) as client:
                    expected = bytes([int(name.partition("@")[2]) % 251]) * 4096
                    wrong.extend(name for at in range(0, MIB, 65536) if client.pread(4096, at) != expected)
                    for context, states in client.block_status(0, client.size).items():
                        if sum(length for length, _ in states) != client.size:
                            wrong.append((name, context, states))
                    counts["read"] += 1
            except NotFoundError:
                counts["gone"] += 1

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    wanted, late = ("read", "deleted", "refused"), time.monotonic() + 120
    for turn in count(1):
        if turn > 150 and (all(counts[each] for each in wanted) or time.monotonic() > late):
            break
        for at in range(0, MIB, 65536):
            volume.pwrite(bytes([turn % 251]) * 4096, at)
        volume.snapshot(str(turn))
        for snapshot in volume.snapshots()[:-3]:
            try:
                snapshot.delete()
                counts["deleted"] += 1
            except BusyError:
                counts["refused"] += 1
    ended.set()
    for reader in readers:
        reader.join()
    assert not wrong
    assert all(counts[each] for each in wanted), counts
    until(lambda: exports.users("v") == 0)
    assert volume.check().ok
