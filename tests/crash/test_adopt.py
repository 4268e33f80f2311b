"""Crashes of adopting and of flattening in place; and that the explorer would notice a missing step."""

from __future__ import annotations

import pytest
from adopt_explorer import explore_many
from planted import Caught, hunt
from planted_bugs import BUGS
from planted_hunts import Adoptions


def test_every_crash_leaves_the_raw_image_or_the_volume() -> None:
    score = explore_many(histories=2, seed=1)
    print(score)
    assert not score.violations, score.violations[0]
    assert len(score.states) > 500
    assert min(score.volumes, score.images) > 100
    assert score.refused > 2


@pytest.mark.parametrize("name", [one.name for one in BUGS.values() if isinstance(one.hunt, Adoptions)])
def test_the_explorer_notices(name: str) -> None:
    found = hunt(BUGS[name], seed=1)
    assert isinstance(found, Caught), found
