"""What files that somebody built to do harm once did."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cowengine import Volume
from cowengine.engine import lineage
from cowengine.format import LineageRecord, Pointer

BLOCK = 4096

DELETE = """
import sys
from cowengine import Volume
from cowengine.errors import CorruptionError
try:
    with Volume.open(sys.argv[1], background=False) as volume:
        volume.get_snapshot("s").delete()
except CorruptionError:
    sys.exit(7)
"""


def test_a_snapshot_whose_root_is_a_leaf_of_its_own_tree_is_corruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All checksums were right, but the root stood a level too low for the size of the snapshot.

    Reclaim compares two trees side by side and went below the leaf: the process died.
    """
    path = tmp_path / "v"
    volume = Volume.create(path, 600 * BLOCK, log_size=16384, background=False)
    volume.pwrite(b"a" * (500 * BLOCK), 0)
    volume.pwrite(b"b" * BLOCK, 3 * BLOCK)
    volume.snapshot("s")
    volume.pwrite(b"c" * BLOCK, 5 * BLOCK)
    hostile = volume.snapshot("hostile")
    volume.engine.checkpoint()
    record = volume.engine.lineage.get(hostile.id)
    assert record is not None
    root = path.read_bytes()[record.root.slot * BLOCK :][:BLOCK]
    leaf = Pointer.decode(root[:32])
    assert (record.root.level, leaf.level) == (1, 0)
    encode = lineage.encode_lineage

    def encode_hostile(record: LineageRecord | None) -> bytes:
        if record is not None and record.id == hostile.id:
            record = replace(record, root=leaf)
        return encode(record)

    monkeypatch.setattr(lineage, "encode_lineage", encode_hostile)
    volume.pwrite(b"d" * BLOCK, 0)
    volume.engine.lineage._changed.add(hostile.id)
    volume.close()
    done = subprocess.run([sys.executable, "-P", "-c", DELETE, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
