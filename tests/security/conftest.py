"""Folders for two users: root, who runs the tests, and one without any rights."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from other_user import NOBODY


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder of the user who runs the tests, that everybody may look into."""
    with tempfile.TemporaryDirectory(prefix="public-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def nobodys(public: Path) -> Path:
    """A folder that belongs to the other user."""
    folder = public / "nobodys"
    folder.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    return folder


@pytest.fixture
def sticky(public: Path) -> Path:
    """A folder like /tmp: everybody may make files, and remove only their own."""
    folder = public / "sticky"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder
