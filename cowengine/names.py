"""What a snapshot, a volume or its file may be called, and what may be said about it."""

from __future__ import annotations

import json
import os
from typing import Any, cast

from cowengine.core.keys import is_plain_name
from cowengine.errors import OutOfRangeError

NAME_BYTES_MAX = 255
HOLD_REASON_BYTES = 64


def shown(text: str) -> str:
    """A name as a message shows it: quoted, escaped, not too long."""
    return repr(text if len(text) < 130 else text[:127] + "...")


def check_path(path: Any) -> str:
    """The path of a file as a str. Raises OutOfRangeError for what cannot be one."""
    try:
        name = os.fsdecode(path)
        os.fsencode(name)
    except (TypeError, UnicodeError) as error:
        raise OutOfRangeError(f"a path is a str, bytes or os.PathLike: {str(error)!a}") from None
    if "\0" in name:
        raise OutOfRangeError(f"a path cannot hold NUL: {shown(name)}")
    return name


def check_name(name: object, what: str = "snapshot") -> str:
    """The name, if it is one: 1 to 255 bytes of UTF-8 without NUL and `/`. Raises OutOfRangeError."""
    if is_plain_name(name):
        return cast("str", name)
    if not isinstance(name, str):
        raise OutOfRangeError(f"a {what} name must be a str, not {type(name).__name__}")
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise OutOfRangeError(f"a {what} name must be valid Unicode") from None
    if not 1 <= len(encoded) <= NAME_BYTES_MAX:
        raise OutOfRangeError(
            f"{what} name {shown(name)}: 1 to {NAME_BYTES_MAX} bytes of UTF-8 are needed, not {len(encoded)}"
        )
    if "\0" in name or "/" in name:
        raise OutOfRangeError(f"{what} name {shown(name)}: NUL and '/' are not allowed")
    return name


def check_reason(reason: object) -> str:
    """The reason of a hold, if it is one: 1 to 64 bytes of UTF-8 without NUL. Raises OutOfRangeError."""
    if not isinstance(reason, str):
        raise OutOfRangeError(f"the reason of a hold must be a str, not {type(reason).__name__}")
    try:
        count = len(reason.encode())
    except UnicodeEncodeError:
        raise OutOfRangeError("the reason of a hold must be valid Unicode") from None
    if not 1 <= count <= HOLD_REASON_BYTES or "\0" in reason:
        raise OutOfRangeError(
            f"reason {shown(reason)}: 1 to {HOLD_REASON_BYTES} bytes of UTF-8 without NUL are needed, not {count}"
        )
    return reason


def encode_metadata(metadata: dict[str, Any] | None, limit: int) -> bytes:
    """A snapshot's metadata as JSON. Raises OutOfRangeError if it is no JSON object or has more than `limit` bytes."""
    if metadata is None:
        return b""
    if not isinstance(metadata, dict):
        raise OutOfRangeError(f"metadata must be a dict, not {type(metadata).__name__}")
    try:
        encoded = json.dumps(
            metadata, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        ).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise OutOfRangeError(f"metadata cannot be written as JSON: {error}") from None
    if len(encoded) > limit:
        raise OutOfRangeError(f"metadata has {len(encoded)} bytes as JSON; this volume takes {limit}")
    return encoded
