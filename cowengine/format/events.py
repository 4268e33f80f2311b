"""Events of a log record (docs/format.md section 6): what happens to heads and snapshots, and when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cowengine.core.records import pack_snapshot
from cowengine.errors import CorruptionError, UnsupportedVersionError
from cowengine.format.layout import (
    CLONE_FIXED_BYTES,
    COUNTER_MAX,
    EPOCH_MAX,
    EVENT_ANCHOR,
    EVENT_BEFORE,
    EVENT_CLONE,
    EVENT_DELETE,
    EVENT_DELETE_HEAD,
    EVENT_GIVE_UP,
    EVENT_HEAD_SHIFT,
    EVENT_HEADER,
    EVENT_HEADER_BYTES,
    EVENT_HOLD,
    EVENT_PAYLOADS,
    EVENT_POLICY,
    EVENT_RECLAIM,
    EVENT_RECLAIMED,
    EVENT_REGION,
    EVENT_RESIZE,
    EVENT_RETAIN,
    EVENT_ROLLBACK,
    EVENT_SNAPSHOT,
    EVENT_STORE,
    HEADS_MAX,
    ID_MAX,
    LINEAGE_AUTOMATIC,
    METADATA_BYTES_MAX,
    NAME_BYTES_MAX,
    NO_UUID,
    SNAPSHOT_FIXED_BYTES,
    WHEN_FULL_GIVE_UP,
    struct_of,
)
from cowengine.format.lineage import decode_name, decode_reason, size_is_legal

_HEADER = struct_of(EVENT_HEADER, EVENT_HEADER_BYTES)
_FIXED = {kind: struct_of(table, table[-1].offset + table[-1].bytes) for kind, table in EVENT_PAYLOADS.items()}


@dataclass(slots=True)
class SnapshotEvent:
    """A snapshot of a head is taken: it gets `id` and `epoch`, and the head goes on in a later epoch."""

    id: int
    epoch: int
    tag: int
    created_ns: int
    name: str
    set_id: bytes = NO_UUID
    flags: int = 0
    metadata: bytes = b""
    before: bool = False
    head: int = 0


@dataclass(slots=True)
class DeleteEvent:
    """Snapshot `id` is deleted; its space comes back with reclaim."""

    id: int
    before: bool = False


@dataclass(slots=True)
class ReclaimEvent:
    """Reclaim of snapshot `id` is done with all blocks below `cursor`."""

    id: int
    cursor: int
    before: bool = False


@dataclass(slots=True)
class ReclaimedEvent:
    """Reclaim of snapshot `id` is complete: an anchor is empty now, anything else is dropped from the lineage."""

    id: int
    before: bool = False


@dataclass(slots=True)
class RollbackEvent:
    """Head `head` now stands on snapshot `to`, in epoch `epoch`, with `size` bytes."""

    head: int
    to: int
    epoch: int
    size: int
    before: bool = False


@dataclass(slots=True)
class StoreEvent:
    """The volume holds the store log up to and with record `store_sequence`."""

    store_sequence: int
    before: bool = False


@dataclass(slots=True)
class AnchorEvent:
    """Snapshot `id` is an anchor from now on; its space comes back with reclaim."""

    id: int
    before: bool = False


@dataclass(slots=True)
class HoldEvent:
    """Snapshot `id` may not be given back, for this reason; without one, it may again."""

    id: int
    reason: str
    before: bool = False


@dataclass(slots=True)
class RetainEvent:
    """Snapshot `id` may not be given back until that Unix time (ns); the rest is the volume's clock at that moment."""

    id: int
    retain_until_ns: int
    clock_ns: int
    clock_boot_ns: int
    clock_boot_id: bytes
    before: bool = False


@dataclass(slots=True)
class PolicyEvent:
    """What happens when space runs out, from now on: the fields are those of the superblock."""

    when_full: int
    keep_newest: int
    snapshot_bytes_max: int
    before: bool = False


@dataclass(slots=True)
class GiveUpEvent:
    """Snapshot `id` is deleted because space ran out, at Unix time `given_up_ns`."""

    id: int
    given_up_ns: int
    before: bool = False


@dataclass(slots=True)
class ResizeEvent:
    """Head `head` has `size` bytes from now on; the blocks gained or lost became tombstones of `epoch`."""

    head: int
    size: int
    epoch: int
    before: bool = False


@dataclass(slots=True)
class RegionEvent:
    """There is one more home region; see `superblock.Region`."""

    first_block: int
    slot: int
    block_count: int
    before: bool = False


@dataclass(slots=True)
class CloneEvent:
    """Head `number`, with this id and name, begins as snapshot `snapshot` in epoch `epoch`."""

    number: int
    id: int
    snapshot: int
    epoch: int
    created_ns: int
    name: str
    before: bool = False


@dataclass(slots=True)
class DeleteHeadEvent:
    """Head `number` becomes a deleted snapshot of this epoch."""

    number: int
    epoch: int
    before: bool = False


Event = (
    SnapshotEvent
    | DeleteEvent
    | ReclaimEvent
    | ReclaimedEvent
    | RollbackEvent
    | StoreEvent
    | ResizeEvent
    | RegionEvent
    | AnchorEvent
    | HoldEvent
    | RetainEvent
    | PolicyEvent
    | GiveUpEvent
    | CloneEvent
    | DeleteHeadEvent
)

EventOfSnapshot = DeleteEvent | GiveUpEvent | AnchorEvent | HoldEvent | RetainEvent | ReclaimEvent | ReclaimedEvent
"""What speaks of one snapshot, which exists."""


def encode_event(event: Event) -> bytes:
    """The bytes of one event, header and padding included."""
    if isinstance(event, SnapshotEvent):
        return _encode_snapshot(event)
    if isinstance(event, DeleteEvent):
        kind = EVENT_DELETE
        payload = _FIXED[kind].pack(event.id)
    elif isinstance(event, ReclaimEvent):
        kind = EVENT_RECLAIM
        payload = _FIXED[kind].pack(event.id, event.cursor)
    elif isinstance(event, ReclaimedEvent):
        kind = EVENT_RECLAIMED
        payload = _FIXED[kind].pack(event.id)
    elif isinstance(event, RollbackEvent):
        kind = EVENT_ROLLBACK
        payload = _FIXED[kind].pack(event.head, event.to, event.epoch, event.size)
    elif isinstance(event, ResizeEvent):
        kind = EVENT_RESIZE
        payload = _FIXED[kind].pack(event.head, event.size, event.epoch)
    elif isinstance(event, RegionEvent):
        kind = EVENT_REGION
        payload = _FIXED[kind].pack(event.first_block, event.slot, event.block_count)
    elif isinstance(event, PolicyEvent):
        kind = EVENT_POLICY
        payload = _FIXED[kind].pack(event.when_full, event.keep_newest, event.snapshot_bytes_max)
    elif isinstance(event, GiveUpEvent):
        kind = EVENT_GIVE_UP
        payload = _FIXED[kind].pack(event.id, event.given_up_ns)
    elif isinstance(event, HoldEvent):
        kind = EVENT_HOLD
        payload = _FIXED[kind].pack(event.id, event.reason.encode())
    elif isinstance(event, RetainEvent):
        kind, clock = EVENT_RETAIN, (event.clock_ns, event.clock_boot_ns, event.clock_boot_id)
        payload = _FIXED[kind].pack(event.id, event.retain_until_ns, *clock)
    elif isinstance(event, AnchorEvent):
        kind = EVENT_ANCHOR
        payload = _FIXED[kind].pack(event.id)
    elif isinstance(event, CloneEvent):
        kind, name = EVENT_CLONE, event.name.encode()
        assert 1 <= len(name) <= NAME_BYTES_MAX, "the engine checks names before they come here"
        numbers = event.number, event.id, event.snapshot, event.epoch, event.created_ns, len(name)
        payload = _FIXED[kind].pack(*numbers) + name
    elif isinstance(event, DeleteHeadEvent):
        kind = EVENT_DELETE_HEAD
        payload = _FIXED[kind].pack(event.number, event.epoch)
    else:
        kind = EVENT_STORE
        payload = _FIXED[kind].pack(event.store_sequence)
    padding = -len(payload) % 8
    count = EVENT_HEADER_BYTES + len(payload) + padding
    return _HEADER.pack(kind, EVENT_BEFORE if event.before else 0, count) + payload + bytes(padding)


def _encode_snapshot(event: SnapshotEvent) -> bytes:
    assert len(event.metadata) <= METADATA_BYTES_MAX, "the engine checks metadata before it comes here"
    e = event
    return pack_snapshot(
        e.id, e.epoch, e.tag, e.created_ns, e.name, e.set_id, e.flags, e.metadata, e.before, e.head
    )  # fmt: skip


def decode_events(data: bytes) -> list[Event]:
    """All events in `data`. Raises CorruptionError, or UnsupportedVersionError for an unknown type."""
    events: list[Event] = []
    position = 0
    while position < len(data):
        if len(data) - position < EVENT_HEADER_BYTES:
            raise CorruptionError("event: cut off")
        kind, flags, count = _HEADER.unpack_from(data, position)
        if not EVENT_HEADER_BYTES <= count <= len(data) - position or count % 8:
            raise CorruptionError(f"event: {count} bytes where {len(data) - position} are left")
        decode = _DECODERS.get(kind)
        if decode is None:
            raise UnsupportedVersionError(f"an event of unknown type {kind}: upgrade cowengine")
        head = flags >> EVENT_HEAD_SHIFT if kind == EVENT_SNAPSHOT else 0
        if flags & ~EVENT_BEFORE != head << EVENT_HEAD_SHIFT:
            raise CorruptionError(f"event: unknown flags {flags:#x}")
        event = decode(data[position + EVENT_HEADER_BYTES : position + count], bool(flags & EVENT_BEFORE))
        if isinstance(event, SnapshotEvent):
            event.head = head
        events.append(event)
        position += count
    return events


def _unpack(kind: int, payload: bytes) -> tuple[Any, ...]:
    layout = _FIXED[kind]
    if len(payload) != layout.size:
        raise CorruptionError(f"event of type {kind}: a payload of {len(payload)} bytes")
    return layout.unpack(payload)


def _id(number: int) -> int:
    if number > ID_MAX:
        raise CorruptionError(f"event: id {number}")
    return number


def _epoch(number: int) -> int:
    if not 1 <= number <= EPOCH_MAX:
        raise CorruptionError(f"event: epoch {number}")
    return number


def _decode_snapshot(payload: bytes, before: bool) -> Event:
    if len(payload) < SNAPSHOT_FIXED_BYTES:
        raise CorruptionError("snapshot event: cut off")
    fields = _FIXED[EVENT_SNAPSHOT].unpack_from(payload)
    id_, epoch, tag, created_ns, set_id, name_bytes, flags, metadata_bytes = fields
    end = SNAPSHOT_FIXED_BYTES + name_bytes + metadata_bytes
    if metadata_bytes > METADATA_BYTES_MAX or len(payload) != end + -end % 8 or any(payload[end:]):
        raise CorruptionError(f"snapshot event {id_}: name and metadata do not fill it")
    if flags & ~LINEAGE_AUTOMATIC or id_ == 0:
        raise CorruptionError(f"snapshot event {id_}: flags {flags:#x}")
    name = decode_name(payload[SNAPSHOT_FIXED_BYTES : SNAPSHOT_FIXED_BYTES + name_bytes], name_bytes)
    metadata = payload[SNAPSHOT_FIXED_BYTES + name_bytes : end]
    return SnapshotEvent(_id(id_), _epoch(epoch), tag, created_ns, name, set_id, flags, metadata, before)


def _number(number: int) -> int:
    if number >= HEADS_MAX:
        raise CorruptionError(f"event: head {number}")
    return number


def _decode_clone(payload: bytes, before: bool) -> Event:
    if len(payload) < CLONE_FIXED_BYTES:
        raise CorruptionError("clone event: cut off")
    number, id_, snapshot, epoch, created_ns, name_bytes = _FIXED[EVENT_CLONE].unpack_from(payload)
    end = CLONE_FIXED_BYTES + name_bytes
    if name_bytes > NAME_BYTES_MAX or len(payload) != end + -end % 8 or any(payload[end:]) or not (number and id_):
        raise CorruptionError(f"clone event {id_}: its name does not fill it, or head {number} is the live one")
    name = decode_name(payload[CLONE_FIXED_BYTES:end], name_bytes)
    return CloneEvent(_number(number), _id(id_), _id(snapshot), _epoch(epoch), created_ns, name, before)


def _decode_delete_head(payload: bytes, before: bool) -> Event:
    number, epoch = _unpack(EVENT_DELETE_HEAD, payload)
    if not number:
        raise CorruptionError("delete_head event: of the live head")
    return DeleteHeadEvent(_number(number), _epoch(epoch), before)


def _decode_delete(payload: bytes, before: bool) -> Event:
    (id_,) = _unpack(EVENT_DELETE, payload)
    return DeleteEvent(_id(id_), before)


def _decode_reclaim(payload: bytes, before: bool) -> Event:
    id_, cursor = _unpack(EVENT_RECLAIM, payload)
    return ReclaimEvent(_id(id_), cursor, before)


def _decode_reclaimed(payload: bytes, before: bool) -> Event:
    (id_,) = _unpack(EVENT_RECLAIMED, payload)
    return ReclaimedEvent(_id(id_), before)


def _decode_rollback(payload: bytes, before: bool) -> Event:
    head, to, epoch, size = _unpack(EVENT_ROLLBACK, payload)
    if not size_is_legal(size):
        raise CorruptionError(f"rollback event: size {size}")
    return RollbackEvent(_number(head), _id(to), _epoch(epoch), size, before)


def _decode_store(payload: bytes, before: bool) -> Event:
    (store_sequence,) = _unpack(EVENT_STORE, payload)
    return StoreEvent(store_sequence, before)


def _decode_anchor(payload: bytes, before: bool) -> Event:
    (id_,) = _unpack(EVENT_ANCHOR, payload)
    return AnchorEvent(_id(id_), before)


def _decode_hold(payload: bytes, before: bool) -> Event:
    id_, reason = _unpack(EVENT_HOLD, payload)
    return HoldEvent(_id(id_), decode_reason(reason), before)


def _decode_retain(payload: bytes, before: bool) -> Event:
    id_, retain_until_ns, clock_ns, clock_boot_ns, clock_boot_id = _unpack(EVENT_RETAIN, payload)
    if max(retain_until_ns, clock_ns, clock_boot_ns) >= COUNTER_MAX:
        raise CorruptionError(f"retain event: until {retain_until_ns}, at {clock_ns} ({clock_boot_ns})")
    return RetainEvent(_id(id_), retain_until_ns, clock_ns, clock_boot_ns, clock_boot_id, before)


def _decode_policy(payload: bytes, before: bool) -> Event:
    when_full, keep_newest, snapshot_bytes_max = _unpack(EVENT_POLICY, payload)
    if when_full > WHEN_FULL_GIVE_UP:
        raise CorruptionError(f"policy event: when_full {when_full}")
    return PolicyEvent(when_full, keep_newest, snapshot_bytes_max, before)


def _decode_give_up(payload: bytes, before: bool) -> Event:
    id_, given_up_ns = _unpack(EVENT_GIVE_UP, payload)
    return GiveUpEvent(_id(id_), given_up_ns, before)


def _decode_resize(payload: bytes, before: bool) -> Event:
    head, size, epoch = _unpack(EVENT_RESIZE, payload)
    if not size_is_legal(size):
        raise CorruptionError(f"resize event: size {size}")
    return ResizeEvent(_number(head), size, _epoch(epoch), before)


def _decode_region(payload: bytes, before: bool) -> Event:
    first_block, slot, block_count = _unpack(EVENT_REGION, payload)
    return RegionEvent(first_block, slot, block_count, before)


_DECODERS: dict[int, Callable[[bytes, bool], Event]] = {
    EVENT_SNAPSHOT: _decode_snapshot,
    EVENT_DELETE: _decode_delete,
    EVENT_RECLAIM: _decode_reclaim,
    EVENT_RECLAIMED: _decode_reclaimed,
    EVENT_ROLLBACK: _decode_rollback,
    EVENT_STORE: _decode_store,
    EVENT_RESIZE: _decode_resize,
    EVENT_REGION: _decode_region,
    EVENT_HOLD: _decode_hold,
    EVENT_RETAIN: _decode_retain,
    EVENT_ANCHOR: _decode_anchor,
    EVENT_POLICY: _decode_policy,
    EVENT_GIVE_UP: _decode_give_up,
    EVENT_CLONE: _decode_clone,
    EVENT_DELETE_HEAD: _decode_delete_head,
}
