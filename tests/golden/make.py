"""Makes the golden volumes of the format version that this tree writes, those that do not exist yet.

    python tests/golden/make.py

Never overwrites: what a released version wrote is what every later one must read. A new scenario is a new name.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cowengine import Snapshot, Volume
from cowengine.errors import FullBackupRequired

FOLDER = Path(__file__).parent / "v1"
KIB = 1024


def fill(volume: Volume, seed: int, blocks: list[int]) -> None:
    """Writes into whole blocks what is different in each and compresses well."""
    rng = random.Random(seed)
    for block in blocks:
        volume.pwrite(rng.randbytes(64) * (volume.block_size // 64), block * volume.block_size)


def create(path: str, size: int, **options: Any) -> Volume:
    return Volume.create(path, size, background=False, **{"log_size": 16 * KIB, **options})


def plain(path: str) -> None:
    """A few blocks, one partly written, one discarded, closed cleanly."""
    with create(path, 160 * KIB) as volume:
        fill(volume, 1, [0, 1, 2, 7, 39])
        volume.pwrite(b"in the middle", 5 * 4096 + 100)
        volume.flush()
        volume.discard(4096, 4096)


def empty(path: str) -> None:
    """Never written."""
    create(path, 512).close()


def snapshots(path: str) -> None:
    """Three snapshots with shared, redirected and discarded blocks, names beyond ASCII, metadata."""
    with create(path, 160 * KIB) as volume:
        fill(volume, 2, list(range(10)))
        volume.snapshot("first", metadata={"reason": "before the upgrade", "größe": 1})
        fill(volume, 3, [0, 3, 20])
        volume.discard(4 * 4096, 2 * 4096)
        volume.snapshot("zweiter Schnappschuß 二")
        fill(volume, 4, [0, 4])
        volume.snapshot("third")
        fill(volume, 5, [0, 39])


def rolled_back(path: str) -> None:
    """Two branches: a rollback to the first snapshot, then writes and another snapshot."""
    with create(path, 160 * KIB) as volume:
        fill(volume, 6, list(range(6)))
        volume.snapshot("base")
        fill(volume, 7, [0, 1, 30])
        volume.snapshot("left")
        fill(volume, 8, [2])
        volume.rollback(volume.get_snapshot("base"))
        fill(volume, 9, [1, 5])
        volume.snapshot("right")
        fill(volume, 10, [5])


def deleted(path: str) -> None:
    """One snapshot deleted and reclaimed, one deleted and still holding its space."""
    with create(path, 160 * KIB) as volume:
        fill(volume, 11, list(range(20)))
        for number in range(4):
            volume.snapshot(f"s{number}")
            fill(volume, 12 + number, [number, number + 5, 10])
        volume.get_snapshot("s1").delete()
        volume.reclaim()
        volume.rollback(volume.get_snapshot("s2"))
        fill(volume, 19, [0, 30])
        volume.get_snapshot("s2").delete()  # two branches stand on it: it can't be reclaimed yet


def anchors(path: str) -> None:
    """Anchors: empty ones in a row, one under which a snapshot was deleted, one that two branches stand on."""
    with create(path, 160 * KIB) as volume:
        fill(volume, 40, list(range(20)))
        for number in range(6):
            volume.snapshot(f"s{number}", metadata={"number": number})
            fill(volume, 41 + number, [number, number + 7, 12])
        for number in (1, 2, 5):
            volume.get_snapshot(f"s{number}").to_anchor()
        volume.get_snapshot("s0").delete()
        volume.discard(0, 8 * KIB)
        volume.rollback(volume.get_snapshot("s3"))
        fill(volume, 49, [0, 30])
        volume.get_snapshot("s3").to_anchor()  # two branches stand on it: it waits


def sealed(path: str) -> None:
    """Seals, some ended by records of a delete; a snapshot that is not sealed; 16 KiB blocks; copied while open."""
    volume = create(path + ".open", 640 * KIB, block_size=16 * KIB, log_size=128 * KIB)
    fill(volume, 50, list(range(30)))
    for number in range(4):
        volume.snapshot(f"s{number}")
        fill(volume, 51 + number, [number, number + 9, 20])
    volume.seal()
    volume.get_snapshot("s1").delete()
    fill(volume, 59, [0, 1, 2])
    volume.snapshot("not sealed")
    fill(volume, 60, [3])
    volume.flush()
    shutil.copyfile(path + ".open", path)
    volume.close()


def unclean(path: str) -> None:
    """Copied while it was open: snapshots, writes, a delete and a rollback are in the log only."""
    volume = create(path + ".open", 160 * KIB, log_size=128 * KIB)
    fill(volume, 20, list(range(8)))
    volume.snapshot("one", metadata={"where": "only in the log"})
    fill(volume, 21, [0, 1, 2])
    volume.snapshot("two")
    fill(volume, 22, [0, 9])
    volume.snapshot("three")
    volume.get_snapshot("two").delete()
    volume.rollback(volume.get_snapshot("one"))
    fill(volume, 23, [7, 8])
    volume.flush()
    shutil.copyfile(path + ".open", path)
    volume.close()


def clones(path: str) -> None:
    """One clone in the checkpoint, another and a deleted one in the log; a snapshot and a rollback on a clone."""
    source = path + ".source"
    with create(source, 160 * KIB) as volume:
        fill(volume, 11, list(range(12)))
        first = volume.snapshot("first")
        with first.clone("one") as one:
            fill(one, 12, [0, 1, 30])
            own = one.snapshot("of the clone")
            fill(one, 13, [1, 2])
        volume.engine.checkpoint()
        with own.clone("two") as two, volume.open_head("one") as one:
            fill(two, 14, [3, 31])
            one.resize(100 * KIB)
            one.rollback(first)
            fill(one, 15, [4])
        first.clone("three").close()
        volume.delete_head("three")
        fill(volume, 16, [0, 39])
        volume.flush()
        shutil.copyfile(source, path)
    os.unlink(source)


def wrapped(path: str) -> None:
    """So many commits that the log went round and checkpoints were taken; copied while open."""
    volume = create(path + ".open", 160 * KIB)
    rng = random.Random(30)
    for number in range(60):
        fill(volume, 100 + number, [rng.randrange(40)])
        if number % 6 == 0:
            volume.snapshot(f"n{number:02}")
        else:
            volume.flush()
    shutil.copyfile(path + ".open", path)
    volume.close()


def adopted(path: str) -> None:
    """A raw image that became a volume: two home regions, that of the first blocks behind; a snapshot, then writes."""
    rng = random.Random(7)
    with open(path, "wb") as image:
        image.truncate(160 * KIB + 512)
        for block in (0, 3, 4, 10, 11, 30):
            image.seek(block * 4096)
            image.write(rng.randbytes(64) * 64)
    with Volume.adopt(path, log_size=16 * KIB, background=False) as volume:
        volume.snapshot("as it was")
        fill(volume, 8, [0, 10, 20])
        volume.discard(4 * 4096, 4096)


def big_blocks(path: str) -> None:
    """64 KiB blocks, and a size that ends within one."""
    with create(path, 5 * 64 * KIB - 512, block_size=64 * KIB) as volume:
        volume.pwrite(b"a" * 1000, 64 * KIB - 500)
        volume.snapshot("before")
        volume.pwrite(b"b" * 512, volume.size - 512)
        volume.write_zeroes(64 * KIB, 100)


def indexed(path: str) -> None:
    """So many snapshots that there is an index of names; a branch, deleted ones, changes of it in the log only."""
    volume = create(path + ".open", 160 * KIB, log_size=64 * KIB)
    for number in range(90):
        fill(volume, 500 + number, [number % 40])
        volume.snapshot(f"täglich {number:02}")
    for number in range(5, 85):
        volume.get_snapshot(f"täglich {number:02}").delete()
    volume.reclaim()
    volume.rollback(volume.get_snapshot("täglich 86"))
    volume.engine.checkpoint()
    fill(volume, 600, [0, 1])
    volume.snapshot("only in the log")
    volume.get_snapshot("täglich 03").delete()
    volume.flush()
    shutil.copyfile(path + ".open", path)
    volume.close()


SCENARIOS: list[Callable[[str], None]] = [
    plain, empty, snapshots, rolled_back, deleted, anchors, unclean, wrapped, big_blocks, adopted,
    indexed, sealed, clones,
]  # fmt: skip


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def clone_digest(volume: Volume, name: str) -> str:
    with volume.open_head(name) as clone:
        return digest(clone.pread(clone.size, 0))


def changed_since(volume: Volume, snapshot: Snapshot) -> list[list[int]] | str:
    """What changed in the live volume, or that nobody can know."""
    try:
        return volume.changed_extents(snapshot).tolist()
    except FullBackupRequired:
        return "full backup required"


def describe(path: str) -> dict[str, Any]:
    """What a reader must find in the volume."""
    with Volume.open(path, read_only=True) as volume:
        names = volume.heads()
        return {
            "id": str(volume.id),
            "size": volume.size,
            "block_size": volume.block_size,
            "live": digest(volume.pread(volume.size, 0)),
            "allocated": volume.allocated_extents().tolist(),
            **({"clones": {name: clone_digest(volume, name) for name in names[1:]}} if len(names) > 1 else {}),
            "snapshots": [
                {
                    "id": snapshot.id,
                    "name": snapshot.name,
                    "epoch": snapshot.epoch,
                    "size": snapshot.size,
                    "change_id": snapshot.change_id,
                    "metadata": snapshot.metadata,
                    "contents": "anchor" if snapshot.is_anchor else digest(snapshot.pread(snapshot.size, 0)),
                    "changed_since": changed_since(volume, snapshot),
                }
                for snapshot in volume.snapshots()
            ],
        }


def make(scenario: Callable[[str], None]) -> None:
    name = scenario.__name__
    target = FOLDER / f"{name}.cow.gz"
    if target.exists():
        print(f"{name}: exists, left alone")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "volume.cow")
        scenario(path)
        data = Path(path).read_bytes()
        expected = {"file": digest(data), "about": scenario.__doc__, **describe(path)}
    with open(FOLDER / f"{name}.json", "x", encoding="utf-8") as out:
        json.dump(expected, out, indent=1, ensure_ascii=False)
        out.write("\n")
    with open(target, "xb") as out:
        out.write(gzip.compress(data, 9, mtime=0))
    print(f"{name}: made, {len(data)} bytes, {target.stat().st_size} compressed")


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    for scenario in SCENARIOS:
        make(scenario)
    return 0


if __name__ == "__main__":
    sys.exit(main())
