"""What snapshot sets once got wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

from cowengine import Volume
from cowengine.store import Store

BLOCK = 4096


def test_a_set_is_not_laid_over_a_volume_that_was_written_without_its_store(tmp_path: Path) -> None:
    """A write in place needs no record, so the volume's log stood where the set had found it.

    The store, opened again, gave the volume the set's snapshot, and that showed bytes written after it.
    """
    store = Store.create(tmp_path / "store")
    volume = store.create_volume("a", 64 * BLOCK)
    volume.pwrite(b"o" * BLOCK, 0)
    store.snapshot(["a"], "set")
    shutil.copytree(tmp_path / "store", tmp_path / "killed")
    store.close()
    (file,) = (tmp_path / "killed" / "volumes").glob("*.cow")
    with Volume.open(file, without_store=True, background=False) as alone:
        alone.pwrite(b"X" * BLOCK, 0)
        alone.flush()
    with Store.open(tmp_path / "killed") as again:
        for snapshot in again.open_volume("a").snapshots():
            assert snapshot.pread(BLOCK, 0) == b"o" * BLOCK, "the snapshot shows what was written after it"
