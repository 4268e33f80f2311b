"""The hash table under the index of names: every pair is found, whatever the hashes, through splits and removals."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from memory_disk import MemoryDisk

from cowengine import Volume
from cowengine.core.pagedtable import name_table
from cowengine.engine.hashindex import LOAD, HashIndex
from cowengine.format.names import bucket_leaf, bucket_of, bucket_of_leaf, count_leaf, next_to_split

HASHES: dict[str, Callable[[random.Random], int]] = {
    "spread": lambda rng: rng.randrange(1, 2**64),
    "all the same": lambda rng: 7,
    "one bucket": lambda rng: rng.randrange(1, 2**40) << 24,
    "few": lambda rng: rng.randrange(1, 5),
    "look like ids": lambda rng: rng.randrange(1, 50) << 8,
}


@pytest.fixture
def index() -> Iterator[HashIndex]:
    with Volume.create("/disk/v", 1 << 20, io=MemoryDisk(), background=False) as volume:
        yield HashIndex(name_table(volume.engine.path, 0), 1, 0)


@pytest.mark.parametrize("kind", HASHES)
def test_what_was_added_is_found_and_what_was_removed_is_not(index: HashIndex, kind: str) -> None:
    rng = random.Random(kind)
    pairs: list[tuple[int, int]] = []
    for number in range(3000):
        if pairs and rng.random() < (0.3 if number < 2000 else 0.8):
            hashed, gone = pairs.pop(rng.randrange(len(pairs)))
            assert index.remove(hashed, gone)
            assert not index.remove(hashed, gone)
        else:
            pairs.append((HASHES[kind](rng), number))
            index.add(*pairs[-1])
        assert index.entries == len(pairs)
        if number % 500 == 499:
            expected = Counter(pairs)
            for hashed in {hashed for hashed, _ in pairs} | {3, 9 << 40}:
                assert Counter(index.find(hashed)) == Counter({n: c for (h, n), c in expected.items() if h == hashed})
    assert index.buckets >= 5


def test_it_grows_by_one_bucket_for_so_many_entries(index: HashIndex) -> None:
    rng = random.Random(1)
    for number in range(20 * LOAD):
        before = index.buckets
        index.add(rng.randrange(1, 2**64), number)
        assert index.buckets - before <= 1
    assert index.buckets == 20


def test_an_entry_of_bucket_n_comes_from_the_bucket_that_is_split() -> None:
    rng = random.Random(2)
    for buckets in (1, 2, 3, 4, 5, 7, 8, 127, 128, 1000):
        moved = 0
        for _ in range(3000):
            hashed = rng.randrange(1, 2**64)
            old, new = bucket_of(hashed, buckets), bucket_of(hashed, buckets + 1)
            assert 0 <= old < buckets
            assert new == old or (new, old) == (buckets, next_to_split(buckets))
            moved += new != old
        assert moved or buckets > 500


def test_each_leaf_is_one_page_of_one_bucket_or_counts() -> None:
    leaves = {bucket_leaf(bucket, page): (bucket, page) for bucket in range(1000) for page in range(3)}
    assert len(leaves) == 3000
    assert all(bucket_of_leaf(leaf) == place for leaf, place in leaves.items())
    assert all(bucket_of_leaf(count_leaf(number)) is None for number in range(50))
