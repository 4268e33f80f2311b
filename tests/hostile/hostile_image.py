"""The bytes of a volume file with a map of what each field is, and the sealing that makes all its checksums right.

Built on the byte tables and seeds of cowengine.format alone. A *spot* is a field somewhere in the image. Sealing goes
over whatever the image says by then, moved pointers included, so a mutation is never stopped by a checksum: that is
the point.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from cowengine import format as f
from cowengine.core.checksum import xxh64
from cowengine.format import layout

SLOT = layout.SLOT_BYTES
_POINTER_FIELDS = {"lineage_root", "free_map_root", "seal_root", "name_root", "root"}
TREES = {
    "lineage_root": layout.TREE_LINEAGE, "free_map_root": layout.TREE_FREE_MAP, "seal_root": layout.TREE_SEALS,
    "name_root": layout.TREE_NAMES,
}  # fmt: skip
_U64 = struct.Struct("<Q")


class Spot(NamedTuple):
    """A field: `what` it is (structure.field), where it begins in the image, and its length."""

    what: str
    offset: int
    bytes: int


class Sealed(NamedTuple):
    """A node on the way down: where its pointer lies, and what its checksum is bound to."""

    pointer: int
    tree: int
    level: int
    index: int


class Image:
    """A volume file in memory. The fields are found when it is made; change `data`, then `seal`."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.superblock = max((0, SLOT), key=lambda at: self.u64(at + 72) if data[at : at + 8] == f.MAGIC else -1)
        self.records: list[int] = []  # offsets in the image
        self.spots = [*self._superblock(), *self._trees(), *self._log()]

    # -- numbers ---------------------------------------------------------------------------------------------------
    def u64(self, offset: int) -> int:
        """The integer of 8 bytes at an offset."""
        number: int = _U64.unpack_from(self.data, offset)[0]
        return number

    def put(self, offset: int, number: int, count: int = 8) -> None:
        """Writes an integer, cut to its width."""
        self.data[offset : offset + count] = (number % (1 << 8 * count)).to_bytes(count, "little")

    @property
    def fold(self) -> int:
        """What all seeds begin with, by the UUID as it stands."""
        return self.u64(self.superblock + 40)

    @property
    def slots(self) -> int:
        """Whole slots of the image."""
        return len(self.data) // SLOT

    # -- what is where ---------------------------------------------------------------------------------------------
    def _superblock(self) -> Iterator[Spot]:
        for field in layout.SUPERBLOCK:
            at = self.superblock + field.offset
            if field.name in _POINTER_FIELDS:
                yield from _pointer("superblock." + field.name, at)
            elif field.name == "regions":
                yield from (Spot("superblock.region", at + 8 * number, 8) for number in range(9))
            elif field.name == "given_up":
                yield from (Spot("superblock.given_up", at + 8 * number, 8) for number in range(12))
            elif field.name != "checksum":
                yield Spot("superblock." + field.name, at, field.bytes)

    def _trees(self) -> Iterator[Spot]:
        seen: set[int] = set()
        for root, tree in self._roots():
            for slot, place in self.walk(root, tree):
                if slot not in seen:
                    seen.add(slot)
                    yield from self._node(slot, place)

    def metadata_slots(self) -> set[int]:
        """Slots of the nodes of all trees, and of what snapshots have as metadata."""
        blobs = {self.u64(spot.offset) for spot in self.spots if spot.what == "lineage.metadata_slot"}
        return {slot for root, tree in self._roots() for slot, _ in self.walk(root, tree)} | blobs - {0}

    def _roots(self) -> list[tuple[int, int]]:
        """Where the pointers of the trees lie in the superblock, and the trees' numbers."""
        offsets = {field.name: self.superblock + field.offset for field in layout.SUPERBLOCK}
        return [(offsets[name], tree) for name, tree in TREES.items()]

    def leaves(self, tree: int) -> dict[int, int]:
        """Offsets of the leaves of one of the superblock's trees, by their index."""
        root = next(root for root, one in self._roots() if one == tree)
        return {place.index: slot * SLOT for slot, place in self.walk(root, tree) if place.level == 0}

    def _node(self, slot: int, place: Sealed) -> Iterator[Spot]:
        at = slot * SLOT
        if place.level:
            for number in range(f.FANOUT):
                if any(self.data[at + 32 * number : at + 32 * number + 32]):
                    yield from _pointer(f"node{place.tree}.pointer", at + 32 * number)
        elif place.tree == f.TREE_MAP:
            for number in range(f.LEAF_ENTRIES):
                if any(self.data[at + 16 * number : at + 16 * number + 16]):
                    yield Spot("map.target", at + 16 * number, 8)
                    yield Spot("map.birth", at + 16 * number + 8, 8)
        elif place.tree == f.TREE_LINEAGE:
            for number in range(f.RECORDS_PER_LEAF):
                yield from self._lineage(at + number * f.LINEAGE_BYTES)
        elif place.tree == TREES["name_root"]:
            for number in range(0, SLOT, 16):
                if any(self.data[at + number : at + number + 16]):
                    yield Spot("names.hash", at + number, 8)
                    yield Spot("names.place", at + number + 8, 8)
        elif place.tree == TREES["seal_root"]:
            seals = (at + 4 * number for number in range(SLOT // 4))
            yield from (Spot("seals.seal", seal, 4) for seal in seals if any(self.data[seal : seal + 4]))
        elif place.tree == f.TREE_FREE_MAP:
            yield Spot("free_map.bits", at, min(SLOT, self.slots // 8 + 8))

    def _lineage(self, at: int) -> Iterator[Spot]:
        if not self.data[at]:
            return
        yield Spot("lineage", at, f.LINEAGE_BYTES)
        for field in layout.LINEAGE_RECORD:
            if field.name == "root":
                yield from _pointer("lineage.root", at + field.offset)
            else:
                yield Spot("lineage." + field.name, at + field.offset, field.bytes)

    def walk(self, root: int, tree: int) -> Iterator[tuple[int, Sealed]]:
        """Every node below the pointer at offset `root`, children first, maps below the records that lead to them."""
        yield from self._below(Sealed(root, tree, self.data[root + 6], 0), ())

    def _below(self, place: Sealed, above: tuple[int, ...]) -> Iterator[tuple[int, Sealed]]:
        target = self.u64(place.pointer)
        slot, kind = target & f.SLOT_MASK, target >> 56
        if kind != f.POINTER_NODE or not 2 <= slot < self.slots or slot in above or len(above) > 16:
            return
        at = slot * SLOT
        if place.level:
            for number in range(f.FANOUT):
                child = Sealed(at + 32 * number, place.tree, self.data[at + 32 * number + 6], 0)
                if self.data[child.pointer + 7] == f.POINTER_NODE:
                    child = child._replace(index=place.index * f.FANOUT + number)
                    yield from self._below(child, (*above, slot))
        elif place.tree == f.TREE_LINEAGE:
            for number in range(f.RECORDS_PER_LEAF):
                record = at + number * f.LINEAGE_BYTES
                if self.data[record]:
                    yield from self.walk(record + 64, f.TREE_MAP)
        yield slot, place

    def _log(self) -> Iterator[Spot]:
        start, size = self._log_range()
        shift = self.data[self.superblock + 13]
        for offset, _ in f.scan_records(bytes(self.data[start : start + size]), shift, self.fold):
            self.records.append(start + offset)
            yield from self._record(start + offset)

    def _log_range(self) -> tuple[int, int]:
        start, size = self.u64(self.superblock + 96) * SLOT, self.u64(self.superblock + 104) * SLOT
        return min(start, len(self.data)), min(size, layout.LOG_BYTES_MAX)

    def _record(self, at: int) -> Iterator[Spot]:
        counts = {}
        for field in layout.RECORD_HEADER:
            counts[field.name] = int.from_bytes(
                self.data[at + field.offset : at + field.offset + field.bytes], "little"
            )
            if field.name != "checksum":
                yield Spot("record." + field.name, at + field.offset, field.bytes)
        at += layout.RECORD_HEADER_BYTES
        for _ in range(counts["delta_count"]):
            yield from (Spot("delta." + field.name, at + field.offset, 8) for field in layout.DELTA)
            at += layout.DELTA_BYTES
        for what in ("freed", "freed_node", "check"):
            for _ in range(counts[what + "_count"]):
                yield Spot(what + ".slot", at, 8)
                yield Spot(what + ".count", at + 8, 8)
                at += layout.PAIR_BYTES
        end = at + counts["event_bytes"]
        while at < end:
            yield from (Spot("event." + field.name, at + field.offset, field.bytes) for field in layout.EVENT_HEADER)
            kind, size = (
                int.from_bytes(self.data[at : at + 2], "little"),
                int.from_bytes(self.data[at + 4 : at + 8], "little"),
            )
            for field in layout.EVENT_PAYLOADS.get(kind, ()):
                yield Spot(f"event{kind}.{field.name}", at + 8 + field.offset, field.bytes)
            if kind == f.EVENT_SNAPSHOT:
                yield Spot("event1.name", at + 8 + layout.SNAPSHOT_FIXED_BYTES, size - 8 - layout.SNAPSHOT_FIXED_BYTES)
            elif kind == f.EVENT_CLONE:
                yield Spot("event8.name", at + 8 + layout.CLONE_FIXED_BYTES, size - 8 - layout.CLONE_FIXED_BYTES)
            at += max(size, 8)

    # -- checksums -------------------------------------------------------------------------------------------------
    def seal(self) -> None:
        """Makes every checksum right again: metadata, nodes up to the roots, the chain of the log, the superblock."""
        fold = self.fold
        for root, tree in self._roots():
            for slot, place in list(self.walk(root, tree)):
                if place.tree == f.TREE_LINEAGE and place.level == 0:
                    self._seal_metadata(slot * SLOT, fold)
                seed = f.node_seed(fold, place.tree, place.level, place.index)
                self.put(place.pointer + 16, xxh64(bytes(self.data[slot * SLOT : slot * SLOT + SLOT]), seed))
        self._seal_log(fold)
        checksum = xxh64(bytes(self.data[self.superblock : self.superblock + 4088]), 0)
        self.put(self.superblock + 4088, checksum)

    def _seal_metadata(self, leaf: int, fold: int) -> None:
        for at in range(leaf, leaf + SLOT, f.LINEAGE_BYTES):
            count = int.from_bytes(self.data[at + 4 : at + 8], "little")
            slot = self.u64(at + 128)
            if self.data[at] and count and slot < self.slots:
                blob = bytes(self.data[slot * SLOT : slot * SLOT + min(count, SLOT)])
                self.put(at + 136, xxh64(blob, f.blob_seed(fold, self.u64(at + 8))))

    def _seal_log(self, fold: int) -> None:
        by_sequence = {}
        for at in sorted(self.records, key=lambda at: self.u64(at + 16)):
            sequence = self.u64(at + 16)
            if sequence - 1 in by_sequence:
                self.put(at + 32, by_sequence[sequence - 1])
            count = int.from_bytes(self.data[at + 4 : at + 8], "little")
            self.put(at + 120, 0)
            raw = bytes(self.data[at : min(at + count, len(self.data))])
            by_sequence[sequence] = xxh64(raw, (fold + sequence) & layout.MASK64)
            self.put(at + 120, by_sequence[sequence])
        base, tip = self.superblock + 112, self.superblock + 136
        for place in (base, tip):
            if self.u64(place) in by_sequence:
                self.put(place + 8, by_sequence[self.u64(place)])

    def append_record(self, record: f.Record) -> bool:
        """Puts one more record at the end of the chain; whether there is room for it before the ring ends."""
        start, size = self._log_range()
        shift = self.data[self.superblock + 13]
        sequence, end = self.u64(self.superblock + 112), start + self.u64(self.superblock + 128)
        previous = self.u64(self.superblock + 120)
        for at in self.records:
            if self.u64(at + 16) > sequence:
                sequence, previous = self.u64(at + 16), self.u64(at + 120)
                end = at + int.from_bytes(self.data[at + 4 : at + 8], "little")
        end = start + (-(-(end - start) // (1 << shift)) << shift)
        record.sequence, record.previous, record.salt = sequence + 1, previous, self.u64(self.superblock + 80)
        record.generation = self.u64(self.superblock + 72)
        encoded = f.encode_record(record, self.fold)
        if end + len(encoded) > start + size:
            end = start
        if len(encoded) > size or end + len(encoded) > len(self.data):
            return False
        self.data[end : end + len(encoded)] = encoded
        self.records = [at for at in self.records if at != end] + [end]
        self.data[self.superblock + 14] = 0  # not closed cleanly
        return True


def _pointer(what: str, at: int) -> Iterator[Spot]:
    yield Spot(what + ".target", at, 8)
    yield Spot(what + ".birth", at + 8, 8)
    yield Spot(what, at, layout.POINTER_BYTES)
