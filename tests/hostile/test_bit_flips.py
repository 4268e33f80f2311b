"""Every bit of the metadata of a small volume flipped, checksums left as they are: a typed error, or the same data.

CI takes a seeded sample; `python tests/hostile/flip.py` takes them all.
"""

from __future__ import annotations

import pytest
from flip import Original, flip

SAMPLE = 400


@pytest.mark.parametrize("name", ["snapshots", "logged"])
def test_a_flipped_bit_is_an_error_or_changes_nothing(name: str) -> None:
    with Original(name) as original:
        bits = original.sample(SAMPLE, seed=7)
        caught = sum(flip(original, bit) for bit in bits)
        assert len(bits) // 20 < caught < len(bits)
