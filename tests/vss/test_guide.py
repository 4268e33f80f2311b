"""docs/backup.md does what it says: its programs run, and it names every error."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import cowengine
from cowengine import errors

GUIDE = Path(__file__).parents[2] / "docs" / "backup.md"


def test_the_programs_of_the_guide_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    programs = re.findall(r"```python\n(.*?)```", GUIDE.read_text("utf-8"), flags=re.DOTALL)
    assert len(programs) == 2
    names: dict[str, object] = {"__name__": "guide"}
    exec(compile(programs[0], str(GUIDE), "exec"), names)
    files = [path.read_bytes() for path in (tmp_path / "restored").rglob("*") if path.is_file()]
    assert [data[:8] for data in files] == [(11).to_bytes(8, "little")] * 2
    exec(compile(programs[1], str(GUIDE), "exec"), names)
    with cowengine.Store.open("shop") as store:
        assert len(store.snapshot_sets()) == 4


def test_the_guide_says_what_to_do_about_every_error() -> None:
    table = GUIDE.read_text("utf-8").partition("## Errors")[2]
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, errors.CowEngineError) and not name.startswith("_"):
            assert f"`{name}`" in table or f"`cowengine.{name}`" in table, name
