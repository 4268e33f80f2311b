"""The methods of the control protocol that are about one snapshot: what its owner decides about it.

Its bytes and extents are not among them: a client reads them from the volume file itself.

Threads   Each runs in the thread of its client.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cowengine.control.encoding import encode_date, encode_fields, encode_report, encode_volume
from cowengine.control.methods import VolumeRef, method
from cowengine.control.protocol import Message
from cowengine.engine.setflush import flush_events

if TYPE_CHECKING:
    import datetime

    from cowengine.control.session import Call
    from cowengine.snapshot import Snapshot


@contextmanager
def _snapshot(call: Call, volume: VolumeRef, number: int) -> Iterator[Snapshot]:
    """The snapshot that a call is about. Raises NotFoundError."""
    with call.session.volume(volume) as found:
        yield found.get_snapshot(number)


@method("snapshot.state", "object", volume="volume", snapshot="integer")
def state(call: Call, volume: VolumeRef, snapshot: int) -> Message:
    with _snapshot(call, volume, snapshot) as found:
        return {
            "is_anchor": found.is_anchor,
            "hold_reason": found.hold_reason,
            "retain_until": encode_date(found.retain_until),
            "metadata": found.metadata,
        }


@method("snapshot.publish", volume="volume", snapshot="integer")
def publish(call: Call, volume: VolumeRef, snapshot: int) -> None:
    """A snapshot of a set that stands only in the store log yet comes into its volume's own, where clients see it."""
    with _snapshot(call, volume, snapshot) as found:
        flush_events(found._engine)


@method("snapshot.space", "object", volume="volume", snapshot="integer")
def space(call: Call, volume: VolumeRef, snapshot: int) -> Message:
    with _snapshot(call, volume, snapshot) as found:
        return encode_fields(found.space())


@method("snapshot.hold", changes=True, volume="volume", snapshot="integer", reason="text")
def hold(call: Call, volume: VolumeRef, snapshot: int, reason: str) -> None:
    with _snapshot(call, volume, snapshot) as found:
        found.hold(reason)


@method("snapshot.release", changes=True, volume="volume", snapshot="integer")
def release(call: Call, volume: VolumeRef, snapshot: int) -> None:
    with _snapshot(call, volume, snapshot) as found:
        found.release()


@method("snapshot.retain", changes=True, volume="volume", snapshot="integer", until="date")
def retain(call: Call, volume: VolumeRef, snapshot: int, until: datetime.datetime) -> None:
    with _snapshot(call, volume, snapshot) as found:
        found.retain_until = until


@method("snapshot.require_deletable", volume="volume", snapshot="integer")
def require_deletable(call: Call, volume: VolumeRef, snapshot: int) -> None:
    with _snapshot(call, volume, snapshot) as found:
        found.require_deletable()


@method("snapshot.delete", changes=True, volume="volume", snapshot="integer")
def delete(call: Call, volume: VolumeRef, snapshot: int) -> None:
    with _snapshot(call, volume, snapshot) as found:
        found.delete()


@method("snapshot.to_anchor", changes=True, volume="volume", snapshot="integer")
def to_anchor(call: Call, volume: VolumeRef, snapshot: int) -> None:
    with _snapshot(call, volume, snapshot) as found:
        found.to_anchor()


@method("snapshot.clone", "volume", changes=True, volume="volume", snapshot="integer", name="text")
def clone(call: Call, volume: VolumeRef, snapshot: int, name: str) -> Message:
    with _snapshot(call, volume, snapshot) as found:
        head = found.clone(name)
        call.session.keep_head(volume.name, head)
        return encode_volume(volume.name, head)


@method("snapshot.salvage", "report", volume="volume", snapshot="integer", path="path", doubtful="boolean")
def salvage(call: Call, volume: VolumeRef, snapshot: int, path: str, doubtful: bool) -> Message:
    with _snapshot(call, volume, snapshot) as found:
        return encode_report(found.export(path, salvage=True, doubtful=doubtful))


@method("snapshot.verify", "report", volume="volume", snapshot="integer", rate="integer?")
def verify(call: Call, volume: VolumeRef, snapshot: int, rate: int | None = None) -> Message:
    progress = call.progress(encode_report)
    with _snapshot(call, volume, snapshot) as found:
        return encode_report(found.verify(progress, rate=rate, stop=call.stop))
