"""A forked child shares descriptors and locks with its parent, so it may use none of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked_child import in_child

from cowengine import Volume
from cowengine.errors import BusyError, ClosedError

CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "pread": lambda volume, snapshot: volume.pread(512, 0),
    "pwrite": lambda volume, snapshot: volume.pwrite(b"child", 0),
    "discard": lambda volume, snapshot: volume.discard(0, 4096),
    "flush": lambda volume, snapshot: volume.flush(),
    "snapshot": lambda volume, snapshot: volume.snapshot("child"),
    "read of a snapshot": lambda volume, snapshot: snapshot.pread(512, 0),
    "delete": lambda volume, snapshot: snapshot.delete(),
    "changed extents": lambda volume, snapshot: volume.changed_extents(snapshot),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_forked_child_cannot_use_the_parents_volume(tmp_path: Path, name: str) -> None:
    with Volume.create(str(tmp_path / "volume"), 65536) as volume:
        volume.pwrite(b"parent", 0)
        snapshot = volume.snapshot("before")
        assert in_child(lambda: CALLS[name](volume, snapshot)) == ClosedError.__name__
        volume.pwrite(b"still works", 4096)
        volume.flush()
        assert volume.pread(6, 0) == b"parent"
        assert [each.name for each in volume.snapshots()] == ["before"]


def test_a_child_that_closes_what_it_inherited_leaves_the_parent_its_lock(tmp_path: Path) -> None:
    path = str(tmp_path / "volume")
    with Volume.create(path, 65536) as volume:
        volume.pwrite(b"parent", 0)
        assert in_child(volume.close) in ("nothing", ClosedError.__name__)
        with pytest.raises(BusyError):
            Volume.open(path)
        volume.flush()
        assert volume.check().ok


def test_a_child_cannot_open_what_the_parent_owns(tmp_path: Path) -> None:
    path = str(tmp_path / "volume")
    with Volume.create(path, 65536):
        assert in_child(lambda: Volume.open(path).close()) == BusyError.__name__


def test_a_child_may_open_the_file_when_the_parent_has_closed_it(tmp_path: Path) -> None:
    path = str(tmp_path / "volume")
    Volume.create(path, 65536).close()
    assert in_child(lambda: Volume.open(path).close()) == "nothing"


def test_a_process_forked_while_a_volume_is_closed_keeps_nobody_out(tmp_path: Path) -> None:
    """Between fork and exec a child has the parent's open file descriptions, and with them its locks."""
    volume = Volume.create(tmp_path / "v", 1 << 20)
    inherited = os.dup(volume.engine.fd)
    try:
        volume.close()
        Volume.open(tmp_path / "v").close()
    finally:
        os.close(inherited)
