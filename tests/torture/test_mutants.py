"""The row of mutants sees one that no test notices, and one that a test does; and knows again what was reviewed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mutation import Source

SCRIPT = "tests/torture/mutants.py"
PART = "cowengine.engine.shortcuts"
RunHarness = Callable[..., dict[str, Any]]

BLIND = """
from cowengine.engine.shortcuts import Shortcuts

def test_an_end():
    assert Shortcuts({1: 2}.get).end(1) == 2
"""

FUNCTIONS = '''
import functools

def grow(items: list[int], most: int = 10) -> bool:
    """Docstrings stay."""
    assert most > 1
    if not items or len(items) < most:
        items.append(0)
        return True
    raise ValueError(f"{len(items) + 1} are too many")

class Counts:
    limit = 3

    @property
    def left(self) -> int:
        return self.limit - 1

    def __repr__(self) -> str:
        return str(1 + 1)
'''
OF_GROW = {
    "always: if not items or len(items) < most: -> if True:",
    "never: if not items or len(items) < most: -> if False:",
    "and, or: if not items or len(items) < most: -> if not items and len(items) < most:",
    "part of a condition: if not items or len(items) < most: -> if len(items) < most:",
    "part of a condition: if not items or len(items) < most: -> if not items:",
    "sign: if not items or len(items) < most: -> if items or len(items) < most:",
    "comparison: if not items or len(items) < most: -> if not items or len(items) <= most:",
    "dropped: items.append(0) -> pass",
    "constant: items.append(0) -> items.append(1)",
    "constant: return True -> return False",
    "dropped: raise ValueError(f'{len(items) + 1} are too many') -> pass",
}
OF_LEFT = {
    "returned: return self.limit - 1 -> return self.limit - 1 + 1",
    "operator: return self.limit - 1 -> return self.limit + 1",
    "constant: return self.limit - 1 -> return self.limit - 2",
    "constant: return self.limit - 1 -> return self.limit - 0",
}


@pytest.fixture
def source(tmp_path: Path) -> Source:
    path = tmp_path / "cowengine" / "grown.py"
    path.parent.mkdir()
    path.write_text(FUNCTIONS)
    return Source(path)


def test_what_is_changed(source: Source) -> None:
    names = {mutant.name for mutant in source.mutants()}
    expected = {f"cowengine.grown:grow: {each}" for each in OF_GROW}
    assert names == expected | {f"cowengine.grown:Counts.left: {each}" for each in OF_LEFT}


def test_the_code_of_a_mutant_differs_by_its_change_alone(source: Source) -> None:
    for mutant in source.mutants():
        space: dict[str, Any] = {}
        exec(compile(FUNCTIONS, source.path, "exec"), space)
        function = space["grow"] if mutant.function.name == "grow" else space["Counts"].left.fget
        original, function.__code__ = function.__code__, mutant.code()
        assert function.__code__ != original
    again = {mutant.name: mutant.code() for mutant in source.mutants()}
    assert again == {mutant.name: mutant.code() for mutant in source.mutants()}


def test_what_tests_do_not_notice_is_named(run_harness: RunHarness, tmp_path: Path) -> None:
    (tmp_path / "test_blind.py").write_text(BLIND)
    only = ("--only", "Shortcuts.drop")
    row = run_harness(SCRIPT, "--tests", str(tmp_path / "test_blind.py"), "--parts", PART, *only)
    assert row["violations"] > 5, row["said"]
    assert f"{PART}:Shortcuts.drop" in row["said"]


def test_what_tests_notice_is_counted(run_harness: RunHarness) -> None:
    only = ("--only", "Shortcuts.end: returned")
    row = run_harness(SCRIPT, "--tests", "tests/anchors/test_shortcuts.py", "--parts", PART, *only)
    assert row["violations"] == 0 and row["count"] > 0, row["said"]
