"""What files that somebody built to do harm once did."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hostile_image import Image
from hostile_others import IntentSession, attack_files, log_records, sealed_log, store_files
from hostile_steps import attack, run_in_child
from mutate import original

from cowengine import Volume
from cowengine import format as f
from cowengine.engine import lineage
from cowengine.engine.check import check_file
from cowengine.errors import CorruptionError
from cowengine.format import LineageRecord, Pointer
from cowengine.store.layout import MEMBER_FIELDS, RECORD_FIELDS, RECORD_HEADER_BYTES

BLOCK = 4096

DELETE = """
import sys
from cowengine import Volume
from cowengine.errors import CorruptionError
try:
    with Volume.open(sys.argv[1], background=False) as volume:
        volume.get_snapshot("s").delete()
except CorruptionError:
    sys.exit(7)
"""


def test_a_snapshot_whose_root_is_a_leaf_of_its_own_tree_is_corruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All checksums were right, but the root stood a level too low for the size of the snapshot.

    Reclaim compares two trees side by side and went below the leaf: the process died.
    """
    path = tmp_path / "v"
    volume = Volume.create(path, 600 * BLOCK, log_size=16384, background=False)
    volume.pwrite(b"a" * (500 * BLOCK), 0)
    volume.pwrite(b"b" * BLOCK, 3 * BLOCK)
    volume.snapshot("s")
    volume.pwrite(b"c" * BLOCK, 5 * BLOCK)
    hostile = volume.snapshot("hostile")
    volume.engine.checkpoint()
    record = volume.engine.lineage.get(hostile.id)
    assert record is not None
    root = path.read_bytes()[record.root.slot * BLOCK :][:BLOCK]
    leaf = Pointer.decode(root[:32])
    assert (record.root.level, leaf.level) == (1, 0)
    encode = lineage.encode_lineage

    def encode_hostile(record: LineageRecord | None) -> bytes:
        if record is not None and record.id == hostile.id:
            record = replace(record, root=leaf)
        return encode(record)

    monkeypatch.setattr(lineage, "encode_lineage", encode_hostile)
    volume.pwrite(b"d" * BLOCK, 0)
    volume.engine.lineage._changed.add(hostile.id)
    volume.close()
    done = subprocess.run([sys.executable, "-P", "-c", DELETE, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr


# -- found by tests/hostile: a field of a real volume is changed, all checksums are made right, everything is tried ----
def spot(image: Image, what: str, number: int = -1) -> int:
    """The offset of a field, by default of the last structure of its kind."""
    return [spot.offset for spot in image.spots if spot.what == what][number]


def record(image: Image, **fields: object) -> f.Record:
    """One more record for the log, in the epoch of the superblock."""
    epoch = image.u64(image.superblock + 152)
    return f.Record(0, 0, 0, 0, fields.pop("epoch", epoch), 0, 300 * BLOCK, **fields)  # type: ignore[arg-type]


def appended(**fields: object) -> Callable[[Image], object]:
    return lambda image: image.append_record(record(image, **fields))


def put(what: str, value: int, count: int = 8) -> Callable[[Image], object]:
    return lambda image: image.put(spot(image, what), value, count)


def epoch_of(image: Image) -> int:
    return image.u64(image.superblock + 152)


def ring_of_anchors(image: Image) -> None:
    """Two empty anchors stand on each other."""
    empty = [at for at in (spot.offset for spot in image.spots if spot.what == "lineage") if image.data[at + 1] & 16]
    first, second = empty[:2]
    image.put(first + 16, image.u64(second + 8))


def same_name(image: Image) -> None:
    names = [spot for spot in image.spots if spot.what == "lineage.name"]
    image.data[names[2].offset : names[2].offset + 255] = image.data[names[1].offset : names[1].offset + 255]


def same_epoch(image: Image) -> None:
    image.put(spot(image, "lineage.epoch", 2), image.u64(spot(image, "lineage.epoch", 1)))


def metadata(text: bytes) -> Callable[[Image], object]:
    def change(image: Image) -> None:
        sizes = [spot.offset for spot in image.spots if spot.what == "lineage.metadata_bytes"]
        at = next(at for at in sizes if int.from_bytes(image.data[at : at + 4], "little"))
        slot = image.u64(at + 124)
        image.data[slot * BLOCK : slot * BLOCK + len(text)] = text
        image.put(at, len(text), 4)

    return change


def long_run(image: Image) -> None:
    """A child of a map's interior node becomes a run that reaches far beyond the file."""
    at = spot(image, "node1.pointer.target", 0)
    image.put(at, f.POINTER_RUN << 56 | image.u64(at) >> 48 << 48 & 0xFF << 48 | 2**47 - 300)
    image.put(at + 16, 0)


def long_root(image: Image) -> None:
    """The root of a snapshot becomes a run of 2^36 blocks."""
    at = spot(image, "lineage.root.target")
    image.put(at, f.POINTER_RUN << 56 | 4 << 48 | 1000)
    image.put(at + 16, 0)


def last_sequence(image: Image) -> None:
    image.put(spot(image, "superblock.base_sequence"), 2**64 - 1)
    image.put(spot(image, "superblock.tip_sequence"), 2**64 - 1)


def one_barrier_without_data(image: Image) -> None:
    image.append_record(record(image, one_barrier=True, checks=[(400, 5)], freed=[(400, 1)]))


HOSTILE: dict[str, tuple[str, Callable[[Image], object]]] = {
    "a freed run of 2^46 slots took all memory": ("snapshots", appended(freed=[(400, 2**46)])),
    "a freed slot far behind the file took all memory": ("snapshots", appended(freed=[(2**46, 1)])),
    "freed nodes were counted one by one, for ever": ("snapshots", appended(freed_nodes=[(2**46, 2**46)])),
    "a delta placed behind the file took all memory": (
        "snapshots", lambda image: image.append_record(record(
            image, deltas=f.encode_delta(5, 1, f.ENTRY_MAPPED, 2**46, epoch_of(image))))),
    "a log of 64 MiB in a small file was read at once": ("fresh", put("superblock.log_slots", 16384)),
    "a next_id of 2^44 was counted up to": ("snapshots", put("superblock.next_id", 2**44)),
    "the last id could not be exceeded, and was": ("snapshots", put("superblock.next_id", f.ID_MAX + 1)),
    "records behind next_id made a list of snapshots begin again for ever": (
        "snapshots", put("superblock.next_id", 6)),
    "metadata behind the file took all memory when its snapshot went": (
        "snapshots", lambda image: image.put(spot(image, "lineage.metadata_slot", 1), 2**46)),
    "metadata that is no JSON": ("snapshots", metadata(b"{'no'}")),
    "metadata that is too deep": ("snapshots", metadata(b"[" * 4000)),
    "metadata that is a number": ("snapshots", metadata(b"17")),
    "two snapshots of one name ended in a KeyError": ("snapshots", same_name),
    "two snapshots of one epoch ended in a KeyError": ("snapshots", same_epoch),
    "a ring of empty anchors was gone round for ever": ("anchors", ring_of_anchors),
    "a head that stands on itself was followed for ever": (
        "snapshots",
        lambda image: image.put(spot(image, "lineage.parent", 0), 0),
    ),
    "the last id that an index of names takes was exceeded": ("named", put("superblock.next_id", 2**32)),
    "a run longer than the file overflowed into its own kind": ("snapshots", long_run),
    "a root that is a run of 2^36 blocks was reclaimed block by block": ("snapshots", long_root),
    "an epoch near the end was exceeded by the next snapshot": ("fresh", put("superblock.epoch", f.EPOCH_MAX - 1025)),
    "a generation of 2^64-1 could not be followed": ("fresh", put("superblock.generation", 2**64 - 1)),
    "a sequence of 2^64-1 could not be followed": ("fresh", last_sequence),
    "a count of losses of 2^64-1 could not be followed": ("fresh", put("superblock.given_up_count", 2**64 - 1)),
    "a snapshot was deleted twice": ("snapshots", appended(events=[f.DeleteEvent(1), f.DeleteEvent(1)])),
    "a held snapshot was deleted": ("snapshots", appended(events=[f.HoldEvent(1, "why"), f.DeleteEvent(1)])),
    "a snapshot was reclaimed that was not deleted": ("snapshots", appended(events=[f.ReclaimedEvent(1)])),
    "an id was given out again": (
        "snapshots", lambda image: image.append_record(record(
            image, epoch=epoch_of(image) + 1, events=[f.SnapshotEvent(1, epoch_of(image), 1, 1, "again")]))),
    "a resize in a later epoch than its record's": (
        "large_blocks", appended(events=[f.ResizeEvent(0, 4096 * 100, 2**47)])),
    "a record of a superblock that never was": (
        "largest_blocks", put("record.generation", 255)),
    "a one-barrier record whose data is not there was believed": ("snapshots", one_barrier_without_data),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_that_did_harm_do_none(what: str, tmp_path: Path) -> None:
    name, change = HOSTILE[what]
    image = Image(original(name))
    image.data[BLOCK - image.superblock : 2 * BLOCK - image.superblock] = bytes(BLOCK)
    change(image)
    image.seal()
    assert image.data != original(name)
    for seed in range(3):
        wrong, _ = attack(bytes(image.data), tmp_path, seed)
        assert wrong is None, wrong


def cursor_of_a_branch_point(image: Image) -> None:
    """The first deleted snapshot gets a cursor, as if its reclaim had begun."""
    records = [spot.offset for spot in image.spots if spot.what == "lineage"]
    image.put(next(at for at in records if image.data[at + 1] & f.LINEAGE_DELETED) + 96, 1)


def test_a_branch_point_is_not_reclaimed_whatever_the_file_says(tmp_path: Path) -> None:
    """Of those that stand on it one was compared, and what the others have was freed; `check` called the file sound."""
    image = Image(original("clones"))
    cursor_of_a_branch_point(image)
    image.seal()
    path = tmp_path / "v"
    path.write_bytes(image.data)
    assert any("is being reclaimed, and more than one" in problem for problem in check_file(str(path)).problems)
    with Volume.open(path, background=False) as volume, pytest.raises(CorruptionError, match="branch point"):
        volume.reclaim()


@pytest.mark.parametrize("event", [f.ReclaimEvent(2, 0), f.ReclaimedEvent(2)], ids=lambda event: type(event).__name__)
def test_nor_does_the_log_say_so_of_a_branch_point(event: f.Event, tmp_path: Path) -> None:
    """Reclaimed to its end it was gone at once: blocks of all that stood on it but one counted as free."""
    image = Image(original("clones"))
    appended(events=[event])(image)
    image.seal()
    path = tmp_path / "v"
    path.write_bytes(image.data)
    assert any("is being reclaimed, and more than one" in problem for problem in check_file(str(path)).problems)
    with pytest.raises(CorruptionError, match="more than one shares data with"):
        Volume.open(path, background=False)


def store_log(change: Callable[[bytearray, int], None]) -> dict[str, bytes]:
    """The files of a store with its last record of a set changed."""
    files = dict(store_files())
    log = bytearray(files["store.log"])
    places = log_records(log)
    change(log, [at for at in places if log[at + 48] == 1][-1])
    files["store.log"] = sealed_log(log, places)
    return files


def set_field(
    table: dict[str, tuple[int, int]], field: str, value: int, behind: int = 0
) -> Callable[[bytearray, int], None]:
    def change(log: bytearray, at: int) -> None:
        offset, count = table[field]
        log[at + behind + offset : at + behind + offset + count] = value.to_bytes(count, "little")

    return change


def slash_in_name(log: bytearray, at: int) -> None:
    log[at + RECORD_HEADER_BYTES + 2 * 48 + 1] = ord("/")


STORES: dict[str, Callable[[], dict[str, bytes]]] = {
    "a store without its folder of documents": lambda: {
        name: data for name, data in store_files().items() if not name.startswith("documents")
    },
    "a set taken after SQLite's integers end": lambda: store_log(set_field(RECORD_FIELDS, "created_ns", 2**64 - 1)),
    "a set of a snapshot after SQLite's integers end": lambda: store_log(
        set_field(MEMBER_FIELDS, "snapshot_id", 2**64 - 1, RECORD_HEADER_BYTES)
    ),
    "a set whose name no snapshot can have": lambda: store_log(slash_in_name),
}


@pytest.mark.parametrize("what", STORES)
def test_hostile_stores_that_did_harm_do_none(what: str, tmp_path: Path) -> None:
    wrong, _ = attack_files(STORES[what](), 1, tmp_path)
    assert wrong is None, wrong


def test_an_intent_file_is_not_read_for_its_length_alone(tmp_path: Path) -> None:
    """128 MiB of it were read at once, whatever it was."""
    (tmp_path / "v").write_bytes(bytes(range(256)) * 16 * 60)
    with open(tmp_path / "v.adopting", "wb") as file:
        file.write(b"COWADOPT")
        file.truncate(1 << 30)
    wrong, _ = run_in_child(IntentSession(tmp_path / "v", 1, 10.0), tmp_path / "step")
    assert wrong is None, wrong
