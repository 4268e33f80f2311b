"""A raw image of 100 GiB with a real ext4 in it, adopted, changed, rolled back and flattened, each way."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cowengine import Volume
from cowengine.core.iotable import KERNEL

GIB = 1 << 30
MIB = 1 << 20


def run(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True)


def data_of(fd: int) -> Iterator[tuple[int, int]]:
    """The ranges in which a file may hold something other than zeros."""
    end = 0
    while (found := KERNEL.next_data(fd, end)) is not None:
        yield found
        end = found[1]


def same(one: Path, other: Path) -> bool:
    """What cmp says, without reading holes."""
    with open(one, "rb") as first, open(other, "rb") as second:
        fds = first.fileno(), second.fileno()
        sizes = [os.fstat(fd).st_size for fd in fds]
        parts = ((at, min(MIB, end - at)) for fd in fds for begin, end in data_of(fd) for at in range(begin, end, MIB))
        return sizes[0] == sizes[1] and all(
            os.pread(fds[0], length, at) == os.pread(fds[1], length, at) for at, length in parts
        )


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A sparse image whose file system holds some files of known bytes."""
    path = tmp_path / "disk.img"
    with open(path, "wb") as file:
        file.truncate(100 * GIB)
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(8):
        (tree / f"file-{number}").write_bytes(os.urandom(MIB) * 2)
    run("mkfs.ext4", "-q", "-F", "-d", tree, path)
    return path


@pytest.mark.needs("mkfs.ext4", "e2fsck", "cp")
def test_a_real_file_system_survives_the_whole_way(image: Path, tmp_path: Path) -> None:
    original, copy = tmp_path / "original.img", tmp_path / "copy.img"
    run("cp", "--sparse=always", image, original)
    with Volume.adopt(image) as volume:
        assert volume.size == 100 * GIB
        snapshot = volume.snapshot("before")
        for start in range(0, 50 * GIB, GIB):
            volume.pwrite(b"damage" * 1000, start)
        volume.discard(60 * GIB, 30 * GIB)
        replaced = volume.rollback(snapshot)
        volume.flatten(copy)
        run("e2fsck", "-fn", copy)
        assert same(copy, original)
        replaced.delete()
        snapshot.delete()
        volume.reclaim()
        assert volume.check().ok
        volume.flatten()
    run("e2fsck", "-fn", image)
    assert same(image, original)
    assert os.stat(image).st_blocks <= os.stat(original).st_blocks + 16 * MIB // 512
