"""What readers of a deleted snapshot once saw."""

from __future__ import annotations

from pathlib import Path

import pytest

from cowengine import Volume
from cowengine.errors import NotFoundError
from cowengine.format import LineageRecord

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


def test_a_snapshot_whose_record_left_memory_while_it_was_looked_up_is_not_readable_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read had the record in hand; then records were dropped from memory, and the delete marked another object.

    The read looked at its own, which said "readable", and kept a root for good that nobody would retire.
    """
    size = 64 * BLOCK
    with Volume.create(tmp_path / "v", size, log_size=16384, background=False) as volume:
        volume.pwrite(b"\1" * size, 0)
        volume.snapshot("s")
        volume.pwrite(b"\2" * size, 0)
    with Volume.open(tmp_path / "v", background=False) as volume:
        snapshot, lineage = volume.get_snapshot("s"), volume.engine.lineage
        require_fit, looked_up = lineage.require_fit, []

        def in_between(record: LineageRecord) -> None:
            """What other threads may do while a look-up stands here."""
            require_fit(record)
            looked_up.append(record)
            if len(looked_up) > 1:
                return  # by the delete itself
            lineage.unload_records(0)
            assert lineage.loaded_leaves() == 0
            volume.get_snapshot("s").delete()
            volume.engine.checkpoint()
            volume.engine.checkpoint()
            volume.snapshot("another")
            volume.pwrite(b"\3" * size, 0)
            volume.flush()

        monkeypatch.setattr(lineage, "require_fit", in_between)
        for _ in range(3):
            with pytest.raises(NotFoundError):
                snapshot.pread(size, 0)
        assert looked_up[0] is not looked_up[1], "the delete marked the same object: this test shows nothing"
