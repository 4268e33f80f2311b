"""Where a store lies and how it is open: what its parts share."""

from __future__ import annotations

from dataclasses import dataclass

from cowengine.core.iotable import IOTable


@dataclass(frozen=True, slots=True)
class StorePlace:
    """The directory of one open store, and the I/O table that its files are reached by."""

    io: IOTable
    path: str
    uuid: bytes
    read_only: bool
    background: bool
