"""The process that serves a store is killed while clients work: what it acknowledged is there, and all is sound."""

from __future__ import annotations

import random
import subprocess
import threading
import time
from collections.abc import Callable

import pytest

import cowengine
from cowengine import Store, connect

MIB = 1 << 20
BLOCK = 4096
Serve = Callable[[str], "subprocess.Popen[str]"]


class Client:
    """Writes, flushes, snapshots and sets in a loop, and notes what returned."""

    def __init__(self, folder: str, number: int) -> None:
        self.number = number
        self.flushed = 0  # turns whose block is durable
        self.snapshots: list[str] = []
        self.sets: list[str] = []
        self.documents = 0
        self.ended: BaseException | None = None
        self._store = connect(folder)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        name = f"v{self.number}"
        try:
            volume = self._store.open_volume(name)
            for turn in range(1, 1 << 20):
                volume.pwrite(turn.to_bytes(8, "little") * (BLOCK // 8), turn % 64 * BLOCK)
                volume.flush()
                self.flushed = turn
                label = f"{self.number}-{turn}"
                if turn % 3:
                    volume.snapshot(label)
                    self.snapshots.append(label)
                else:
                    self._store.snapshot([name], label)
                    self.sets.append(label)
                self._store.put_document("turns", label, {"turn": turn})
                self.documents = turn
        except cowengine.CowEngineError as error:
            self.ended = error

    def end(self) -> None:
        self._thread.join()
        self._store.close()


@pytest.mark.parametrize("seed", range(3))
def test_nothing_acknowledged_is_lost(folder: str, serve: Serve, seed: int) -> None:
    with Store.create(folder) as store:
        for number in range(3):
            store.create_volume(f"v{number}", MIB).close()
    server = serve(folder)
    clients = [Client(folder, number) for number in range(3)]
    while min(client.flushed for client in clients) < 5:
        assert not [client.ended for client in clients if client.ended]
        time.sleep(0.01)
    time.sleep(random.Random(seed).uniform(0, 0.5))
    server.kill()
    server.wait()
    for client in clients:
        client.end()
        assert isinstance(client.ended, cowengine.ClosedError)
    with connect(folder) as store:
        assert type(store) is Store
        assert store.problems == []
        assert store.check().ok
        sets = {found.name: found for found in store.snapshot_sets()}
        for client in clients:
            volume = store.open_volume(f"v{client.number}")
            names = {snapshot.name for snapshot in volume.snapshots()}
            assert set(client.snapshots) <= names
            assert set(client.sets) <= set(sets)
            assert all(sets[name].missing == [] for name in client.sets)
            for turn in range(max(1, client.flushed - 60), client.flushed):
                assert volume.pread(8, turn % 64 * BLOCK) == turn.to_bytes(8, "little")
            assert store.get_document("turns", f"{client.number}-{client.documents}") == {"turn": client.documents}
