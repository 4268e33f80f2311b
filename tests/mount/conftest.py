"""Running commands in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from cowengine.cli.main import main


class Outcome(NamedTuple):
    """What a command printed."""

    out: str
    err: str

    @property
    def document(self) -> Any:
        """Stdout as JSON."""
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a command; `expect` is the exit code that it must have."""

    def command(*words: object, expect: int = 0) -> Outcome:
        capsys.readouterr()
        code = main([str(word) for word in words])
        outcome = Outcome(*capsys.readouterr())
        assert code == expect, outcome
        return outcome

    return command
