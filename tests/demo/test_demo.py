"""make demo, in little: it runs, its checks pass, and a failed check is told."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

DEMO = Path(__file__).parents[2] / "bench" / "demo.py"


def load() -> ModuleType:
    specification = importlib.util.spec_from_file_location("demo_under_test", DEMO)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["demo_under_test"] = module
    specification.loader.exec_module(module)
    return module


def test_the_demo_passes_its_own_checks_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-P", str(DEMO), "--quick", "--folder", str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "all checks passed" in answer.stdout
    assert "freeze window" in answer.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_demo_tells_a_restored_bit_that_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = load()
    restore = demo.cowengine.restore

    def careless(target: str, backup_id: str, folder: str) -> None:
        restore(target, backup_id, folder)
        with open(Path(folder) / "bank.db.raw", "r+b") as raw:
            raw.seek((1 << 20) + 5000)
            byte = raw.read(1)
            raw.seek((1 << 20) + 5000)
            raw.write(bytes([byte[0] ^ 1]))

    monkeypatch.setattr(demo.cowengine, "restore", careless)
    assert demo.main(["--quick", "--folder", str(tmp_path)]) == 1
    assert "not byte-identical" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
