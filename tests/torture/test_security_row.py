"""The row of the security tests counts what passed, and a test that fails is a violation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

SCRIPT = "tests/torture/security_row.py"
PLANTED = """
import os
import pytest
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_file_is_its_owners_alone(tmp_path, umask):
    os.umask(umask)
    (tmp_path / "file").touch()
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
@pytest.mark.skip(reason="not here")
def test_of_another_machine():
    pass
"""


def test_it_counts_what_passed_and_names_what_failed(
    tmp_path: Path, run_harness: Callable[..., dict[str, Any]]
) -> None:
    (tmp_path / "test_planted.py").write_text(PLANTED)
    row = run_harness(SCRIPT, "--tests", str(tmp_path / "test_planted.py"), "--seed", "7")
    assert (row["count"], row["violations"], row["skipped"]) == (1, 1, "")
    assert "test_a_file_is_its_owners_alone[18]" in row["said"] and "test_of_another_machine" in row["said"]


def test_a_run_that_cannot_even_begin_is_a_violation(
    tmp_path: Path, run_harness: Callable[..., dict[str, Any]]
) -> None:
    row = run_harness(SCRIPT, "--tests", str(tmp_path / "nothing.py"))
    assert (row["count"], row["violations"]) == (0, 1)
