"""What holds for every file of the tree: names, sizes, docstrings, no unfinished marks, no paths of a machine."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import cowengine

ROOT = Path(__file__).parents[2]
FOLDERS = ["cowengine", "bench", "tests", "docs", ".ci"]
CODE = {".py", ".pyi", ".pyx", ".pxd", ".c", ".h"}
TEXT = CODE | {".md", ".toml", ".json", ".yaml", ".sql", ".sh", ""}

BANNED_NAMES = {"util", "utils", "common", "misc", "helper", "helpers"}
# Functions above the limit, each with the reason why it is better in one piece.
LONG_FUNCTIONS: dict[str, str] = {}
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 800

# Spelt so that this file does not find itself.
UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b")
MACHINE_PATH = re.compile(r"(?:^|[^A-Za-z0-9_])/(?:tm" r"p|roo" r"t|wor" r"k|hom" r"e)/[A-Za-z0-9_.-]+", re.MULTILINE)
SKIPPED = re.compile(r"pytest\.ski" r"p\(|mark\.xfai" r"l|NotImplemented" r"Error")


def sources() -> list[Path]:
    """The files of the project: what stands at the top, and the folders that are released."""
    files = [path for path in ROOT.iterdir() if path.is_file()]
    files += [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    made = {"__pycache__", "results"}
    return sorted(path for path in files if path.suffix in TEXT and not made & set(path.relative_to(ROOT).parts))


SOURCES = sources()
PYTHON = [path for path in SOURCES if path.suffix == ".py"]


def place(path: Path, line: int | None = None) -> str:
    return str(path.relative_to(ROOT)) + (f":{line}" if line else "")


def test_the_tree_is_seen() -> None:
    assert {"cowengine/errors.py", "docs/format.md", "Makefile", ".ci/run"} <= {place(path) for path in SOURCES}


def test_no_file_has_a_name_that_says_nothing() -> None:
    wrong = [place(path) for path in SOURCES if BANNED_NAMES & set(re.split(r"[_\W]+", place(path).lower()))]
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("what", "pattern", "suffixes"),
    [
        ("an unfinished mark", UNFINISHED, CODE),
        ("a path of a machine", MACHINE_PATH, TEXT),
    ],
)
def test_no_source_holds(what: str, pattern: re.Pattern[str], suffixes: set[str]) -> None:
    wrong = []
    for path in SOURCES:
        if path.suffix in suffixes:
            text = path.read_text(encoding="utf-8")
            wrong += [place(path, text.count("\n", 0, hit.start() + 1) + 1) for hit in pattern.finditer(text)]
    assert not wrong, f"{what}: {wrong}"


def test_only_the_conftest_skips() -> None:
    wrong = [place(path) for path in PYTHON if SKIPPED.search(path.read_text()) and path.name != "conftest.py"]
    assert not wrong, wrong


def test_every_file_fits_the_head() -> None:
    wrong = {}
    for path in SOURCES:
        if path.suffix in CODE:
            lines = path.read_text().count("\n")
            if lines > FILE_LINES_MAX:
                wrong[place(path)] = lines
    assert not wrong, wrong


def long_functions() -> Iterator[tuple[str, int]]:
    for path in PYTHON:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    yield f"{place(path)}:{node.name}", lines


def test_no_function_is_longer_than_a_screen() -> None:
    found = dict(long_functions())
    assert set(found) == set(LONG_FUNCTIONS), f"longer than {FUNCTION_LINES_MAX} lines: {found}"


def test_every_module_says_what_it_is() -> None:
    wrong = [place(path) for path in PYTHON if not ast.get_docstring(ast.parse(path.read_text()))]
    cython = [path for path in SOURCES if path.suffix in {".pyx", ".pxd"}]
    wrong += [place(path) for path in cython if not path.read_text().startswith('"""')]
    assert not wrong, wrong


def undocumented(name: str, value: object) -> Iterator[str]:
    """Names without a docstring of their own: `value`, and if it is a class, its public methods and properties."""
    text = getattr(value, "__doc__", None) or ""
    if not text.strip() or text.startswith(f"{name}("):  # the second is what dataclass writes if nobody does
        yield name
    if not inspect.isclass(value):
        return
    for kind in value.__mro__:
        if not kind.__module__.startswith("cowengine"):
            continue
        for attribute, member in vars(kind).items():
            function = getattr(member, "__func__", member)  # classmethod and staticmethod
            is_public = not attribute.startswith("_") and (callable(function) or isinstance(function, property))
            if is_public and not inspect.getdoc(getattr(value, attribute)):
                yield f"{name}.{attribute}"


@pytest.mark.parametrize("name", [name for name in cowengine.__all__ if not name.startswith("__")])
def test_every_public_name_is_documented(name: str) -> None:
    assert list(undocumented(name, getattr(cowengine, name))) == []


def test_no_two_modules_that_tests_share_have_one_name() -> None:
    """The first on the path would be imported for both."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    found = [path for folder in settings["pythonpath"] for path in (ROOT / folder).glob("*.py")]
    shared = [path.name for path in found if not path.name.startswith(("test_", "conftest"))]
    assert len(shared) > 20
    assert [name for name in shared if shared.count(name) > 1] == []
