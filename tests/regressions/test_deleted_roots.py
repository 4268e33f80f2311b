"""What readers of a deleted snapshot once saw."""

from __future__ import annotations

from pathlib import Path

import pytest

from cowengine import Volume
from cowengine.errors import NotFoundError

BLOCK = 4096


def test_a_reader_that_began_before_a_delete_gets_an_error_and_no_other_bytes(tmp_path: Path) -> None:
    """Checkpoints unload the roots that nobody used lately, also one that a reader held between two of its steps.

    The delete then told a second object for the same snapshot, and the reader went on over slots given back.
    """
    size = 64 * BLOCK
    with Volume.create(tmp_path / "v", size, log_size=16384, background=False) as volume:
        volume.pwrite(b"\1" * size, 0)
        snapshot = volume.snapshot("s")
        volume.pwrite(b"\2" * size, 0)
        volume.engine.checkpoint()
        root = volume.engine.lineage.root(snapshot.id)  # what a read or a walk holds
        volume.engine.checkpoint()
        volume.engine.checkpoint()
        snapshot.delete()
        volume.pwrite(b"\3" * size, 0)
        with pytest.raises(NotFoundError):
            volume.engine.path.pread(size, 0, root)
