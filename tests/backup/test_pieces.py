"""The pieces of a backup beside what a volume holds: holes, zeros and data between far and near extents."""

from __future__ import annotations

import random

import numpy
import pytest

import cowengine
from cowengine.backup.pieces import PIECE_BYTES, ROWS_AT_ONCE, ZERO_BYTES_MIN, pieces
from cowengine.errors import BackupError

BLOCK = 4096
SIZE = 4 << 20


def put_together(snapshot, base_id, before):
    """What a restore makes of `before`; the pieces ascend, and none is longer than it may be."""
    image, reached = bytearray(before), 0
    for offset, length, plain in pieces(snapshot, base_id):
        assert offset >= reached and 0 < length <= SIZE
        assert plain is None or len(plain) == length <= PIECE_BYTES
        image[offset : offset + length] = bytes(length) if plain is None else plain
        reached = offset + length
    return bytes(image)


@pytest.mark.parametrize("seed", range(4))
def test_pieces_make_the_target_of_the_base(tmp_path, seed):
    """More extents than are listed at once, single blocks and runs, blocks of zeros, discards."""
    randomness = random.Random(seed)
    with cowengine.Volume.create(tmp_path / "v", SIZE) as volume:
        for _ in range(4):
            volume.pwrite(randomness.randbytes(200_000), randomness.randrange(SIZE - 200_000))
        base = volume.snapshot("base")
        before = base.pread(SIZE, 0)
        for block in randomness.sample(range(SIZE // BLOCK), 4 * ROWS_AT_ONCE):
            content = bytes(BLOCK) if randomness.random() < 0.2 else randomness.randbytes(BLOCK)
            volume.pwrite(content, block * BLOCK)
        for _ in range(3):
            at = randomness.randrange(SIZE // 2)
            volume.pwrite(bytes(randomness.randrange(1, 4) * ZERO_BYTES_MIN), at)
            volume.discard(randomness.randrange(SIZE // 2), randomness.randrange(SIZE // 4))
        target = volume.snapshot("target")
        after = target.pread(SIZE, 0)
        assert put_together(target, base.change_id, before) == after
        assert put_together(target, None, bytes(SIZE)) == after


def test_long_zeros_are_holes_and_short_ones_are_data(tmp_path):
    with cowengine.Volume.create(tmp_path / "v", SIZE) as volume:
        volume.pwrite(b"x" * PIECE_BYTES, 0)
        volume.pwrite(bytes(2 * ZERO_BYTES_MIN), ZERO_BYTES_MIN)
        volume.pwrite(bytes(ZERO_BYTES_MIN // 2), 8 * ZERO_BYTES_MIN)
        found = [(offset, length, plain is None) for offset, length, plain in pieces(volume.snapshot("s"), None)]
    unit = ZERO_BYTES_MIN
    assert found == [(0, unit, False), (unit, 2 * unit, True), (3 * unit, PIECE_BYTES - 3 * unit, False)]


class Circling:
    """A snapshot of somebody else whose lists never come to an end."""

    size, block_size, change_id = SIZE, BLOCK, "x"

    def changed_extents(self, base, start=0, length=None, max_results=None):
        return numpy.array([[start, BLOCK]], dtype=numpy.uint64)

    def allocated_extents(self, start=0, length=None, max_results=None):
        return numpy.array([[0, BLOCK]], dtype=numpy.uint64)

    def pread(self, length, offset):
        return bytes(length)


def test_lists_that_do_not_ascend_are_refused():
    with pytest.raises(BackupError, match="do not ascend"):
        list(pieces(Circling(), "base"))
