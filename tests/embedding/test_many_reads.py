"""pread_many: the bytes that pread gives, many extents at once, or a typed error and nothing read."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy
import pytest

from cowengine import CorruptionError, NotFoundError, OutOfRangeError, Volume

SIZE = (6 << 20) + 1536


def scribbled(path: Path, randomness: random.Random, block_size: int) -> Volume:
    """A volume with holes, runs, and blocks that went elsewhere after a snapshot; the last block is not whole."""
    volume = Volume.create(path, SIZE, block_size=block_size, background=False)
    volume.pwrite(randomness.randbytes(SIZE // 2), SIZE // 4)
    for name in ("one", "two"):
        for _ in range(60):
            length = randomness.choice((1, 512, 4096, 9000))
            volume.pwrite(randomness.randbytes(length), randomness.randrange(SIZE - length))
        volume.discard(randomness.randrange(SIZE // 2), SIZE // 8)
        volume.snapshot(name)
    return volume


def some_extents(randomness: random.Random, size: int, count: int) -> list[tuple[int, int]]:
    """In no order, some of them of nothing, some twice or overlapping; block by block, and runs of many blocks."""
    lengths = (0, 1, 511, 4096, 4096, 5000, 70_000, size)
    found = [(randomness.randrange(size), randomness.choice(lengths)) for _ in range(count)]
    found += [(at, 4096) for at in range(0, min(size - 4096, 300 * 4096), 2 * 4096)]
    return [(offset, min(length, size - offset)) for offset, length in found]


def check(view: Any, extents: list[tuple[int, int]]) -> None:
    """The same bytes as one read after the other, and not one more."""
    expected = b"".join(view.pread(length, offset) for offset, length in extents)
    buffer = bytearray(b"\xaa" * (len(expected) + 5))
    assert view.pread_many(buffer, extents) == len(expected)
    assert buffer == expected + b"\xaa" * 5


@pytest.mark.parametrize("sealing", ["nothing", "the first", "all"])
@pytest.mark.parametrize("block_size", [4096, 65536])
def test_many_extents_are_read_as_one_by_one(tmp_path: Path, block_size: int, sealing: str) -> None:
    randomness = random.Random(f"{block_size} {sealing}")
    with scribbled(tmp_path / "v", randomness, block_size) as volume:
        if sealing == "all":
            assert volume.seal().done
        elif sealing == "the first":
            volume.get_snapshot("two").delete()
            volume.seal()
            volume.pwrite(randomness.randbytes(90_000), 3 << 20)
            volume.snapshot("two")
        with volume.get_snapshot("one").clone("clone") as clone:
            clone.pwrite(b"of the clone", 12345)
            for view in (*volume.snapshots(), clone, volume):
                check(view, some_extents(randomness, SIZE, 30))
        volume.resize(SIZE // 3 // 512 * 512)
        check(volume, some_extents(randomness, volume.size, 30))
        check(volume.get_snapshot("one"), some_extents(randomness, SIZE, 30))


def test_the_lists_of_a_snapshot_are_read_as_they_are(tmp_path: Path) -> None:
    """Another process's snapshot, too; the lists have whole blocks, but for the last one of the volume."""
    path = tmp_path / "v"
    with scribbled(path, random.Random(3), 4096) as volume, Volume.open(path, read_only=True) as seen:
        for snapshot in (volume.get_snapshot("two"), seen.get_snapshot("two")):
            for rows in (snapshot.changed_extents("one"), snapshot.allocated_extents()):
                buffer = bytearray(int(rows[:, 1].sum()))
                assert snapshot.pread_many(buffer, rows) == len(buffer)
                assert buffer == b"".join(snapshot.pread(length, offset) for offset, length in rows.tolist())


@pytest.fixture
def volume(tmp_path: Path) -> Any:
    with Volume.create(tmp_path / "v", 1 << 20, background=False) as volume:
        volume.pwrite(bytes(range(1, 256)) * 4000, 0)
        volume.snapshot("kept")
        yield volume


@pytest.mark.parametrize(
    "extents",
    [
        [], (), numpy.empty((0, 2), int), [(0, 0)], [(1 << 20, 0)], [(5, 7), (5, 7)], ((5, 7), (1, 10)), [[5, 7]],
        numpy.array([[5, 7]], dtype=">u4"), numpy.array([[5, 7]], dtype=numpy.int8),
        numpy.array([[5, 1, 7], [9, 1, 3]])[:, ::2], numpy.array([[5, 7], [9, 3]], order="F"),
        numpy.frombuffer(b"." + bytes([5, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]), "<u8", offset=1).reshape(1, 2),
    ],
)  # fmt: skip
def test_extents_may_be_any_rows_of_two_ints(volume: Volume, extents: Any) -> None:
    for view in (volume, volume.get_snapshot("kept")):
        check(view, [(int(offset), int(length)) for offset, length in extents])
        rows = numpy.asarray(extents)
        buffer = bytearray(100)
        assert view.pread_many(buffer, extents) == int(rows[:, 1].sum() if rows.size else 0)


SIZE_ONE = 1 << 20


@pytest.mark.parametrize(
    "extents",
    [
        None, 5, "ab", b"ab", {}, {1: 2}, [5], [5, 7], [(5,)], [(5, 7, 9)], [(5, 7), (9,)], [("5", "7")], [(5.0, 7.0)],
        [(None, 7)], [(True, False)], [[(5, 7)]], iter([(5, 7)]), numpy.ones((2, 2)), numpy.empty((0, 2)),
        numpy.ones((3, 0), dtype=int),
        [(-1, 5)], [(5, -1)], [(SIZE_ONE, 1)], [(0, 1), (SIZE_ONE - 1, 2)], [(SIZE_ONE + 1, 0)], [(0, SIZE_ONE + 1)],
        [(2**63, 1)], [(2**64 - 1, 2)], [(1, 2**64 - 1)], [(2**64, 1)], [(2**63, -1)], [(2**70, 2**70)],
        numpy.array([[5, 7]], dtype="m8[s]"), numpy.array([[5, 7]], dtype=object),
    ],
)  # fmt: skip
def test_extents_that_cannot_be_are_refused_and_nothing_is_read(volume: Volume, extents: Any) -> None:
    for view in (volume, volume.get_snapshot("kept")):
        buffer = bytearray(2 * SIZE_ONE)
        with pytest.raises(OutOfRangeError, match=r"extent"):
            view.pread_many(buffer, extents)
        assert buffer == bytes(2 * SIZE_ONE)


def test_buffers_that_cannot_be_are_refused(volume: Volume) -> None:
    for view in (volume, volume.get_snapshot("kept")):
        for buffer in (bytes(10), None, 5, "abc", [1, 2], memoryview(bytearray(40))[::2], memoryview(b"abc")):
            with pytest.raises(OutOfRangeError, match=r"buffer|contiguous"):
                view.pread_many(buffer, [(0, 3)])  # type: ignore[arg-type]
        whole = (0, SIZE_ONE)
        for small, extents in ((9, [(0, 10)]), (9, [(0, 5), (3, 5)]), (0, [(0, 1)]), (SIZE_ONE, [whole] * 70_000)):
            buffer = bytearray(small)
            with pytest.raises(OutOfRangeError, match=f"the buffer has {small} bytes"):
                view.pread_many(buffer, extents)
            assert not any(buffer)
        numbers = numpy.zeros((4, 5), dtype="<u2")  # any writable buffer will do
        assert view.pread_many(numbers, [(0, 20), (0, 20)]) == 40
        assert numbers.tobytes() == view.pread(20, 0) * 2


def test_a_block_that_is_not_what_was_sealed_is_named_and_others_stay_readable(volume: Volume) -> None:
    snapshot = volume.get_snapshot("kept")
    assert volume.seal().done
    slot, _ = volume.engine.path.place(7)
    with open(volume.path, "r+b") as file:
        file.seek(slot * 4096 + 5)
        file.write(b"\0")
    buffer = bytearray(100_000)
    for extents in ([(0, 5), (7 * 4096 + 100, 9)], [(40_000, 4096), (20_000, 20_000)], [(7 * 4096, 4096)]):
        for view in (volume, snapshot):
            with pytest.raises(CorruptionError, match=f"block at byte {7 * 4096} in slot {slot}") as caught:
                view.pread_many(buffer, extents)
            assert (caught.value.offset, caught.value.file_offset) == (7 * 4096, slot * 4096)
            assert caught.value.volume == volume.path
        assert caught.value.snapshot == "kept"
    check(snapshot, [(0, 7 * 4096), (8 * 4096, 50_000)])


def test_a_snapshot_that_is_gone_is_not_found(volume: Volume) -> None:
    snapshot, buffer = volume.get_snapshot("kept"), bytearray(10)
    check(snapshot, [(0, 3)])
    snapshot.delete()
    for extents in ([(0, 3)], []):
        with pytest.raises(NotFoundError, match="kept"):
            snapshot.pread_many(buffer, extents)
    volume.close()
    for view in (snapshot, volume):
        with pytest.raises(ValueError, match="closed"):
            view.pread_many(buffer, [(0, 3)])
