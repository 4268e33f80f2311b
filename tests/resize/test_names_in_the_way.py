"""A shrink keeps what it cuts off in a snapshot of its own for a moment: its name is one that nobody has."""

from __future__ import annotations

from pathlib import Path

from cowengine import Volume

BLOCK = 4096


def test_a_shrink_finds_a_name_that_nobody_has(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "v", 64 * BLOCK, background=False) as volume:
        volume.pwrite(b"x" * BLOCK, 60 * BLOCK)
        for name in ("before-resize-3", "before-resize-3'"):
            volume.snapshot(name)
        volume.resize(32 * BLOCK)
        assert [snapshot.name for snapshot in volume.snapshots()] == ["before-resize-3", "before-resize-3'"]
        assert volume.size == 32 * BLOCK
        assert volume.get_snapshot("before-resize-3").pread(BLOCK, 60 * BLOCK) == b"x" * BLOCK
        assert volume.check().problems == []
