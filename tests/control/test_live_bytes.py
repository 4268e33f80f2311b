"""The live bytes of a served volume: over NBD, as long as that can be, and then in messages."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

import cowengine
from cowengine import connect
from cowengine.nbd.exports import Exports

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
