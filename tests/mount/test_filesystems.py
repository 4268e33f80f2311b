"""What file system a disk has, as the real mkfs programs make them."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from cowengine.filesystems import START_BYTES, FileSystem, probe

MIB = 1 << 20
UUID = "01234567-89ab-cdef-0123-456789abcdef"


def made(path: Path, size: int, *words: str) -> FileSystem:
    with path.open("wb") as file:
        file.truncate(size)
    subprocess.run([*words, str(path)], check=True, capture_output=True)
    with path.open("rb") as file:
        return probe(file.read(START_BYTES))


@pytest.mark.needs("mkfs.ext4", "debugfs")
def test_ext4_says_whether_its_journal_is_needed(tmp_path):
    path = tmp_path / "disk"
    found = made(path, 16 * MIB, "mkfs.ext4", "-q", "-F", "-U", UUID)
    assert found == FileSystem("ext", bytes.fromhex(UUID.replace("-", "")), False)
    subprocess.run(["debugfs", "-w", "-R", "feature needs_recovery", str(path)], check=True, capture_output=True)
    with path.open("rb") as file:
        assert probe(file.read(START_BYTES)) == found._replace(writes_when_mounted=True)


@pytest.mark.needs("mkfs.xfs")
def test_xfs(tmp_path):
    found = made(tmp_path / "disk", 320 * MIB, "mkfs.xfs", "-q", "-m", f"uuid={UUID}")
    assert found == FileSystem("xfs", bytes.fromhex(UUID.replace("-", "")), True)


@pytest.mark.needs("mkfs.btrfs")
def test_btrfs(tmp_path):
    found = made(tmp_path / "disk", 128 * MIB, "mkfs.btrfs", "-q", "-U", UUID)
    assert found == FileSystem("btrfs", bytes.fromhex(UUID.replace("-", "")), True)


def test_anything_else_may_write():
    chance = random.Random(1)
    for length in (0, 100, 2047, START_BYTES):
        assert probe(bytes(length)) == FileSystem("", b"", True)
        probe(chance.randbytes(length))
    assert probe(b"hsqs" + bytes(4096)) == FileSystem("squashfs", b"", False)
