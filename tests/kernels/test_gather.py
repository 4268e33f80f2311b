"""Many extents in one read on the kernels: neighbours in the file, seals between them, eras, failures, other hands."""

from __future__ import annotations

import random
import threading

import numpy
import pytest
from kernel_path import BLOCK, Path

from cowengine.core.checksum import xxh64, xxh64_rows
from cowengine.core.gather import gather
from cowengine.core.sealing import enter_seals, make_seals
from cowengine.core.survey import NOWHERE, survey
from cowengine.errors import ClosedError, NotFoundError, OutOfRangeError, StorageError

BLOCKS = 1200


def rows(*extents: tuple[int, int]) -> numpy.ndarray:
    return numpy.array(extents, dtype=numpy.uint64).reshape(-1, 2)


def scattered() -> Path:
    """Even blocks, which lie side by side in the file, and some odd ones behind, backwards; the rest are holes."""
    made = Path(BLOCKS)
    for block in [*range(0, 400, 2), *range(399, 0, -4)]:
        made.write(block, 1, bytes([block % 251 + 1]))
    return made


def read(made: Path, extents: numpy.ndarray, root: object = None) -> bytes:
    buffer = bytearray(int(extents[:, 1].sum()))
    assert gather(made.path, buffer, extents, BLOCKS * BLOCK, root) == len(buffer)  # type: ignore[arg-type]
    return bytes(buffer)


def test_neighbours_in_the_file_are_read_in_one_call() -> None:
    made = scattered()
    calls: list[int] = []
    made.disk.reading = calls.append
    found = read(made, rows(*[(block * BLOCK, BLOCK) for block in range(0, 100, 2)]))
    assert found == b"".join(bytes([block + 1]) * BLOCK for block in range(0, 100, 2))
    assert len(calls) == 1
    calls.clear()
    # Up to a block is passed over, more is not; holes are in nobody's way.
    parts = rows((0, 100), (100, BLOCK - 100), (2 * BLOCK, 50), (4 * BLOCK, 10), (BLOCK, 20), (6 * BLOCK, 5))
    found = read(made, parts)
    assert found == b"\1" * BLOCK + b"\3" * 50 + b"\5" * 10 + bytes(20) + b"\7" * 5
    assert len(calls) == 1
    calls.clear()
    assert read(made, rows((0, BLOCK), (6 * BLOCK, 7))) == b"\1" * BLOCK + b"\7" * 7
    assert len(calls) == 2


@pytest.mark.parametrize("sealed", [0, 1, 150, BLOCKS])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_what_single_reads_give(seed: int, sealed: int) -> None:
    """More extents than a look takes, larger ones than seals are looked up at once."""
    made, randomness = scattered(), random.Random(seed)
    snapshot = made.snapshot()
    if sealed:
        enter_seals(made.path, snapshot, make_seals(made.path, snapshot, 0, sealed)[2])
    starts = [randomness.randrange(BLOCKS * BLOCK) for _ in range(300)]
    lengths = [randomness.choice((0, 1, 100, BLOCK, 3 * BLOCK, 70 * BLOCK, BLOCKS * BLOCK)) for _ in starts]
    extents = [(at, min(length, BLOCKS * BLOCK - at)) for at, length in zip(starts, lengths, strict=True)]
    extents = [extent for extent in extents if extent[1] < 70 * BLOCK] + extents[:3] + [(0, BLOCKS * BLOCK)]
    expected = b"".join(made.path.pread(length, offset, snapshot) for offset, length in extents)
    before = made.path.bytes_read
    assert read(made, rows(*extents), snapshot) == expected
    assert made.path.bytes_read - before == len(expected)


def test_a_run_has_more_seals_than_are_looked_up_at_once() -> None:
    made = Path(BLOCKS)
    made.write(0, BLOCKS, b"s")
    snapshot = made.snapshot()
    enter_seals(made.path, snapshot, make_seals(made.path, snapshot, 0, BLOCKS)[2])
    assert read(made, rows((7, (BLOCKS - 1) * BLOCK), (5, 9), (0, 0)), snapshot) == b"s" * ((BLOCKS - 1) * BLOCK + 9)


@pytest.mark.parametrize("sealed", [False, True])
def test_what_cannot_be_read_is_told_and_ends_the_era(sealed: bool) -> None:
    made = scattered()
    snapshot = made.snapshot()
    if sealed:
        enter_seals(made.path, snapshot, make_seals(made.path, snapshot, 0, 400)[2])
    extents = rows((0, BLOCK), (399 * BLOCK, 5), (4 * BLOCK, BLOCK))
    made.disk.broken = {made.path.place(399, snapshot)[0]}
    with pytest.raises(StorageError):
        read(made, extents, snapshot)
    made.disk.broken.clear()
    era = made.path.turn_era()
    assert made.path.turn_era() == era + 1  # nobody is taken for a reader any more
    assert read(made, extents, snapshot) == b"\1" * BLOCK + bytes([399 % 251 + 1]) * 5 + b"\5" * BLOCK


def test_an_era_does_not_end_while_a_read_of_it_is_under_way() -> None:
    made = scattered()
    eras: list[int] = []
    made.disk.reading = lambda slot: eras.extend(made.path.turn_era() for _ in range(3))
    read(made, rows((0, 5)))
    assert eras == [3, 3, 3]


def test_what_is_gone_or_smaller_by_now_is_told() -> None:
    made = scattered()
    snapshot = made.snapshot()
    snapshot.retire()
    for extents in (rows((0, 5)), rows()):
        with pytest.raises(NotFoundError):
            read(made, extents, snapshot)
    with pytest.raises(OutOfRangeError, match="became smaller"):
        gather(made.path, bytearray(10), rows((BLOCKS * BLOCK - 5, 10)), 2 * BLOCKS * BLOCK)
    for extents in (rows((0, 5), (BLOCK, BLOCK + 1)), rows((BLOCK - 4, 5))):
        with pytest.raises(OutOfRangeError, match="does not lie"):
            gather(made.path, bytearray(2 * BLOCK), extents, BLOCK)
    with pytest.raises(ValueError, match="an offset and a length"):
        gather(made.path, bytearray(10), numpy.zeros((2, 3), numpy.uint64), 10)
    made.path.shut()
    with pytest.raises(ClosedError):
        read(made, rows((0, 5)))


def test_a_map_that_cannot_be_read_is_told_and_memory_is_trimmed() -> None:
    made = Path()
    made.write(3)
    made.lose_map()
    with pytest.raises(StorageError):
        gather(made.path, bytearray(10), rows((0, 1)), 9 * BLOCK)
    made.disk.broken.clear()
    trimmed: list[int] = []
    made.path.bound(0, lambda: trimmed.append(1))
    buffer = bytearray(10)
    assert gather(made.path, buffer, rows((3 * BLOCK, 4)), 9 * BLOCK) == 4
    assert (bytes(buffer), trimmed) == (b"xxxx" + bytes(6), [1])


@pytest.mark.parametrize(
    ("change", "room"),
    [
        ((0, 100 * BLOCK), 0), ((BLOCKS * BLOCK, 5), 0), ((2**64 - 5, 10), 0), ((5, 2**64 - 2), 0),
        ((0, BLOCKS * BLOCK + 1), 2 * BLOCKS * BLOCK),
    ],
)  # fmt: skip
def test_extents_that_somebody_changes_meanwhile_lead_nowhere_else(change: tuple[int, int], room: int) -> None:
    """Method: the first look takes as many extents as it can; during its read the last extent is changed."""
    made = scattered()
    extents = rows(*[(block * BLOCK, BLOCK) for block in range(399, 0, -4)], (0, 5))
    buffer = bytearray(100 * BLOCK + 5 + 1000 + room)

    def changing(slot: int) -> None:
        extents[-1] = change

    made.disk.reading = changing
    with pytest.raises(OutOfRangeError, match="became smaller"):
        gather(made.path, buffer, extents, BLOCKS * BLOCK)
    assert not any(buffer[-1000:])


UNIT = 1000


def test_long_zeros_are_told_apart_and_everything_else_is_summed() -> None:
    """Against what splits and sums byte by byte."""
    randomness = random.Random(1)
    for _ in range(50):
        extents, filled, data, expected = [], [], bytearray(), []
        for _ in range(randomness.randrange(5)):
            offset, length = randomness.randrange(1 << 40), randomness.randrange(1, 6 * UNIT)
            extents.append((offset, length))
            filled.append(randomness.random() < 0.8)
            if not filled[-1]:
                expected.append((offset, length, None))
                continue
            units = [bytes(UNIT), randomness.randbytes(UNIT), bytes(UNIT - 1) + b"x"]
            piece = b"".join(randomness.choices(units, k=6))[:length]
            data += piece
            for at in range(0, length, UNIT):
                unit: bytes | None = piece[at : at + UNIT]
                if not any(unit or b""):
                    unit = None
                begin, size, plain = expected[-1] if at else (0, 0, b"")
                if at and (unit is None) == (plain is None):
                    expected[-1] = (begin, size + min(UNIT, length - at), unit and plain + unit)
                else:
                    expected.append((offset + at, min(UNIT, length - at), unit))
        found = numpy.frombuffer(survey(data, rows(*extents), numpy.array(filled, numpy.uint8), UNIT), "<u8")
        parts = [
            (offset, length, None if at == NOWHERE else bytes(data[at : at + length]), checksum)
            for offset, length, at, checksum in found.reshape(-1, 4).tolist()
        ]
        assert parts == [(*part, xxh64(part[2] or b"")) for part in expected]


@pytest.mark.parametrize(
    ("extents", "filled", "unit"),
    [
        (rows((0, 11)), [1], UNIT), (rows((0, 6), (9, 5)), [1, 1], UNIT), (rows((0, 0)), [1], UNIT),
        (rows((0, 2**64 - 1)), [1], UNIT), (rows((0, 1)), [1, 1], UNIT), (rows((0, 1)), [1], 0),
        (numpy.zeros((1, 3), numpy.uint64), [1], UNIT),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(extents: numpy.ndarray, filled: list[int], unit: int) -> None:
    with pytest.raises(ValueError, match="extent"):
        survey(bytes(10), extents, numpy.array(filled, numpy.uint8), unit)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 9, 300])
def test_sums_of_many_are_those_of_each(count: int) -> None:
    """By the processor's instructions, if it has them, and without; of lengths that have little in common."""
    randomness = random.Random(count)
    lengths = [randomness.choice((1, 31, 32, 33, 63, 64, 4096, 9999)) for _ in range(count)]
    data = bytes(randomness.choices(range(1, 256), k=sum(lengths)))
    extents, filled = rows(*[(0, length) for length in lengths]), numpy.ones(count, numpy.uint8)
    expected, at = [], 0
    for length in lengths:
        expected.append((0, length, at, xxh64(data[at : at + length])))
        at += length
    for portable in (False, True):
        found = numpy.frombuffer(survey(data, extents, filled, UNIT * UNIT, portable), "<u8").reshape(-1, 4)
        assert list(map(tuple, found.tolist())) == expected


def test_rows_are_summed_each() -> None:
    data = random.Random(2).randbytes(80 * 7)
    expected = [xxh64(data[at : at + 72]) for at in range(0, len(data), 80)]
    assert numpy.frombuffer(xxh64_rows(data, 80, 72), "<u8").tolist() == expected
    assert xxh64_rows(b"", 80, 72) == b""


def test_several_threads_read_at_once_beside_writers() -> None:
    made = scattered()
    snapshot = made.snapshot()
    extents = rows(*[(block * BLOCK, BLOCK) for block in range(0, 400, 2)])
    expected = read(made, extents, snapshot)
    wrong: list[int] = []

    def reading() -> None:
        for _ in range(20):
            if read(made, extents, snapshot) != expected:
                wrong.append(1)

    threads = [threading.Thread(target=reading) for _ in range(3)]
    for thread in threads:
        thread.start()
    for block in range(0, 400, 2):
        made.write(block, 1, b"n")
    for thread in threads:
        thread.join()
    assert wrong == []
