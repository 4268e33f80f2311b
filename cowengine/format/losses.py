"""The list of snapshots that were given up for want of space, as the superblock keeps it (docs/format.md section 3)."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from cowengine.errors import CorruptionError
from cowengine.format.layout import LOSSES_BYTES, NAME_BYTES_MAX
from cowengine.format.lineage import decode_name

_FIXED = struct.Struct("<5Q")


class Loss(NamedTuple):
    """A snapshot that was given up at `given_up_ns`, Unix time in nanoseconds."""

    id: int
    epoch: int
    tag: int
    given_up_ns: int
    name: str


def encode_loss(loss: Loss) -> bytes:
    """One entry: padded with zeros to a multiple of 8."""
    name = loss.name.encode()
    assert 1 <= len(name) <= NAME_BYTES_MAX, "the engine checks names before they come here"
    return _FIXED.pack(*loss[:4], len(name)) + name + bytes(-len(name) % 8)


def newest_losses(losses: Iterable[Loss]) -> tuple[Loss, ...]:
    """The newest of some losses, as many as the superblock has room for."""
    kept: list[Loss] = []
    left = LOSSES_BYTES
    for loss in reversed(list(losses)):
        left -= len(encode_loss(loss))
        if left < 0:
            break
        kept.append(loss)
    return tuple(reversed(kept))


def decode_losses(data: bytes, count: int) -> tuple[Loss, ...]:
    """The entries in the first `count` bytes of `data`; the rest must be zero. Raises CorruptionError."""
    if count > len(data) or data.count(0, count) != len(data) - count:
        raise CorruptionError(f"superblock: given_up_bytes {count}")
    losses: list[Loss] = []
    position = 0
    while position < count:
        if count - position < _FIXED.size:
            raise CorruptionError("superblock: an entry of given_up is cut off")
        number, epoch, tag, given_up_ns, name_bytes = _FIXED.unpack_from(data, position)
        start = position + _FIXED.size
        position = start + name_bytes + -name_bytes % 8
        if position > count:
            raise CorruptionError("superblock: an entry of given_up is cut off")
        losses.append(Loss(number, epoch, tag, given_up_ns, decode_name(data[start:position], name_bytes)))
    return tuple(losses)
