"""The intent file of an adoption (docs/format.md section 9): encode, decode, and whose it is. No I/O."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise

from cowengine.core.checksum import xxh64
from cowengine.errors import CorruptionError, FormatError
from cowengine.format.layout import (
    FORMAT_VERSION,
    INTENT,
    INTENT_BYTES,
    INTENT_MAGIC,
    LOG_BYTES_MAX,
    MAGIC,
    SLOT_BYTES,
    SUPERBLOCK,
    struct_of,
)

_INTENT = struct_of(INTENT, INTENT_BYTES)
_CHECKSUM = struct.Struct("<Q")
_CHECKSUM_OFFSET = INTENT_BYTES - _CHECKSUM.size
_UUID_OFFSET = next(field.offset for field in SUPERBLOCK if field.name == "volume_uuid")
_RESERVED = [
    (field.offset + field.bytes, behind.offset)
    for field, behind in pairwise(SUPERBLOCK)
    if field.offset + field.bytes < behind.offset
]
SECTOR = 512
HEAD_BYTES_MAX = LOG_BYTES_MAX + (4 << 20)
"""More than lies before the first home of any adopted volume: superblocks, log, and what fills up a block of 1 MiB."""


@dataclass(frozen=True, slots=True)
class Intent:
    """What makes a half-adopted file the raw image it was."""

    size: int
    volume_uuid: bytes
    head: bytes

    def explains(self, found: bytes) -> bool:
        """Whether a half-adopted file of this intent may begin with `found`: each sector is the raw image's or ours."""
        for at in range(0, len(self.head), SECTOR):
            sector = found[at : at + SECTOR]
            if sector != self.head[at : at + SECTOR] and any(sector) and not self._is_ours(at, sector):
                return False
        return True

    def _is_ours(self, at: int, sector: bytes) -> bool:
        """Whether a sector may be of one of the volume's superblocks.

        The first one has magic and UUID. Behind it fields may hold anything; what lies between them is zero.
        """
        within = at % SLOT_BYTES
        if at >= 2 * SLOT_BYTES:
            return False
        if within == 0:
            return sector[: len(MAGIC)] == MAGIC and sector[_UUID_OFFSET : _UUID_OFFSET + 16] == self.volume_uuid
        return not any(any(sector[max(0, begin - within) : max(0, end - within)]) for begin, end in _RESERVED)


def encode_intent(intent: Intent) -> bytes:
    """The whole intent file."""
    data = bytearray(INTENT_BYTES) + intent.head
    _INTENT.pack_into(
        data, 0, INTENT_MAGIC, FORMAT_VERSION, len(intent.head), intent.size, intent.volume_uuid, 0
    )  # fmt: skip
    _CHECKSUM.pack_into(data, _CHECKSUM_OFFSET, xxh64(data, 0))
    return bytes(data)


def intent_bytes(start: bytes) -> int:
    """How long an intent file that begins so says it is; 0 if it says nothing that can be."""
    if len(start) < INTENT_BYTES or start[: len(INTENT_MAGIC)] != INTENT_MAGIC:
        return 0
    head_bytes: int = _INTENT.unpack_from(start)[2]
    return INTENT_BYTES + head_bytes if head_bytes <= HEAD_BYTES_MAX else 0


def decode_intent(data: bytes) -> Intent:
    """The intent in these bytes. Raises FormatError if they are none, CorruptionError if incomplete or damaged."""
    start = data[: len(INTENT_MAGIC)]
    if start != INTENT_MAGIC:
        if any(start):
            raise FormatError("no intent file of an adoption")
        raise CorruptionError("the intent file is incomplete")
    if len(data) < INTENT_BYTES:
        raise CorruptionError("the intent file is incomplete")
    _, version, head_bytes, size, volume_uuid, checksum = _INTENT.unpack_from(data)
    plain = bytearray(data)
    _CHECKSUM.pack_into(plain, _CHECKSUM_OFFSET, 0)
    if xxh64(plain, 0) != checksum or len(data) != INTENT_BYTES + head_bytes or version != FORMAT_VERSION:
        raise CorruptionError("the intent file is incomplete or damaged")
    return Intent(size, volume_uuid, data[INTENT_BYTES:])
