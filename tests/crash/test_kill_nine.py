"""kill -9 at random moments; see kill_nine.py. The command line does thousands."""

from __future__ import annotations

from kill_nine import MEMORY, Killer


def test_nothing_acknowledged_is_lost_when_the_process_is_killed() -> None:
    killer = Killer(MEMORY)
    killer.kill_many(seed=1, kills=200)
    assert not killer.tally.violations, killer.tally.violations
    assert killer.tally.count == 200
    assert 0 < killer.volumes < killer.files, "no store was among them"
    assert killer.acknowledged > 100, "the children were killed before they did anything"
    assert killer.in_flight > 10
