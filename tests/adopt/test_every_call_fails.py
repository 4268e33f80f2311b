"""Each call of adopting and flattening fails in turn: the file is the raw image or the volume, whole."""

from __future__ import annotations

import errno
import os
from contextlib import closing, suppress
from pathlib import Path

import pytest
from failing_table import FailingTable
from raw_images import write_image

from cowengine import CowEngineError, FormatError, Volume

SIZE = 48 * 4096 + 512
LOG = 16384


def settled(path: Path, data: bytes) -> str:
    """What the failure left; its bytes are compared, and it is a raw image again."""
    try:
        volume = Volume.open(path, background=False)
    except FormatError:
        found = "raw image"
        if path.with_name("disk.img.adopting").exists():
            found = "interrupted"
            Volume.undo_adoption(path)
    else:
        found = "volume"
        assert volume.pread(SIZE, 0) == data
        assert volume.check().ok
        volume.flatten()
    assert path.read_bytes() == data
    assert os.listdir(path.parent) == ["disk.img"]
    return found


@pytest.mark.parametrize(("number", "for_ever"), [(errno.EIO, True), (errno.ENOSPC, False)])
def test_a_failed_call_leaves_the_one_or_the_other(tmp_path: Path, number: int, for_ever: bool) -> None:
    path = tmp_path / "disk.img"
    data = write_image(path, SIZE)
    found, fail_at, failed = set(), 0, True
    while failed:
        fail_at += 1
        io = FailingTable(fail_at, number, for_ever=for_ever)
        with suppress(CowEngineError), closing(Volume.adopt(path, log_size=LOG, io=io, background=False)) as volume:
            volume.flatten()
        failed = bool(io.failed)
        found.add(settled(path, data))
    assert fail_at > 50
    assert found == {"volume", "raw image", "interrupted"} if for_ever else found >= {"volume", "raw image"}
