"""What a stream says about itself: its header, its volumes and its totals, as objects.

Encodes and decodes docs/backup-format.md sections 1.2 and 1.5; every value is checked on the way in. Does no I/O.
Threads: the objects are immutable.
"""

from __future__ import annotations

import dataclasses
import uuid
from typing import Any

from cowengine.backup import layout
from cowengine.backup.layout import STREAM_END, STREAM_HEADER, VOLUME_ENTRY
from cowengine.backup.names import checked_chain, checked_name
from cowengine.errors import BackupError, OutOfRangeError, UnsupportedVersionError

_NO_UUID = bytes(16)
_NO_ROOT = bytes(32)


@dataclasses.dataclass(frozen=True)
class VolumeEntry:
    """One volume of a backup. Sizes in bytes; `mode` is "whole" or "changes"; `from_id` only with changes."""

    name: str
    uuid: str
    size: int
    block_size: int
    mode: str
    from_id: str | None
    to_id: str


@dataclasses.dataclass(frozen=True)
class StreamHeader:
    """Which backup a stream is, what it stands on and what it holds. `base_root` in hex."""

    backup_id: str
    chain: str
    kind: str
    number: int
    base_id: str | None
    base_root: str | None
    created_ns: int
    volumes: tuple[VolumeEntry, ...]

    @property
    def stream_id(self) -> int:
        """What each record of the stream carries: the first 8 bytes of the backup id."""
        return int.from_bytes(uuid.UUID(self.backup_id).bytes[:8], "little")

    def volume(self, name: str) -> VolumeEntry | None:
        return next((entry for entry in self.volumes if entry.name == name), None)


@dataclasses.dataclass(frozen=True)
class Totals:
    """The end record: counts of records, sums of their lengths, bytes of the stream before it, and the root (hex)."""

    data_records: int
    hole_records: int
    document_records: int
    data_bytes: int
    hole_bytes: int
    stream_bytes: int
    root: str


def encode_header(header: StreamHeader) -> bytes:
    """The payload of the header record."""
    chain = header.chain.encode()
    fixed = STREAM_HEADER.pack(
        format_version=layout.FORMAT_VERSION,
        kind=layout.KIND_NUMBERS[header.kind],
        chain_bytes=len(chain),
        features_incompatible=0,
        features_compatible=0,
        backup_id=uuid.UUID(header.backup_id).bytes,
        base_id=uuid.UUID(header.base_id).bytes if header.base_id else _NO_UUID,
        base_root=bytes.fromhex(header.base_root) if header.base_root else _NO_ROOT,
        number=header.number,
        created_ns=header.created_ns,
        volume_count=len(header.volumes),
    )
    return b"".join((fixed, chain, *map(_encode_volume, header.volumes)))


def _encode_volume(entry: VolumeEntry) -> bytes:
    name, before, after = entry.name.encode(), (entry.from_id or "").encode(), entry.to_id.encode()
    fixed = VOLUME_ENTRY.pack(
        volume_uuid=uuid.UUID(entry.uuid).bytes,
        size=entry.size,
        block_size=entry.block_size,
        mode=layout.MODE_NUMBERS[entry.mode],
        name_bytes=len(name),
        from_bytes=len(before),
        to_bytes=len(after),
    )
    return fixed + name + before + after


def decode_header(payload: bytes | memoryview) -> StreamHeader:
    """Raises UnsupportedVersionError for a newer format and BackupError for anything that cannot be."""
    values = STREAM_HEADER.unpack(payload)
    if values["format_version"] != layout.FORMAT_VERSION or values["features_incompatible"]:
        raise UnsupportedVersionError(
            f"the backup has format {values['format_version']}, features {values['features_incompatible']:#x}; "
            f"this cowengine reads format {layout.FORMAT_VERSION}: upgrade it"
        )
    if not 1 <= values["volume_count"] <= layout.VOLUMES_MAX or values["kind"] not in layout.KINDS:
        raise BackupError(f"the backup's header names {values['volume_count']} volumes, kind {values['kind']}")
    cursor = _Cursor(payload, STREAM_HEADER.bytes)
    chain = cursor.text(values["chain_bytes"])
    volumes = tuple(_decode_volume(cursor) for _ in range(values["volume_count"]))
    cursor.finish()
    has_base = values["base_id"] != _NO_UUID
    header = StreamHeader(
        backup_id=str(uuid.UUID(bytes=values["backup_id"])),
        chain=chain,
        kind=layout.KINDS[values["kind"]],
        number=values["number"],
        base_id=str(uuid.UUID(bytes=values["base_id"])) if has_base else None,
        base_root=values["base_root"].hex() if has_base else None,
        created_ns=values["created_ns"],
        volumes=volumes,
    )
    _check_header(header)
    return header


def _decode_volume(cursor: _Cursor) -> VolumeEntry:
    values = cursor.table(VOLUME_ENTRY)
    name, before, after = (cursor.text(values[key]) for key in ("name_bytes", "from_bytes", "to_bytes"))
    if values["mode"] not in layout.MODES:
        raise BackupError(f"the backup's header gives volume {name!r} the unknown mode {values['mode']}")
    return VolumeEntry(
        name=name,
        uuid=str(uuid.UUID(bytes=values["volume_uuid"])),
        size=values["size"],
        block_size=values["block_size"],
        mode=layout.MODES[values["mode"]],
        from_id=before or None,
        to_id=after,
    )


def _check_header(header: StreamHeader) -> None:
    try:
        checked_chain(header.chain)
        for entry in header.volumes:
            checked_name(entry.name, "volume")
    except OutOfRangeError as error:
        raise BackupError(f"the backup's header is damaged: {error}") from None
    stands_alone = header.kind in ("full", "copy")
    if stands_alone != (header.base_id is None) or header.number == 0:
        raise BackupError(f"the backup's header is damaged: {header.kind} {header.number}, base {header.base_id}")
    if len({entry.name for entry in header.volumes}) != len(header.volumes):
        raise BackupError("the backup's header names a volume twice")
    for entry in header.volumes:
        block_size = entry.block_size
        if not 0 < entry.size <= layout.VOLUME_SIZE_MAX or entry.size % layout.SECTOR_BYTES:
            raise BackupError(f"the backup's header gives volume {entry.name!r} the size {entry.size}")
        if not layout.BLOCK_SIZE_MIN <= block_size <= layout.BLOCK_SIZE_MAX or block_size & (block_size - 1):
            raise BackupError(f"the backup's header gives volume {entry.name!r} the block size {block_size}")
        if (entry.mode == "whole") != (entry.from_id is None) or not entry.to_id or (stands_alone and entry.from_id):
            raise BackupError(f"the backup's header gives volume {entry.name!r} change ids that do not fit its mode")


def encode_totals(totals: Totals) -> bytes:
    """The payload of the end record."""
    return STREAM_END.pack(**dataclasses.asdict(totals) | {"root": bytes.fromhex(totals.root)})


def decode_totals(payload: bytes | memoryview) -> Totals:
    """Raises BackupError if the payload is not exactly one end record's."""
    values = STREAM_END.unpack(payload)
    if len(payload) != STREAM_END.bytes:
        raise BackupError(f"the backup's end record has {len(payload)} bytes instead of {STREAM_END.bytes}")
    return Totals(**values | {"root": values["root"].hex()})


class _Cursor:
    """Walks the variable part of a header; nothing is read beyond its end."""

    def __init__(self, payload: bytes | memoryview, position: int) -> None:
        self._payload = memoryview(payload)
        self._position = position

    def table(self, table: layout.Table) -> dict[str, Any]:
        values = table.unpack(self._payload, self._position)
        self._position += table.bytes
        return values

    def text(self, length: int) -> str:
        end = self._position + length
        if length > layout.NAME_BYTES_MAX or end > len(self._payload):
            raise BackupError(f"the backup's header is damaged: a text of {length} bytes does not fit")
        raw = bytes(self._payload[self._position : end])
        self._position = end
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise BackupError(f"the backup's header is damaged: {raw[:40]!r} is no text") from None

    def finish(self) -> None:
        if self._position != len(self._payload):
            raise BackupError(f"the backup's header has {len(self._payload) - self._position} bytes too many")
