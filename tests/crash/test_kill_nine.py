"""kill -9 at random moments; see kill_nine.py. The command line does a thousand and more."""

from __future__ import annotations

from pathlib import Path

from kill_nine import kill_many


def test_nothing_acknowledged_is_lost_when_the_process_is_killed(tmp_path: Path) -> None:
    score = kill_many(str(tmp_path), kills=300, seed=1)
    assert not score.violations, score.violations
    assert score.kills >= 300
    assert score.acknowledged > score.kills, "the children were killed before they did anything"
    assert score.in_flight > 10
