"""Which images a power cut may leave of what is pending, and how they are told apart."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product

from memory_disk import Change, Durable, Instant, Write, sector_count

from cowengine.core.checksum import xxh64

Choice = tuple[int | None, ...]  # per pending change: 0 lost, None arrived, else the sectors of a write that arrived


def choices(pending: list[Change], rng: random.Random, budget: int) -> Iterator[Choice]:
    """At most about `budget` ways in which the pending changes may have arrived, the telling ones first."""
    n = len(pending)
    yield (0,) * n
    if n == 0:
        return
    if 2**n <= budget // 2:
        yield from product((0, None), repeat=n)
    else:
        yield (None,) * n
        simple = [(None,) * k + (0,) * (n - k) for k in range(1, n)]
        simple += [(None,) * k + (0,) + (None,) * (n - k - 1) for k in range(n)]
        simple += [(0,) * k + (None,) + (0,) * (n - k - 1) for k in range(n)]
        yield from simple if len(simple) <= budget // 2 else rng.sample(simple, budget // 2)
    for _ in range(budget // 2):
        yield tuple(arrival(change, rng) for change in pending)


def arrival(change: Change, rng: random.Random) -> int | None:
    pick = rng.randrange(3)
    if pick < 2 or not isinstance(change, Write) or (sectors := sector_count(change)) == 1:
        return 0 if pick == 0 else None
    mask = rng.getrandbits(sectors) if rng.random() < 0.5 else (1 << rng.randrange(1, sectors)) - 1
    return mask or 1


def build(instant: Instant, choice: Choice) -> Durable:
    image = instant.durable.copy()
    for change, arrived in zip(instant.pending, choice, strict=True):
        if arrived != 0:
            image.apply(change, arrived)
    return image


def fingerprint(image: Durable) -> int:
    key = 0
    for path, content in image.reachable():
        key = xxh64(path.encode(), xxh64(content, key))
    return key
