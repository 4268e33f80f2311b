"""Barriers of several files side by side."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cowengine.core.iotable import KERNEL, IOTable


@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_each_file_has_its_outcome(tmp_path: Path, count: int) -> None:
    fds = [os.open(tmp_path / str(number), os.O_RDWR | os.O_CREAT) for number in range(count)]
    for fd in fds:
        os.pwrite(fd, b"x" * 5000, 0)
    assert KERNEL.fdatasync_all(fds) == [0] * count
    if fds:
        os.close(fds[-1])
        assert KERNEL.fdatasync_all(fds) == [0] * (count - 1) + [errno.EBADF]
    for fd in fds[:-1]:
        os.close(fd)


class Failing(IOTable):
    """Barriers that fail for some numbers, one of them without saying why."""

    def fdatasync(self, fd: int) -> None:
        if fd == 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if fd == 8:
            raise OSError


def test_a_table_of_somebody_else_is_asked_for_one_after_the_other() -> None:
    assert Failing().fdatasync_all([6, 7, 8, 9]) == [0, errno.ENOSPC, errno.EIO, 0]
