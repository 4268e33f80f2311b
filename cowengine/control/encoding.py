"""How values are written in the messages of the control protocol: bytes, extents, dates, reports and errors.

docs/control.md lists them. The server encodes results and decodes parameters, the client the other way round; both do
it here.

Threads   Any.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import datetime
import logging
import os
import uuid
from typing import TYPE_CHECKING, Any, Final

from cowengine import errors
from cowengine.control.protocol import INTERNAL_ERROR, INVALID_PARAMS, SYSTEM_ERROR, Message, ProtocolError
from cowengine.engine.report import Report
from cowengine.errors import CowEngineError, OutOfRangeError
from cowengine.store.catalogue import CatalogueMember, CatalogueSet

if TYPE_CHECKING:
    from cowengine.extents import ExtentArray
    from cowengine.snapshot import Snapshot
    from cowengine.store import SnapshotSet
    from cowengine.volume import Volume

logger = logging.getLogger("cowengine.control")

ERRORS: Final[dict[str, type[CowEngineError]]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, CowEngineError) and not name.startswith("_")
}
"""The errors that come out at the client as what they were at the server, by name."""

_PLAIN: Final = (str, int, float, bool, type(None))
_OWN_FIELDS: Final = frozenset({"errno", "strerror", "filename"})


# -- bytes and extents -------------------------------------------------------------------------------------------------
def encode_bytes(data: Any) -> str:
    """Bytes as base64."""
    return base64.b64encode(data).decode()


def decode_bytes(text: str) -> bytes:
    """Bytes of base64. Raises OutOfRangeError."""
    try:
        return base64.b64decode(text.encode(), validate=True)
    except (binascii.Error, ValueError) as error:
        raise OutOfRangeError(f"bytes are written in base64: {error}") from None


def encode_extents(rows: ExtentArray) -> str:
    """Rows (offset, length) as base64 of little-endian 64-bit numbers, row by row."""
    return encode_bytes(rows.astype("<u8").tobytes())


def decode_extents(text: str) -> ExtentArray:
    """An array of rows (offset, length)."""
    import numpy

    rows: ExtentArray = numpy.frombuffer(decode_bytes(text), dtype="<u8").reshape(-1, 2).astype(numpy.uint64)
    return rows


# -- dates -------------------------------------------------------------------------------------------------------------
def encode_date(date: datetime.datetime | None) -> str | None:
    """A date as ISO 8601 writes it, with its time zone; None stays None."""
    return None if date is None else date.isoformat()


def decode_date(text: str) -> datetime.datetime:
    """A date. Raises OutOfRangeError unless it has a time zone."""
    try:
        date = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise OutOfRangeError(f"{text[:60]!r} is no date as ISO 8601 writes it") from None
    if date.tzinfo is None:
        raise OutOfRangeError(f"{text[:60]!r} has no time zone")
    return date


# -- what there is -----------------------------------------------------------------------------------------------------
def encode_volume(name: str, volume: Volume) -> Message:
    """What stays of a volume, and what it is now."""
    return {
        "name": name,
        "id": volume.id,
        "head": volume.head,
        "path": volume.path,
        "block_size": volume.block_size,
        "size": volume.size,
        "epoch": volume.epoch,
    }


def encode_snapshot(name: str, snapshot: Snapshot) -> Message:
    """What stays of a snapshot. `name` is that of its volume."""
    return {
        "volume": name,
        "volume_path": snapshot.volume_path,
        "id": snapshot.id,
        "name": snapshot.name,
        "epoch": snapshot.epoch,
        "created_ns": snapshot.created_ns,
        "size": snapshot.size,
        "block_size": snapshot.block_size,
        "change_id": snapshot.change_id,
        "set_id": snapshot.set_id,
        "is_anchor": snapshot.is_anchor,
    }


def encode_set(found: SnapshotSet) -> Message:
    """A snapshot set."""
    found_set = found._found
    return {
        "id": found.id,
        "name": found.name,
        "created_ns": found_set.created_ns,
        "members": [
            {
                "volume": member.volume_name,
                "volume_id": str(uuid.UUID(bytes=member.volume_uuid)),
                "snapshot": member.snapshot_id,
            }
            for member in found_set.members
        ],
    }


def decode_set(message: Message) -> CatalogueSet:
    """A snapshot set. Raises OutOfRangeError."""
    try:
        members = tuple(
            CatalogueMember(uuid.UUID(member["volume_id"]).bytes, str(member["volume"]), int(member["snapshot"]))
            for member in message["members"]
        )
        number, created_ns = uuid.UUID(message["id"]).bytes, int(message["created_ns"])
        return CatalogueSet(number, str(message["name"]), created_ns, members)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise OutOfRangeError(f"this is no snapshot set: {error!r}") from None


# -- reports -----------------------------------------------------------------------------------------------------------
def encode_fields(value: Any) -> Message:
    """A dataclass or named tuple by its fields."""
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    fields: Message = value._asdict()
    return {name: encode_date(each) if isinstance(each, datetime.datetime) else each for name, each in fields.items()}


def encode_report(report: Report) -> Message:
    """A report, by its fields and its kind."""
    return {"kind": type(report).__name__, **encode_fields(report)}


def decode_report(message: Message) -> Report:
    """A report of the kind that it was."""
    fields = dict(message)
    kind = fields.pop("kind", "Report")
    if kind == "Repaired":
        from cowengine.engine.repair import Repaired

        return Repaired(**fields)
    if kind == "Salvaged":
        from cowengine.engine.salvage import Lost, Salvaged

        lost = [Lost(*each) for each in fields.pop("lost", ())]
        return Salvaged(lost=lost, **fields)
    return Report(fields.get("problems", []), fields.get("counts", {}))


# -- errors ------------------------------------------------------------------------------------------------------------
def encode_error(error: BaseException) -> Message:
    """The error object of an exception. What is no error of cowengine or the system is logged: it is a bug."""
    if isinstance(error, ProtocolError):
        return {"code": error.number, "message": str(error)}
    if isinstance(error, CowEngineError):
        message = error.strerror if isinstance(error, OSError) else str(error)
        return {"code": error.code, "message": str(message), "data": _error_data(error)}
    if isinstance(error, OSError):
        data: Message = {"type": "OSError", "errno": error.errno, "filename": _file_name(error), "attributes": {}}
        return {"code": SYSTEM_ERROR, "message": str(error.strerror or error), "data": data}
    logger.error("a method failed: %s: %s", type(error).__name__, error, exc_info=error)
    return {"code": INTERNAL_ERROR, "message": f"{type(error).__name__}: {error}"}


def _error_data(error: CowEngineError) -> Message:
    name = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in ERRORS)
    attributes = {
        key: value for key, value in vars(error).items() if key not in _OWN_FIELDS and isinstance(value, _PLAIN)
    }
    number = error.errno if isinstance(error, OSError) else None
    return {"type": name, "errno": number, "filename": _file_name(error), "attributes": attributes}


def _file_name(error: BaseException) -> str | None:
    name = getattr(error, "filename", None)
    return None if name is None else os.fsdecode(name) if isinstance(name, str | bytes) else str(name)


def decode_error(message: object) -> Exception:
    """The exception of an error object: of the same type and with the same fields as it had at the server."""
    if not isinstance(message, dict):
        return CowEngineError(f"the server failed, and did not say how: {message!r:.200}")
    text, data = str(message.get("message")), message.get("data")
    if not isinstance(data, dict):
        if message.get("code") == INVALID_PARAMS:
            return OutOfRangeError(text)
        return CowEngineError(f"the store's server did not understand, or failed ({message.get('code')}): {text}")
    if data.get("type") == "OSError":
        return OSError(data.get("errno"), text, data.get("filename"))
    kind = ERRORS.get(str(data.get("type")), CowEngineError)
    error = kind(text)
    if isinstance(error, OSError):
        error.errno, error.filename = data.get("errno"), data.get("filename")
    attributes = data.get("attributes")
    for key, value in attributes.items() if isinstance(attributes, dict) else ():
        if key.isidentifier() and not key.startswith("_"):
            setattr(error, key, value)
    return error
