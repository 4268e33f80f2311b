"""The file directory: the bytes, the choice between its copies, and what is refused."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowengine.core.checksum import xxh64
from cowengine.errors import FormatError, OutOfRangeError, UnsupportedVersionError
from cowengine.sqlite import layout
from cowengine.sqlite.layout import COPY_BYTES, Directory, decode_newest, encode, new_directory, volume_bytes

DOCUMENT = Path(__file__).parents[2] / "docs" / "sqlite.md"
SIZE = volume_bytes(16 << 20)
EMPTY = bytes(COPY_BYTES)


def directory(sequence: int = 1, lengths: tuple[int, int, int] = (4096, 0, 0)) -> Directory:
    return Directory(sequence, layout.areas_of(SIZE), (True, False, False), lengths)


def sealed(copy: bytes) -> bytes:
    """The same bytes with the right checksum."""
    return copy[:504] + struct.pack("<Q", xxh64(copy[:504]))


@given(
    sequence=st.integers(0, 2**64 - 1),
    exists=st.tuples(*[st.booleans()] * 3),
    lengths=st.tuples(*[st.integers(0, 16 << 20)] * 3),
)
def test_what_was_encoded_is_decoded(sequence: int, exists: tuple[bool, ...], lengths: tuple[int, ...]) -> None:
    lengths = tuple(length if there else 0 for there, length in zip(exists, lengths, strict=True))
    before = Directory(sequence, layout.areas_of(SIZE), exists, lengths)
    assert decode_newest(encode(before) + EMPTY, SIZE) == (before, 0)


def test_the_copy_with_the_higher_sequence_counts() -> None:
    old, new = directory(7), directory(8, (8192, 0, 0))
    assert decode_newest(encode(old) + encode(new), SIZE) == (new, 1)
    assert decode_newest(encode(new) + encode(old), SIZE) == (new, 0)


@given(st.integers(0, COPY_BYTES - 1), st.integers(1, 255))
def test_any_changed_byte_of_the_newer_copy_leaves_the_older_one(position: int, change: int) -> None:
    torn = bytearray(encode(directory(8, (8192, 0, 0))))
    torn[position] ^= change
    assert decode_newest(encode(directory(7)) + bytes(torn), SIZE) == (directory(7), 0)


def test_two_copies_of_zeros_are_a_volume_without_files() -> None:
    assert decode_newest(EMPTY + EMPTY, SIZE) is None


@given(st.binary(min_size=2 * COPY_BYTES, max_size=2 * COPY_BYTES))
def test_arbitrary_bytes_are_refused_or_empty(data: bytes) -> None:
    if any(data):
        with pytest.raises(FormatError):
            decode_newest(data, SIZE)


def test_a_newer_version_is_refused_and_not_taken_for_torn() -> None:
    newer = bytearray(encode(directory(9)))
    newer[8] = 2
    with pytest.raises(UnsupportedVersionError, match="format 2"):
        decode_newest(encode(directory(7)) + sealed(bytes(newer)), SIZE)


@pytest.mark.parametrize(
    ("offset", "value", "what"),
    [
        (12, 4, "number of files"),
        (24, 4096, "cannot lie"),
        (24, SIZE, "cannot lie"),
        (24 + 32, 1 << 20, "cannot lie"),
        (40, (16 << 20) + 1, "length"),
        (40 + 32, 1, "length"),
        (48, 3, "flags"),
        (200, 1, "reserved"),
    ],
)
def test_a_field_that_cannot_be_is_refused_by_name(offset: int, value: int, what: str) -> None:
    broken = bytearray(encode(directory()))
    struct.pack_into("<I" if offset == 12 else "<Q", broken, offset, value)
    with pytest.raises(FormatError, match=what):
        decode_newest(sealed(bytes(broken)) + EMPTY, SIZE)


@pytest.mark.parametrize("capacity", [1, 1 << 20, (1 << 20) + 1, 64 << 30])
def test_a_volume_made_for_a_capacity_has_it_for_each_file(capacity: int) -> None:
    areas = new_directory(volume_bytes(capacity)).areas
    assert all(area.capacity >= capacity for area in areas)
    assert areas[-1].offset + areas[-1].capacity <= volume_bytes(capacity)


@pytest.mark.parametrize("call", [lambda: volume_bytes(0), lambda: volume_bytes(-1), lambda: layout.areas_of(1 << 20)])
def test_a_capacity_that_cannot_be_is_refused(call: object) -> None:
    with pytest.raises(OutOfRangeError):
        call()  # type: ignore[operator]


def test_the_example_of_the_document_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    exec(compile(example, str(DOCUMENT), "exec"), {"path": tmp_path / "store"})
    assert capsys.readouterr().out == "0\n"


def test_the_document_has_the_same_tables() -> None:
    text = DOCUMENT.read_text()
    rows = re.findall(r"^\| ([\d,]+) \| (\d+|3 x 32) \| (\w+) \|", text, re.MULTILINE)
    table = {name: (int(offset.replace(",", "")), width) for offset, width, name in rows}
    copy = encode(Directory(5, layout.areas_of(SIZE), (True, True, True), (1, 2, 3)))

    def field(name: str, base: int = 0) -> int:
        offset, width = table[name]
        return int.from_bytes(copy[base + offset : base + offset + int(width)], "little")

    assert copy[: int(table["magic"][1])] == layout.MAGIC
    assert field("version") == layout.VERSION
    assert field("file_count") == layout.FILE_COUNT
    assert field("sequence") == 5
    assert field("checksum") == xxh64(copy[: table["checksum"][0]])
    for number, area in enumerate(layout.areas_of(SIZE)):
        base = table["entries"][0] + 32 * number
        found = [field(name, base) for name in ("offset", "capacity", "length", "flags")]
        assert found == [area.offset, area.capacity, number + 1, 1]
    assert f"| {layout.AREA_ALIGNMENT:,} | area of the main file" in text
