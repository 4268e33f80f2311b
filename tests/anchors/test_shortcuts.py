"""Shortcuts past runs of empty anchors, beside a walk: whatever joins runs, grows them or goes out of them."""

from __future__ import annotations

import random

import pytest

from cowengine.engine.shortcuts import Shortcuts


class Forest:
    """Numbers of which each leads on to at most one other; any number of them may lead to the same."""

    def __init__(self) -> None:
        self.onward: dict[int, int] = {}
        self.members: set[int] = set()
        self.shortcuts = Shortcuts(self.onward.get)

    def end(self, number: int) -> int:
        while number in self.onward:
            number = self.onward[number]
        return number

    def drop(self, number: int) -> None:
        before = [each for each in self.members if self.onward.get(each) == number]
        self.shortcuts.drop(number, before)
        further = self.onward.pop(number, None)
        self.members.discard(number)
        for each in before:
            if further is None:
                del self.onward[each]
            else:
                self.onward[each] = further

    def check(self) -> None:
        for number in self.members:
            assert self.shortcuts.end(number) == self.end(number)


@pytest.mark.parametrize("seed", range(20))
def test_the_end_of_a_run_is_where_a_walk_ends(seed: int) -> None:
    rng, forest = random.Random(seed), Forest()
    for number in range(1, 120):
        ends = [each for each in forest.members if each not in forest.onward]
        forest.members.add(number)
        # A new one follows the end of a run, or of several: they join.
        for each in rng.sample(sorted(ends), min(len(ends), rng.choice((0, 1, 1, 1, 2)))):
            forest.onward[each] = number
        forest.check()
        while len(forest.members) > 3 and rng.random() < 0.4:
            forest.drop(rng.choice(sorted(forest.members)))
            forest.check()


def test_a_long_run_is_walked_once() -> None:
    asked = []

    def onward(number: int) -> int | None:
        asked.append(number)
        return number + 1 if number < 1000 else None

    shortcuts = Shortcuts(onward)
    assert shortcuts.end(1) == 1000
    first = len(asked)
    assert first == 1000
    for number in range(1, 1000):
        assert shortcuts.end(number) == 1000
    assert len(asked) - first <= 1000
