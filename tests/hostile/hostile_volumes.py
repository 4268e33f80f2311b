"""Small real volumes of every shape, for the mutations to begin with: the same bytes for each run of one seed."""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from cowengine import Volume
from cowengine.engine import reclaim
from cowengine.engine.clones import delete_clone

KIB = 1024
BLOCK = 4096


def _create(path: Path, size: int, **options: int) -> Volume:
    return Volume.create(path, size, background=False, **{"log_size": 16 * KIB, **options})


def _fill(volume: Volume, rng: random.Random, count: int, longest: int = 9000) -> None:
    for _ in range(count):
        length = rng.randrange(1, min(longest, volume.size))
        volume.pwrite(rng.randbytes(length), rng.randrange(volume.size - length))


def _crash(path: Path, volume: Volume) -> bytes:
    """The file as it is now; the volume does not matter any more."""
    volume.flush()
    data = path.read_bytes()
    volume.close()
    return data


def fresh(path: Path, rng: random.Random) -> bytes:
    """Never written, closed cleanly."""
    _create(path, 160 * KIB).close()
    return path.read_bytes()


def snapshots(path: Path, rng: random.Random) -> bytes:
    """Six snapshots on two levels of nodes, with metadata, a branch, a hold, holes and tombstones; closed cleanly."""
    with _create(path, 600 * BLOCK) as volume:
        for number in range(5):
            _fill(volume, rng, 6, 30_000)
            volume.discard(rng.randrange(500) * BLOCK, 40 * BLOCK)
            volume.snapshot(f"s{number}", metadata={"number": number})
        volume.rollback("s2")
        _fill(volume, rng, 4)
        volume.get_snapshot("s4").hold("backup runs")
    return path.read_bytes()


def logged(path: Path, rng: random.Random) -> bytes:
    """A crash with every kind of record in the log."""
    volume = _create(path, 300 * BLOCK, log_size=256 * KIB)
    _fill(volume, rng, 5, 60_000)
    volume.snapshot("base", metadata={"base": True})
    volume.engine.checkpoint()
    for number in range(6):
        _fill(volume, rng, 2)
        volume.snapshot(f"s{number}", metadata={"number": number})
    volume.policy(keep_newest=2)
    volume.get_snapshot("s1").hold("kept")
    volume.get_snapshot("s0").delete()
    volume.get_snapshot("s2").to_anchor()
    volume.engine.delete(volume.get_snapshot("s3").id, give_up=True)
    volume.rollback("s1")
    volume.resize(310 * BLOCK)
    _fill(volume, rng, 2)
    volume.resize(250 * BLOCK)
    return _crash(path, volume)


def half_reclaimed(path: Path, rng: random.Random) -> bytes:
    """Deleted snapshots, the reclaim of one under way; a crash behind a checkpoint."""
    volume = _create(path, 1200 * BLOCK)
    for number in range(4):
        for place in range(0, 1200, 250):
            volume.pwrite(rng.randbytes(3 * BLOCK), (place + number) * BLOCK)
        volume.snapshot(f"s{number}")
    volume.engine.checkpoint()
    for name in ("s1", "s2"):
        volume.engine.delete(volume.get_snapshot(name).id)
    with mock.patch.multiple(reclaim, LEAVES_A_STEP=1, PARTS_A_STEP=1):
        reclaim.reclaim_step(volume.engine)
        reclaim.reclaim_step(volume.engine)
    volume.engine.checkpoint()
    return _crash(path, volume)


def anchors(path: Path, rng: random.Random) -> bytes:
    """Empty anchors, one that is not empty yet, a given-up snapshot; closed cleanly."""
    with _create(path, 300 * BLOCK) as volume:
        for number in range(7):
            _fill(volume, rng, 3)
            volume.snapshot(f"s{number}")
        for name in ("s1", "s2", "s4"):
            volume.get_snapshot(name).to_anchor()
        volume.engine.to_anchor(volume.get_snapshot("s5").id)
        volume.engine.delete(volume.get_snapshot("s3").id, give_up=True)
    return path.read_bytes()


def resized(path: Path, rng: random.Random) -> bytes:
    """Grown over a level of the map and shrunk again, snapshots of all sizes; closed cleanly."""
    with _create(path, 200 * BLOCK) as volume:
        for number, blocks in enumerate((200, 700, 300, 33_000, 450)):
            volume.resize(blocks * BLOCK)
            _fill(volume, rng, 4)
            volume.snapshot(f"s{number}")
    return path.read_bytes()


def adopted(path: Path, rng: random.Random) -> bytes:
    """A raw image that became a volume: two home regions; one snapshot and blocks away from home."""
    image = bytearray(rng.randbytes(40 * BLOCK))
    image[10 * BLOCK : 20 * BLOCK] = bytes(10 * BLOCK)
    path.write_bytes(image)
    with Volume.adopt(path, log_size=16 * KIB, raw=True, background=False) as volume:
        _fill(volume, rng, 3)
        volume.snapshot("s")
        _fill(volume, rng, 3)
    return path.read_bytes()


def adopted_alone(path: Path, rng: random.Random) -> bytes:
    """As adopted, without snapshots: what can become a raw image again."""
    path.write_bytes(rng.randbytes(40 * BLOCK))
    with Volume.adopt(path, log_size=16 * KIB, raw=True, background=False) as volume:
        volume.pwrite(b"written", 12 * BLOCK)
    return path.read_bytes()


def large_blocks(path: Path, rng: random.Random) -> bytes:
    """Blocks of 64 KiB; closed cleanly."""
    with _create(path, 15 * 64 * KIB + 512, block_size=64 * KIB) as volume:
        for number in range(3):
            _fill(volume, rng, 2)
            volume.snapshot(f"s{number}")
    return path.read_bytes()


def largest_blocks(path: Path, rng: random.Random) -> bytes:
    """Blocks of 1 MiB; a crash."""
    volume = _create(path, 2048 * KIB, block_size=1024 * KIB)
    _fill(volume, rng, 1)
    volume.snapshot("s")
    _fill(volume, rng, 1)
    return _crash(path, volume)


def named(path: Path, rng: random.Random) -> bytes:
    """So many snapshots that there is an index of their names; some deleted, one an anchor; closed cleanly."""
    with _create(path, 20 * BLOCK) as volume:
        for number in range(70):
            _fill(volume, rng, 1)
            volume.snapshot(f"s{number}")
        for number in range(3, 60):
            volume.get_snapshot(f"s{number}").delete()
        volume.get_snapshot("s1").to_anchor()
    return path.read_bytes()


def sealed(path: Path, rng: random.Random) -> bytes:
    """Three snapshots, of which two are sealed; a crash."""
    volume = _create(path, 300 * BLOCK)
    for number in range(3):
        _fill(volume, rng, 4, 40_000)
        volume.snapshot(f"s{number}")
        if number == 1:
            volume.seal()
    volume.engine.checkpoint()
    return _crash(path, volume)


def _branch(volume: Volume, rng: random.Random) -> None:
    """Clones with snapshots of their own: of a branch point that goes, of a clone's snapshot, of one that goes itself,
    one that was rolled back elsewhere."""
    for number in range(4):
        _fill(volume, rng, 3, 20_000)
        volume.snapshot(f"s{number}")
    with volume.get_snapshot("s1").clone("one") as one, volume.get_snapshot("s1").clone("two") as two:
        for number, head in enumerate((one, two, volume)):
            _fill(head, rng, 3, 20_000)
            head.snapshot(f"of {head.head}", metadata={"number": number})
            _fill(head, rng, 2)
        one.resize(310 * BLOCK)
        with volume.get_snapshot("of one").clone("three") as three:
            _fill(three, rng, 2)
            three.discard(20 * BLOCK, 40 * BLOCK)
        two.rollback("s2")
        _fill(two, rng, 2)
        one.rollback("s0")  # s1 is no origin any more
    with volume.get_snapshot("of two").clone("gone") as gone:
        _fill(gone, rng, 2)
        gone.snapshot("of gone")
        _fill(gone, rng, 2)
    volume.get_snapshot("s1").delete()
    volume.get_snapshot("s3").to_anchor()
    volume.delete_head("gone")


def clones(path: Path, rng: random.Random) -> bytes:
    """Four heads in a tree of snapshots, a branch point deleted; closed cleanly."""
    with _create(path, 300 * BLOCK) as volume:
        _branch(volume, rng)
    return path.read_bytes()


def clones_logged(path: Path, rng: random.Random) -> bytes:
    """The same, and a crash with all of it in the log, over two heads of a checkpoint: one turned back, one deleted."""
    volume = _create(path, 300 * BLOCK, log_size=256 * KIB)
    _fill(volume, rng, 4)
    base = volume.snapshot("base")
    _fill(volume, rng, 2)
    with base.clone("older") as older, base.clone("old") as old:
        for head in (older, old):
            _fill(head, rng, 2)
            head.snapshot(f"of {head.head}")
            _fill(head, rng, 2)
        volume.engine.checkpoint()
        _branch(volume, rng)
        older.rollback("of old")
        _fill(older, rng, 2)
        _fill(old, rng, 2)
    delete_clone(volume.engine, "old")  # its space is not given back yet
    return _crash(path, volume)


def of_a_store(path: Path, rng: random.Random) -> bytes:
    """A volume whose store was not closed."""
    volume = Volume.create(path, 100 * BLOCK, log_size=16 * KIB, background=False, store_uuid=bytes(range(16)))
    _fill(volume, rng, 3)
    volume.snapshot("s")
    return _crash(path, volume)


VOLUMES: dict[str, Callable[[Path, random.Random], bytes]] = {
    function.__name__: function
    for function in (
        fresh, snapshots, logged, half_reclaimed, anchors, resized, adopted, adopted_alone, large_blocks,
        largest_blocks, named, sealed, clones, clones_logged, of_a_store,
    )
}  # fmt: skip


@contextlib.contextmanager
def repeatable(seed: int) -> Iterator[random.Random]:
    """Identities, salts and times are the same in each run; the generator is for what the caller makes."""
    rng = random.Random(seed)
    clock = iter(range(1_700_000_000 * 10**9, 2**63, 10**6))
    with mock.patch.object(os, "urandom", rng.randbytes), mock.patch.object(time, "time_ns", lambda: next(clock)):
        yield random.Random(seed + 1)


def build(name: str) -> bytes:
    """The bytes of one of VOLUMES."""
    with tempfile.TemporaryDirectory() as folder, repeatable(len(name)) as rng:
        return VOLUMES[name](Path(folder) / "v", rng)
