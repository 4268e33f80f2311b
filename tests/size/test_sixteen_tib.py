"""Volumes as large as the file system's largest file, on XFS and ext4 images of a few hundred megabytes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Prints how long something took; how fast it is on a machine at rest is in nobody's hands here."""
    started = time.monotonic()
    yield
    print(f"{what}: {(time.monotonic() - started) * 1000:.1f} ms")


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
        volume.resize(size // 2)
        volume.resize(size)
        assert volume.pread(BLOCK, last) == bytes(BLOCK) and second.pread(BLOCK, last) == b"b" * BLOCK
        assert volume.changed_extents(second).tolist() == [[size // 2, size - size // 2]]
    with Volume.open(path) as volume:
        first = volume.get_snapshot("first")
        assert first.pread(BLOCK, last) == b"a" * BLOCK
        assert volume.pread(BLOCK, last) == bytes(BLOCK)
        volume.rollback(first)
        assert volume.pread(BLOCK, last) == b"a" * BLOCK
        first.delete()
        assert volume.check().problems == []
        assert volume.stats()["memory_bytes"] < 2 * MIB
    assert path.stat().st_blocks * 512 < 20 * MIB


@pytest.mark.privileged("mkfs.xfs", "mount")
@pytest.mark.parametrize("size", [16 * TIB, 100 * TIB])
def test_volumes_of_16_tib_and_more_on_xfs(xfs: Path, size: int) -> None:
    write_at_both_ends(xfs / "v", size)
    with Volume.open(xfs / "v") as volume:
        volume.resize(2 * size)
        volume.pwrite(b"c" * BLOCK, 2 * size - BLOCK)
        assert volume.changed_extents("second").tolist() == [[0, BLOCK], [size - BLOCK, size + BLOCK]]
        assert volume.check().problems == []


@pytest.mark.privileged("mkfs.xfs", "mount")
def test_each_step_on_16_tib_takes_next_to_nothing(xfs: Path) -> None:
    """`pytest -s` shows the times. The file is a few MiB at the end, and nothing reads or writes the empty rest."""
    path, size = xfs / "v", 16 * TIB
    with timed("create"):
        volume = Volume.create(path, size)
    with volume:
        with timed("write at both ends and flush"):
            volume.pwrite(b"a" * MIB, 0)
            volume.pwrite(b"a" * MIB, size - MIB)
            volume.flush()
        with timed("snapshot"):
            first = volume.snapshot("first")
        volume.pwrite(b"b" * BLOCK, 0)
        volume.pwrite(b"b" * BLOCK, size - BLOCK)
        second = volume.snapshot("second")
        with timed("changed extents"):
            changed = second.changed_extents(first)
        assert changed.tolist() == [[0, BLOCK], [size - BLOCK, BLOCK]]
        with timed("grow to 17 TiB"):
            volume.resize(17 * TIB)
        volume.pwrite(b"c" * BLOCK, 17 * TIB - BLOCK)
        with timed("shrink to 1 TiB"):
            volume.resize(TIB)
        with timed("changed extents after both"):
            found = volume.changed_extents(second).tolist()
        assert found == []
        assert second.pread(BLOCK, size - BLOCK) == b"b" * BLOCK
        with timed("roll back"):
            volume.rollback(first)
        assert volume.size == size and volume.pread(MIB, size - MIB) == b"a" * MIB
        with timed("check"):
            assert volume.check().problems == []
    with timed("open and close"):
        Volume.open(path).close()
    used = path.stat().st_blocks * 512
    print(f"file: {used / MIB:.1f} MiB")
    assert used < 24 * MIB


@pytest.mark.privileged("mkfs.ext4", "mount")
def test_the_largest_volume_that_ext4_can_hold(ext4: Path) -> None:
    write_at_both_ends(ext4 / "v", 16 * TIB - 32 * MIB)
    with pytest.raises(OutOfRangeError, match="file"):
        Volume.create(ext4 / "w", 16 * TIB)
    assert not (ext4 / "w").exists()
