"""Runs a harness as the scoreboard does. What it says it cannot do on this machine is a test not run.

Unlike with a program that is missing that is so in CI, too: no package brings a loop device or FUSE into a container.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RunHarness = Callable[..., dict[str, Any]]


@pytest.fixture
def run_harness() -> RunHarness:
    """The row that a harness told, with all that it `said`."""

    def run(script: str, *arguments: str) -> dict[str, Any]:
        command = [sys.executable, "-P", str(ROOT / script), "--row", *arguments]
        ended = subprocess.run(command, capture_output=True, text=True)
        said = ended.stdout + ended.stderr
        assert ended.stdout, said
        row: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
        assert ended.returncode == (1 if row["violations"] else 0), said
        if row["skipped"]:
            pytest.skip(f"TEST NOT RUN: {row['skipped']}")
        return row | {"said": said}

    return run
