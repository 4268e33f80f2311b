"""Files in the shapes that broke others: each is refused with a typed error, in a second of CPU and 64 MiB.

Every shape is a real file of ours with one thing in it that once was somebody's CVE, all checksums right. The child
that opens it may use no more than a second of CPU for a step and 64 MiB beyond what it began with.

    python -P tests/hostile/cve_shapes.py                        # all of them, a line for each
    python -P tests/hostile/cve_shapes.py --only block_shift_63  # what each step said
"""

from __future__ import annotations

import argparse
import io
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path[:0] = [str(Path(__file__).parents[1] / name) for name in ("hostile", "torture")]

import zstandard  # noqa: E402
from hostile_image import SLOT, Image  # noqa: E402
from hostile_others import log_records, parsed, sealed, sealed_log, store_files, stream  # noqa: E402
from hostile_steps import Session, run_in_child, work_folder  # noqa: E402
from mutate import original  # noqa: E402
from row import Tally, tell  # noqa: E402

from cowengine import Volume  # noqa: E402
from cowengine import format as f  # noqa: E402
from cowengine.backup import layout as backup_layout  # noqa: E402
from cowengine.backup.layout import RECORD, STREAM_HEADER  # noqa: E402
from cowengine.backup.manifest import decode_manifest  # noqa: E402
from cowengine.backup.restore import restore_stream  # noqa: E402
from cowengine.backup.verify import verify_stream  # noqa: E402
from cowengine.core.checksum import xxh64  # noqa: E402
from cowengine.engine.check import check_file  # noqa: E402
from cowengine.format.intent import Intent, encode_intent  # noqa: E402
from cowengine.format.layout import LINEAGE_RECORD, RECORD_HEADER, SUPERBLOCK  # noqa: E402
from cowengine.store import Store  # noqa: E402
from cowengine.store.documents import decode_document  # noqa: E402
from cowengine.store.layout import HEADER_FIELDS, MEMBER_FIELDS, RECORD_FIELDS, RECORD_HEADER_BYTES  # noqa: E402
from cowengine.vss.documents import BackupComponents, WriterMetadata  # noqa: E402

CPU_SECONDS = 1.0
TYPED = ("Corruption", "Format", "UnsupportedVersion", "Backup", "Exists", "OutOfRange", "NotFound")
SUPERBLOCK_AT = {field.name: field for field in SUPERBLOCK}
LINEAGE_AT = {field.name: field for field in LINEAGE_RECORD}
RECORD_AT = {field.name: field for field in RECORD_HEADER}
NODE = f.POINTER_NODE << 56


class Shape(NamedTuple):
    """What is wrong, the CVE that it resembles, and how it comes about."""

    name: str
    like: str
    make: Callable[[], bytes]


# -- volumes -----------------------------------------------------------------------------------------------------------
class VolumeSession(Session):
    """Checks a volume, opens it for reading and for writing, and looks at all it has."""

    def run(self) -> None:
        report = self.do("check", lambda: check_file(str(self.path)))
        if report is not None and not report.ok:
            self.errors["check"] = f"CorruptionError: {report.problems[0]}"
        for read_only in (True, False):
            volume = self.do("open", lambda only=read_only: Volume.open(self.path, read_only=only, background=False))
            if volume is None:
                continue
            self.do("read", lambda volume=volume: volume.pread(min(volume.size, 1 << 20), 0))
            for snapshot in self.do("list", volume.snapshots) or []:
                self.do("read", lambda snapshot=snapshot: snapshot.pread(min(snapshot.size, 1 << 20), 0))
                self.do("metadata", lambda snapshot=snapshot: snapshot.metadata)
                self.do("changed", lambda volume=volume, snapshot=snapshot: volume.changed_extents(snapshot))
            self.do("space", volume.du)
            self.do("close", volume.close)


def volume_with(change: Callable[[Image], None], name: str = "snapshots") -> Callable[[], bytes]:
    """A volume with one superblock left, changed, and everything sealed."""

    def make() -> bytes:
        image = Image(original(name))
        image.data[SLOT - image.superblock : 2 * SLOT - image.superblock] = bytes(SLOT)
        change(image)
        image.seal()
        return bytes(image.data)

    return make


def superblock(field: str, number: int, skip: int = 0, name: str = "snapshots") -> Callable[[], bytes]:
    """A number in a field of the superblock, `skip` bytes behind its beginning."""
    place = SUPERBLOCK_AT[field]

    def change(image: Image) -> None:
        image.put(image.superblock + place.offset + skip, number, min(place.bytes, 8))

    return volume_with(change, name)


def lineage(field: str, number: int, which: int = 1) -> Callable[[], bytes]:
    """A number in a field of a lineage record."""

    def change(image: Image) -> None:
        spots = [spot for spot in image.spots if spot.what == "lineage"]
        image.put(spots[which].offset + LINEAGE_AT[field].offset, number, min(LINEAGE_AT[field].bytes, 8))

    return volume_with(change)


def root_slot(image: Image, root: str) -> int:
    return image.u64(image.superblock + SUPERBLOCK_AT[root].offset) & f.SLOT_MASK


def interior_map_node(image: Image) -> int:
    """Offset of an interior node of a map."""
    return next(spot.offset for spot in image.spots if spot.what == "node1.pointer.target") // SLOT * SLOT


def map_leaf_entry(image: Image) -> int:
    return next(spot.offset for spot in image.spots if spot.what == "map.target" and image.u64(spot.offset))


def cycle(image: Image) -> None:
    """An interior node leads to itself."""
    node = interior_map_node(image)
    image.put(node, NODE | node // SLOT)


def shared_child(image: Image) -> None:
    """Two pointers of a map lead to the node of the free map."""
    node = interior_map_node(image)
    image.put(node, NODE | root_slot(image, "free_map_root"))


def ring_of_snapshots(image: Image) -> None:
    """Two snapshots stand on each other."""
    one, two = [spot.offset for spot in image.spots if spot.what == "lineage"][1:3]
    image.put(one + LINEAGE_AT["parent"].offset, image.u64(two + 8))
    image.put(two + LINEAGE_AT["parent"].offset, image.u64(one + 8))


def same_blocks(image: Image) -> None:
    """Two blocks of a map lie in one slot."""
    first, second = [s.offset for s in image.spots if s.what == "map.target" and image.u64(s.offset) >> 56 == 1][:2]
    image.put(first, image.u64(second))


def in_the_log(image: Image) -> None:
    """A block of a map lies in the log."""
    image.put(map_leaf_entry(image), 1 << 56 | image.u64(image.superblock + SUPERBLOCK_AT["log_first"].offset))


def path_as_a_name(image: Image) -> None:
    """The name of a snapshot climbs."""
    spot = [spot for spot in image.spots if spot.what == "lineage"][1]
    at = spot.offset + LINEAGE_AT["name"].offset
    image.data[at : at + 8] = b"../../up"
    image.put(spot.offset + LINEAGE_AT["name_bytes"].offset, 8, 2)


def no_lineage(image: Image) -> None:
    """The pointer to the lineage table is zero."""
    at = image.superblock + SUPERBLOCK_AT["lineage_root"].offset
    image.data[at : at + f.POINTER_BYTES] = bytes(f.POINTER_BYTES)


def metadata_behind_the_file(image: Image) -> None:
    """The metadata of a snapshot lies behind the end of the file."""
    spot = next(spot for spot in image.spots if spot.what == "lineage" and image.data[spot.offset + 4])
    image.put(spot.offset + LINEAGE_AT["metadata_slot"].offset, 1 << 40)


def log_record(field: str, number: int) -> Callable[[], bytes]:
    """A number in the header of the last record of the log, which is confirmed."""

    def change(image: Image) -> None:
        at = max(image.records, key=lambda at: image.u64(at + 16))
        image.put(image.superblock + SUPERBLOCK_AT["tip_sequence"].offset, image.u64(at + 16))
        image.put(at + RECORD_AT[field].offset, number, RECORD_AT[field].bytes)

    return volume_with(change, "logged")


def appended(**fields: Any) -> Callable[[], bytes]:
    """One more record in the log."""

    def change(image: Image) -> None:
        epoch = image.u64(image.superblock + SUPERBLOCK_AT["epoch"].offset)
        assert image.append_record(f.Record(0, 0, 0, 0, epoch + 5, 0, 250 * SLOT, **fields))

    return volume_with(change, "logged")


def delta(block: int, count: int, target: int, birth: int) -> bytes:
    return struct.pack("<4Q", block, count, target, birth)


VOLUMES = [
    Shape(
        "log_of_2_to_the_40_slots", "CVE-2014-0144: a table of any size is allocated", superblock("log_slots", 2**40)
    ),
    Shape("log_without_slots", "CVE-2014-0142: division by zero", superblock("log_slots", 0)),
    Shape("log_behind_all_offsets", "CVE-2014-0147: offset + length wraps", superblock("log_first", 2**64 - 4)),
    Shape("log_in_the_superblock", "CVE-2014-0145: a table over the header", superblock("log_first", 0)),
    Shape("block_shift_63", "CVE-2014-0148: a block size that nobody looked at", superblock("block_shift", 63)),
    Shape("block_shift_0", "CVE-2014-0142: sectors per block 0", superblock("block_shift", 0)),
    Shape("log_shift_0", "CVE-2014-0148: a step of zero, for ever", superblock("log_shift", 0)),
    Shape("log_shift_255", "CVE-2014-0143: a shift beyond the width", superblock("log_shift", 255)),
    Shape("regions_2_to_the_32", "CVE-2014-0144: a count from the header", superblock("region_count", 2**32)),
    Shape("region_of_2_to_the_63_blocks", "CVE-2014-0143: a product overflows", superblock("regions", 2**63, 16)),
    Shape("region_over_the_log", "CVE-2014-0145: structures overlap", superblock("regions", 3, 8)),
    Shape(
        "region_behind_the_file", "CVE-2014-0222: sizes that the file does not have", superblock("regions", 2**40, 8)
    ),
    Shape("losses_of_2_to_the_64_bytes", "CVE-2014-0143: a length wraps", superblock("given_up_bytes", 2**64 - 1)),
    Shape("losses_that_end_nowhere", "CVE-2014-0147: a length leads back", superblock("given_up_bytes", 3064)),
    Shape("generation_at_its_end", "CVE-2014-0143: +1 wraps", superblock("generation", 2**64 - 1)),
    Shape("tip_that_never_comes", "CVE-2014-0148: a log that is replayed for ever", superblock("tip_sequence", 2**62)),
    Shape("base_behind_the_log", "CVE-2014-0144: an offset in the log", superblock("base_offset", 2**63)),
    Shape(
        "unknown_feature",
        "CVE-2024-32498: a feature that changes what bytes mean",
        superblock("features_incompatible", 4),
    ),
    Shape("next_id_2_to_the_64", "CVE-2014-0222: a count that is looped over", superblock("next_id", 2**64 - 1)),
    Shape("epoch_at_its_end", "CVE-2014-0143: a counter wraps", superblock("epoch", 2**48 - 1)),
    Shape("lineage_in_the_superblock", "CVE-2018-1093: metadata over the header", superblock("lineage_root", NODE)),
    Shape(
        "lineage_of_level_255", "CVE-2014-0144: a depth from the file", superblock("lineage_root", NODE | 255 << 48 | 9)
    ),
    Shape(
        "lineage_behind_the_file",
        "CVE-2018-1093: a block number behind the end",
        superblock("lineage_root", NODE | 2**46),
    ),
    Shape("no_lineage", "CVE-2014-0146: a table that is not there is used", volume_with(no_lineage)),
    Shape(
        "index_of_2_to_the_40_buckets",
        "CVE-2014-0144: a hash table of any size",
        superblock("name_buckets", 2**40, name="named"),
    ),
    Shape("map_that_leads_to_itself", "CVE-2018-10877: a tree that is no tree", volume_with(cycle)),
    Shape("map_that_shares_a_node", "CVE-2014-0145: refcounts that lie", volume_with(shared_child)),
    Shape("two_blocks_in_a_slot", "CVE-2019-13232: overlapping files", volume_with(same_blocks)),
    Shape("block_in_the_log", "CVE-2014-0145: data over metadata", volume_with(in_the_log)),
    Shape(
        "block_behind_the_file",
        "CVE-2018-1093: a block number behind the end",
        volume_with(lambda image: image.put(map_leaf_entry(image), 1 << 56 | 2**47 - 1)),
    ),
    Shape(
        "entry_of_unknown_kind",
        "CVE-2018-10877: a type that no case has",
        volume_with(lambda image: image.put(map_leaf_entry(image), 9 << 56 | 9)),
    ),
    Shape("snapshots_on_each_other", "CVE-2014-0148: a chain without an end", volume_with(ring_of_snapshots)),
    Shape("snapshot_of_2_to_the_64_bytes", "CVE-2014-0223: a size overflows", lineage("size", 2**64 - 512)),
    Shape("snapshot_without_size", "CVE-2014-0142: a size of zero", lineage("size", 0)),
    Shape(
        "snapshot_deeper_than_its_map",
        "CVE-2014-0223: a size that the table does not have",
        lineage("size", 2**48 - 4096),
    ),
    Shape("name_of_65535_bytes", "CVE-2014-0145: a name longer than its field", lineage("name_bytes", 65535)),
    Shape("name_that_is_a_path", "CVE-2007-4559: ../ in a name", volume_with(path_as_a_name)),
    Shape("metadata_of_4_gib", "CVE-2014-0144: a length from the file", lineage("metadata_bytes", 2**32 - 1)),
    Shape(
        "metadata_behind_the_file",
        "CVE-2018-1093: a block number behind the end",
        volume_with(metadata_behind_the_file),
    ),
    Shape("head_of_number_2_to_the_63", "CVE-2014-0147: a negative index", lineage("number", 2**63)),
    Shape("record_of_4_gib", "CVE-2019-20907: a length that leads nowhere", log_record("record_bytes", 2**32 - 1)),
    Shape("record_without_length", "CVE-2019-20907: a length of zero, for ever", log_record("record_bytes", 0)),
    Shape("deltas_2_to_the_32", "CVE-2014-0143: count * size wraps", log_record("delta_count", 2**32 - 1)),
    Shape("events_of_4_gib", "CVE-2014-0144: a length from the file", log_record("event_bytes", 2**32 - 8)),
    Shape(
        "delta_of_2_to_the_46_blocks",
        "CVE-2014-0222: a loop over what is not there",
        appended(deltas=delta(0, 2**46, 1 << 56 | 100, 40)),
    ),
    Shape("delta_that_wraps", "CVE-2014-0147: block + count wraps", appended(deltas=delta(2**64 - 1, 2, 0, 40))),
    Shape(
        "freed_run_of_2_to_the_46_slots", "CVE-2014-0222: a loop over what is not there", appended(freed=[(2, 2**46)])
    ),
    Shape("freed_superblock", "CVE-2014-0145: metadata given out as data", appended(freed=[(0, 2)])),
    Shape("region_in_the_log", "CVE-2014-0145: structures overlap", appended(events=[f.RegionEvent(100_000, 3, 10)])),
    Shape(
        "resize_to_2_to_the_64", "CVE-2014-0223: a size overflows", appended(events=[f.ResizeEvent(0, 2**64 - 512, 2)])
    ),
]


# -- backup streams ----------------------------------------------------------------------------------------------------
class StreamSession(Session):
    """Verifies a stream and restores it."""

    # Four threads decompress: their stacks are address space, 8 MiB each, not memory.
    address_space = (64 + 4 * 8) << 20

    def run(self) -> None:
        data = self.path.read_bytes()
        report = self.do("verify", lambda: verify_stream(io.BytesIO(data)))
        if report is not None and not report.ok:
            self.errors["verify"] = f"BackupError: {report.problems[0]}"
        self.do("restore", lambda: restore_stream(io.BytesIO(data), self.path.parent / "raw"))
        outside = [path for path in self.path.parent.rglob("*") if path.name.startswith("escaped")]
        assert not outside, "a name led out of the folder"


def record_with(field: str, number: int, kind: int = backup_layout.DATA) -> Callable[[], bytes]:
    """A number in the header of the first record of a type."""

    def make() -> bytes:
        records = parsed(stream())
        put(next(head for head, _ in records if head[4] == kind), field, number)
        return sealed(records)

    return make


def header_with(change: Callable[[bytearray], None]) -> Callable[[], bytes]:
    """A change of the payload of the header record."""

    def make() -> bytes:
        records = parsed(stream())
        change(records[0][1])
        return sealed(records)

    return make


def named(name: bytes) -> Callable[[], bytes]:
    """A stream whose first volume has another name of three bytes, or more that push the rest away."""

    def make() -> bytes:
        records = parsed(stream())
        head, body = records[0]
        at = body.index(b"one")
        body[at : at + 3] = name
        offset, count = backup_layout.VOLUME_ENTRY.offsets["name_bytes"]
        entry = at - backup_layout.VOLUME_ENTRY.bytes
        body[entry + offset : entry + offset + count] = len(name).to_bytes(count, "little")
        put(head, "plain_bytes", len(body))
        put(head, "stored_bytes", len(body))
        return sealed(records)

    return make


def put(head: bytearray, field: str, number: int) -> None:
    offset, count = RECORD.offsets[field]
    head[offset : offset + count] = number.to_bytes(count, "little")


def _field(name: str) -> tuple[int, int]:
    offset, count = RECORD.offsets[name]
    return offset, offset + count


def payload_with(packed: bytes) -> Callable[[], bytes]:
    """The first data record, of EXTENT bytes, has this compressed payload."""

    def make() -> bytes:
        records = parsed(stream())
        place = next(n for n, (head, _) in enumerate(records) if head[4] == backup_layout.DATA)
        head = records[place][0]
        assert int.from_bytes(head[slice(*_field("plain_bytes"))], "little") == EXTENT
        head[5] = backup_layout.CODEC_ZSTD
        put(head, "stored_bytes", len(packed))
        records[place] = head, bytearray(packed)
        return sealed(records)

    return make


def documents_with(text: bytes) -> Callable[[], bytes]:
    """Other documents."""

    def make() -> bytes:
        records = parsed(stream())
        place = next(n for n, (head, _) in enumerate(records) if head[4] == backup_layout.DOCUMENTS)
        head = records[place][0]
        head[5] = backup_layout.CODEC_NONE
        put(head, "plain_bytes", len(text))
        put(head, "stored_bytes", len(text))
        records[place] = head, bytearray(text)
        return sealed(records)

    return make


EXTENT = 36864


def frame(blocks: int, of_bytes: int, *, window: bytes = b"") -> bytes:
    """A zstd frame that promises EXTENT bytes and is so many blocks of one repeated byte."""
    head = b"\x28\xb5\x2f\xfd" + (b"\x40" + window if window else b"\x60") + struct.pack("<H", EXTENT - 256)
    block = (1 << 1 | of_bytes << 3).to_bytes(3, "little") + b"x"
    last = (1 | 1 << 1 | of_bytes << 3).to_bytes(3, "little") + b"x"
    return head + block * (blocks - 1) + last


def zeros() -> bytes:
    """A thousandfold of zeros whose frame does not tell how many."""
    packer = zstandard.ZstdCompressor(level=1, write_content_size=False).compressobj()
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(200)) + packer.flush()


def twice() -> bytes:
    records = parsed(stream())
    place = next(n for n, (head, _) in enumerate(records) if head[4] == backup_layout.DATA)
    again = [(bytearray(head), bytearray(body)) for head, body in (*records[: place + 1], *records[place:])]
    sequence = 0
    for head, _ in again:
        sequence = 0 if head[4] == backup_layout.HEADER else sequence + 1
        put(head, "sequence", sequence)
    return sealed(again)


STREAMS = [
    Shape("payload_of_4_gib", "CVE-2014-0144: a length from the file", record_with("plain_bytes", 2**32 - 1)),
    Shape("stored_without_end", "CVE-2019-20907: a length that leads nowhere", record_with("stored_bytes", 2**32 - 1)),
    Shape("extent_that_wraps", "CVE-2014-0147: offset + length wraps", record_with("offset", 2**64 - 512)),
    Shape("extent_behind_the_volume", "CVE-2014-0145: a write behind the end", record_with("offset", 2**40)),
    Shape(
        "hole_of_2_to_the_64", "CVE-2014-0223: a size overflows", record_with("length", 2**64 - 512, backup_layout.HOLE)
    ),
    Shape("volume_4294967295", "CVE-2014-0147: an index from the file", record_with("volume", 2**32 - 1)),
    Shape("unknown_codec", "CVE-2018-10877: a type that no case has", record_with("codec", 7)),
    Shape("extent_twice", "CVE-2019-13232: overlapping files", twice),
    Shape("frame_that_lies", "CVE-2019-9674: a bomb, 330 MB in 36 KB", payload_with(frame(9000, EXTENT))),
    Shape("frame_that_does_not_tell", "CVE-2019-9674: a bomb that declares nothing", payload_with(zeros())),
    Shape("frame_that_is_too_short", "CVE-2014-0146: less than was promised is used", payload_with(frame(1, 100))),
    Shape("window_of_2_gib", "CVE-2014-0144: a window of any size", payload_with(frame(1, EXTENT, window=b"\xa8"))),
    Shape(
        "volumes_2_to_the_32",
        "CVE-2014-0144: a count from the header",
        header_with(lambda body: struct.pack_into("<I", body, STREAM_HEADER.offsets["volume_count"][0], 2**32 - 1)),
    ),
    Shape(
        "size_2_to_the_64",
        "CVE-2014-0223: a size overflows",
        header_with(lambda body: struct.pack_into("<Q", body, body.index(b"one") - 24, 2**64 - 512)),
    ),
    Shape("name_that_climbs", "CVE-2007-4559: ../ in a name", named(b"../escaped")),
    Shape("name_that_is_absolute", "CVE-2022-47951: a path in an image", named(b"/etc/escaped")),
    Shape("name_with_nul", "CVE-2006-7243: a NUL in a name", named(b"one\0escaped")),
    Shape("name_of_another", "CVE-2019-13232: two files of one name", named(b"two")),
    Shape("documents_too_deep", "CVE-2020-36518: nesting without end", documents_with(b'{"a":' + b"[" * 100_000)),
    Shape(
        "documents_of_a_number", "CVE-2020-10735: digits without end", documents_with(b'{"a":' + b"9" * 100_000 + b"}")
    ),
    Shape("end_without_an_end", "CVE-2023-36811: what is missing at the end", lambda: sealed(parsed(stream())[:-1])),
]


# -- stores ------------------------------------------------------------------------------------------------------------
class StoreSession(Session):
    """Opens the store whose log this is."""

    def run(self) -> None:
        folder = self.path.parent / "store"
        for name, data in store_files().items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        (folder / "store.log").write_bytes(self.path.read_bytes())
        for read_only in (True, False):
            store = self.do("open", lambda only=read_only: Store.open(folder, read_only=only, background=False))
            if store is not None:
                self.do("sets", store.snapshot_sets)
                report = self.do("check", store.check)
                if report is not None and not report.ok:
                    self.errors["check"] = f"CorruptionError: {report.problems[0]}"
                self.do("close", store.close)


def log_with(fields: dict[str, tuple[int, int]], field: str, number: int, behind: int | None) -> Callable[[], bytes]:
    """A number in both headers, or so many bytes behind the beginning of the last record."""

    def make() -> bytes:
        data = bytearray(store_files()["store.log"])
        places = log_records(bytes(data))
        offset, count = fields[field]
        last = max(places, key=lambda at: int.from_bytes(data[at + 16 : at + 24], "little"))
        for begin in (0, SLOT) if behind is None else (last + behind,):
            data[begin + offset : begin + offset + count] = number.to_bytes(count, "little")
        return sealed_log(data, places)

    return make


STORES = [
    Shape(
        "ring_of_2_to_the_63_bytes",
        "CVE-2014-0144: a table of any size",
        log_with(HEADER_FIELDS, "ring_bytes", 2**63, None),
    ),
    Shape("ring_without_bytes", "CVE-2014-0142: division by zero", log_with(HEADER_FIELDS, "ring_bytes", 0, None)),
    Shape("log_shift_of_0", "CVE-2014-0148: a step of zero", log_with(HEADER_FIELDS, "log_shift", 0, None)),
    Shape(
        "base_behind_the_ring",
        "CVE-2014-0144: an offset in the log",
        log_with(HEADER_FIELDS, "base_offset", 2**62, None),
    ),
    Shape(
        "members_2_to_the_32",
        "CVE-2014-0143: count * size wraps",
        log_with(RECORD_FIELDS, "member_count", 2**32 - 1, 0),
    ),
    Shape(
        "set_name_of_65535_bytes",
        "CVE-2014-0145: a name longer than its record",
        log_with(RECORD_FIELDS, "name_bytes", 65535, 0),
    ),
    Shape(
        "member_of_no_snapshot",
        "CVE-2014-0147: an index from the file",
        log_with(MEMBER_FIELDS, "snapshot_id", 2**63, RECORD_HEADER_BYTES),
    ),
]


# -- intent files and documents ----------------------------------------------------------------------------------------
class IntentSession(Session):
    """An image with this intent file beside it."""

    def run(self) -> None:
        image = self.path.with_name("image")
        image.write_bytes(bytes(2 * SLOT) + b"x" * (58 * SLOT))
        self.path.rename(self.path.with_name("image.adopting"))
        self.do("undo", lambda: Volume.undo_adoption(image))


def intent_with(offset: int, form: str, number: int) -> Callable[[], bytes]:
    def make() -> bytes:
        data = bytearray(encode_intent(Intent(60 * SLOT, bytes(range(16)), b"x" * 4096)))
        struct.pack_into(form, data, offset, number)
        struct.pack_into("<Q", data, 40, 0)
        struct.pack_into("<Q", data, 40, xxh64(bytes(data), 0))
        return bytes(data)

    return make


class DocumentSession(Session):
    """Bytes as each of the documents there are."""

    def run(self) -> None:
        data = self.path.read_bytes()
        for parse in (WriterMetadata.from_json, BackupComponents.from_json, decode_manifest):
            self.do(parse.__qualname__, lambda parse=parse: parse(data))
        self.do("document", lambda: decode_document(data, "job-1"))


INTENTS = [
    Shape("image_of_2_to_the_64_bytes", "CVE-2026-24708: a resize that destroys", intent_with(16, "<Q", 2**64 - 1)),
]
DOCUMENTS = [
    Shape("brackets", "CVE-2020-36518: nesting without end", lambda: b"[" * 1_000_000),
    Shape(
        "objects_in_objects", "CVE-2020-36518: nesting without end", lambda: b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    ),
    Shape("digits", "CVE-2020-10735: digits without end", lambda: b'{"version":' + b"7" * 1_000_000 + b"}"),
    Shape(
        "seventeen_megabytes", "CVE-2014-0144: a length without a limit", lambda: b'{"a":"' + b"x" * (17 << 20) + b'"}'
    ),
]


SHAPES: dict[str, tuple[type[Session], Shape]] = {
    shape.name: (session, shape)
    for session, shapes in (
        (VolumeSession, VOLUMES),
        (StreamSession, STREAMS),
        (StoreSession, STORES),
        (IntentSession, INTENTS),
        (DocumentSession, DOCUMENTS),
    )
    for shape in shapes
}


def refused(name: str) -> tuple[str | None, dict[str, str]]:
    """What was wrong with how a shape was met, if anything, and what each step said."""
    session, shape = SHAPES[name]
    store_files(), stream()  # the child imports and makes nothing: its memory is limited
    with work_folder() as folder:
        (folder / "v").write_bytes(shape.make())
        wrong, errors = run_in_child(session(folder / "v", 1, CPU_SECONDS), folder / "step")
    if wrong is None and not any(error.startswith(TYPED) for error in errors.values()):
        wrong = "it was taken as it is"
    return wrong, errors


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", action="store_true", help="end with a line of JSON for the scoreboard")
    parser.add_argument("--only", choices=sorted(SHAPES), metavar="SHAPE")
    parser.add_argument("--seconds", type=float, default=0, help="not heeded: there are so many shapes and no more")
    parser.add_argument("--seed", type=int, default=0, help="not heeded: nothing is drawn")
    options = parser.parse_args()
    names = [options.only] if options.only else list(SHAPES)
    tally = Tally()
    for name in names:
        wrong, errors = refused(name)
        tally.count += 1
        if wrong:
            tally.violation(f"{name}: {wrong} {errors}")
        elif options.only:
            print(*(f"{step}: {error}" for step, error in errors.items()), sep="\n")
        elif not options.row:
            print(f"{name} ({SHAPES[name][1].like}): {next(iter(errors.values()))[:100]}")
    return tell(tally, options, "shapes")


if __name__ == "__main__":
    sys.exit(main())
