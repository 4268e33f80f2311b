"""Checks a JSON document against one of the schemas in `schemas/`.

Knows the part of JSON Schema that these schemas use (type, const, enum, required, properties, additionalProperties,
items, and the length and number limits) and refuses a schema that uses anything else, so that no rule is silently
ignored. Loads no schema from outside the package, follows no reference.

Memory: a document is refused by its size before it is parsed. Unknown fields are allowed and kept: a newer minor
writer may add some.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from cowengine.errors import FormatError, UnsupportedVersionError

DOCUMENT_BYTES_MAX = 16 << 20  # of one document, as UTF-8
_DEPTH_MAX = 64

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_KEYWORDS = {"$id", "title", "type", "const", "enum", "required", "properties", "additionalProperties", "items"} | {
    "minLength",
    "maxLength",
    "maxItems",
    "minimum",
}


@cache
def schema(name: str) -> dict[str, Any]:
    """The schema `name`, for example "writer-metadata"."""
    from importlib import resources  # slow to import, and needed once

    text = resources.files("cowengine.vss.schemas").joinpath(f"{name}.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def parse(text: str | bytes, name: str) -> dict[str, Any]:
    """The document in `text`, checked against the schema `name`.

    Raises FormatError (too large, no JSON, breaks the schema) or UnsupportedVersionError.
    """
    if len(text) > DOCUMENT_BYTES_MAX:
        raise FormatError(f"{name} document of {len(text)} bytes: the limit is {DOCUMENT_BYTES_MAX}")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{name} document is no JSON: {error}") from None
    return check(document, name)


def encode(document: dict[str, Any], name: str) -> str:
    """`document`, checked, as JSON text. Raises FormatError if it breaks the schema, is too large or no JSON."""
    check(document, name)
    try:
        text = json.dumps(document, allow_nan=False, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"{name} document holds what JSON cannot: {error}") from None
    if len(text) > DOCUMENT_BYTES_MAX:
        raise FormatError(f"{name} document of {len(text)} bytes: the limit is {DOCUMENT_BYTES_MAX}")
    return text


def check(document: Any, name: str) -> dict[str, Any]:
    """`document` itself if it keeps the schema `name`; raises FormatError that names the place otherwise."""
    if not isinstance(document, dict):
        raise FormatError(f"{name} document must be an object, not {type(document).__name__}")
    _check_version(document, name)
    _check_depth(document, name)
    _check_value(document, schema(name), name)
    return document


def _check_version(document: dict[str, Any], name: str) -> None:
    known = schema(name)["properties"]["version"]["const"]
    version = document.get("version")
    if type(version) is int and version > known:
        raise UnsupportedVersionError(
            f"{name} document of version {version}; this cowengine knows {known}. Upgrade it."
        )


def _check_depth(document: Any, name: str) -> None:
    level = [document]
    for _ in range(_DEPTH_MAX):
        level = [
            child
            for value in level
            if isinstance(value, dict | list)
            for child in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise FormatError(f"{name} document is nested deeper than {_DEPTH_MAX} levels")


def _check_value(value: Any, rule: dict[str, Any], place: str) -> None:
    if unknown := rule.keys() - _KEYWORDS:
        raise AssertionError(f"schema at {place} uses {sorted(unknown)}, which this checker does not know")
    if "const" in rule and (value != rule["const"] or type(value) is not type(rule["const"])):
        raise FormatError(f"{place} must be {rule['const']!r}, not {_brief(value)}")
    if "enum" in rule and value not in rule["enum"]:
        raise FormatError(f"{place} must be one of {rule['enum']}, not {_brief(value)}")
    if "type" in rule:
        _check_type(value, rule["type"], place)
    if isinstance(value, str):
        _check_limits(len(value), rule.get("minLength"), rule.get("maxLength"), f"length of {place}")
    elif isinstance(value, list):
        _check_limits(len(value), None, rule.get("maxItems"), f"length of {place}")
        for index, item in enumerate(value):
            _check_value(item, rule.get("items", {}), f"{place}[{index}]")
    elif isinstance(value, dict):
        _check_fields(value, rule, place)
    elif isinstance(value, int | float):
        _check_limits(value, rule.get("minimum"), None, place)


def _check_type(value: Any, wanted: str | list[str], place: str) -> None:
    names = [wanted] if isinstance(wanted, str) else wanted
    # JSON's true is no number, Python's True is an int
    if not any(
        isinstance(value, _TYPES[name]) and (name == "boolean" or not isinstance(value, bool)) for name in names
    ):
        raise FormatError(f"{place} must be {' or '.join(names)}, not {_brief(value)}")


def _check_limits(value: float, minimum: float | None, maximum: float | None, place: str) -> None:
    if minimum is not None and not value >= minimum:
        raise FormatError(f"{place} is {value}, less than {minimum}")
    if maximum is not None and not value <= maximum:
        raise FormatError(f"{place} is {value}, more than {maximum}")


def _check_fields(value: dict[str, Any], rule: dict[str, Any], place: str) -> None:
    properties = rule.get("properties", {})
    for key in rule.get("required", ()):
        if key not in value:
            raise FormatError(f"{place} lacks the field {key!r}")
    for key, item in value.items():
        if not isinstance(key, str):
            raise FormatError(f"{place} has a key that is no string: {_brief(key)}")
        if key in properties:
            _check_value(item, properties[key], f"{place}.{key}")


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
