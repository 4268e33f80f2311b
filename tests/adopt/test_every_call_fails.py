"""Each call of adopting and flattening fails in turn: the file is the raw image or the volume, whole."""

from __future__ import annotations

import errno
import os
from contextlib import closing, suppress
from pathlib import Path

import pytest
from failing_table import FailingTable
from raw_images import settled, write_image

from cowengine import CowEngineError, Volume

SIZE = 48 * 4096 + 512
LOG = 16384


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
        assert os.listdir(path.parent) == ["disk.img"]
    assert fail_at > 50
    assert found == {"volume", "raw image", "interrupted"} if for_ever else found >= {"volume", "raw image"}
