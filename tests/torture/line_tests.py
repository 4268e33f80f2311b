"""Which test executes which line, and how long each test takes: coverage.py measures it, in a process of its own.

What was measured is kept in build/ as long as the sources do not change. A test that came later is in none of it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import coverage
import pytest

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "build" / "line-tests"
DATA, SECONDS = "data", "seconds.json"


class Contexts:
    """For pytest: what coverage.py measures belongs to the test that runs."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        running = coverage.Coverage.current()
        assert running is not None
        running.switch_context(item.nodeid)
        began = time.process_time()
        yield
        self.seconds[item.nodeid] = time.process_time() - began


class LineTests:
    """What was measured, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.seconds: dict[str, float] = json.loads((folder / SECONDS).read_text())
        self._data = coverage.CoverageData(str(folder / DATA))
        self._data.read()
        self._files = {path[path.rindex("cowengine/") :]: path for path in self._data.measured_files()}
        self._lines: dict[str, dict[int, list[str]]] = {}
        self._special: dict[str, Counter[str]] = {}

    def of(self, name: str, line: int) -> list[str]:
        """The tests that execute a line of a file, those first that will most likely notice if it is wrong.

        They are the fast ones, and those that execute little else: as many lines of this file for each of other files.
        """
        if not self._lines:
            self._lines = {name: self._data.contexts_by_lineno(path) for name, path in self._files.items()}
            for each, lines in self._lines.items():
                self._special[each] = Counter(test for tests in lines.values() for test in tests)
            self._all = sum(self._special.values(), Counter())
        special = self._special.get(name, Counter())
        tests = set(self._lines.get(name, {}).get(line, ())) & self.seconds.keys()
        fast = sorted(tests, key=lambda test: (self.seconds[test], test))
        near = sorted(tests, key=lambda test: (-special[test] / self._all[test], test))
        return list(dict.fromkeys(test for pair in zip(near, fast, strict=True) for test in pair))


def sources(package: str) -> list[Path]:
    """The files of a package."""
    file = importlib.import_module(package).__file__
    assert file is not None
    return sorted(Path(file).parent.glob("*.py")) if file.endswith("__init__.py") else [Path(file)]


def measure(tests: Sequence[str], parts: Sequence[str], folder: Path) -> None:
    """Runs tests, and leaves in the folder what LineTests takes."""
    pytest = ["-q", "-p", "no:cacheprovider", f"--basetemp={folder / 'tests'}", *tests]
    options = [f"--source={','.join(parts)}", f"--data-file={folder / DATA}", f"--rcfile={os.devnull}"]
    run = [sys.executable, "-P", "-m", "coverage", "run", *options, __file__, str(folder / SECONDS), *pytest]
    subprocess.run(run, cwd=ROOT, stdout=subprocess.DEVNULL)
    if not (folder / SECONDS).exists():
        raise SystemExit("the tests could not be run: " + " ".join(run))


def kept(tests: Sequence[str], parts: Sequence[str]) -> Path:
    """The folder with what was measured of these sources; it is measured now if there is none."""
    digest = hashlib.blake2b("\n".join([*tests, *parts]).encode(), digest_size=8)
    for path in [path for part in parts for path in sources(part)]:
        digest.update(path.name.encode() + path.read_bytes())
    folder = KEPT / digest.hexdigest()
    if not (folder / SECONDS).exists():  # written last
        folder.mkdir(parents=True, exist_ok=True)
        measure(tests, parts, folder)
    return folder


def main() -> int:
    contexts = Contexts()
    status = pytest.main(sys.argv[2:], plugins=[contexts])
    Path(sys.argv[1]).write_text(json.dumps(contexts.seconds))
    return status


if __name__ == "__main__":
    sys.exit(main())
