"""The live bytes of a served volume: over NBD, as long as that can be, and then in messages."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import cowengine
from cowengine import connect
from cowengine.control import live
from cowengine.control.live import LiveBytes
from cowengine.control.sockets import nbd_path
from cowengine.nbd.exports import Exports
from cowengine.nbd.sockets import connect_unix, listen_unix

MIB = 1 << 20


def test_they_go_over_nbd(exports: Exports, folder: str) -> None:
    with connect(folder) as store:
        volume = store.create_volume("a", 16 * MIB)
        assert exports.users("a") == 0
        data = os.urandom(9 * MIB)
        assert volume.pwrite(data, 12345) == len(data)
        assert exports.users("a") == 1
        assert volume.pread(len(data), 12345) == data
        assert volume.snapshot("one").pread(len(data), 12345) == data
        with pytest.raises(cowengine.BusyError):
            store.delete_volume("a")
        volume.close()
        assert exports.users("a") == 0
        store.delete_volume("a")


def test_a_volume_that_another_client_has_as_a_block_device_stays(exports: Exports, folder: str) -> None:
    with connect(folder) as store:
        store.create_volume("a", MIB).close()
        with exports.open("a"):
            for take_away in (store.delete_volume, store.detach, lambda name: store.rename_volume(name, "b")):
                with pytest.raises(cowengine.BusyError, match="exported"):
                    take_away("a")
        with store.open_volume("a") as volume:
            snapshot = volume.snapshot("one")
            with exports.open("a@one"), pytest.raises(cowengine.BusyError, match="exported"):
                snapshot.delete()
            snapshot.delete()
        store.rename_volume("a", "b")


def test_what_is_wrong_is_named_as_the_volume_does(exports: Exports, folder: str) -> None:
    with connect(folder) as store, store.create_volume("a", MIB) as volume:
        volume.pwrite(b"x", 0)
        with pytest.raises(cowengine.OutOfRangeError, match="the volume has 1048576 bytes"):
            volume.pread(10, MIB - 5)
        with pytest.raises(cowengine.OutOfRangeError, match="the volume has 1048576 bytes"):
            volume.pwrite(bytes(10), MIB)
        volume.resize(2 * MIB)
        assert volume.pwrite(b"grown", MIB) == 5
        assert volume.pread(5, MIB) == b"grown"
    with connect(folder, read_only=True) as store, store.open_volume("a") as volume:
        assert volume.pread(5, MIB) == b"grown"
        with pytest.raises(cowengine.ReadOnlyError):
            volume.pwrite(b"x", 0)
        assert volume.pread(1, 0) == b"x"


def test_threads_write_through_one_volume(exports: Exports, folder: str) -> None:
    with connect(folder) as store, store.create_volume("a", 8 * MIB) as volume:

        def work(number: int) -> None:
            for turn in range(8):
                volume.pwrite(bytes([number]) * 65536, (number * 8 + turn) * 65536)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert volume.pread(4 * MIB, 0) == b"".join(bytes([number]) * (8 * 65536) for number in range(8))


@pytest.mark.needs("nbdinfo", "nbdcopy")
def test_block_devices_of_a_served_store(folder: str, tmp_path: Path, exports: Exports) -> None:
    with connect(folder) as store, store.create_volume("a", MIB) as volume:
        volume.pwrite(b"before", 4096)
        volume.snapshot("one")
        uri = f"nbd+unix:///a@one?socket={store.nbd_path}"  # type: ignore[attr-defined]
        subprocess.run(["nbdcopy", uri, tmp_path / "one.img"], check=True)
        assert (tmp_path / "one.img").read_bytes()[4096:4102] == b"before"
        subprocess.run(["nbdcopy", tmp_path / "one.img", uri.replace("@one", "")], check=True)
        listed = subprocess.run(
            ["nbdinfo", "--list", uri.replace("/a@one", "/")], check=True, capture_output=True, text=True
        ).stdout
        assert 'export="a"' in listed
        assert 'export="a@one"' in listed


@contextmanager
def relay(path: str, to: str) -> Iterator[threading.Event]:
    """A socket whose one client reaches the server at another one; the server's answers wait for the event."""
    flows = threading.Event()
    flows.set()
    with listen_unix(path) as listener:

        def pass_on(source: socket.socket, target: socket.socket, gate: threading.Event | None) -> None:
            while data := source.recv(65536):
                if gate is not None:
                    gate.wait()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

        def carry() -> None:
            client, _ = listener.accept()
            with client, connect_unix(to) as server:
                back = threading.Thread(target=pass_on, args=(server, client, flows))
                back.start()
                pass_on(client, server, None)
                back.join()

        carrying = threading.Thread(target=carry)
        carrying.start()
        yield flows
        carrying.join()


def test_a_slow_answer_is_waited_for_and_nothing_is_done_twice(
    exports: Exports, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was given up could be carried out later, over what was written since."""
    monkeypatch.setattr(live, "HANDSHAKE_SECONDS", 0.5)
    calls: list[str] = []
    with (
        connect(folder) as store, store.create_volume("a", MIB) as volume,
        relay(str(tmp_path / "relay"), nbd_path(folder)) as flows,
    ):  # fmt: skip
        slow = LiveBytes(lambda method, **_: calls.append(method), str(tmp_path / "relay"), "a", read_only=False)
        slow.write(memoryview(b"first"), 0)
        flows.clear()
        writing = threading.Thread(target=slow.write, args=(memoryview(b"second"), 0))
        writing.start()
        time.sleep(1.5)
        assert writing.is_alive()
        flows.set()
        writing.join()
        assert volume.pread(6, 0) == b"second"
        slow.close()
    assert calls == []
