"""Arguments that cannot be: OutOfRangeError (or what says it better), before anything was done."""

from __future__ import annotations

import array
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

from cowengine import Volume
from cowengine.errors import ExistsError, NotFoundError, OutOfRangeError
from cowengine.format import SIZE_MAX

SIZE = 1 << 20
CONTENTS = bytes(range(256)) * (SIZE // 256)

NO_NUMBERS = [0.0, 0.5, math.nan, "0", b"0", None, [], 1j, numpy.float64(0)]
HUGE = [2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**70, -1, -(2**63), -(2**64), -(2**70)]


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    """A volume with known contents and one snapshot of them; untouched, and sound, at the end of each test."""
    with Volume.create(tmp_path / "v", SIZE, background=False) as volume:
        volume.pwrite(CONTENTS, 0)
        volume.snapshot("kept")
        yield volume
        assert volume.pread(SIZE, 0) == CONTENTS
        assert volume.get_snapshot("kept").pread(SIZE, 0) == CONTENTS
        assert volume.check().ok


# -- creation ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [0, -512, -4096, 1, 511, 513, 4095, True, False, SIZE_MAX + 512, *HUGE, *NO_NUMBERS])
def test_a_size_that_cannot_be_is_refused_and_leaves_no_file(tmp_path: Path, size: Any) -> None:
    with pytest.raises(OutOfRangeError, match=r"size.*(multiple of 512|must be an int)"):
        Volume.create(tmp_path / "v", size)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("block_size", [0, -4096, 1, 512, 2048, 4095, 4097, 12288, 2 << 20, True, *HUGE, *NO_NUMBERS])
def test_a_block_size_that_cannot_be_is_refused_and_leaves_no_file(tmp_path: Path, block_size: Any) -> None:
    with pytest.raises(OutOfRangeError, match="block_size"):
        Volume.create(tmp_path / "v", SIZE, block_size=block_size)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "log_size", [0, -4096, 4096, 12288, 16385, 16384 + 512, 65 << 20, True, *HUGE, *filter(None, NO_NUMBERS)]
)
def test_a_log_size_that_cannot_be_is_refused_and_leaves_no_file(tmp_path: Path, log_size: Any) -> None:
    with pytest.raises(OutOfRangeError, match="log_size"):
        Volume.create(tmp_path / "v", SIZE, log_size=log_size)
    assert list(tmp_path.iterdir()) == []


def test_a_volume_too_large_for_the_file_system_names_the_size_and_leaves_no_file(tmp_path: Path) -> None:
    largest = 0
    for shift in range(40, 48):
        size = 1 << shift
        try:
            with Volume.create(tmp_path / "v", size) as volume:
                volume.pwrite(b"end", size - 3)
                assert volume.pread(3, size - 3) == b"end"
            largest = size
            (tmp_path / "v").unlink()
        except OutOfRangeError as error:
            assert str(size) in str(error)
            assert "too large for this file system" in str(error)
            assert list(tmp_path.iterdir()) == []
            break
    assert largest >= 1 << 40


@pytest.mark.parametrize("path", [None, 5, 1.5, [], "a\0b", b"a\0b", "\ud800", True])
def test_what_is_no_path_is_refused(path: Any) -> None:
    for call in (lambda: Volume.create(path, SIZE), lambda: Volume.open(path)):
        with pytest.raises(OutOfRangeError, match="path"):
            call()


def test_a_path_may_be_bytes_or_path_like(tmp_path: Path) -> None:
    name = bytes(tmp_path) + b"/odd-\xff\n name"
    Volume.create(name, SIZE).close()
    with Volume.open(name) as volume:
        assert volume.check().ok


# -- offsets and lengths ----------------------------------------------------------------------------------------------
def calls(volume: Volume) -> dict[str, Callable[[Any, Any], Any]]:
    """What takes an offset and a length."""
    snapshot = volume.get_snapshot("kept")
    return {
        "pread": lambda offset, length: volume.pread(length, offset),
        "discard": volume.discard,
        "write_zeroes": volume.write_zeroes,
        "allocated_extents": volume.allocated_extents,
        "changed_extents": lambda offset, length: volume.changed_extents("kept", offset, length),
        "pread of a snapshot": lambda offset, length: snapshot.pread(length, offset),
        "allocated_extents of a snapshot": snapshot.allocated_extents,
        "changed_extents of a snapshot": lambda offset, length: snapshot.changed_extents("kept", offset, length),
    }


BAD_RANGES = [
    (SIZE, 1), (SIZE - 1, 2), (0, SIZE + 1), (SIZE + 1, 0), (-1, 1), (0, -1), (-1, -1), (SIZE, -1),
    *[(number, 1) for number in HUGE], *[(0, number) for number in HUGE], *[(number, number) for number in HUGE],
    *[(number, 0) for number in HUGE], *[(number, 1) for number in NO_NUMBERS],
    *[(0, number) for number in NO_NUMBERS if number is not None],
]  # fmt: skip


def test_a_range_that_does_not_lie_in_the_volume_is_refused_everywhere(volume: Volume) -> None:
    for name, call in calls(volume).items():
        for offset, length in BAD_RANGES:
            with pytest.raises(OutOfRangeError):
                call(offset, length)
                pytest.fail(f"{name}({offset!r}, {length!r}) was accepted")


def test_a_buffer_that_does_not_lie_in_the_volume_is_refused_everywhere(volume: Volume) -> None:
    snapshot = volume.get_snapshot("kept")
    for offset in [SIZE, SIZE - 4, SIZE + 1, *HUGE, *NO_NUMBERS]:
        for call in (volume.pread_into, snapshot.pread_into, volume.pwrite):
            buffer = bytearray(b"12345")
            with pytest.raises(OutOfRangeError):
                call(buffer, offset)
                pytest.fail(f"{call} at {offset!r} was accepted")
            assert buffer == b"12345"
    for offset in (SIZE + 1, *HUGE):
        for call in (volume.pread_into, snapshot.pread_into, volume.pwrite):
            with pytest.raises(OutOfRangeError):
                call(bytearray(), offset)
    for call in (volume.pread_into, volume.pwrite):
        with pytest.raises(OutOfRangeError, match=str(SIZE + 1)):
            call(bytearray(SIZE + 1), 0)


def test_messages_say_what_was_wanted_and_how_large_the_volume_is(volume: Volume) -> None:
    for call in (
        lambda: volume.pwrite(b"abc", SIZE - 1),
        lambda: volume.pwrite(b"abc", -1),
        lambda: volume.pread(3, -1),
    ):
        with pytest.raises(OutOfRangeError, match=rf"of 3 bytes at (-1|{SIZE - 1}): the volume has {SIZE} bytes"):
            call()
    with pytest.raises(OutOfRangeError, match="must be an int, not float"):
        volume.pwrite(b"x", 0.5)  # type: ignore[arg-type]


def test_nothing_of_length_zero_does_anything_and_is_allowed_to_the_very_end(volume: Volume) -> None:
    epoch, snapshot = volume.epoch, volume.get_snapshot("kept")
    for offset in (0, 1, 4096, SIZE - 1, SIZE):
        assert volume.pread(0, offset) == b"" == snapshot.pread(0, offset)
        assert volume.pread_into(bytearray(), offset) == 0 == snapshot.pread_into(bytearray(), offset)
        assert volume.pwrite(b"", offset) == 0
        volume.discard(offset, 0)
        volume.write_zeroes(offset, 0)
        assert len(volume.allocated_extents(offset, 0)) == 0 == len(snapshot.allocated_extents(offset, 0))
        assert len(volume.changed_extents("kept", offset, 0)) == 0
    assert len(volume.changed_extents("kept")) == 0
    assert volume.epoch == epoch


def test_numbers_of_an_extent_array_are_offsets_and_lengths(volume: Volume) -> None:
    ((offset, length),) = volume.allocated_extents()
    assert type(offset) is numpy.uint64
    assert volume.pread(length, offset) == CONTENTS
    buffer = bytearray(int(length))
    assert volume.pread_into(buffer, offset) == length
    assert buffer == CONTENTS
    assert volume.pwrite(buffer, offset) == length
    assert volume.get_snapshot("kept").pread(length, offset) == CONTENTS
    assert len(volume.changed_extents("kept", offset, length)) == 1
    volume.rollback("kept")


@pytest.mark.parametrize("most", [0, -1, -(2**64), 0.5, "1", []])
def test_fewer_than_one_result_is_refused(volume: Volume, most: Any) -> None:
    for call in (volume.allocated_extents, volume.get_snapshot("kept").allocated_extents):
        with pytest.raises(OutOfRangeError, match="max_results"):
            call(0, None, most)


@pytest.mark.parametrize("most", [2**31, 2**63, 2**64, 2**70])
def test_any_number_of_results_may_be_asked_for(volume: Volume, most: int) -> None:
    assert volume.allocated_extents(0, None, most).tolist() == [[0, SIZE]]
    assert [snapshot.name for snapshot in volume.snapshots(0, most)] == ["kept"]
    assert volume.snapshots(most) == volume.snapshots(0, 0) == []


@pytest.mark.parametrize("page", [(-1, None), (0, -1), (0.5, None), ("0", None), (None, None), (0, "1"), (0, 0.0)])
def test_a_page_of_snapshots_that_cannot_be_is_refused(volume: Volume, page: tuple[Any, Any]) -> None:
    with pytest.raises(OutOfRangeError):
        volume.snapshots(*page)


# -- buffers ----------------------------------------------------------------------------------------------------------
NO_BUFFERS = ["text", 5, None, 1.5, [1, 2], object()]
SCATTERED = [memoryview(bytearray(100))[::2], numpy.zeros((4, 4))[:, ::2], numpy.asfortranarray(numpy.ones((3, 3)))]


@pytest.mark.parametrize("data", [*NO_BUFFERS, *SCATTERED], ids=lambda data: f"{type(data).__name__}")
def test_what_is_no_contiguous_buffer_is_refused(volume: Volume, data: Any) -> None:
    for call in (volume.pwrite, volume.pread_into, volume.get_snapshot("kept").pread_into):
        with pytest.raises(OutOfRangeError, match="buffer"):
            call(data, 0)


def test_a_read_into_a_read_only_buffer_is_refused(volume: Volume) -> None:
    frozen = numpy.zeros(16)
    frozen.flags.writeable = False
    for buffer in (b"bytes", memoryview(b"bytes"), b"", frozen):
        for call in (volume.pread_into, volume.get_snapshot("kept").pread_into):
            with pytest.raises(OutOfRangeError, match="writable"):
                call(buffer, 0)
    assert not frozen.any()


def test_any_contiguous_buffer_is_written_and_filled_byte_by_byte(volume: Volume) -> None:
    for data in (
        bytearray(b"abcdefgh"),
        array.array("d", [1.0]),
        numpy.arange(6, dtype=">u2").reshape(2, 3),
        memoryview(bytearray(b"abcdefgh")).cast("I"),
        memoryview(bytearray(b"xxabcdxx"))[2:6],
    ):
        length = memoryview(data).nbytes
        before = bytes(memoryview(data))
        assert volume.pwrite(data, 4093) == length
        assert volume.pread(length, 4093) == before
        memoryview(data).cast("B")[:] = bytes(length)
        assert volume.pread_into(data, 4093) == length
        assert bytes(memoryview(data)) == before
    volume.rollback("kept")


# -- names ------------------------------------------------------------------------------------------------------------
HOSTILE = ["", "a/b", "/", "../../x", "a\0b", "\0", "x" * 256, "x" * 10_000, "é" * 128, "\ud800", "a\udfffb"]
NO_NAMES = [None, 5, 1.5, True, b"name", ["n"], object()]


@pytest.mark.parametrize("name", [*HOSTILE, *NO_NAMES], ids=lambda name: ascii(name)[:20])
def test_a_hostile_name_makes_no_snapshot_and_finds_none(volume: Volume, name: Any) -> None:
    epoch = volume.epoch
    with pytest.raises(OutOfRangeError, match="name") as caught:
        volume.snapshot(name)
    assert len(str(caught.value)) < 300
    str(caught.value).encode()  # can be printed and logged
    if isinstance(name, str):
        with pytest.raises(NotFoundError) as missing:
            volume.get_snapshot(name)
        assert len(str(missing.value).replace(volume.path, "")) < 300
        str(missing.value).encode()
    assert volume.epoch == epoch
    assert [snapshot.name for snapshot in volume.snapshots()] == ["kept"]


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, ".", "..", " ", "\n", "-rf", "名前", "\x7f", "\u202e", "a\\b"])
def test_every_other_name_survives_a_reopen(tmp_path: Path, name: str) -> None:
    with Volume.create(tmp_path / "v", SIZE, background=False) as volume:
        volume.snapshot(name)
    with Volume.open(tmp_path / "v", background=False) as volume:
        assert volume.get_snapshot(name).name == name
        assert volume.check().ok


def test_a_name_is_taken_once(volume: Volume) -> None:
    with pytest.raises(ExistsError, match="kept"):
        volume.snapshot("kept")
    assert len(volume.snapshots()) == 1


def test_unknown_snapshots_are_not_found(volume: Volume) -> None:
    for call in (volume.get_snapshot, volume.rollback, volume.changed_extents):
        for unknown in ("unknown", 2, 2**40):
            with pytest.raises(NotFoundError, match="no snapshot"):
                call(unknown)


@pytest.mark.parametrize("number", [0, -1, 2**63, 2**64, -(2**70), True, False, 1.0, None, b"kept", [], (1,)])
def test_what_is_no_id_is_refused(volume: Volume, number: Any) -> None:
    for call in (volume.get_snapshot, volume.rollback, volume.changed_extents):
        with pytest.raises(OutOfRangeError):
            call(number)


# -- metadata ---------------------------------------------------------------------------------------------------------
def bad_metadata() -> dict[str, Any]:
    """What is no small JSON object."""
    circle: dict[str, Any] = {}
    circle["again"] = circle
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"in": deep}
    return {
        "list": [], "str": "x", "int": 5, "set": set(), "nan": {"a": math.nan}, "infinity": {"a": -math.inf},
        "circle": circle, "deep": deep, "bytes": {"a": b"x"}, "object": {"a": object()}, "set inside": {"a": {1}},
        "tuple as key": {(1, 2): 3}, "mixed keys": {1: 2, "a": 3}, "long": {"a": "x" * 5000},
        "surrogate": {"a": "\ud800"},
        "huge int": {"a": 10**5000}, "very long": {"a": "x" * 10_000_000},
    }  # fmt: skip


@pytest.mark.parametrize("kind", bad_metadata())
def test_metadata_that_is_no_small_json_object_is_refused(volume: Volume, kind: str) -> None:
    with pytest.raises(OutOfRangeError, match="metadata") as caught:
        volume.snapshot("new", metadata=bad_metadata()[kind])
    assert len(str(caught.value)) < 300
    assert [snapshot.name for snapshot in volume.snapshots()] == ["kept"]


def test_metadata_of_the_largest_size_survives_a_reopen(tmp_path: Path) -> None:
    largest = {}
    with Volume.create(tmp_path / "v", SIZE, background=False) as volume:
        for length in range(5000, 0, -1):
            largest = {"a": "x" * length}
            try:
                volume.snapshot("s", metadata=largest)
                break
            except OutOfRangeError as error:
                assert "this volume takes" in str(error)
    with Volume.open(tmp_path / "v", background=False) as volume:
        assert volume.get_snapshot("s").metadata == largest
        assert volume.check().ok
    assert len(largest["a"]) > 1000
