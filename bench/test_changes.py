"""The list of what changed. A raw file has none: its side reads the changed blocks, which a backup does anyway."""

from __future__ import annotations

import os

import pytest

import cowengine

MiB, GiB = 1 << 20, 1 << 30
BLOCK = 4096


@pytest.mark.parametrize("shape", ["clustered", "scattered"])
def test_changed_extents(compare, workload, volume_path, make_raw, scale, shape):
    """10,000 changed blocks of a 64 GiB volume: in runs of 250, or each on its own."""
    size = scale(64, 1) * GiB
    count = scale(10_000, 500)
    if shape == "scattered":
        offsets = workload.offsets(size, count)
    else:
        run = 250 * BLOCK
        starts = [start // BLOCK * run for start in workload.offsets(size // run * BLOCK, count // 250)]
        offsets = [start + step * BLOCK for start in starts for step in range(250)]
    raw = make_raw(count * BLOCK)
    with cowengine.Volume.create(str(volume_path), size) as volume:
        workload.fill(volume.pwrite, 16 * MiB)
        base = volume.snapshot("base")
        for offset in offsets:
            volume.pwrite(workload.block, offset)
        target = volume.snapshot("target")
        found = target.changed_extents(base)
        assert int(found[:, 1].sum()) == count * BLOCK
        compare(
            lambda: target.changed_extents(base),
            lambda: [os.pread(raw.fd, BLOCK, offset) for offset in range(0, count * BLOCK, BLOCK)],
            rounds=scale(100, 1),
            operations=count,
        )
