"""The seal of a block (docs/format.md section 8): the kernels against an implementation that is only clear."""

from __future__ import annotations

import random
import re
import struct
from pathlib import Path

import pytest

from cowengine.core.checksum import BY_INSTRUCTION, PORTABLE, seal_of

DOCUMENT = (Path(__file__).parents[2] / "docs" / "format.md").read_text()


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def reference(block: bytes, slot: int) -> int:
    quarter = len(block) // 4
    sums = [crc32c(block[at : at + quarter]) for at in range(0, len(block), quarter)]
    return crc32c(struct.pack("<Q4I", slot, *sums)) or 1


def test_the_reference_is_crc32c():
    assert crc32c(b"123456789") == 0xE3069283  # the check value of every catalogue of CRCs


@pytest.mark.parametrize("kernel", [0, PORTABLE, BY_INSTRUCTION])
@pytest.mark.parametrize(("size", "slot"), [(32, 0), (256, 1), (512, 2), (4096, 2**47 - 1), (4096, 5), (16384, 7)])
def test_all_kernels_find_the_seal_of_the_reference(size, slot, kernel):
    """Where the processor has not what a kernel needs, another does it."""
    block = random.Random(size + slot).randbytes(size)
    assert seal_of(block, slot, kernel) == reference(block, slot)


def test_all_kernels_agree_on_many_blocks():
    rng = random.Random(1)
    for _ in range(400):
        block, slot = rng.randbytes(rng.choice((32, 256)) * rng.randrange(1, 70)), rng.getrandbits(47)
        assert seal_of(block, slot) == seal_of(block, slot, PORTABLE) == seal_of(block, slot, BY_INSTRUCTION)


def test_the_document_has_a_seal_to_compare_with():
    found = re.search(r"has in slot 4,242 the seal\s+0x([0-9A-F]{8})", DOCUMENT)
    block = bytes(i % 251 for i in range(4096))
    assert found and int(found[1], 16) == seal_of(block, 4242) == reference(block, 4242)


def test_a_flipped_bit_or_another_slot_changes_the_seal():
    block = bytearray(random.Random(2).randbytes(4096))
    seal = seal_of(block, 9)
    assert seal != seal_of(block, 10)
    for bit in range(0, 8 * len(block), 97):
        block[bit >> 3] ^= 1 << (bit & 7)
        assert seal_of(block, 9) != seal
        block[bit >> 3] ^= 1 << (bit & 7)


def test_a_seal_of_what_is_no_block_is_refused():
    with pytest.raises(ValueError, match="multiple of 32"):
        seal_of(bytes(33), 0)
