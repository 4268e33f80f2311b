"""The byte tables of docs/backup-format.md as code: pack and unpack, nothing else.

Does no I/O and knows no rules that span records; `stream_reader` and `stream_writer` do.
Threads: everything here is immutable.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from cowengine.errors import BackupError

if TYPE_CHECKING:
    import numpy

MAGIC: Final = b"CWBR"
FORMAT_VERSION: Final = 1

HEADER: Final = 1
DATA: Final = 2
HOLE: Final = 3
DOCUMENTS: Final = 4
END: Final = 5

CODEC_NONE: Final = 0
CODEC_ZSTD: Final = 1

KINDS: Final = {1: "full", 2: "incremental", 3: "differential", 4: "copy"}
KIND_NUMBERS: Final = {name: number for number, name in KINDS.items()}
MODES: Final = {1: "whole", 2: "changes"}
MODE_NUMBERS: Final = {name: number for number, name in MODES.items()}

SECTOR_BYTES: Final = 512
PAYLOAD_BYTES_MAX: Final = 4 << 20
DOCUMENTS_BYTES_MAX: Final = 64 << 20
VOLUMES_MAX: Final = 4096
VOLUME_SIZE_MAX: Final = (1 << 48) - 4096
NAME_BYTES_MAX: Final = 255
BLOCK_SIZE_MIN: Final = 4096
BLOCK_SIZE_MAX: Final = 1 << 20


class Table:
    """A fixed-width little-endian structure: field names and their struct codes, without padding."""

    def __init__(self, *fields: tuple[str, str]) -> None:
        self._fields = fields
        self._struct = struct.Struct("<" + "".join(code for _, code in fields))
        self._names = tuple(name for name, _ in fields)
        self.bytes = self._struct.size
        self.offsets: dict[str, tuple[int, int]] = {}
        position = 0
        for name, code in fields:
            width = struct.calcsize("<" + code)
            self.offsets[name] = (position, width)
            position += width

    def dtype(self) -> numpy.dtype[Any]:
        """The same structure as the type of an array."""
        import numpy

        codes = (f"S{code[:-1]}" if code.endswith("s") else f"<{code}" for _, code in self._fields)
        return numpy.dtype(list(zip(self.offsets, codes, strict=True)))

    def pack(self, **values: Any) -> bytes:
        """Encode; fields called reserved_... are zero and may not be given."""
        return self._struct.pack(*(0 if name.startswith("reserved_") else values.pop(name) for name in self._names))

    def unpack(self, data: bytes | memoryview, offset: int = 0) -> dict[str, Any]:
        """Decode at `offset`. Raises BackupError if the data is too short or a reserved field is not zero."""
        if offset + self.bytes > len(data):
            raise BackupError(f"the backup is damaged: {len(data)} bytes are too few for its header")
        values = dict(zip(self._names, self._struct.unpack_from(data, offset), strict=True))
        for name in self._names:
            if name.startswith("reserved_") and values.pop(name):
                raise BackupError(f"the backup is damaged, or made by a newer cowengine: {name} is not zero")
        return values


RECORD: Final = Table(
    ("magic", "4s"),
    ("type", "B"),
    ("codec", "B"),
    ("reserved_6", "H"),
    ("sequence", "Q"),
    ("stream", "Q"),
    ("volume", "I"),
    ("plain_bytes", "I"),
    ("stored_bytes", "I"),
    ("reserved_36", "I"),
    ("offset", "Q"),
    ("length", "Q"),
    ("plain_checksum", "Q"),
    ("stored_checksum", "Q"),
    ("checksum", "Q"),
)

STREAM_HEADER: Final = Table(
    ("format_version", "I"),
    ("kind", "B"),
    ("reserved_5", "B"),
    ("chain_bytes", "H"),
    ("features_incompatible", "Q"),
    ("features_compatible", "Q"),
    ("backup_id", "16s"),
    ("base_id", "16s"),
    ("base_root", "32s"),
    ("number", "Q"),
    ("created_ns", "Q"),
    ("volume_count", "I"),
    ("reserved_108", "I"),
)

VOLUME_ENTRY: Final = Table(
    ("volume_uuid", "16s"),
    ("size", "Q"),
    ("block_size", "I"),
    ("mode", "B"),
    ("reserved_29", "B"),
    ("name_bytes", "H"),
    ("from_bytes", "H"),
    ("to_bytes", "H"),
    ("reserved_36", "I"),
)

STREAM_END: Final = Table(
    ("data_records", "Q"),
    ("hole_records", "Q"),
    ("document_records", "Q"),
    ("data_bytes", "Q"),
    ("hole_bytes", "Q"),
    ("stream_bytes", "Q"),
    ("root", "32s"),
)
