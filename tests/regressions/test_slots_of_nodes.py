"""The slots that a checkpoint marks as used are those that its nodes were written to.

Two runs that lie side by side, the upper one first, became one run on their way to the nodes, which then began at its
lower end, while the upper one was marked: nodes lay in slots that were free for whoever opened the file next. Found by
tests/torture/races.py, as slots that leaked.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cowengine import Volume
from cowengine.engine.allocator import Allocator, Run

MIB = 1 << 20


def test_runs_side_by_side_stay_in_their_order(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "v", MIB, background=False) as volume:
        runs = [(1010, 2), (1008, 2), (1012, 1)]
        assert volume.engine.path.flush_map([], runs) == runs


def test_nodes_lie_where_the_free_map_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take: Callable[..., list[Run]] = Allocator.take

    def upper_half_first(self: Allocator, count: int, *, dispensable: bool = False) -> list[Run]:
        runs = take(self, count, dispensable=dispensable)
        halves = [[(slot + length // 2, length - length // 2), (slot, length // 2)] for slot, length in runs]
        return [run for pair in halves for run in pair if run[1]]

    monkeypatch.setattr(Allocator, "take", upper_half_first)
    with Volume.create(tmp_path / "v", 64 * MIB, background=False) as volume:
        for offset in range(0, 64 * MIB, 2 * MIB):
            volume.pwrite(b"x", offset)
            for half in (MIB, MIB + MIB // 2):  # a leaf that becomes a run, and leaves a slot over
                volume.pwrite(bytes(MIB // 2), offset + half)
        volume.engine.checkpoint()
        assert volume.check().problems == []
