"""A raw image of 100 GiB with a real ext4 in it, adopted, changed, rolled back and flattened, each way."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def mounted(image: Path, place: Path, *options: str) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    run("mount", "-o", ",".join(("loop", *options)), image, place)
    try:
        yield place
    finally:
        run("umount", place)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """`pytest -s` shows it; what is fast enough is for a machine at rest to say."""
    started = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - started:.2f} s")


def digests(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.mark.privileged("mkfs.ext4", "e2fsck", "mount", "cp")
def test_a_file_system_that_was_mounted_goes_both_ways(tmp_path: Path) -> None:
    """The kernel's own ext4 on 100 GiB, before and behind: `same` compares what either file has as data, as holes are
    zeros by what the file system says."""
    image, original, place = tmp_path / "disk.img", tmp_path / "original.img", tmp_path / "at"
    with open(image, "wb") as file:
        file.truncate(100 * GIB)
    run("mkfs.ext4", "-q", "-F", image)
    with mounted(image, place):
        for folder in range(4):
            (place / f"folder-{folder}").mkdir()
            for number in range(20):
                (place / f"folder-{folder}" / f"{number}").write_bytes(os.urandom(1 << 16) * (number % 5))
        files = digests(place)
        shutil.rmtree(place / "folder-3")
    files = {name: data for name, data in files.items() if not name.startswith("folder-3")}
    run("e2fsck", "-fn", image)
    run("cp", "--sparse=always", image, original)
    with timed("adopt"):
        volume = Volume.adopt(image)
    with volume:
        with timed("snapshot"):
            snapshot = volume.snapshot("before")
        with timed("change"):
            for start in range(0, 100 * GIB, GIB):
                volume.pwrite(b"changed " * 1024, start)
        with timed("roll back, and give the space back"):
            replaced = volume.rollback(snapshot)
            replaced.delete()
            snapshot.delete()
            volume.reclaim()
        with timed("flatten in place"):
            volume.flatten(in_place=True)
    assert same(image, original)
    run("e2fsck", "-fn", image)
    with mounted(image, place, "ro"):
        assert digests(place) == files
