"""The shape of the documents that a program reads too."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import cowengine

ROOT = Path(__file__).parents[2]
HEADING = re.compile(r"## (\d+)\.(\d+)\.(\d+) \((unreleased|\d{4}-\d\d-\d\d)\)")


def test_the_changelog_lists_versions_newest_first_and_only_bullets() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    assert lines[0] == "# Changelog"
    headings = [line for line in lines if line.startswith("#")][1:]
    versions = []
    for line in headings:
        match = HEADING.fullmatch(line)
        assert match, f"not '## X.Y.Z (date or unreleased)': {line}"
        versions.append(tuple(int(part) for part in match.groups()[:3]))
    assert versions == sorted(set(versions), reverse=True)
    assert ".".join(map(str, versions[0])) == cowengine.__version__
    body = lines[lines.index(headings[0]) + 1 :]
    assert all(not line or line.startswith(("- ", "  ", "## ")) for line in body)
    assert any(line.startswith("- ") for line in body)


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_the_readme_names_the_command(command: str) -> None:
    assert command in (ROOT / "README.md").read_text()


def test_the_example_of_the_readme_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        run = subprocess.run([sys.executable, "-P", "-c", block], cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr


def test_ci_runs_what_a_newcomer_runs() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_relative_links_between_documents_lead_somewhere() -> None:
    wrong = []
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
            if "://" not in target and not (path.parent / target).exists():
                wrong.append(f"{path.name}: {target}")
    assert not wrong, wrong


def test_every_document_that_the_code_names_exists() -> None:
    wrong = []
    for path in (ROOT / "cowengine").rglob("*"):
        if path.suffix in {".py", ".pyx", ".pxd", ".c", ".h"}:
            for name in re.findall(r"\bdocs/[\w/.-]+\.md\b", path.read_text()):
                if not (ROOT / name).exists():
                    wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert not wrong, wrong
