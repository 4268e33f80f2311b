"""Builds images of volume files from the format alone: the engine has no part in what the checker is tested with."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace

from cowengine import format as f
from cowengine.core.checksum import xxh64
from cowengine.core.iotable import IOTable

UUID = bytes(range(1, 17))
FOLD = f.fold_of(UUID)
LOG_FIRST, LOG_SLOTS = 2, 4
HOME = LOG_FIRST + LOG_SLOTS


class ImageIO(IOTable):
    """An I/O table over one image in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def open(self, path, flags, mode=0o600):
        return 3

    def is_file(self, path):
        return True

    def close(self, fd):
        pass

    def lock(self, fd, exclusive, start=0, length=0):
        pass

    def size(self, fd):
        return len(self.data)

    def pread(self, fd, length, offset):
        return bytes(self.data[offset : offset + length])


@dataclass
class Image:
    """A volume of `blocks` blocks at a checkpoint; `maps` gives each member's blocks: {block: (slot or 0, birth)}."""

    blocks: int = 300
    slots: int = 700
    epoch: int = 1
    next_id: int = 1
    lineage: dict[int, f.LineageRecord] = field(default_factory=dict)
    maps: dict[int, dict[int, tuple[int, int]]] = field(default_factory=dict)
    metadata: dict[int, bytes] = field(default_factory=dict)
    records: list[f.Record] = field(default_factory=list)
    level: int = 1
    generation: int = 1
    salt: int = 99
    extra_used: tuple[int, ...] = ()
    unmarked: tuple[int, ...] = ()
    log_offset: int = 0

    def __post_init__(self) -> None:
        self.lineage.setdefault(0, f.LineageRecord(f.LINEAGE_HEAD, 0, "live", self.epoch, self.blocks * 4096))
        self.maps.setdefault(0, {})

    def home(self, block: int) -> int:
        return HOME + block

    def build(self) -> bytes:
        """The file."""
        self.data = bytearray(self.slots * 4096)
        self.next_slot = HOME + self.blocks
        self.used = set(self.extra_used)
        self.shared: dict[tuple, f.Pointer] = {}
        for i, blocks in self.maps.items():
            self.lineage[i].root = self.map_tree(blocks, self.level, 0)
            self.used |= {slot for block, (slot, _) in blocks.items() if slot and block * 4096 < self.lineage[i].size}
        for i, metadata in self.metadata.items():
            slot = self.take(metadata)
            checksum = xxh64(metadata, f.blob_seed(FOLD, i))
            self.lineage[i] = replace(
                self.lineage[i], metadata_bytes=len(metadata), metadata_slot=slot, metadata_checksum=checksum
            )
        lineage_root = self.lineage_tree()
        slot = self.take(b"")
        bits = bytearray(4096)
        for used in self.used - set(self.unmarked):
            bits[used >> 3] |= 1 << (used & 7)
        free_map_root = self.node(f.TREE_FREE_MAP, 0, 0, bytes(bits), 0, slot)
        self.superblock = f.Superblock(
            12, 9, UUID, LOG_FIRST, LOG_SLOTS, (f.Region(0, HOME, self.blocks),), self.generation, self.salt,
            epoch=self.epoch, next_id=self.next_id, base_offset=self.log_offset,
            lineage_root=lineage_root, free_map_root=free_map_root,
        )  # fmt: skip
        self.write_superblock(0)
        self.append(self.records)
        return bytes(self.data)

    def write_superblock(self, slot: int, **changes) -> None:
        encoded = f.encode_superblock(replace(self.superblock, **changes))
        self.data[slot * 4096 : slot * 4096 + 4096] = encoded

    def append(self, records: list[f.Record]) -> None:
        """Numbers and chains the records and writes them to the log."""
        previous, position = 0, self.log_offset
        for number, record in enumerate(records):
            record.sequence, record.previous, record.salt = number + 1, previous, self.salt
            encoded = f.encode_record(record, FOLD)
            if position + len(encoded) > LOG_SLOTS * 4096:
                position = 0
            start = LOG_FIRST * 4096 + position
            self.data[start : start + len(encoded)] = encoded
            previous = f.record_checksum(encoded)
            position = -(-(position + len(encoded)) // 512) * 512
        self.tip_checksum = previous

    def take(self, data: bytes) -> int:
        slot = self.next_slot
        self.next_slot += 1
        self.used.add(slot)
        self.data[slot * 4096 : slot * 4096 + len(data)] = data
        return slot

    def node(self, tree: int, level: int, index: int, data: bytes, birth: int, slot: int | None = None) -> f.Pointer:
        key = (tree, level, index, data)
        if key not in self.shared:
            slot = self.take(data) if slot is None else slot
            self.data[slot * 4096 : slot * 4096 + 4096] = data
            checksum = xxh64(data, f.node_seed(FOLD, tree, level, index))
            self.shared[key] = f.Pointer(f.POINTER_NODE, slot, level, birth, checksum)
        return self.shared[key]

    def map_tree(self, blocks: dict[int, tuple[int, int]], level: int, index: int) -> f.Pointer:
        if not blocks:
            return f.hole(level)
        birth = max(birth for _, birth in blocks.values())
        if level:
            keys = f.span(f.TREE_MAP, level - 1)
            children = []
            for number in range(f.FANOUT):
                child = index * f.FANOUT + number
                inside = {b: e for b, e in blocks.items() if child * keys <= b < (child + 1) * keys}
                children.append(self.map_tree(inside, level - 1, child).encode())
            return self.node(f.TREE_MAP, level, index, b"".join(children), birth)
        entries = bytearray(4096)
        for block, (slot, born) in blocks.items():
            target = slot | f.ENTRY_MAPPED << 56 if slot else 0
            struct.pack_into("<QQ", entries, (block - index * f.LEAF_ENTRIES) * 16, target, born)
        return self.node(f.TREE_MAP, 0, index, bytes(entries), birth)

    def lineage_tree(self) -> f.Pointer:
        leaves = max(self.lineage) // f.RECORDS_PER_LEAF + 1
        pointers = []
        for index in range(leaves):
            ids = range(index * f.RECORDS_PER_LEAF, (index + 1) * f.RECORDS_PER_LEAF)
            data = b"".join(f.encode_lineage(self.lineage.get(i)) for i in ids)
            pointers.append(self.node(f.TREE_LINEAGE, 0, index, data, 0))
        if leaves == 1:
            return pointers[0]
        pointers += [f.hole(0)] * (f.FANOUT - leaves)
        return self.node(f.TREE_LINEAGE, 1, 0, b"".join(p.encode() for p in pointers), 0)


def snapshot(i: int, epoch: int, parent: int = f.NONE_ID, size: int = 300 * 4096, **fields) -> f.LineageRecord:
    """A lineage record of a snapshot."""
    return f.LineageRecord(f.LINEAGE_SNAPSHOT, i, fields.pop("name", f"s{i}"), epoch, size, parent=parent, **fields)


def commit(epoch: int, *, size: int = 300 * 4096, **fields) -> f.Record:
    """A log record; salt, sequence and chain are filled in by the image."""
    return f.Record(0, 0, 1, 0, epoch, 0, size, **fields)
