"""The documents survive a round trip, and bad ones give a typed error that names the place, in bounded memory."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowengine.errors import CowEngineError, FormatError, UnsupportedVersionError
from cowengine.vss import BackupComponents, Component, WriterMetadata, WriterRecord, schema

METADATA = WriterMetadata(
    "bank",
    [Component("ledger", ("main", "wal"), path="bank/2026", caption="The ledger", properties={"page": 4096})],
    version="3.1",
    restore_method="custom",
    properties={"files": ["x", None, True, 1.5]},
)
COMPONENTS = BackupComponents(
    "job-1",
    "incremental",
    ("main", "wal"),
    {"id": "7", "name": "nightly", "created": "2026-01-01"},
    (WriterRecord("bank", True, "ok", ("ledger",), {"lsn": 12}),),
)


def test_documents_survive_a_round_trip() -> None:
    assert WriterMetadata.from_json(METADATA.to_json()).to_dict() == METADATA.to_dict()
    assert BackupComponents.from_json(COMPONENTS.to_json()) == COMPONENTS
    assert WriterMetadata.from_json(METADATA.to_json()).volumes == ("main", "wal")


def test_fields_of_a_later_minor_writer_are_accepted() -> None:
    document = {**METADATA.to_dict(), "colour": "blue"}
    assert WriterMetadata.from_dict(document).writer == "bank"


def test_a_newer_version_says_upgrade() -> None:
    with pytest.raises(UnsupportedVersionError, match="version 2"):
        WriterMetadata.from_dict({**METADATA.to_dict(), "version": 2})
    with pytest.raises(UnsupportedVersionError):
        BackupComponents.from_dict({**COMPONENTS.to_dict(), "version": 99})


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("schema", "cowengine/backup-components"),
        ("version", 0),
        ("version", True),
        ("version", "1"),
        ("writer", ""),
        ("writer", "w" * 256),
        ("writer", 7),
        ("restore_method", "delete everything"),
        ("components", {}),
        ("components", [{}]),
        ("components", [{**METADATA.to_dict()["components"][0], "volumes": ["ok", 3]}]),
        ("components", [{**METADATA.to_dict()["components"][0], "kind": "table"}]),
        ("properties", []),
    ],
)
def test_a_field_that_breaks_the_schema_is_named(place: str, value: Any) -> None:
    with pytest.raises(FormatError, match=place):
        WriterMetadata.from_dict({**METADATA.to_dict(), place: value})


@pytest.mark.parametrize("field", sorted(METADATA.to_dict()))
def test_a_field_that_is_missing_is_named(field: str) -> None:
    document = METADATA.to_dict()
    del document[field]
    with pytest.raises(FormatError, match=field):
        WriterMetadata.from_dict(document)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe\x00", b"[" * 100_000, b"NaN"])
def test_what_is_no_document_is_a_format_error(text: bytes) -> None:
    with pytest.raises(FormatError):
        WriterMetadata.from_json(text)


def test_size_is_bounded_before_anything_is_parsed() -> None:
    with pytest.raises(FormatError, match="limit"):
        WriterMetadata.from_json(b" " * (schema.DOCUMENT_BYTES_MAX + 1))
    with pytest.raises(FormatError, match="limit"):
        WriterMetadata("w", properties={"x": "y" * schema.DOCUMENT_BYTES_MAX}).to_json()


def test_depth_is_bounded() -> None:
    nested: Any = 1
    for _ in range(100):
        nested = [nested]
    with pytest.raises(FormatError, match="nested"):
        WriterMetadata.from_dict({**METADATA.to_dict(), "properties": {"x": nested}})


def test_a_writer_cannot_put_into_a_document_what_json_cannot_hold() -> None:
    for bad in (object(), float("nan"), {3j}, b"bytes", {3j: 1}):
        with pytest.raises(FormatError):
            WriterMetadata("w", properties={"x": bad}).to_json()


def test_every_schema_ships_and_uses_only_what_the_checker_knows() -> None:
    """A keyword that the checker skipped would be a rule that nobody enforces."""

    def walk(rule: dict[str, Any]) -> None:
        assert rule.keys() <= schema._KEYWORDS
        for part in rule.get("properties", {}).values():
            walk(part)
        if "items" in rule:
            walk(rule["items"])

    for name in ("writer-metadata", "backup-components", "freeze-ledger"):
        assert schema.schema(name)["$id"] == f"cowengine/{name}"
        walk(schema.schema(name))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=10,
)


@given(field=st.sampled_from(sorted(METADATA.to_dict())), value=json_values)
def test_any_value_in_any_field_is_a_document_or_a_typed_error(field: str, value: Any) -> None:
    text = json.dumps({**METADATA.to_dict(), field: value})
    try:
        loaded = WriterMetadata.from_json(text)
    except CowEngineError:
        return
    assert loaded.to_dict()[field] == value or field == "components"


@given(st.binary(max_size=200))
def test_any_bytes_are_a_document_or_a_format_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        BackupComponents.from_json(data)
