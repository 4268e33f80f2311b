"""Crashes of repairs; and that the explorer would notice a repair that guesses, or does not wait for the disk."""

from __future__ import annotations

import pytest
from repair_explorer import explore_many

from cowengine.engine import rebuild, repair
from cowengine.engine.engine import Engine


def test_every_crash_of_a_repair_leaves_what_there_was() -> None:
    score = explore_many(histories=5, seed=1)
    print(score)
    assert not score.violations, score.violations[0]
    assert len(score.states) > 300
    assert all((score.repaired, score.refused, score.failed, score.looked))


def test_the_explorer_notices_a_repair_that_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuild, "require_repairable", lambda problems, name: None)
    monkeypatch.setattr(repair, "require_repairable", lambda problems, name: None)
    assert explore_many(histories=12, seed=13).violations


def test_the_explorer_notices_a_repair_without_barriers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "barrier", lambda engine: None)
    assert explore_many(histories=20, seed=1).violations


def test_the_explorer_notices_a_superblock_in_the_wrong_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    write = Engine.write_superblock

    def over_the_newest(engine: Engine, superblock: object) -> None:
        engine.newest_slot = 1 - engine.newest_slot
        write(engine, superblock)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "write_superblock", over_the_newest)
    assert explore_many(histories=20, seed=1).violations
