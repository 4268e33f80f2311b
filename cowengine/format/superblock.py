"""The superblock (docs/format.md section 3): encode, decode, validate. No I/O."""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass, replace
from typing import NamedTuple

from cowengine.core.checksum import xxh64
from cowengine.errors import CorruptionError, FormatError, UnsupportedVersionError
from cowengine.format.layout import (
    BLOCK_SHIFT_MAX,
    BLOCK_SHIFT_MIN,
    COUNTER_MAX,
    EPOCH_MAX,
    FEATURE_SEALS,
    FEATURES_INCOMPATIBLE,
    FORMAT_VERSION,
    ID_MAX,
    LOG_BYTES_MAX,
    LOG_BYTES_MIN,
    LOG_SHIFTS,
    LOSSES_BYTES,
    MAGIC,
    NAME_BUCKETS_MAX,
    NAMED_IDS_MAX,
    POINTER_NODE,
    POINTER_RUN,
    REGIONS_MAX,
    SLOT_BYTES,
    SLOT_SHIFT,
    SLOTS_MAX,
    SUPERBLOCK,
    SUPERBLOCK_CHECKSUM_OFFSET,
    WHEN_FULL_GIVE_UP,
    check_gaps,
    gaps_of,
    struct_of,
)
from cowengine.format.losses import Loss, decode_losses, encode_loss
from cowengine.format.trees import HOLE, Pointer

_SUPERBLOCK = struct_of(SUPERBLOCK, SLOT_BYTES)
_GAPS = gaps_of(SUPERBLOCK, SLOT_BYTES)
_REGIONS = struct.Struct(f"<{3 * REGIONS_MAX}Q")
_CHECKSUM = struct.Struct("<Q")


class Region(NamedTuple):
    """Home slots of `block_count` blocks from `first_block`; they begin at `slot`."""

    first_block: int
    slot: int
    block_count: int


@dataclass(slots=True)
class Superblock:
    """One superblock; the fields are those of the document (magic, version and checksum are the codec's own)."""

    block_shift: int
    log_shift: int
    volume_uuid: bytes
    log_first: int
    log_slots: int
    regions: tuple[Region, ...]
    generation: int = 1
    salt: int = 0
    created_ns: int = 0
    clean: bool = False
    needs_store: bool = False
    features_incompatible: int = 0
    features_read_only_compatible: int = 0
    features_compatible: int = 0
    store_uuid: bytes = bytes(16)
    base_sequence: int = 0
    base_checksum: int = 0
    base_offset: int = 0
    tip_sequence: int = 0
    tip_checksum: int = 0
    epoch: int = 1
    next_id: int = 1
    store_sequence: int = 0
    lineage_root: Pointer = HOLE
    free_map_root: Pointer = HOLE
    seal_root: Pointer = HOLE
    name_root: Pointer = HOLE
    name_buckets: int = 0
    name_entries: int = 0
    linear: bool = False
    clock_ns: int = 0
    clock_boot_ns: int = 0
    clock_boot_id: bytes = bytes(16)
    sealed_below: int = 0
    when_full: int = 0
    keep_newest: int = 0
    snapshot_bytes_max: int = 0
    given_up_count: int = 0
    given_up: tuple[Loss, ...] = ()

    @property
    def log_bytes(self) -> int:
        """Size of the log."""
        return self.log_slots << SLOT_SHIFT


def encode_superblock(sb: Superblock) -> bytes:
    """The 4,096 bytes of a superblock, checksum included."""
    numbers = [number for region in sb.regions for number in region]
    numbers += [0] * (3 * REGIONS_MAX - len(numbers))
    data = bytearray(SLOT_BYTES)
    losses = b"".join(encode_loss(loss) for loss in sb.given_up)
    assert len(losses) <= LOSSES_BYTES, "the engine keeps the newest that fit"
    _SUPERBLOCK.pack_into(
        data, 0,
        MAGIC, FORMAT_VERSION, sb.block_shift, sb.log_shift, sb.clean, sb.needs_store,
        sb.features_incompatible, sb.features_read_only_compatible, sb.features_compatible,
        sb.volume_uuid, sb.store_uuid, sb.generation, sb.salt, sb.created_ns, sb.log_first, sb.log_slots,
        sb.base_sequence, sb.base_checksum, sb.base_offset, sb.tip_sequence, sb.tip_checksum,
        sb.epoch, sb.next_id, sb.store_sequence, len(sb.regions), _REGIONS.pack(*numbers),
        sb.lineage_root.encode(), sb.free_map_root.encode(), sb.seal_root.encode(), sb.name_root.encode(),
        sb.name_buckets, sb.name_entries, sb.linear, sb.clock_ns, sb.clock_boot_ns, sb.clock_boot_id, sb.sealed_below,
        sb.when_full, sb.keep_newest, sb.snapshot_bytes_max, sb.given_up_count, len(losses), losses, 0,
    )  # fmt: skip
    checksum = xxh64(memoryview(data)[:SUPERBLOCK_CHECKSUM_OFFSET], 0)
    _CHECKSUM.pack_into(data, SUPERBLOCK_CHECKSUM_OFFSET, checksum)
    return bytes(data)


def decode_superblock(data: bytes) -> Superblock:
    """The superblock in these 4,096 bytes.

    Raises FormatError if the magic is missing, CorruptionError if checksum or contents are wrong, and
    UnsupportedVersionError for another format version or an unknown incompatible feature. The checksum is tested before
    the version: its place and seed are the same in every version, so a damaged slot never passes for a newer one.
    """
    if len(data) != SLOT_BYTES or data[: len(MAGIC)] != MAGIC:
        raise FormatError("no superblock here: not a cowengine volume, or one whose beginning was overwritten")
    (
        _, version, block_shift, log_shift, clean, needs_store, incompatible, read_only_compatible, compatible,
        volume_uuid, store_uuid, generation, salt, created_ns, log_first, log_slots,
        base_sequence, base_checksum, base_offset, tip_sequence, tip_checksum,
        epoch, next_id, store_sequence, region_count, regions, lineage, free_map, seal, name,
        name_buckets, name_entries, linear, clock_ns, clock_boot_ns, clock_boot_id, sealed_below,
        when_full, keep_newest, snapshot_bytes_max, given_up_count, given_up_bytes, given_up, checksum,
    ) = _SUPERBLOCK.unpack(data)  # fmt: skip
    if xxh64(memoryview(data)[:SUPERBLOCK_CHECKSUM_OFFSET], 0) != checksum:
        raise CorruptionError("superblock: the checksum is wrong")
    if version != FORMAT_VERSION:
        raise UnsupportedVersionError(f"format version {version}; this cowengine knows {FORMAT_VERSION}: upgrade it")
    unknown = incompatible & ~FEATURES_INCOMPATIBLE
    if unknown:
        raise UnsupportedVersionError(f"unknown incompatible features {unknown:#x}: upgrade cowengine")
    check_gaps(data, _GAPS, "superblock")
    _require(clean <= 1 and needs_store <= 1, "clean or needs_store is neither 0 nor 1")
    _require(linear <= 1, "linear is {}", linear)
    sb = Superblock(
        block_shift, log_shift, volume_uuid, log_first, log_slots, _decode_regions(regions, region_count),
        generation, salt, created_ns, bool(clean), bool(needs_store),
        incompatible, read_only_compatible, compatible, store_uuid,
        base_sequence, base_checksum, base_offset, tip_sequence, tip_checksum, epoch, next_id, store_sequence,
        Pointer.decode(lineage), Pointer.decode(free_map), Pointer.decode(seal), Pointer.decode(name),
        name_buckets, name_entries, bool(linear), clock_ns, clock_boot_ns, clock_boot_id, sealed_below,
        when_full, keep_newest, snapshot_bytes_max, given_up_count, decode_losses(given_up, given_up_bytes),
    )  # fmt: skip
    _check_geometry(sb)
    _check_state(sb)
    return sb


def superblock_astray(log: bytes, sb: Superblock) -> int | None:
    """The generation of a newer superblock of this volume that lies in a slot of its log; None if there is none.

    Its write went astray: the records there are gone, and it is not where it would have confirmed them.
    """
    for offset in range(0, len(log), SLOT_BYTES):
        if log[offset : offset + len(MAGIC)] == MAGIC:
            try:
                found = decode_superblock(log[offset : offset + SLOT_BYTES])
            except (CorruptionError, FormatError):
                continue
            if found.volume_uuid == sb.volume_uuid and found.generation > sb.generation:
                return found.generation
    return None


def with_region(sb: Superblock, regions: tuple[Region, ...], region: Region) -> tuple[Region, ...]:
    """The home regions of a volume with one more, which lies behind all others. CorruptionError if it cannot be."""
    _require(len(regions) < REGIONS_MAX, "more than {} regions", REGIONS_MAX)
    _check_geometry(replace(sb, regions=(*regions, region)))
    _require(region.slot > max(each.slot for each in regions), "a region that was added lies before another")
    return (*regions, region)


def _require(condition: bool, problem: str, *what: object) -> None:
    """`what` fills the braces of the problem, if it is one: every open asks some dozens of times, and has none."""
    if not condition:
        raise CorruptionError(f"superblock: {problem.format(*what)}")


def _decode_regions(data: bytes, count: int) -> tuple[Region, ...]:
    _require(1 <= count <= REGIONS_MAX, "region_count {} is not 1 to {}", count, REGIONS_MAX)
    numbers = _REGIONS.unpack(data)
    _require(not any(numbers[3 * count :]), "an unused region is not zero")
    return tuple(Region(*numbers[i : i + 3]) for i in range(0, 3 * count, 3))


def _check_geometry(sb: Superblock) -> None:
    """Sizes and places. Python's integers do not wrap, so these sums are exact whatever the file says."""
    _require(BLOCK_SHIFT_MIN <= sb.block_shift <= BLOCK_SHIFT_MAX, "block_shift {}", sb.block_shift)
    _require(sb.log_shift in LOG_SHIFTS, "log_shift {}", sb.log_shift)
    _require(LOG_BYTES_MIN <= sb.log_bytes <= LOG_BYTES_MAX, "log_slots {}", sb.log_slots)
    _require(2 <= sb.log_first <= SLOTS_MAX - sb.log_slots, "log_first {}", sb.log_first)
    block_slots = 1 << (sb.block_shift - SLOT_SHIFT)
    spans = [(sb.log_first, sb.log_first + sb.log_slots, "the log")]
    next_block = 0
    for number, region in enumerate(sb.regions):
        end_block = region.first_block + region.block_count
        _require(region.block_count >= 1, "region {} is empty", number)
        _require(region.first_block >= next_block, "region {} is not behind the one before it", number)
        _require(end_block <= SLOTS_MAX // block_slots, "region {} ends at block {}", number, end_block)
        end = region.slot + region.block_count * block_slots
        _require(region.slot >= 2 and end <= SLOTS_MAX, "region {} lies in slots {} to {}", number, region.slot, end)
        spans.append((region.slot, end, f"region {number}"))
        next_block = end_block
    spans.sort()
    for (_, end, one), (begin, _, other) in itertools.pairwise(spans):
        _require(end <= begin, "{} and {} overlap", one, other)


def _check_state(sb: Superblock) -> None:
    _require(1 <= sb.generation < COUNTER_MAX, "generation {}", sb.generation)
    _require(sb.tip_sequence < COUNTER_MAX, "tip_sequence {}", sb.tip_sequence)
    _require(sb.given_up_count < COUNTER_MAX, "given_up_count {}", sb.given_up_count)
    _require(max(sb.clock_ns, sb.clock_boot_ns) < COUNTER_MAX, "clock_ns or clock_boot_ns {}", sb.clock_boot_ns)
    _require(1 <= sb.epoch <= EPOCH_MAX, "epoch {}", sb.epoch)
    _require(1 <= sb.next_id <= ID_MAX + 1, "next_id {}", sb.next_id)
    _require(sb.base_offset <= sb.log_bytes, "base_offset {} beyond the log", sb.base_offset)
    _require(sb.base_offset % (1 << sb.log_shift) == 0, "base_offset {} is not aligned", sb.base_offset)
    _require(sb.base_sequence <= sb.tip_sequence, "base_sequence above tip_sequence")
    _require(bool(sb.base_sequence) or not sb.base_checksum, "a base_checksum without a record")
    _require(bool(sb.tip_sequence) or not sb.tip_checksum, "a tip_checksum without a record")
    _require(sb.lineage_root.kind == POINTER_NODE, "no lineage table")
    _require(sb.free_map_root.kind != POINTER_RUN, "the free map is a run")
    _require(sb.lineage_root.birth == 0 == sb.free_map_root.birth, "lineage_root or free_map_root has a birth")
    _require(sb.when_full <= WHEN_FULL_GIVE_UP, "when_full {}", sb.when_full)
    _require(len(sb.given_up) <= sb.given_up_count, "given_up_count {}, and more are listed", sb.given_up_count)
    sealed = sb.features_incompatible & FEATURE_SEALS
    _require(bool(sealed) or sb.seal_root == HOLE, "seal_root is not zero")
    _require(sb.sealed_below <= sb.next_id, "sealed_below {}", sb.sealed_below)
    _require(sb.seal_root.kind != POINTER_RUN and not sb.seal_root.birth, "seal_root is a run or has a birth")
    _check_names(sb)


def _check_names(sb: Superblock) -> None:
    if sb.name_root == HOLE:
        _require(not sb.name_buckets and not sb.name_entries and not sb.linear, "no name_root, and words about it")
        return
    _require(sb.name_root.kind == POINTER_NODE and not sb.name_root.birth, "name_root is no node, or has a birth")
    _require(1 <= sb.name_buckets <= NAME_BUCKETS_MAX, "name_buckets {}", sb.name_buckets)
    _require(sb.next_id <= NAMED_IDS_MAX, "name_root, and next_id {}", sb.next_id)
