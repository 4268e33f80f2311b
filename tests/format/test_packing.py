"""The kernel that encodes records and snapshot events says what the tables of the format say, field by field."""

from __future__ import annotations

import importlib.util
import struct
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowengine import format as f
from cowengine.core.checksum import xxh64
from cowengine.core.records import pack_record, pack_snapshot
from cowengine.format.layout import (
    EVENT_BEFORE,
    EVENT_HEAD_SHIFT,
    EVENT_HEADER,
    EVENT_HEADER_BYTES,
    EVENT_PAYLOADS,
    EVENT_SNAPSHOT,
    MASK64,
    RECORD_CHECKSUM_OFFSET,
    RECORD_HEADER,
    RECORD_HEADER_BYTES,
    RECORD_MAGIC,
    RECORD_ONE_BARRIER,
    SNAPSHOT_FIXED_BYTES,
    struct_of,
)

_spec = importlib.util.spec_from_file_location("packing_strategies", Path(__file__).with_name("strategies.py"))
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)

HEADER = struct_of(RECORD_HEADER, RECORD_HEADER_BYTES)
EVENT = struct_of(EVENT_HEADER, EVENT_HEADER_BYTES)
SNAPSHOT = struct_of(EVENT_PAYLOADS[EVENT_SNAPSHOT], SNAPSHOT_FIXED_BYTES)


def plain_record(record: f.Record, fold: int) -> bytes:
    """A record by the tables alone."""
    events = b"".join(f.encode_event(event) for event in record.events)
    pairs = list(chain(record.freed, record.freed_nodes, record.checks))
    packed = b"".join(struct.pack("<QQ", *pair) for pair in pairs)
    body = bytes(record.deltas) + packed + events
    fields = [
        RECORD_MAGIC, RECORD_HEADER_BYTES + len(body), record.salt, record.sequence, record.generation,
        record.previous, record.epoch, record.time_ns, RECORD_ONE_BARRIER if record.one_barrier else 0,
        len(record.deltas) // 32, len(record.freed), len(record.freed_nodes), len(record.checks), len(events),
        record.size, 0,
    ]  # fmt: skip
    data = bytearray(HEADER.pack(*fields) + body)
    struct.pack_into("<Q", data, RECORD_CHECKSUM_OFFSET, xxh64(data, (fold + record.sequence) & MASK64))
    return bytes(data)


@given(make.records(), st.integers(0, MASK64), st.sampled_from([1, 512, 4096]), st.booleans())
def test_a_record_is_what_the_tables_say(record: f.Record, fold: int, unit: int, packed: bool) -> None:
    def pairs(given: object) -> object:
        return b"".join(struct.pack("<QQ", *pair) for pair in given) if packed else given

    expected = plain_record(record, fold)
    assert f.encode_record(record, fold) == expected
    events = b"".join(map(f.encode_event, record.events))
    data, checksum = pack_record(
        fold, record.salt, record.sequence, record.generation, record.previous, record.epoch, record.time_ns,
        record.size, RECORD_ONE_BARRIER if record.one_barrier else 0, bytes(record.deltas), pairs(record.freed),
        pairs(record.freed_nodes), pairs(record.checks), events, unit,
    )  # fmt: skip
    assert data == expected + bytes(-len(expected) % unit)
    assert checksum == f.record_checksum(expected)


@given(make.snapshot_events)
def test_a_snapshot_event_is_what_the_tables_say(event: f.SnapshotEvent) -> None:
    name = event.name.encode()
    fixed = SNAPSHOT.pack(
        event.id, event.epoch, event.tag, event.created_ns, event.set_id, len(name), event.flags, len(event.metadata)
    )
    payload = fixed + name + event.metadata
    payload += bytes(-len(payload) % 8)
    flags = (EVENT_BEFORE if event.before else 0) | event.head << EVENT_HEAD_SHIFT
    assert f.encode_event(event) == EVENT.pack(EVENT_SNAPSHOT, flags, EVENT_HEADER_BYTES + len(payload)) + payload


def test_what_is_no_name_or_id_of_a_set_is_not_encoded() -> None:
    for name, set_id in ("", bytes(16)), ("x" * 256, bytes(16)), ("x", bytes(15)):
        with pytest.raises(ValueError, match="has 16 bytes, a name 1 to 255"):
            pack_snapshot(1, 2, 3, 4, name, set_id, 0, b"", False, 0)
