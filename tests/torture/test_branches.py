"""The row of branches sees one that no test takes, and a test that fails; where all are taken it is content."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = "tests/torture/branches.py"
RunHarness = Callable[..., dict[str, Any]]
PART = "cowengine.engine.shortcuts"
ITS_TESTS = ("tests/anchors/test_shortcuts.py", "tests/regressions/test_growth.py")

BLIND = """
from cowengine.engine.shortcuts import Shortcuts

def test_an_end():
    assert Shortcuts({1: 2}.get).end(1) == 2
"""
ELSEWHERE = """
import os
import subprocess
import sys

WORK = "from cowengine.engine.shortcuts import Shortcuts; assert Shortcuts({1: 2}.get).end(1) == 2"

def test_a_child_of_a_fork():
    child = os.fork()
    if child == 0:
        exec(WORK)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

def test_another_process():
    subprocess.run([sys.executable, "-P", "-c", WORK], check=True)
"""
WRONG = """
def test_wrong():
    assert False
"""


def test_where_every_branch_is_taken_nothing_is_told(run_harness: RunHarness) -> None:
    row = run_harness(SCRIPT, "--tests", *ITS_TESTS, "--parts", PART)
    assert row["violations"] == 0 and row["count"] == 12, row["said"]


def test_a_branch_that_no_test_takes_is_named(run_harness: RunHarness, tmp_path: Path) -> None:
    (tmp_path / "test_blind.py").write_text(BLIND)
    row = run_harness(SCRIPT, "--tests", str(tmp_path / "test_blind.py"), "--parts", PART)
    assert row["violations"] > 5 and row["count"] == 4, row["said"]
    assert "cowengine/engine/shortcuts.py:39: never reached" in row["said"]


@pytest.mark.parametrize("where", ["a_child_of_a_fork", "another_process"])
def test_what_runs_elsewhere_counts(run_harness: RunHarness, tmp_path: Path, where: str) -> None:
    (tmp_path / "test_elsewhere.py").write_text(ELSEWHERE)
    row = run_harness(SCRIPT, "--tests", f"{tmp_path / 'test_elsewhere.py'}::test_{where}", "--parts", PART)
    assert row["violations"] > 5 and row["count"] == 4, row["said"]


def test_a_test_that_fails_is_named(run_harness: RunHarness, tmp_path: Path) -> None:
    (tmp_path / "test_wrong.py").write_text(WRONG)
    row = run_harness(SCRIPT, "--tests", *ITS_TESTS, str(tmp_path / "test_wrong.py"),
                      "--parts", PART)  # fmt: skip
    assert row["violations"] == 1 and "test_wrong" in row["said"], row["said"]
