"""The build under test is the one that was asked for: release, or debug with its checks switched on."""

from __future__ import annotations

import os
from pathlib import Path

import cowengine.core.checksum


def test_the_flavour_under_test_is_the_one_asked_for() -> None:
    assert cowengine.core.checksum.DEBUG is (os.environ.get("COWENGINE_EXPECT_DEBUG", "0") == "1")


def test_all_of_the_package_comes_from_one_place() -> None:
    """A debug run that imported half of the checkout's release build would prove nothing."""
    package = Path(cowengine.__file__).parent
    assert Path(cowengine.core.checksum.__file__).parent == package / "core"
    wanted = os.environ.get("COWENGINE_EXPECT_SITE")
    assert wanted is None or package.samefile(Path(wanted) / "cowengine")
