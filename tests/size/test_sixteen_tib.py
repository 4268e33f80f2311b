"""Volumes as large as the file system's largest file, on XFS and ext4 images of a few hundred megabytes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cowengine import OutOfRangeError, Volume

BLOCK = 4096
MIB, TIB = 1 << 20, 1 << 40


def mounted(folder: Path, mkfs: list[str]) -> Iterator[Path]:
    """A fresh file system in an image, mounted as long as the generator lives."""
    image, place = folder / "image", folder / "at"
    with open(image, "wb") as file:
        file.truncate(300 * MIB)
    place.mkdir()
    subprocess.run([*mkfs, str(image)], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True, capture_output=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True, capture_output=True)


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path, ["mkfs.xfs", "-q"])


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path, ["mkfs.ext4", "-q", "-F", "-b", "4096"])


def write_at_both_ends(path: Path, size: int) -> None:
    last = size - BLOCK
    with Volume.create(path, size) as volume:
        for offset in (0, size // 2, last):
            volume.pwrite(b"a" * BLOCK, offset)
        first = volume.snapshot("first")
        volume.pwrite(b"b" * BLOCK, last)
        volume.pwrite(b"b" * 100, 50)
        second = volume.snapshot("second")
        assert second.changed_extents(first).tolist() == [[0, BLOCK], [last, BLOCK]]
        assert first.allocated_extents().tolist() == [[0, BLOCK], [size // 2, BLOCK], [last, BLOCK]]
    with Volume.open(path) as volume:
        first = volume.get_snapshot("first")
        assert first.pread(BLOCK, last) == b"a" * BLOCK
        assert volume.pread(BLOCK, last) == b"b" * BLOCK
        volume.rollback(first)
        assert volume.pread(BLOCK, last) == b"a" * BLOCK
        first.delete()
        assert volume.check().problems == []
        assert volume.stats()["memory_bytes"] < 2 * MIB
    assert path.stat().st_blocks * 512 < 8 * MIB


@pytest.mark.privileged("mkfs.xfs", "mount")
@pytest.mark.parametrize("size", [16 * TIB, 100 * TIB])
def test_volumes_of_16_tib_and_more_on_xfs(xfs: Path, size: int) -> None:
    write_at_both_ends(xfs / "v", size)


@pytest.mark.privileged("mkfs.ext4", "mount")
def test_the_largest_volume_that_ext4_can_hold(ext4: Path) -> None:
    write_at_both_ends(ext4 / "v", 16 * TIB - 16 * MIB)
    with pytest.raises(OutOfRangeError, match="file"):
        Volume.create(ext4 / "w", 16 * TIB)
    assert not (ext4 / "w").exists()
