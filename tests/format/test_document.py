"""docs/format.md and the code say the same, row by row: a difference is a bug in one of them."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from cowengine.format import layout

DOCUMENT = (Path(__file__).parents[2] / "docs" / "format.md").read_text()


def rows_under(heading: str) -> list[tuple[str, int, int]]:
    """(name, offset, bytes) of the first byte table below `heading`."""
    text = DOCUMENT[DOCUMENT.index(heading) + len(heading) :]
    table = text[text.index("| offset | bytes | field |") :].split("\n\n")[0]
    found = re.findall(r"^\| (\d+) \| (\d+) \| (\w+) \|", table, re.MULTILINE)
    return [(name, int(offset), int(count)) for offset, count, name in found if name != "reserved"]


@pytest.mark.parametrize(
    ("heading", "table"),
    [
        ("## 3. Superblock", layout.SUPERBLOCK),
        ("**Pointer**", layout.POINTER),
        ("**Map entry**", layout.MAP_ENTRY),
        ("**The index of names**", layout.NAME_ENTRY),
        ("## 5. Lineage record", layout.LINEAGE_RECORD),
        ("## 6. The commit log", layout.RECORD_HEADER),
        ("**Delta**", layout.DELTA),
        ("## 9. Between a raw image and a volume", layout.INTENT),
    ],
)
def test_a_byte_table_of_the_document_is_the_field_table_of_the_code(heading, table):
    assert rows_under(heading) == [tuple(field) for field in table]


@pytest.mark.parametrize(
    ("table", "size"),
    [
        (layout.SUPERBLOCK, layout.SLOT_BYTES),
        (layout.POINTER, layout.POINTER_BYTES),
        (layout.MAP_ENTRY, layout.ENTRY_BYTES),
        (layout.NAME_ENTRY, layout.NAME_ENTRY_BYTES),
        (layout.LINEAGE_RECORD, layout.LINEAGE_BYTES),
        (layout.RECORD_HEADER, layout.RECORD_HEADER_BYTES),
        (layout.DELTA, layout.DELTA_BYTES),
        (layout.EVENT_HEADER, layout.EVENT_HEADER_BYTES),
        (layout.INTENT, layout.INTENT_BYTES),
    ],
)
def test_the_struct_of_a_table_has_its_size_and_no_field_overlaps_another(table, size):
    assert layout.struct_of(table, size).size == size
    covered = sum(field.bytes for field in table) + sum(end - begin for begin, end in layout.gaps_of(table, size))
    assert covered == size
    for field, following in itertools.pairwise(table):
        assert field.offset + field.bytes <= following.offset


def test_the_events_of_the_document_are_those_of_the_code():
    table = DOCUMENT[DOCUMENT.index("| type | name | payload |") :].split("\n\n")[0]
    rows = re.findall(r"^\| (\d+) \| (\w+) \| (.+?) \|$", table, re.MULTILINE)
    assert [int(kind) for kind, _, _ in rows] == sorted(layout.EVENT_PAYLOADS)
    names = dict(enumerate(("SNAPSHOT", "DELETE", "RECLAIM", "RECLAIMED", "ROLLBACK", "STORE", "RESIZE"), 1))
    names |= {
        8: "CLONE",
        9: "ANCHOR",
        10: "HOLD",
        11: "POLICY",
        12: "GIVE_UP",
        13: "DELETE_HEAD",
        14: "REGION",
        15: "RETAIN",
    }
    for kind, name, payload in rows:
        assert name.upper() == names[int(kind)]
        widths = [int(width) for width in re.findall(r" (\d+)(?=[,:]|$)", payload)]
        assert widths == [field.bytes for field in layout.EVENT_PAYLOADS[int(kind)]]


def test_the_numbers_of_the_document_are_those_of_the_code():
    assert "interior nodes hold 128 pointers of 32 bytes" in DOCUMENT and layout.FANOUT == 128
    assert "| map | 1 | block number | 256 entries of 16 bytes |" in DOCUMENT and layout.LEAF_ENTRIES == 256
    assert "| lineage | 2 | id of a head or snapshot | 8 records of 512 bytes |" in DOCUMENT
    assert layout.RECORDS_PER_LEAF == 8
    assert "| free map | 3 | slot number | 32,768 bits" in DOCUMENT and layout.BITS_PER_LEAF == 32768
    assert (layout.TREE_MAP, layout.TREE_LINEAGE, layout.TREE_FREE_MAP) == (1, 2, 3)
    assert "| seals | 4 | slot number | 1,024 seals of 4 bytes" in DOCUMENT
    assert (layout.TREE_SEALS, layout.SEALS_PER_LEAF, layout.FEATURE_SEALS) == (4, 1024, 1)
    assert "| names | 5 | 256 x number of the leaf | 256 entries of 16 bytes, or 4,096 counts of 1 byte |" in DOCUMENT
    assert (layout.TREE_NAMES, layout.NAME_ENTRIES_PER_LEAF, layout.COUNTS_PER_LEAF) == (5, 256, 4096)
    assert "of the index: 1 to 2,080,768" in DOCUMENT and layout.NAME_BUCKETS_MAX == 2_080_768
    assert "`next_id` is above 2^32" in DOCUMENT and layout.NAMED_IDS_MAX == 2**32
    assert "is about the 64 ids" in DOCUMENT and layout.IDS_PER_COUNT == 64
    assert "recovery adds 1,024" in DOCUMENT and layout.EPOCH_SKIP == 1024
    assert "`COWENG\\r\\n`" in DOCUMENT and layout.MAGIC == b"COWENG\r\n"
    assert "`CWRC`" in DOCUMENT and layout.RECORD_MAGIC == b"CWRC"
    assert "2^64-1: none" in DOCUMENT and layout.NONE_ID == layout.NO_CURSOR == 2**64 - 1
    assert "of a root at most 6" in DOCUMENT and layout.LEVEL_MAX == 6
    assert "log 16 KiB to 64 MiB" in DOCUMENT
    assert (layout.LOG_BYTES_MIN, layout.LOG_BYTES_MAX) == (16 << 10, 64 << 20)
    assert "volume size 512 bytes to 2^48 - 4096 bytes" in DOCUMENT
    assert (layout.SIZE_MIN, layout.SIZE_MAX) == (512, 2**48 - 4096)
