"""The pieces of a backup beside what a volume holds: holes, zeros and data between far and near extents."""

from __future__ import annotations

import io
import random

import numpy
import pytest

import cowengine
from cowengine.backup import write_backup
from cowengine.backup.batch import ZERO_BYTES_MIN, read_batch, reader_of
from cowengine.backup.layout import DATA, RECORD
from cowengine.backup.pieces import BATCH_BYTES, BATCH_PIECES, PAGE_EXTENTS, PIECE_BYTES, ROWS_AT_ONCE, batches
from cowengine.core.checksum import xxh64
from cowengine.core.survey import NOWHERE
from cowengine.errors import BackupError, NotFoundError

BLOCK = 4096
SIZE = 4 << 20


def parts(snapshot, base_id):
    """(offset, length, bytes or None for zeros) of all that goes into a backup."""
    for pieces in batches(snapshot, base_id):
        assert len(pieces.extents) <= BATCH_PIECES
        assert pieces.data_bytes == int(pieces.extents[pieces.filled, 1].sum()) <= BATCH_BYTES
        found, plain = read_batch(reader_of(snapshot), pieces)
        for offset, length, at, checksum in found.tolist():
            data = None if at == NOWHERE else bytes(plain[at : at + length])
            assert checksum == xxh64(data or b"")
            yield offset, length, data


def put_together(snapshot, base_id, before):
    """What a restore makes of `before`; the parts ascend, and none is longer than it may be."""
    image, reached = bytearray(before), 0
    for offset, length, plain in parts(snapshot, base_id):
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
        found = [(offset, length, plain is None) for offset, length, plain in parts(volume.snapshot("s"), None)]
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
        list(batches(Circling(), "base"))


class Plain:
    """A snapshot of somebody else, with what the protocol asks for and no more."""

    def __init__(self, snapshot, missing=0):
        self.size, self.change_id, self.block_size = snapshot.size, snapshot.change_id, snapshot.block_size
        self.allocated_extents, self.changed_extents = snapshot.allocated_extents, snapshot.changed_extents
        self.snapshot, self.missing, self.inside = snapshot, missing, 0

    def pread(self, length, offset):
        self.inside += 1
        assert self.inside == 1
        plain = self.snapshot.pread(length, offset)
        self.inside -= 1
        return plain[self.missing :]


def one_and_next(tmp_path, seed):
    """Two snapshots with some changes between them."""
    randomness = random.Random(seed)
    volume = cowengine.Volume.create(tmp_path / "v", SIZE)
    volume.pwrite(randomness.randbytes(SIZE), 0)
    base = volume.snapshot("base")
    for block in randomness.sample(range(SIZE // BLOCK), 400):
        volume.pwrite(randomness.randbytes(BLOCK), block * BLOCK)
    return volume, base, volume.snapshot("target")


def test_a_snapshot_that_has_only_pread_gives_the_same_and_one_thread_at_a_time_asks_it(tmp_path):
    volume, base, target = one_and_next(tmp_path, 5)
    with volume:
        streams = []
        for snapshot in (target, Plain(target)):
            stream = io.BytesIO()
            first = write_backup(io.BytesIO(), {"v": base}, kind="full")
            write_backup(stream, {"v": snapshot}, kind="incremental", base=first, compression="none")
            streams.append(stream.getvalue())
        plain, behind = (b"".join(read_records(stream)) for stream in streams)
        assert plain == behind and len(plain) >= 400 * BLOCK


def read_records(stream):
    """The payloads of the data records of a stream."""
    position = 0
    while position < len(stream):
        values = RECORD.unpack(stream, position)
        position += RECORD.bytes + values["stored_bytes"]
        if values["type"] == DATA:
            yield stream[position - values["stored_bytes"] : position]


def test_a_snapshot_that_gives_too_little_fails_the_backup(tmp_path):
    volume, _, target = one_and_next(tmp_path, 6)
    with volume:
        with pytest.raises(BackupError, match=r"gave \d+ bytes at 0 instead of"):
            write_backup(io.BytesIO(), {"v": Plain(target, missing=1)}, kind="full")
        short = Plain(target)
        short.pread_many = lambda buffer, extents: target.pread_many(buffer, extents) - 1
        with pytest.raises(BackupError, match=r"gave \d+ bytes instead of"):
            write_backup(io.BytesIO(), {"v": short}, kind="full")


class Huge(Circling):
    """More pieces in one extent than are made at once; a hole of as many between two."""

    size = 5 * PAGE_EXTENTS * PIECE_BYTES
    MAPPED = ((5 * BLOCK, 2 * PAGE_EXTENTS * PIECE_BYTES + BLOCK), (4 * PAGE_EXTENTS * PIECE_BYTES, 3 * BLOCK))

    def changed_extents(self, base, start=0, length=None, max_results=None):
        return numpy.array([[0, self.size]] if start == 0 else numpy.empty((0, 2)), dtype=numpy.uint64)

    def allocated_extents(self, start=0, length=None, max_results=None):
        rows = [row for row in self.MAPPED if row[0] < start + length and sum(row) > start]
        return numpy.array(rows[:max_results], dtype=numpy.uint64).reshape(-1, 2)


@pytest.mark.parametrize("base_id", [None, "base"])
def test_an_extent_of_any_size_is_cut_in_bounded_memory(base_id):
    """Every byte once, in pieces that end at multiples of their size; each hole in one."""
    reached, holes, most = 0, [], 0
    for pieces in batches(Huge(), base_id):
        most = max(most, len(pieces.extents))
        for (offset, length), filled in zip(pieces.extents.tolist(), pieces.filled.tolist(), strict=True):
            assert offset >= reached and (base_id is None or offset == reached)
            if filled:
                assert offset // PIECE_BYTES == (offset + length - 1) // PIECE_BYTES
                assert (offset + length) % PIECE_BYTES == 0 or offset + length in map(sum, Huge.MAPPED)
            else:
                holes.append((offset, length))
            reached = offset + length
    first, second = Huge.MAPPED
    gap, behind = (sum(first), second[0] - sum(first)), (sum(second), Huge.size - sum(second))
    assert holes == ([] if base_id is None else [(0, first[0]), gap, behind])
    assert reached == (sum(second) if base_id is None else Huge.size) and most <= BATCH_PIECES


def test_a_snapshot_that_is_deleted_meanwhile_ends_the_backup(tmp_path):
    volume, _, target = one_and_next(tmp_path, 7)
    with volume:
        gone = Plain(target)
        gone.pread_many = lambda buffer, extents: (target.delete(), target.pread_many(buffer, extents))[1]
        with pytest.raises(NotFoundError, match="target"):
            write_backup(tmp_path / "backups", {"v": gone}, kind="full")
        assert list((tmp_path / "backups").rglob("manifest.json")) == []
