"""Block status: what of an export is allocated, what changed since a snapshot, and how long ago it was written.

An answer begins where the question does, covers at least one byte of it and nothing beyond it, and neighbours in it
differ. It may end early; the client then asks again from there.

Threads   Any.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from struct import Struct, pack
from typing import TYPE_CHECKING

from cowengine.nbd import protocol
from cowengine.nbd.protocol import Replies

if TYPE_CHECKING:
    from cowengine.extents import ExtentArray
    from cowengine.nbd.exports import Export

#: (length, flags) in bytes, one behind the other.
States = list[tuple[int, int]]

_BIRTH = Struct("<QQQ")


@dataclass(frozen=True)
class Context(ABC):
    """What a client selected: the number it goes by in replies, and its name."""

    id: int
    name: str
    export: Export

    @abstractmethod
    def states(self, start: int, length: int, states_max: int) -> States:
        """What a range is, at most so many states, which are at least one. Raises what reading the map raises."""

    def payload(self, replies: Replies, start: int, length: int, states_max: int) -> bytes:
        """The payload of a block status chunk."""
        states = self.states(start, length, states_max)
        flat = [number for state in states for number in state]
        if replies == Replies.EXTENDED:
            return pack(f">II{len(flat)}Q", self.id, len(states), *flat)
        return pack(f">I{len(flat)}I", self.id, *flat)


class Allocation(Context):
    """base:allocation: data, or a hole that reads as zeros."""

    def states(self, start: int, length: int, states_max: int) -> States:
        """See `Context`."""
        find = partial(self.export.source.allocated_extents, start, length)
        return _covering(find, start, length, states_max, 0, protocol.STATE_HOLE | protocol.STATE_ZERO)


@dataclass(frozen=True)
class DirtyBitmap(Context):
    """qemu:dirty-bitmap:NAME: what differs between the export and a snapshot."""

    base_id: int

    def states(self, start: int, length: int, states_max: int) -> States:
        """See `Context`."""
        find = partial(self.export.source.changed_extents, self.base_id, start, length)
        return _covering(find, start, length, states_max, protocol.STATE_DIRTY, 0)


class AllocationDepth(Context):
    """qemu:allocation-depth: 0 is a hole, 1 was written since the newest snapshot that the export stands on, and so on.

    The depth of a block is how many snapshots from its writing on the export stands on, and 1.
    """

    def states(self, start: int, length: int, states_max: int) -> States:
        """See `Context`."""
        export = self.export
        epochs = export.epochs_below()
        block = export.block_size
        first, end = start // block, -(-(start + length) // block)
        found = []
        # Each state may be of several births, so there may be more births than states are wanted.
        root = export.engine.lineage.root(export.id)  # as reads find it: then its memory can be given up again
        for begin, count, birth in _BIRTH.iter_unpack(export.path.births(root, first, end, 2 * states_max)):
            depth = len(epochs) - bisect_left(epochs, birth) + 1 if birth else 0
            found.append(((begin + count) * block, depth))
        return _merged(found, start, start + length, states_max)


def _covering(
    find: Callable[[int], ExtentArray], start: int, length: int, states_max: int, inside: int, outside: int
) -> States:  # fmt: skip
    """The states of a range in which what `find` finds, at most so many rows (offset, length), is one thing."""
    stop = start + length
    rows = find(states_max).tolist()
    found = []
    for offset, count in rows:
        found += [(offset, outside), (offset + count, inside)]
    if len(rows) < states_max:  # there are no more
        found.append((stop, outside))
    return _merged(found, start, stop, states_max)


def _merged(ends: Iterable[tuple[int, int]], start: int, stop: int, states_max: int) -> States:
    """States of which each goes on to its end, cut to a range and joined where neighbours are alike."""
    states: States = []
    for each, flags in ends:
        end = min(each, stop)
        if end <= start:
            continue
        if states and states[-1][1] == flags:
            states[-1] = (states[-1][0] + end - start, flags)
        elif len(states) == states_max:
            break
        else:
            states.append((end - start, flags))
        start = end
    return states


# -- what there is ----------------------------------------------------------------------------------------------------
def _all_names(export: Export) -> list[str]:
    return [protocol.ALLOCATION, protocol.DEPTH, *(protocol.DIRTY_BITMAP + name for name in export.bitmaps())]


def list_contexts(export: Export, queries: list[str]) -> list[str]:
    """The names of the contexts that any of the queries asks for; all, if there is none. At most LISTED_MAX."""
    names = _all_names(export)
    if not queries:
        return names[: protocol.LISTED_MAX]
    exact = set(queries)
    prefixes = tuple(exact & {"base:", "qemu:", protocol.DIRTY_BITMAP})
    found = [name for name in names if name in exact or (prefixes and name.startswith(prefixes))]
    return found[: protocol.LISTED_MAX]


def find_contexts(export: Export, queries: list[str]) -> list[Context]:
    """The contexts that are named, in that order; names that there are not lead to none.

    The snapshots that they compare with are kept as long as the export is open.
    """
    found: list[Context] = []
    for name in dict.fromkeys(queries):
        if len(found) == protocol.CONTEXTS_MAX:
            break
        number = len(found) + 1
        if name == protocol.ALLOCATION:
            found.append(Allocation(number, name, export))
        elif name == protocol.DEPTH:
            found.append(AllocationDepth(number, name, export))
        elif name.startswith(protocol.DIRTY_BITMAP):
            base = export.keep_bitmap(name.removeprefix(protocol.DIRTY_BITMAP))
            if base is not None:
                found.append(DirtyBitmap(number, name, export, base))
    return found
