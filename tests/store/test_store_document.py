"""docs/store-format.md and the code say the same, row by row: a difference is a bug in one of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cowengine.store import layout

DOCUMENT = (Path(__file__).parents[2] / "docs" / "store-format.md").read_text()


def rows_under(heading: str) -> dict[str, tuple[int, int]]:
    """Offset and bytes by field, of the first byte table below `heading`."""
    text = DOCUMENT[DOCUMENT.index(heading) + len(heading) :]
    table = text[text.index("| offset | bytes | field |") :].split("\n\n")[0]
    found = re.findall(r"^\| (\d+) \| (\d+) \| (\w+) \|", table, re.MULTILINE)
    return {name: (int(offset), int(count)) for offset, count, name in found}


@pytest.mark.parametrize(
    ("heading", "fields"),
    [
        ("**Header.**", layout.HEADER_FIELDS),
        ("**Record.**", layout.RECORD_FIELDS),
        ("**Member**", layout.MEMBER_FIELDS),
    ],
)
def test_a_byte_table_of_the_document_is_the_field_table_of_the_code(
    heading: str, fields: dict[str, tuple[int, int]]
) -> None:
    assert rows_under(heading) == fields


def test_fields_follow_one_another_without_overlap() -> None:
    for fields in (layout.HEADER_FIELDS, layout.RECORD_FIELDS, layout.MEMBER_FIELDS):
        end = 0
        for offset, count in fields.values():
            assert offset >= end
            end = offset + count


def test_a_header_of_known_bytes_reads_as_it_did() -> None:
    """The bytes of format 1, spelt out: this test is never changed, only added to."""
    raw = bytearray(4096)
    raw[0:8] = b"COWSTO\r\n"
    raw[8] = 1
    raw[12] = 9
    raw[40:56] = bytes(range(16))
    raw[56] = 7
    raw[64:72] = b"\x11" * 8
    raw[80:88] = (16384).to_bytes(8, "little")
    raw[88] = 3
    raw[104:112] = (1024).to_bytes(8, "little")
    raw[112] = 5
    raw[4088:] = bytes.fromhex("9682578481926291")
    header = layout.decode_header(bytes(raw))
    assert header is not None
    assert (header.generation, header.base_sequence, header.base_offset, header.tip_sequence) == (7, 3, 1024, 5)
    assert header.store_uuid == bytes(range(16))
    assert layout.encode_header(header) == bytes(raw)
