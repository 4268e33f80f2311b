"""Writes a golden target: `python write_golden.py v1.zip`. Run once for each format, never again for the same one."""

from __future__ import annotations

import hashlib
import json
import random
import sys
import tempfile
import zipfile
from pathlib import Path

from cowengine.backup import write_backup
from cowengine.volume import Volume


def write(archive: Path) -> None:
    """A full, an incremental, a differential and a copy of two small volumes, and what their bytes were."""
    chance = random.Random(20)
    contents: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "target")
        volumes = {
            "main": Volume.create(f"{folder}/main.cow", 200 * 1024 + 512, block_size=4096),
            "größe": Volume.create(f"{folder}/other.cow", 64 * 1024, block_size=8192),
        }
        for number, kind in enumerate(("full", "incremental", "differential", "copy")):
            volumes["main"].pwrite(b"row %d;" % number * 900, 30_000 * number)
            volumes["main"].pwrite(chance.randbytes(700), 150_000 + 1000 * number)
            volumes["größe"].discard(8192 * number, 8192)
            volumes["größe"].pwrite(chance.randbytes(300), 60_000)
            snapshots = {name: volume.snapshot(f"s{number}") for name, volume in volumes.items()}
            documents = {"components": [{"writer": "golden", "name": "main"}]}
            backup = write_backup(target, snapshots, kind=kind, chain="nightly", documents=documents)
            contents[backup.id] = {
                name: hashlib.sha256(snapshot.pread(snapshot.size, 0)).hexdigest()
                for name, snapshot in snapshots.items()
            }
        for volume in volumes.values():
            volume.close()
        with zipfile.ZipFile(archive, "x", zipfile.ZIP_DEFLATED) as packed:
            for path in sorted(target.rglob("*")):
                if path.is_file():
                    packed.write(path, str(path.relative_to(target)))
            packed.writestr("contents.json", json.dumps(contents, indent=1))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
