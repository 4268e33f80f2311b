"""A backup as an object, and its manifest: what `list` shows without reading a stream.

Encodes and decodes docs/backup-format.md section 3. Does no I/O. Threads: `Backup` is immutable.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import struct
from typing import Any

from cowengine.backup import layout
from cowengine.backup.names import checked_backup_id, checked_chain, checked_name
from cowengine.backup.stream import (
    StreamHeader,
    Totals,
    VolumeEntry,
    decode_header,
    decode_totals,
    encode_header,
    encode_totals,
)
from cowengine.errors import BackupError, UnsupportedVersionError

SCHEMA = 1
TYPE = "cowengine backup"
MANIFEST_BYTES_MAX = 64 << 20
_TOTALS = tuple(field.name for field in dataclasses.fields(Totals))


@dataclasses.dataclass(frozen=True)
class Backup:
    """One finished backup, as its stream and its manifest describe it."""

    header: StreamHeader = dataclasses.field(repr=False)
    totals: Totals = dataclasses.field(repr=False)
    components: tuple[Any, ...] = dataclasses.field(default=(), repr=False, compare=False)

    @property
    def id(self) -> str:
        """The backup id: a UUID in canonical text form."""
        return self.header.backup_id

    @property
    def kind(self) -> str:
        """ "full", "incremental", "differential" or "copy"."""
        return self.header.kind

    @property
    def base(self) -> str | None:
        """The id of the backup it stands on, or None."""
        return self.header.base_id

    @property
    def chain(self) -> str:
        """The chain's name."""
        return self.header.chain

    @property
    def number(self) -> int:
        """The position in its chain, from 1."""
        return self.header.number

    @property
    def created(self) -> datetime.datetime:
        """When it was begun, in UTC."""
        return _moment(self.header.created_ns)

    @property
    def volumes(self) -> tuple[str, ...]:
        """The names of the volumes it holds."""
        return tuple(entry.name for entry in self.header.volumes)

    @property
    def root(self) -> str:
        """The SHA-256 of the stream's content, in hex: it names every byte."""
        return self.totals.root

    @property
    def bytes_written(self) -> int:
        """The stream's length in bytes."""
        return self.totals.stream_bytes + layout.RECORD.bytes + layout.STREAM_END.bytes

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest as a JSON object: docs/backup-format.md section 3."""
        return _with_hash(_fields(self))

    def to_dict(self) -> dict[str, Any]:
        """The manifest and `bytes_written`, ready for JSON."""
        return self.manifest | {"bytes_written": self.bytes_written}

    def __repr__(self) -> str:
        return f"<Backup {self.id} {self.kind} of chain {self.chain!r} number {self.number}>"


def encode_manifest(backup: Backup) -> bytes:
    """The manifest file's bytes."""
    return _canonical(backup.manifest)


def decode_manifest(raw: bytes) -> Backup:
    """The backup. Raises BackupError unless `encode_manifest` wrote `raw`; UnsupportedVersionError if newer."""
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BackupError(f"the manifest is no JSON: {str(error)[:80]}") from None
    if not isinstance(values, dict) or values.get("type") != TYPE:
        raise BackupError("the manifest is not one of a cowengine backup")
    if values.get("schema") != SCHEMA:
        schema = ascii(values.get("schema"))[:20]
        raise UnsupportedVersionError(f"the manifest has schema {schema}; this cowengine reads {SCHEMA}: upgrade it")
    try:
        backup = _from_fields(values)
        exact = encode_manifest(backup) == raw
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, struct.error) as error:
        raise BackupError(f"the manifest is damaged: {type(error).__name__} {str(error)[:80]}") from None
    if not exact:
        raise BackupError("the manifest is damaged: its hash does not fit")
    return backup


def _fields(backup: Backup) -> dict[str, Any]:
    header, totals = backup.header, backup.totals
    return {
        "schema": SCHEMA,
        "type": TYPE,
        "complete": True,
        "id": header.backup_id,
        "chain": header.chain,
        "number": header.number,
        "kind": header.kind,
        "base": header.base_id,
        "base_root": header.base_root,
        "created_ns": header.created_ns,
        "created": _moment(header.created_ns).isoformat(),
        "volumes": [
            {
                "name": entry.name,
                "uuid": entry.uuid,
                "size": entry.size,
                "block_size": entry.block_size,
                "mode": entry.mode,
                "from": entry.from_id,
                "to": entry.to_id,
            }
            for entry in header.volumes
        ],
        "components": list(backup.components),
        **dataclasses.asdict(totals),
    }


def _from_fields(values: dict[str, Any]) -> Backup:
    header = StreamHeader(
        backup_id=checked_backup_id(values["id"]),
        chain=checked_chain(values["chain"]),
        kind=values["kind"],
        number=values["number"],
        base_id=None if values["base"] is None else checked_backup_id(values["base"]),
        base_root=values["base_root"],
        created_ns=values["created_ns"],
        volumes=tuple(
            VolumeEntry(
                name=checked_name(entry["name"], "volume"),
                uuid=entry["uuid"],
                size=entry["size"],
                block_size=entry["block_size"],
                mode=entry["mode"],
                from_id=entry["from"],
                to_id=entry["to"],
            )
            for entry in values["volumes"]
        ),
    )
    totals = Totals(**{name: values[name] for name in _TOTALS})
    # What the stream's own encoding does not give back unchanged cannot have come from a stream.
    if decode_header(encode_header(header)) != header or decode_totals(encode_totals(totals)) != totals:
        raise ValueError("it names what no stream can hold")
    return Backup(header, totals, tuple(values["components"]))


def _with_hash(fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {"hash": hashlib.sha256(_canonical(fields)).hexdigest()}


def _canonical(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


def _moment(created_ns: int) -> datetime.datetime:
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return epoch + datetime.timedelta(microseconds=created_ns // 1000)
