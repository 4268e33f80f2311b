"""When memory comes back under its limit, and when it must not."""

from __future__ import annotations

import gc
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from cowengine import Volume
from cowengine.engine import lineage, memory
from cowengine.engine.lineage import Lineage

BLOCK = 4096


def scattered(path: Path) -> Volume:
    """A volume with many clean nodes in memory."""
    volume = Volume.create(path, 1 << 30, background=False)
    rng = random.Random(1)
    for _ in range(600):
        volume.pwrite(b"x", rng.randrange(1 << 18) * BLOCK)
    volume.engine.checkpoint()
    return volume


def test_nothing_is_trimmed_in_the_middle_of_a_step(tmp_path: Path) -> None:
    with scattered(tmp_path / "v") as volume:
        engine = volume.engine
        before = engine.path.map.node_count
        engine.cache_nodes = 100
        with engine.undivided():
            memory.trim(engine)
        assert engine.path.map.node_count == before > 300
        memory.trim(engine)
        assert engine.path.map.node_count <= 100


def test_nothing_is_trimmed_while_another_thread_is_at_work(tmp_path: Path) -> None:
    """And who would trim does not wait for it: it may be any reader."""
    with scattered(tmp_path / "v") as volume:
        engine = volume.engine
        before = engine.path.map.node_count
        engine.cache_nodes = 100
        with engine.lock:
            reader = threading.Thread(target=memory.trim, args=(engine,))
            reader.start()
            reader.join()
        assert engine.path.map.node_count == before > 300
        memory.trim(engine)
        assert engine.path.map.node_count <= 100


def test_looks_below_the_limit_leave_the_limit_where_it_is(tmp_path: Path) -> None:
    """Whoever looks through snapshots asks for a trim as well, at any number of nodes of the map."""
    with scattered(tmp_path / "v") as volume:
        engine = volume.engine
        nodes = engine.path.map.node_count
        engine.cache_nodes = limit = nodes + 10
        for _ in range(2):
            memory.trim(engine)
            assert (engine.path.node_limit, engine.path.seal_limit) == (limit, limit // memory.SHARE_OF_SEALS)
        assert engine.path.map.node_count == nodes
        # Only what a trim could not bring down is given more room: here the nodes of the tree before the write, as long
        # as that is not committed.
        engine.cache_nodes = limit = nodes - 10
        volume.pwrite(b"dirty", 0)
        memory.trim(engine)
        assert engine.path.map.node_count > limit and engine.path.node_limit == engine.path.map.node_count + limit // 4
        volume.flush()
        memory.trim(engine)
        assert engine.path.map.node_count <= limit and engine.path.node_limit == limit


def test_a_path_that_outlives_its_engine_trims_nothing() -> None:
    """It must not keep the engine, which would never be closed."""

    class Path:
        def bound(self, nodes: int, trim: Any) -> None:
            self.trim = trim

    class Engine:
        def __init__(self, path: Path) -> None:
            self.path = path

    path = Path()
    engine = Engine(path)
    memory.bound(engine, 0)  # type: ignore[arg-type]
    assert engine.cache_nodes == memory.CACHE_BYTES_MIN // memory.NODE_BYTES  # type: ignore[attr-defined]
    del engine
    gc.collect()
    path.trim()


def test_a_scan_of_all_records_leaves_few_nodes_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "v"
    with Volume.create(path, 1 << 20, background=False) as volume:
        for number in range(200):
            volume.snapshot(f"s{number}")
    nodes = []
    for at_once in (lineage.LEAVES_A_SCAN, 4):
        monkeypatch.setattr(lineage, "LEAVES_A_SCAN", at_once)
        with Volume.open(path, read_only=True, background=False) as volume:
            found = dict(volume.engine.lineage.essentials())
            assert [found[number][4] for number in range(1, 201)] == [f"s{number}" for number in range(200)]
            nodes.append(volume.engine.table.nodes())
    assert nodes[1] < 10 < nodes[0]


def test_a_leaf_that_two_want_at_once_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both would have records of their own, and a change would reach one of them."""
    path = tmp_path / "v"
    with Volume.create(path, 1 << 20, background=False) as volume:
        for number in range(20):
            volume.snapshot(f"s{number}")
    with Volume.open(path, background=False) as volume:
        records = volume.engine.lineage
        first = records.get(17)
        records.unload_records(0)

        class Beaten:
            """The lock, as the other one finds it when this one has been served."""

            def __init__(self, inner: Any) -> None:
                self.inner = inner

            def __enter__(self) -> None:
                records._loading = self.inner
                self.winner = records.get(17)

            def __exit__(self, *_: object) -> None:
                pass

        beaten = Beaten(records._loading)
        monkeypatch.setattr(records, "_loading", beaten)
        found = records.get(17)
        assert isinstance(records, Lineage) and found == first
        assert found is beaten.winner
