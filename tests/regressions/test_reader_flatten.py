"""What flattening by a reader in another process once got wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cowengine import BusyError, NotFoundError, Snapshot, Volume
from cowengine.core.iotable import IOTable

BLOCK = 4096
SIZE = 256 * BLOCK


class Interposed(IOTable):
    """Does something else, once, before the first bytes are copied."""

    meanwhile: Callable[[], object] | None = None

    def copy_range(self, source_fd: int, source: int, target_fd: int, target: int, length: int) -> int:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return super().copy_range(source_fd, source, target_fd, target, length)


def give_back(owner: Volume, name: str) -> None:
    """Deletes a snapshot, and gives its slots to other bytes."""
    owner.get_snapshot(name).delete()
    owner.engine.checkpoint()
    owner.engine.checkpoint()
    owner.snapshot("another")
    owner.pwrite(b"\3" * SIZE, 0)
    owner.flush()


def listed(reader: Volume) -> Snapshot:
    """A snapshot that is not pinned by getting it."""
    return next(snapshot for snapshot in reader.snapshots() if snapshot.name == "s")


def test_a_snapshot_that_a_reader_flattens_stays(tmp_path: Path) -> None:
    """It was not pinned: the owner deleted it in the middle, and the image had zeros or others' bytes."""
    table = Interposed()
    refused: list[BusyError] = []

    def delete() -> None:
        with pytest.raises(BusyError, match="another process is reading it") as caught:
            give_back(owner, "s")
        refused.append(caught.value)

    with Volume.create(tmp_path / "v", SIZE, log_size=16384, background=False) as owner:
        owner.pwrite(b"\1" * SIZE, 0)
        owner.snapshot("s")
        owner.pwrite(b"\2" * SIZE, 0)
        with Volume.open(tmp_path / "v", read_only=True, io=table) as reader:
            table.meanwhile = delete
            listed(reader).flatten(tmp_path / "raw")
            assert (tmp_path / "raw").read_bytes() == b"\1" * SIZE
            assert len(refused) == 1
        give_back(owner, "s")  # the pin ends with the reader


def test_a_reader_does_not_flatten_what_was_deleted_before(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "v", SIZE, log_size=16384, background=False) as owner:
        owner.pwrite(b"\1" * SIZE, 0)
        owner.snapshot("s")
        with Volume.open(tmp_path / "v", read_only=True) as reader:
            snapshot = listed(reader)
            give_back(owner, "s")
            with pytest.raises(NotFoundError):
                snapshot.flatten(tmp_path / "raw")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v"]
