"""A data path over a file in memory, with nothing of the engine above it: what the tests of the kernels work on."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from cowengine import format as f
from cowengine.core.checksum import xxh64
from cowengine.core.datapath import DataPath
from cowengine.core.iotable import IOTable
from cowengine.core.roots import Head, Root

BLOCK = 4096
FOLD = 99
SLOTS = 1 << 17  # of the file: four leaves of the free map
NODES = 100_000  # the slots from here on are for nodes
RUNWAY = ((1_000, 20_000),)
Run = tuple[int, int]


class Disk(IOTable):
    """A file in memory. Slots in `broken` cannot be read; `writing` is called within each write, by its thread."""

    def __init__(self) -> None:
        self.slots: dict[int, bytes] = {}
        self.broken: set[int] = set()
        self.writing: Callable[[int], object] = lambda slot: None
        self.reading: Callable[[int], object] = lambda slot: None

    def pread_into(self, fd: int, buffer: Any, offset: int) -> int:
        slot, skip = divmod(offset, BLOCK)
        self.reading(slot)
        slots = range(slot, slot + -(-(skip + len(buffer)) // BLOCK))
        if not self.broken.isdisjoint(slots):
            raise OSError(5, "planted")
        data = b"".join(self.slots.get(each, bytes(BLOCK)) for each in slots)
        buffer[:] = data[skip : skip + len(buffer)]
        return len(buffer)

    def preadv_into(self, fd: int, parts: list[Any], offset: int) -> int:
        """One read, of what is passed over as well."""
        lengths = [part if isinstance(part, int) else len(part) for part in parts]
        whole = memoryview(bytearray(sum(lengths)))
        self.pread_into(fd, whole, offset)
        for part, length in zip(parts, lengths, strict=True):
            if not isinstance(part, int):
                part[:] = whole[:length]
            whole = whole[length:]
        return sum(lengths)

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        slot, skip = divmod(offset, BLOCK)
        self.writing(slot)
        for each in range(slot, slot + -(-(skip + len(data)) // BLOCK)):
            old = self.slots.get(each, bytes(BLOCK))
            part, data = bytes(data[: BLOCK - skip]), data[BLOCK - skip :]
            self.slots[each] = old[:skip] + part + old[skip + len(part) :]
            skip = 0
        return 0


class Path:
    """A volume of some blocks, all holes; its runway is ready, and what its nodes need is free."""

    def __init__(
        self,
        blocks: int = 1024,
        *,
        batch_bytes: int = 1 << 20,
        regions: tuple[tuple[int, int, int], ...] = (),
        runway: tuple[Run, ...] = RUNWAY,
    ) -> None:
        self.disk = Disk()
        self.path = DataPath(self.disk, 0, FOLD, 12, batch_bytes, self.refill, self.commit)
        self.path.slots.bound(SLOTS, [self.path.map, self.path.seals.tree])
        self.path.set_regions([*regions])
        self.live = self.path.live
        self.live.set_size(blocks * BLOCK)
        self.live.load(f.hole(f.level_for(f.TREE_MAP, blocks)).encode())
        self.live.set_epochs(1, 0)
        self.live.open()
        self.give(*runway)
        self.next_node = NODES
        self.commits = 0

    def give(self, *runs: Run) -> None:
        """Slots to place blocks in."""
        for run in runs:
            self.path.slots.mark_busy(*run)
        assert self.path.add_runway([*runs]) == []

    def refill(self, slots: int) -> None:
        raise AssertionError(f"the runway is empty: {slots} wanted")

    def commit(self) -> None:
        """What the batch has is durable."""
        self.commits += 1
        deltas, freed, *_ = self.path.take_batch([])
        self.path.account(deltas, freed)

    def write(self, first: int, count: int = 1, byte: bytes = b"x", head: Head | None = None) -> None:
        assert self.path.pwrite(byte * (count * BLOCK), first * BLOCK, head) == count * BLOCK

    def snapshot(self) -> Root:
        """What the live head maps now; the free rule goes by it."""
        self.path.fence()
        deltas, freed, _, _, _, (root,) = self.path.take_batch([self.live])
        self.path.account(deltas, freed)
        return root

    def freed(self) -> list[Run]:
        """The runs that the open batch frees; it is empty then."""
        return [*struct.iter_unpack("<QQ", self.path.take_batch([])[1])]

    def write_nodes(self, *roots: Root) -> range:
        """Writes all nodes of some roots, and of the live head; the slots that they lie in."""
        first = self.next_node
        ((self.next_node, _),) = self.path.flush_map([*roots, self.live], [(first, 1000)])
        return range(first, self.next_node)

    def forget(self, *roots: Root) -> None:
        """Nodes that are written are not in memory any more."""
        for root in (*roots, self.live):
            root.unload()

    def lose_map(self) -> None:
        """What was written is committed; its nodes are written and not in memory, and cannot be read."""
        self.commit()
        self.disk.broken = {*self.write_nodes()}
        self.forget()

    def put_node(
        self, slot: int, level: int, data: bytes, *, birth: int = 9, tree: int = f.TREE_MAP, index: int = 0
    ) -> f.Pointer:
        """Node `index` of its level, filled up with zeros, with a checksum that is right whatever it says."""
        data = data.ljust(BLOCK, b"\0")
        self.disk.slots[slot] = data
        return f.Pointer(f.POINTER_NODE, slot, level, birth, xxh64(data, f.node_seed(FOLD, tree, level, index)))


def pairs(raw: bytes | bytearray) -> list[Run]:
    """Extents as (first, count)."""
    return [*struct.iter_unpack("<QQ", raw)]
