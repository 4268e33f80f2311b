"""Addresses: VOLUME is a volume file's path or STORE:NAME, SNAPSHOT is VOLUME@NAME.

Nothing is guessed from the content of a file. A name that itself holds an @ is reached by its id, as VOLUME@#ID.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cowengine.errors import NotFoundError, OutOfRangeError

if TYPE_CHECKING:
    from cowengine import Snapshot, Volume


def split_store(address: str) -> tuple[str, str] | None:
    """(store path, volume name) if `address` is STORE:NAME, None if it is a path.

    It is STORE:NAME if a directory stands before the last colon; an existing file of that very name goes first.
    """
    store, colon, name = address.rpartition(":")
    if not colon or "/" in name or not os.path.isdir(store) or os.path.lexists(address):
        return None
    return store, name


def split_snapshot(address: str) -> tuple[str, str]:
    """(VOLUME, snapshot name) of VOLUME@NAME; raises OutOfRangeError if one is missing."""
    volume, at, name = address.rpartition("@")
    if not at or not volume or not name:
        raise OutOfRangeError(f"{address!r} is no snapshot; write VOLUME@NAME")
    return volume, name


def volume_file(address: str) -> str:
    """The path of a volume's file, for what does not open the volume or its store."""
    in_store = split_store(address)
    if in_store is None:
        return address
    from cowengine.store.names import volume_file as file_in_store

    return file_in_store(*in_store)


@contextmanager
def open_volume(address: str, *, read_only: bool) -> Iterator[Volume]:
    """The volume at an address, with its store opened around it if it has one."""
    in_store = split_store(address)
    if in_store is None:
        from cowengine import Volume

        with Volume.open(address, read_only=read_only) as volume:
            yield volume
        return
    from cowengine import connect

    with connect(in_store[0], read_only=read_only) as store, store.open_volume(in_store[1]) as volume:
        yield volume


@contextmanager
def open_snapshot(address: str, *, read_only: bool) -> Iterator[tuple[Volume, Snapshot]]:
    """The snapshot at an address, and its volume."""
    volume_address, name = split_snapshot(address)
    with open_volume(volume_address, read_only=read_only) as volume:
        yield volume, find_snapshot(volume, name)


def snapshot_id(name: str) -> int | None:
    """The id that `#ID` stands for; None for anything else."""
    return int(name[1:]) if name[:1] == "#" and name[1:].isascii() and name[1:].isdigit() else None


def find_snapshot(volume: Volume, name: str) -> Snapshot:
    """The snapshot of that name, or with `#ID` of that id; raises NotFoundError."""
    try:
        return volume.get_snapshot(name)
    except NotFoundError:
        number = snapshot_id(name)
        if number is None:
            raise
        return volume.get_snapshot(number)
