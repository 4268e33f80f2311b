"""The methods of the control protocol that are about the store: its volumes as a whole, its sets and documents.

Threads   Each runs in the thread of its client.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from cowengine.control.encoding import (
    encode_fields,
    encode_report,
    encode_set,
    encode_snapshot,
    encode_volume,
)
from cowengine.control.methods import method
from cowengine.control.protocol import Message
from cowengine.errors import ClosedError
from cowengine.store import SnapshotSet

if TYPE_CHECKING:
    from cowengine.control.session import Call
    from cowengine.store.catalogue import CatalogueSet
    from cowengine.volume import Volume

ROWS_MAX = 1000
_numbers = itertools.count(1)


@method("store.problems", "array of text")
def problems(call: Call) -> list[str]:
    return call.store.problems


# -- volumes -----------------------------------------------------------------------------------------------------------
@method("store.volumes", "array of text")
def volumes(call: Call) -> list[str]:
    return call.store.volumes()


@method("store.create_volume", "volume", changes=True, name="text", size="integer", block_size="integer?",
        log_size="integer?")  # fmt: skip
def create_volume(call: Call, name: str, size: int, **settings: int) -> Message:
    with call.session.uses.running(name):
        return _handed_over(call, name, call.store.create_volume(name, size, **settings))


@method("store.adopt_volume", "volume", changes=True, name="text", path="path", block_size="integer?", raw="boolean?")
def adopt_volume(call: Call, name: str, path: str, **settings: Any) -> Message:
    with call.session.uses.running(name):
        return _handed_over(call, name, call.store.adopt_volume(name, path, **settings))


@method("store.attach", "volume", changes=True, path="path", name="text", without_store="boolean?")
def attach(call: Call, path: str, name: str, without_store: bool = False) -> Message:
    with call.session.uses.running(name):
        return _handed_over(call, name, call.store.attach(path, name, without_store=without_store))


def _handed_over(call: Call, name: str, volume: Volume) -> Message:
    """A new volume is the client's, not the server's own."""
    call.store.hand_back(name)
    call.session.uses.open(name, call.session.number)
    return encode_volume(name, volume)


@method("store.delete_volume", changes=True, name="text")
def delete_volume(call: Call, name: str) -> None:
    with call.session.uses.alone(name):
        call.store.delete_volume(name)


@method("store.rename_volume", changes=True, name="text", new_name="text")
def rename_volume(call: Call, name: str, new_name: str) -> None:
    with call.session.uses.alone(name):
        call.store.rename_volume(name, new_name)


@method("store.detach", "text", changes=True, name="text")
def detach(call: Call, name: str) -> str:
    with call.session.uses.alone(name):
        return call.store.detach(name)


# -- sets --------------------------------------------------------------------------------------------------------------
@method("store.snapshot", "set", changes=True, volumes="texts", name="text", metadata="object?")
def snapshot(call: Call, volumes: list[str], name: str, metadata: Message | None = None) -> Message:
    with call.session.uses.running(*volumes):
        return encode_set(call.store.snapshot(volumes, name, metadata=metadata))


@method("store.prepare_set", "integer", changes=True, volumes="texts", name="text", metadata="object?")
def prepare_set(call: Call, volumes: list[str], name: str, metadata: Message | None = None) -> int:
    number = next(_numbers)
    with call.session.uses.running(*volumes):
        call.session.keep_pending(number, call.store.prepare_set(volumes, name, metadata=metadata))
    return number


@method("pending.require_name_free", pending="integer")
def require_name_free(call: Call, pending: int) -> None:
    call.session.pending(pending).require_name_free()


@method("pending.flush", pending="integer")
def flush(call: Call, pending: int) -> None:
    call.session.pending(pending).flush()


@method("pending.commit", "object", pending="integer")
def commit(call: Call, pending: int) -> Message:
    with call.session.ending(pending) as found:
        if found is None:
            raise ClosedError("this snapshot set was committed or aborted")
        return {"set": encode_set(found.commit()), "held_seconds": found.held_seconds}


@method("pending.abort", pending="integer")
def abort(call: Call, pending: int) -> None:
    with call.session.ending(pending) as found:
        if found is not None:
            found.abort()


@method("store.snapshot_sets", "array of set", start="integer")
def snapshot_sets(call: Call, start: int) -> list[Message]:
    return [encode_set(found) for found in call.store.snapshot_sets()[max(0, start) :][:ROWS_MAX]]


@method("store.get_snapshot_set", "set", name_or_id="text")
def get_snapshot_set(call: Call, name_or_id: str) -> Message:
    return encode_set(call.store.get_snapshot_set(name_or_id))


@method("set.members", "array of object", set="set")
def members(call: Call, set: CatalogueSet) -> list[Message]:
    found = SnapshotSet(call.store, set)
    with call.session.uses.running_everywhere():
        return [
            {"volume": name, "snapshot": None if snapshot is None else encode_snapshot(name, snapshot)}
            for name, snapshot in found._lookup()
        ]


@method("set.delete", changes=True, set="set")
def delete_set(call: Call, set: CatalogueSet) -> None:
    with call.session.uses.running_everywhere():
        call.store.delete_set(set)


# -- documents ---------------------------------------------------------------------------------------------------------
@method("store.attach_ledger", changes=True, set="text", ledger="object")
def attach_ledger(call: Call, set: str, ledger: Message) -> None:
    call.store.attach_ledger(set, ledger)


@method("store.put_document", changes=True, kind="text", id="text", document="object")
def put_document(call: Call, kind: str, id: str, document: Message) -> None:
    call.store.put_document(kind, id, document)


@method("store.get_document", "object", kind="text", id="text")
def get_document(call: Call, kind: str, id: str) -> Message:
    return call.store.get_document(kind, id)


@method("store.documents", "array of text", kind="text")
def documents(call: Call, kind: str) -> list[str]:
    return call.store.documents(kind)


@method("store.delete_document", changes=True, kind="text", id="text")
def delete_document(call: Call, kind: str, id: str) -> None:
    call.store.delete_document(kind, id)


# -- the whole store ---------------------------------------------------------------------------------------------------
@method("store.du", "object")
def du(call: Call) -> Message:
    with call.session.uses.running_everywhere():
        return {name: encode_fields(space) for name, space in call.store.du().items()}


@method("store.check", "report")
def check(call: Call) -> Message:
    with call.session.uses.running_everywhere():
        return encode_report(call.store.check())
