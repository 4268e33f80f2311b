"""The methods of the control protocol that are about one volume, or one clone in it.

Threads   Each runs in the thread of its client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cowengine.control.encoding import (
    encode_bytes,
    encode_extents,
    encode_fields,
    encode_report,
    encode_snapshot,
    encode_volume,
)
from cowengine.control.methods import VolumeRef, method
from cowengine.control.protocol import PIECE_BYTES, Message
from cowengine.errors import OutOfRangeError

if TYPE_CHECKING:
    from cowengine.control.session import Call

SNAPSHOTS_MAX = 10_000
EXTENTS_MAX = 1 << 18


# -- opening -----------------------------------------------------------------------------------------------------------
@method("volume.open", "volume", name="text")
def open_(call: Call, name: str) -> Message:
    with call.session.volume(VolumeRef(name)) as volume:
        call.session.uses.open(name, call.session.number)
        return encode_volume(name, volume)


@method("volume.close", name="text")
def close(call: Call, name: str) -> None:
    call.session.uses.close(name, call.session.number)


@method("volume.info", "volume", volume="volume")
def info(call: Call, volume: VolumeRef) -> Message:
    with call.session.volume(volume) as found:
        return encode_volume(volume.name, found)


@method("volume.heads", "array of text", volume="volume")
def heads(call: Call, volume: VolumeRef) -> list[str]:
    with call.session.volume(volume) as found:
        return found.heads()


@method("volume.open_head", "volume", volume="volume", name="text")
def open_head(call: Call, volume: VolumeRef, name: str) -> Message:
    with call.session.volume(volume) as found:
        head = found.open_head(name)
        call.session.keep_head(volume.name, head)
        return encode_volume(volume.name, head)


@method("volume.close_head", volume="volume")
def close_head(call: Call, volume: VolumeRef) -> None:
    call.session.close_head(volume)


@method("volume.delete_head", changes=True, volume="volume", name="text")
def delete_head(call: Call, volume: VolumeRef, name: str) -> None:
    with call.session.volume(volume) as found:
        found.delete_head(name)


# -- bytes -------------------------------------------------------------------------------------------------------------
@method("volume.pread", "bytes", volume="volume", length="integer", offset="integer")
def pread(call: Call, volume: VolumeRef, length: int, offset: int) -> str:
    _require_piece(length)
    with call.session.volume(volume) as found:
        return encode_bytes(found.pread(length, offset))


@method("volume.pwrite", "integer", changes=True, volume="volume", data="bytes", offset="integer")
def pwrite(call: Call, volume: VolumeRef, data: bytes, offset: int) -> int:
    _require_piece(len(data))
    with call.session.volume(volume) as found:
        return found.pwrite(data, offset)


def _require_piece(length: int) -> None:
    if length > PIECE_BYTES:
        raise OutOfRangeError(f"one message carries {PIECE_BYTES} bytes of a volume at most, not {length}")


@method("volume.discard", changes=True, volume="volume", offset="integer", length="integer")
def discard(call: Call, volume: VolumeRef, offset: int, length: int) -> None:
    with call.session.volume(volume) as found:
        found.discard(offset, length)


@method("volume.write_zeroes", changes=True, volume="volume", offset="integer", length="integer")
def write_zeroes(call: Call, volume: VolumeRef, offset: int, length: int) -> None:
    with call.session.volume(volume) as found:
        found.write_zeroes(offset, length)


@method("volume.flush", volume="volume")
def flush(call: Call, volume: VolumeRef) -> None:
    with call.session.volume(volume) as found:
        found.flush()


@method("volume.resize", changes=True, volume="volume", size="integer")
def resize(call: Call, volume: VolumeRef, size: int) -> None:
    with call.session.volume(volume) as found:
        found.resize(size)


# -- snapshots ---------------------------------------------------------------------------------------------------------
@method("volume.snapshot", "snapshot", changes=True, volume="volume", name="text", metadata="object?")
def snapshot(call: Call, volume: VolumeRef, name: str, metadata: Message | None = None) -> Message:
    with call.session.volume(volume) as found:
        return encode_snapshot(volume.name, found.snapshot(name, metadata=metadata))


@method("volume.snapshots", "array of snapshot", volume="volume", start="integer", max_results="integer")
def snapshots(call: Call, volume: VolumeRef, start: int, max_results: int) -> list[Message]:
    with call.session.volume(volume) as found:
        rows = found.snapshots(start, min(max_results, SNAPSHOTS_MAX))
        return [encode_snapshot(volume.name, each) for each in rows]


@method("volume.get_snapshot", "snapshot", volume="volume", name_or_id="reference")
def get_snapshot(call: Call, volume: VolumeRef, name_or_id: str | int) -> Message:
    with call.session.volume(volume) as found:
        return encode_snapshot(volume.name, found.get_snapshot(name_or_id))


@method("volume.rollback", "snapshot", changes=True, volume="volume", snapshot="reference")
def rollback(call: Call, volume: VolumeRef, snapshot: str | int) -> Message:
    with call.session.volume(volume) as found:
        return encode_snapshot(volume.name, found.rollback(snapshot))


# -- extents -----------------------------------------------------------------------------------------------------------
@method("volume.allocated_extents", "extents", volume="volume", start="integer", length="integer?",
        max_results="integer")  # fmt: skip
def allocated_extents(
    call: Call, volume: VolumeRef, start: int, max_results: int, length: int | None = None
) -> str:  # fmt: skip
    with call.session.volume(volume) as found:
        return encode_extents(found.allocated_extents(start, length, min(max_results, EXTENTS_MAX)))


@method("volume.changed_extents", "extents", volume="volume", base="reference", start="integer", length="integer?",
        max_results="integer")  # fmt: skip
def changed_extents(
    call: Call, volume: VolumeRef, base: str | int, start: int, max_results: int, length: int | None = None
) -> str:
    with call.session.volume(volume) as found:
        return encode_extents(found.changed_extents(base, start, length, min(max_results, EXTENTS_MAX)))


# -- images ------------------------------------------------------------------------------------------------------------
@method("volume.flatten", volume="volume", path="path", in_place="boolean")
def flatten(call: Call, volume: VolumeRef, path: str, in_place: bool) -> None:
    with call.session.volume(volume) as found:
        found.flatten(path, in_place=in_place)


@method("volume.export", "report", volume="volume", path="path", salvage="boolean", doubtful="boolean")
def export(call: Call, volume: VolumeRef, path: str, salvage: bool, doubtful: bool) -> Message:
    with call.session.volume(volume) as found:
        return encode_report(found.export(path, salvage=salvage, doubtful=doubtful))


# -- space and care ----------------------------------------------------------------------------------------------------
@method("volume.policy", "object", volume="volume")
def policy(call: Call, volume: VolumeRef) -> Message:
    with call.session.volume(volume) as found:
        return encode_fields(found.policy())


@method("volume.set_policy", "object", changes=True, volume="volume", when_full="text?", keep_newest="integer?",
        snapshot_bytes_max="integer?")  # fmt: skip
def set_policy(call: Call, volume: VolumeRef, **changes: Any) -> Message:
    with call.session.volume(volume) as found:
        return encode_fields(found.policy(**changes))


@method("volume.accept_clock", changes=True, volume="volume")
def accept_clock(call: Call, volume: VolumeRef) -> None:
    with call.session.volume(volume) as found:
        found.accept_clock()


@method("volume.given_up", "array of object", volume="volume")
def given_up(call: Call, volume: VolumeRef) -> list[Message]:
    with call.session.volume(volume) as found:
        return [encode_fields(loss) for loss in found.given_up()]


@method("volume.reclaim", changes=True, volume="volume")
def reclaim(call: Call, volume: VolumeRef) -> None:
    with call.session.volume(volume) as found:
        found.reclaim()


@method("volume.du", "object", volume="volume")
def du(call: Call, volume: VolumeRef) -> Message:
    with call.session.volume(volume) as found:
        return encode_fields(found.du())


@method("volume.compact", "object", changes=True, volume="volume", start="integer", rate="integer?")
def compact(call: Call, volume: VolumeRef, start: int, rate: int | None = None) -> Message:
    progress = call.progress(encode_fields)
    with call.session.volume(volume) as found:
        return encode_fields(found.compact(start, rate=rate, stop=call.stop, progress=progress))


@method("volume.seal", "object", changes=True, volume="volume", rate="integer?")
def seal(call: Call, volume: VolumeRef, rate: int | None = None) -> Message:
    progress = call.progress(encode_fields)
    with call.session.volume(volume) as found:
        return encode_fields(found.seal(rate=rate, stop=call.stop, progress=progress))


@method("volume.unsealed_bytes", "integer", volume="volume")
def unsealed_bytes(call: Call, volume: VolumeRef) -> int:
    with call.session.volume(volume) as found:
        return found.unsealed_bytes()


@method("volume.verify", "report", volume="volume", rate="integer?")
def verify(call: Call, volume: VolumeRef, rate: int | None = None) -> Message:
    progress = call.progress(encode_report)
    with call.session.volume(volume) as found:
        return encode_report(found.verify(progress, rate=rate, stop=call.stop))


@method("volume.stats", "object", volume="volume")
def stats(call: Call, volume: VolumeRef) -> Message:
    with call.session.volume(volume) as found:
        return found.stats()


@method("volume.check", "report", volume="volume")
def check(call: Call, volume: VolumeRef) -> Message:
    with call.session.volume(volume) as found:
        return encode_report(found.check())


@method("volume.repair", "report", changes=True, volume="volume")
def repair(call: Call, volume: VolumeRef) -> Message:
    with call.session.volume(volume) as found:
        return encode_report(found.check(repair=True))
