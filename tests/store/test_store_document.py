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


# A set of one volume, as format 1 has it. Never changed, only added to.
RECORD = bytes.fromhex(
    "435753529c00000011111111111111110900000000000000020000000000000022222222222222220807060504030201"
    "01000500070000000100000000000000000102030405060708090a0b0c0d0e0f0000000000000000af12ea71f31dd77d"
    "101112131415161718191a1b1c1d1e1f030000000000000004000000000000000500000000000000ffffffffffffffff"
    "6ec3a46d657b2261223a317d"
)


def test_a_record_of_known_bytes_reads_as_it_did() -> None:
    store_uuid = bytes(range(32, 48))
    found = layout.peek_record(RECORD, 0, 4096, store_uuid)
    assert found is not None
    frame, raw, checksum = found
    assert frame == layout.Frame(salt=0x1111111111111111, sequence=9, generation=2, previous=0x2222222222222222)
    record = layout.decode_record(raw)
    member = layout.RecordMember(volume_uuid=bytes(range(16, 32)), snapshot_id=3, epoch=4, sequence=5, tag=2**64 - 1)
    assert record == layout.Record(
        type=layout.TYPE_SET,
        set_id=bytes(range(16)),
        created_ns=0x0102030405060708,
        name="näme",
        metadata=b'{"a":1}',
        members=(member,),
    )
    assert layout.encode_record(record, frame, store_uuid) == (RECORD, checksum)
    assert layout.peek_record(RECORD, 0, 4096, bytes(range(33, 49))) is None  # another store's
