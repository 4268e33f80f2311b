"""What a volume keeps in memory is bounded, whatever its map and however it is read."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from cowengine import OutOfRangeError, Volume
from cowengine.engine import memory

BLOCK = 4096
LEAF = 256 * BLOCK  # what a leaf of the map spans
LEAVES = 1200
MIB = 1 << 20


@pytest.fixture(scope="module")
def scattered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks in each leaf's span, every second of them changed after a snapshot: 1,200 leaves, twice."""
    path = tmp_path_factory.mktemp("size") / "v"
    with Volume.create(path, LEAVES * LEAF) as volume:
        for leaf in range(LEAVES):
            volume.pwrite(b"%08d" % leaf, leaf * LEAF)
            volume.pwrite(b"%08d" % leaf, leaf * LEAF + 9 * BLOCK)
        volume.snapshot("old")
        for leaf in range(0, LEAVES, 2):
            volume.pwrite(b"new %04d" % leaf, leaf * LEAF)
    return path


def nodes(volume: Volume) -> int:
    return int(volume.stats()["nodes_in_memory"])


@pytest.mark.parametrize("read_only", [False, True])
def test_random_reads_keep_within_the_cache_size_and_are_right(scattered: Path, read_only: bool) -> None:
    with Volume.open(scattered, read_only=read_only, cache_size=MIB) as volume:
        old = volume.get_snapshot("old")
        rng = random.Random(5)
        most = 0
        for _ in range(6000):
            leaf = rng.randrange(LEAVES)
            live = b"%08d" % leaf if leaf % 2 else b"new %04d" % leaf
            assert volume.pread(8, leaf * LEAF) == live
            assert old.pread(8, leaf * LEAF) == b"%08d" % leaf
            most = max(most, nodes(volume))
        assert most <= MIB // memory.NODE_BYTES * 5 // 4 + 8
        assert volume.stats()["memory_bytes"] < 2 * MIB


def test_walks_keep_within_the_cache_size(scattered: Path) -> None:
    with Volume.open(scattered, cache_size=MIB) as volume:
        old = volume.get_snapshot("old")
        assert len(volume.changed_extents(old)) == LEAVES // 2
        assert nodes(volume) <= MIB // memory.NODE_BYTES * 5 // 4 + 64
        assert len(old.allocated_extents()) == 2 * LEAVES
        assert nodes(volume) <= MIB // memory.NODE_BYTES * 5 // 4 + 64


def test_writes_and_checkpoints_go_on_under_a_small_cache(tmp_path: Path) -> None:
    rng = random.Random(6)
    with Volume.create(tmp_path / "w", LEAVES * LEAF, cache_size=MIB, log_size=65536) as volume:
        model: dict[int, bytes] = {}
        for number in range(4000):
            leaf, data = rng.randrange(LEAVES), rng.randbytes(16)
            volume.pwrite(data, leaf * LEAF)
            model[leaf] = data
            if number % 500 == 499:
                volume.snapshot(f"s{number}")
            there = rng.choice(list(model))
            assert volume.pread(16, there * LEAF) == model[there]
        volume.engine.checkpoint()
        assert nodes(volume) <= MIB // memory.NODE_BYTES
        for leaf, data in model.items():
            assert volume.pread(16, leaf * LEAF) == data
        assert volume.check().problems == []


def test_a_clean_bitmap_leaves_memory(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "v", 64 << 30, cache_size=MIB) as volume:
        for number in range(256):
            volume.pwrite(b"x", number * 256 * MIB)  # each home slot in another leaf of the free map
        assert volume.engine.path.slots.busy_count >= 256
        volume.engine.checkpoint()
        assert volume.engine.path.slots.busy_count < 16
        assert volume.engine.free_map.nodes() < 16
        for number in range(256):
            volume.pwrite(b"y", number * 256 * MIB + BLOCK)
        assert volume.check().problems == []


def test_a_cache_size_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutOfRangeError, match="cache_size"):
        Volume.create(tmp_path / "v", MIB, cache_size="big")  # type: ignore[arg-type]


def test_readers_and_a_writer_share_a_small_cache(tmp_path: Path) -> None:
    """Nodes leave memory under readers, while checkpoints write others: nobody reads what is not on disk yet."""
    problems: list[BaseException] = []
    with Volume.create(tmp_path / "v", LEAVES * LEAF, cache_size=MIB, log_size=65536) as volume:
        for leaf in range(LEAVES):
            volume.pwrite(b"%08d" % leaf, leaf * LEAF)
        old = volume.snapshot("old")

        def read(seed: int) -> None:
            rng = random.Random(seed)
            try:
                for _ in range(4000):
                    leaf = rng.randrange(LEAVES)
                    assert old.pread(8, leaf * LEAF) == b"%08d" % leaf
                    assert volume.pread(3, leaf * LEAF + 5 * BLOCK) in (b"new", bytes(3))
            except BaseException as error:
                problems.append(error)

        readers = [threading.Thread(target=read, args=(seed,)) for seed in range(2)]
        for reader in readers:
            reader.start()
        rng = random.Random(9)
        for number in range(40):
            for _ in range(50):
                volume.pwrite(b"new", rng.randrange(LEAVES) * LEAF + 5 * BLOCK)
            volume.snapshot(f"s{number}")
        for reader in readers:
            reader.join()
        assert problems == []
        assert volume.check().problems == []
