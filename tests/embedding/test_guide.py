"""docs/embedding.md says nothing that was not run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import cowengine
from cowengine import errors

GUIDE = Path(__file__).parents[2] / "docs" / "embedding.md"


def test_the_example_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(GUIDE), "exec"), {"__name__": "guide"})
    with cowengine.Volume.open(tmp_path / "data.cow", read_only=True) as volume:
        assert volume.snapshots() == []


def test_every_error_class_stands_in_the_guide() -> None:
    text = GUIDE.read_text()
    classes = [
        value for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.CowEngineError) and not value.__name__.startswith("_")
    ]  # fmt: skip
    missing = [kind.__name__ for kind in classes if f"{kind.__name__}`" not in text]
    assert not missing
    assert len(classes) > 15
