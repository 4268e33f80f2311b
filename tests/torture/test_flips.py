"""Damaged volumes tell so or show what was there; and where they show something else, the harness sees it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import flips
import pytest
from flips import VOLUMES, drawn, original, wrong

SAMPLE = 300


@pytest.mark.parametrize("name", VOLUMES)
def test_no_damage_shows_anything_else(name: str) -> None:
    volume, rng = original(name), random.Random(11)
    assert len(volume.slots) >= 16
    noticed = 0
    for number in range(SAMPLE):
        spec = drawn(volume, rng)
        problem, errors = wrong(spec, number % 8 == 0)
        assert problem is None, f"python -P tests/torture/flips.py --one {spec}: {problem}"
        noticed += bool(errors)
    assert SAMPLE // 10 < noticed < SAMPLE


def test_acknowledged_records_that_go_without_a_word_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    first = f"killed:flip:{(original('killed').records[0][0] + 130) * 8}"
    assert wrong(first, False) == (None, 1)
    monkeypatch.setattr("cowengine.engine.recovery.records_beyond", lambda *_: iter(()))
    assert wrong(first, False)[0]
    assert wrong(first, True)[0]


def test_a_superblock_written_over_the_log_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk wrote it into the slot of the last records: the older superblock did not confirm them."""
    volume = original("clean")
    log, newest = range(2, 6), max((0, 1), key=lambda slot: volume.newest[slot])
    specs = [f"clean:misdirected:{slot}:{newest}" for slot in log]
    assert all(wrong(spec, writable)[0] is None for spec in specs for writable in (False, True))
    monkeypatch.setattr("cowengine.engine.recovery.superblock_astray", lambda *_: None)
    assert any(wrong(spec, False)[0] for spec in specs)


def test_a_record_whose_checksum_nobody_looks_at_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    bits = [
        f"killed:flip:{bit}"
        for begin, end in original("killed").records
        for bit in range((begin + 128) * 8, end * 8, 7)
    ]
    assert not any(wrong(spec, False)[0] for spec in bits)
    monkeypatch.setattr(
        "cowengine.format.record._checked_bytes",
        lambda buffer, offset, header, _: bytes(buffer[offset : offset + header.record_bytes]),
    )
    assert any(wrong(spec, False)[0] for spec in bits)


def test_a_row_and_a_place_again() -> None:
    row = [sys.executable, "-P", str(Path(flips.__file__)), "--row", "--seconds", "1", "--seed", "5"]
    said = json.loads(subprocess.run(row, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert said["count"] > 10
    assert (said["violations"], said["seed"], said["skipped"]) == (0, 5, "")
    again = subprocess.run([*row[:3], "--one", "clean:zero:0"], capture_output=True, text=True, check=True)
    assert "read only: right" in again.stdout
