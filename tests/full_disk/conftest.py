"""One small disk of each kind for all tests, and an empty folder on it for each."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for small_disk

from small_disk import EXT4, MIB, XFS, Disk, MountedDisk, QuotaDisk


@pytest.fixture(scope="session")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Disk]]:
    """The disks made so far."""
    made: dict[str, Disk] = {}
    yield made
    for disk in made.values():
        disk.unmount()


@pytest.fixture(params=["quota", EXT4, XFS])
def disk(
    request: pytest.FixtureRequest, disks: dict[str, Disk], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Disk]:
    """An empty disk of 64 MiB or so."""
    kind = request.param
    if kind == "quota":
        yield QuotaDisk(tmp_path_factory.mktemp("quota"))
        return
    if kind not in disks:
        folder: Path = tmp_path_factory.mktemp(kind)
        if kind == "ext4":
            disks[kind] = MountedDisk(
                ["mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096"], folder / "image", folder / "at", 64 * MIB
            )
        else:  # smaller ones are not made any more
            disks[kind] = MountedDisk(["mkfs.xfs", "-q"], folder / "image", folder / "at", 300 * MIB)
    disk = disks[kind]
    yield disk
    for path in disk.path.iterdir():
        if path.is_dir() and path.name != "lost+found":
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()
