"""The scoreboard itself, with harnesses that end in every way a harness can end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torture
from torture import Line, run_lines, table

GOOD = 'print("looked"); print(json.dumps({"count": 5, "violations": 0, "seed": seed, "skipped": ""}))'
BAD = 'print(json.dumps({"count": 5, "violations": 2, "seed": seed, "skipped": ""})); sys.exit(1)'
SKIPS = 'print(json.dumps({"count": 0, "violations": 0, "seed": seed, "skipped": "no loop devices"}))'
DIES = 'print("looked"); os.kill(os.getpid(), 9)'
SILENT = "pass"


def harness(folder: Path, name: str, body: str, **fields: object) -> Line:
    script = folder / f"{name}.py"
    script.write_text(f"import json, os, sys\nseed = int(sys.argv[sys.argv.index('--seed') + 1])\n{body}\n")
    return Line(name, f"the harness {name}", str(script), 1, 4, **fields)  # type: ignore[arg-type]


def test_each_harness_becomes_a_row_and_one_that_dies_fails_alone(tmp_path: Path) -> None:
    bodies = {"good": GOOD, "bad": BAD, "skips": SKIPS, "dies": DIES, "silent": SILENT}
    lines = [harness(tmp_path, name, body) for name, body in bodies.items()]
    rows = dict(zip(bodies, run_lines(lines, 0.1, 7, 2, tmp_path / "ledger"), strict=True))
    assert [name for name, row in rows.items() if row.good] == ["good", "skips"]
    assert (rows["good"].count, rows["good"].seed) == (5, 7)
    assert rows["bad"].violations == 2
    assert "-9" in rows["dies"].failure
    assert "status 0" in rows["silent"].failure
    printed = table(lines, list(rows.values()), 8)
    assert "skipped: no loop devices" in printed
    assert "below its goal" not in printed.splitlines()[1]


def test_a_line_that_goes_along_with_another_has_the_count_that_this_one_tells(tmp_path: Path) -> None:
    both = GOOD.replace('"skipped": ""', '"skipped": "", "also": {"R99": 123}')
    lines = [Line("R99", "told by the other one", "", 0, 100, along="both"), harness(tmp_path, "both", both)]
    along, own = run_lines(lines, 0.1, 7, 2, tmp_path / "ledger")
    assert (along.count, own.count) == (123, 5)
    assert along.good


def test_a_harness_that_does_not_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torture, "GRACE_SECONDS", 1)
    (row,) = run_lines(
        [harness(tmp_path, "hangs", "import time; time.sleep(600)", every_core=True)], 0.01, 7, 1, tmp_path / "ledger"
    )
    assert row.failure == "it did not end"


def test_the_ledger_sums_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line, ledger = harness(tmp_path, "good", GOOD), tmp_path / "ledger"
    monkeypatch.setattr(torture, "LINES", (line,))
    for seed in (7, 8, 8):  # whoever gives a seed again wants to see it again: it is not counted twice
        run_lines([line], 0.01, seed, 1, ledger)
    assert "10 in 0.0 h, 2 runs, 0 violations" in torture.totals(ledger)


def test_every_harness_of_the_scoreboard_is_there_and_knows_its_arguments() -> None:
    assert len({line.name for line in torture.LINES}) == len(torture.LINES)
    assert {line.along for line in torture.LINES if not line.script} <= {
        each.name for each in torture.LINES if each.script
    }
    for script in {line.script for line in torture.LINES if line.script}:
        command = [sys.executable, "-P", str(torture.ROOT / script), "--help"]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert all(argument in told for argument in ("--row", "--seconds", "--seed")), script


def test_the_document_has_a_line_for_each_row() -> None:
    text = (torture.ROOT / "docs" / "reliability.md").read_text()
    for line in torture.LINES:
        (said,) = [row for row in text.splitlines() if row.startswith(f"| {line.name} |")]
        goal = said.split("|")[3].strip()
        assert goal == f"{line.goal:,}", f"{line.name}: its goal is {line.goal:,}"


def test_the_command_says_what_rows_there_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["torture.py", "--only", "R99"])
    with pytest.raises(SystemExit):
        torture.main()
    assert "R10" in capsys.readouterr().err
