"""docs/backup-format.md and cowengine/backup/layout.py say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cowengine.backup import layout

DOCUMENT = Path(__file__).parents[2] / "docs" / "backup-format.md"

TABLES = {
    "### 1.1 Record header": layout.RECORD,
    "### 1.2 Header record": layout.STREAM_HEADER,
    "then each volume:": layout.VOLUME_ENTRY,
    "### 1.5 End record": layout.STREAM_END,
}


def rows_after(heading: str) -> dict[str, tuple[int, int]]:
    text = DOCUMENT.read_text(encoding="utf-8")
    table = text[text.index(heading) :].split("| offset | bytes |", 1)[1].split("\n\n", 1)[0]
    return {
        name: (int(offset), int(width))
        for offset, width, name in re.findall(r"^\| (\d+) \| (\d+) \| (\w+) \|", table, re.M)
    }


@pytest.mark.parametrize("heading", TABLES)
def test_each_table_of_the_document_is_the_table_of_the_code(heading: str) -> None:
    assert rows_after(heading) == TABLES[heading].offsets


def test_the_record_header_has_the_size_the_document_names() -> None:
    assert layout.RECORD.bytes == 80
    assert layout.PAYLOAD_BYTES_MAX == 4 << 20


def test_a_reserved_field_that_is_not_zero_is_refused() -> None:
    values = dict.fromkeys((name for name in layout.RECORD.offsets if not name.startswith("reserved_")), 0)
    raw = bytearray(layout.RECORD.pack(**values | {"magic": layout.MAGIC}))
    layout.RECORD.unpack(bytes(raw))
    raw[layout.RECORD.offsets["reserved_36"][0]] = 1
    with pytest.raises(Exception, match="reserved_36"):
        layout.RECORD.unpack(bytes(raw))
