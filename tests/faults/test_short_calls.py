"""Reads and writes that the system cuts short or interrupts, and calls that fail where that counts for nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from short_calls import built, play

pytestmark = pytest.mark.needs("gcc")


@pytest.mark.parametrize("seed", [1, 3, 5])  # on a volume, a target of backups, a store
def test_every_byte_is_there_whatever_calls_are_cut_short(tmp_path: Path, seed: int) -> None:
    told = play(built(tmp_path), seed)
    assert not told.wrong
    assert told.cut > 500
    assert told.interrupted > 100
    assert told.failed > 5


def test_a_write_that_says_it_did_more_than_it_did_is_found(tmp_path: Path) -> None:
    assert play(built(tmp_path), 1, lies=25).wrong
