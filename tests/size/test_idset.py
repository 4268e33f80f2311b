"""The set of ids: as Python's own, and small."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from cowengine import Volume
from cowengine.engine.idset import PAGE_IDS, IdSet

IDS = st.one_of(st.integers(0, 40), st.integers(PAGE_IDS - 2, PAGE_IDS + 2), st.integers(0, 1 << 48))


@given(st.lists(IDS), st.lists(st.tuples(st.booleans(), IDS)))
def test_it_is_a_set_in_ascending_order(first, steps):
    ids, model = IdSet(first), set(first)
    for is_added, number in steps:
        if is_added:
            ids.add(number)
            model.add(number)
        else:
            ids.discard(number)
            model.discard(number)
        assert (number in ids) is is_added
    assert list(ids) == sorted(model)
    assert len(ids) == len(model)
    assert all(number in ids for number in model)
    assert len(ids._pages) == len({number // PAGE_IDS for number in model})


def test_ids_may_go_while_it_is_gone_over():
    ids = IdSet(range(3 * PAGE_IDS))
    seen = []
    for number in ids:
        seen.append(number)
        ids.discard(number)
    assert seen == list(range(3 * PAGE_IDS)) and not list(ids) and not len(ids)


def test_a_hundred_thousand_snapshots_that_are_not_sealed_take_kilobytes():
    ids = IdSet(range(100_000))
    assert sum(map(sys.getsizeof, ids._pages.values())) + sys.getsizeof(ids._pages) < 64 << 10


def test_the_unsealed_snapshots_of_a_volume_are_such_a_set(tmp_path):
    with Volume.create(tmp_path / "volume", 1 << 20, background=False) as volume:
        for number in range(3):
            volume.pwrite(b"x", number * 4096)
            volume.snapshot(str(number))
    with Volume.open(tmp_path / "volume", background=False) as volume:
        found = volume.engine.lineage.unsealed()
        assert isinstance(found, IdSet) and list(found) == [1, 2, 3]
        volume.seal()
        assert not len(found) and volume.engine.lineage.sealed_before() == volume.engine.lineage.next_id
