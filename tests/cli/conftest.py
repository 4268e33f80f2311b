"""Running commands as a script would: in this process for speed, or as a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cowengine.cli.main import main


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Stdout as the one JSON document it must be."""
        return json.loads(self.out)

    @property
    def log(self) -> list[dict[str, Any]]:
        """Stderr as JSON lines."""
        return [json.loads(line) for line in self.err.splitlines()]


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process; `expect` is the exit code it must have."""

    def command(*words: object, expect: int = 0) -> Outcome:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        assert code == expect, f"{words}: exit code {code}, not {expect}\n{captured.out}\n{captured.err}"
        return Outcome(code, captured.out, captured.err)

    return command


COMMAND = [sys.executable, "-P", "-m", "cowengine"]


@pytest.fixture
def run_process() -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Runs a command as a process of its own."""

    def command(*words: object, **settings: Any) -> subprocess.CompletedProcess[bytes]:
        arguments = [*COMMAND, *(str(word) for word in words)]
        return subprocess.run(arguments, capture_output=True, check=False, timeout=60, **settings)

    return command


@pytest.fixture
def store(run: Run, tmp_path: Path) -> Path:
    """A store with two volumes."""
    path = tmp_path / "store"
    run("store", "create", path)
    for name in ("mail", "index"):
        run("volume", "create", f"{path}:{name}", "2M")
    return path
