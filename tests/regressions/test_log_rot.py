"""A record of the log that rots takes what was acknowledged behind it along: that must be told, never passed over."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile_image import Image

from cowengine import Volume
from cowengine.engine.check import check_file
from cowengine.errors import CorruptionError

BLOCK = 4096


def test_a_damaged_record_with_acknowledged_ones_behind_it_is_corruption(tmp_path: Path) -> None:
    """No superblock had confirmed them, so the chain ended at the damage, and the snapshots behind it were gone."""
    path = tmp_path / "v"
    with Volume.create(path, 100 * BLOCK, log_size=16384, background=False) as volume:
        for number in range(4):
            volume.pwrite(bytes([number]) * BLOCK, number * BLOCK)
            volume.snapshot(f"s{number}")
        killed = path.read_bytes()
    records = Image(killed).records
    assert len(records) == 4
    for number, record in enumerate(records):
        damaged = bytearray(killed)
        damaged[record + 140] ^= 1
        path.write_bytes(damaged)
        if number < 3:
            with pytest.raises(CorruptionError, match=rf"record {number + 1} is lost"):
                Volume.open(path, read_only=True)
            with pytest.raises(CorruptionError, match=rf"record {number + 1} is lost"):
                Volume.open(path)
            assert not check_file(str(path)).ok
        else:  # it might as well have been torn by a power cut
            with Volume.open(path, read_only=True) as volume:
                assert [snapshot.name for snapshot in volume.snapshots()] == ["s0", "s1", "s2"]
