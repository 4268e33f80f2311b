"""Fuzz targets that open files, in memory where that can be: volumes, single trees, store logs, catalogues; kernels.

An input is not the file but a list of edits of a real one; all checksums are made right afterwards. So every few bytes
of an input matter, and coverage leads somewhere.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import functools
import os
import sqlite3
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fuzz_formats import FOLD, Wrong, images
from hostile_image import SLOT, Image, Spot
from hostile_others import log_records, sealed_log, store_files
from hostile_steps import work_folder
from memory_disk import Durable, MemoryDisk

from cowengine import Snapshot, Volume
from cowengine import format as f
from cowengine.core.checksum import PORTABLE, seal_of, xxh64
from cowengine.core.iotable import IOTable
from cowengine.core.mutex import Mutex
from cowengine.core.pagedtable import PagedTable, lineage_table, name_table
from cowengine.core.readpath import ReadPath
from cowengine.core.slotmap import SlotMap
from cowengine.engine.check import check_file
from cowengine.errors import CowEngineError, PoisonedError
from cowengine.store import layout as store_layout
from cowengine.store.catalogue import Catalogue
from cowengine.store.layout import TYPE_DELETE, Record
from cowengine.store.log import StoreLog

PATH = "/disk/v"
READ_BYTES = 64 << 10
VOLUMES = (
    "fresh", "snapshots", "logged", "half_reclaimed", "anchors", "adopted", "large_blocks", "named", "sealed",
    "of_a_store",
)  # fmt: skip


def disk_of(data: bytes | bytearray, path: str = PATH) -> MemoryDisk:
    """A disk in memory with one file."""
    content = data if isinstance(data, bytearray) else bytearray(data)  # taken over
    return MemoryDisk(Durable({1: content}, {"/": 0, "/disk": 0, path: 1}), recorded=False)


@contextlib.contextmanager
def typed() -> Iterator[None]:
    """Lets typed errors pass; a volume that is poisoned must be so by one of them."""
    try:
        yield
    except CowEngineError as error:
        str(error)
        cause: BaseException | None = error
        while isinstance(cause, PoisonedError) and cause.__cause__ is not None:
            cause = cause.__cause__
            if not isinstance(cause, OSError | CowEngineError):
                raise Wrong("a volume was poisoned by what is no error of a file") from cause


# -- whole volumes -----------------------------------------------------------------------------------------------------
EDIT = struct.Struct("<BHBQ")  # which field, which of its places, how, and a number


@functools.cache
def _fields(name: str) -> tuple[tuple[Spot, ...], ...]:
    fields: dict[str, list[Spot]] = {}
    for spot in images()[name].spots:
        fields.setdefault(spot.what, []).append(spot)
    return tuple(tuple(fields[what]) for what in sorted(fields))


def edited_volume(data: bytes) -> tuple[Image, int]:
    """The volume that an input stands for, and the byte that says what is done with it."""
    name, what = VOLUMES[data[0] % len(VOLUMES)], data[1]
    image = copy.copy(images()[name])
    image.data, image.records = bytearray(image.data), list(image.records)
    if what & 2:
        other = SLOT - image.superblock
        image.data[other : other + SLOT] = bytes(SLOT)
    fields = _fields(name)
    for at in range(2, min(len(data) - EDIT.size + 1, 2 + 16 * EDIT.size), EDIT.size):
        field, place, how, number = EDIT.unpack_from(data, at)
        spots = fields[field % len(fields)]
        _edit(image, spots[place % len(spots)], spots, how, number)
    image.seal()
    return image, what


def _edit(image: Image, spot: Spot, same: tuple[Spot, ...], how: int, number: int) -> None:
    width = min(spot.bytes, 8)
    old = int.from_bytes(image.data[spot.offset : spot.offset + width], "little")
    if how % 6 == 0:
        image.put(spot.offset, number, width)
    elif how % 6 == 1:
        image.put(spot.offset, old + number - (1 << 64 if number >> 63 else 0), width)
    elif how % 6 == 2:
        image.put(spot.offset, old ^ 1 << number % (8 * width), width)
    elif how % 6 == 3:  # the bytes of another place of this kind
        source = same[number % len(same)]
        count = min(spot.bytes, source.bytes)
        image.data[spot.offset : spot.offset + count] = image.data[source.offset : source.offset + count]
    elif how % 6 == 4:  # the slot that a pointer, entry or delta leads to, and nothing else of it
        image.put(spot.offset, old & ~f.SLOT_MASK | number % (image.slots + 2), width)
    else:
        image.data[spot.offset + number % spot.bytes] = number >> 56


def volume(data: bytes) -> None:
    """Opens a volume, for reading or writing, shows what it holds, uses it, and checks it before and behind."""
    if len(data) < 2:
        return
    image, what = edited_volume(data)
    disk = disk_of(image.data)
    try:
        _session(disk, what)
    finally:
        disk.cache.files.clear()  # what leads to the disk may lead back to itself: megabytes until somebody collects


def _session(disk: MemoryDisk, what: int) -> None:
    if what & 4:
        with typed():
            check_file(PATH, disk)
    with typed(), Volume.open(PATH, io=disk, read_only=not what & 1, background=False, without_store=True) as opened:
        _look(opened)
        if what & 1:
            _use(opened, what)
            _look(opened)
    if what & 5 == 5:
        with typed():
            check_file(PATH, disk)


def _look(opened: Volume) -> None:
    snapshots = opened.snapshots()[:5]
    for source in (opened, *snapshots):
        with typed():
            source.pread(min(source.size, READ_BYTES), 0)
        with typed():
            source.pread(min(source.size, SLOT), source.size - min(source.size, SLOT))
    for snapshot in snapshots:
        for call in (lambda: snapshot.metadata, snapshot.space, lambda: opened.changed_extents(snapshot)):  # noqa: B023
            with typed():
                call()
        with typed():
            snapshot.changed_extents(snapshots[0])
    for call in (opened.stats, opened.du, opened.given_up, opened.allocated_extents):
        with typed():
            call()


def _use(opened: Volume, what: int) -> None:
    """Everything that changes a volume, a part of it by the bits of `what`."""
    snapshots = opened.snapshots()

    def last() -> Snapshot:
        return opened.get_snapshot(snapshots[-1].id) if snapshots else opened.snapshot("another")

    steps: list[Callable[[], Any]] = [
        lambda: opened.pwrite(b"w" * 700, min(opened.size - 700, 5000) if opened.size > 700 else 0), opened.flush,
        lambda: opened.snapshot("mine", metadata={"a": 1}),
    ]  # fmt: skip
    if what & 8:
        steps += [lambda: last().delete(), opened.reclaim]
    if what & 16:
        steps += [lambda: opened.rollback(last()), lambda: opened.discard(0, min(opened.size, 1 << 20))]
    if what & 32:
        steps += [lambda: last().to_anchor(), lambda: opened.resize(max(512, opened.size // 1024 * 512)), opened.seal]
    if what & 64:
        steps += [lambda: last().clone("clone").close(), lambda: opened.resize(opened.size + (1 << 20))]
    if what & 128:
        steps += [lambda: last().hold("held"), lambda: last().release()]
    for step in (*steps, opened.engine.checkpoint):
        with typed():
            step()


def volume_seeds() -> list[bytes]:
    """Each volume as it is, and used, and a few edits of each."""
    seeds = [bytes([number, what]) for number in range(len(VOLUMES)) for what in (2, 0xFB)]
    for number, name in enumerate(VOLUMES):
        for field in range(number, len(_fields(name)), 40):
            seeds.append(bytes([number, 1]) + EDIT.pack(field, field, field % 6, 1 + field))
    return seeds


def volume_kernels(data: bytes) -> None:
    """As `volume`, without the check before and behind, which is Python."""
    volume(data[:1] + bytes(byte & ~4 for byte in data[1:2]) + data[2:])


# -- single trees, in the kernels --------------------------------------------------------------------------------------
NODES = 4
ENTRY = struct.Struct("<BBQQ")  # which node, which of its entries, and its first two words
HEAD = struct.Struct("<BBBIQ")  # tree, level of the root, how, a key, the root's birth
SLOTS = 64


class Pages(IOTable):
    """A file in memory that is read only."""

    def __init__(self, data: bytearray) -> None:
        self.data = memoryview(data)

    def pread_into(self, fd: int, buffer: Any, offset: int) -> int:
        part = self.data[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        return len(part)


@functools.cache
def _empty_node(level: int) -> bytes:
    return bytes(SLOT) if level == 0 else f.hole(level - 1).encode() * f.FANOUT


class _Nodes:
    """A few nodes in the first slots of a file: node *i* is a level below node *i* - 1."""

    def __init__(self, data: bytes, tree: int, level: int) -> None:
        self.tree, self.level = tree, level
        self.file = bytearray(SLOTS * SLOT)
        self.pointers: list[set[int]] = [set() for _ in range(NODES)]  # offsets of what leads to a node
        for number in range(NODES):
            at = (2 + number) * SLOT
            self.file[at : at + SLOT] = _empty_node(max(level - number, 0))
        for at in range(HEAD.size, len(data) - ENTRY.size + 1, ENTRY.size):
            self._enter(*ENTRY.unpack_from(data, at))

    def _enter(self, node: int, index: int, target: int, birth: int) -> None:
        node %= NODES
        at, level = (2 + node) * SLOT, max(self.level - node, 0)
        if level == 0:
            struct.pack_into("<QQ", self.file, at + 16 * index, target, birth)
            return
        if not index & 128:  # the level that it must have; a slot in the file
            target = target & ~(0xFF << 48 | f.SLOT_MASK) | level - 1 << 48 | (target & f.SLOT_MASK) % (SLOTS + 1)
        offset = at + 32 * (index & 127)
        struct.pack_into("<QQ", self.file, offset, target, birth)
        self.pointers[node].add(offset)

    def root(self, birth: int) -> bytes:
        """The pointer to node 0, every checksum below it right."""
        return f.Pointer(2, 2, self.level, birth, self._seal(0, self.level, 0)).encode()

    def _seal(self, node: int, level: int, index: int) -> int:
        at = (2 + node) * SLOT
        for offset in self.pointers[node] if level else ():
            (target,) = struct.unpack_from("<Q", self.file, offset)
            child = (target & f.SLOT_MASK) - 2
            if target >> 56 == f.POINTER_NODE and node < child < NODES:
                checksum = self._seal(child, level - 1, index * f.FANOUT + (offset - at) // 32)
                struct.pack_into("<Q", self.file, offset + 16, checksum)
        seed = f.node_seed(FOLD, self.tree, level, index)
        return xxh64(memoryview(self.file)[at : at + SLOT], seed)


def tree(data: bytes) -> None:
    """One tree of four nodes, walked and read in every way there is for its kind."""
    if len(data) < HEAD.size:
        return
    number, level, how, key, birth = HEAD.unpack_from(data)
    number, level = 1 + number % 5, level % 4
    nodes = _Nodes(data, number, level)
    pointer = nodes.root(birth & f.EPOCH_MAX if number == f.TREE_MAP else 0)
    path = ReadPath(Pages(nodes.file), 0, FOLD, 12 if how & 1 else 13)
    keys = f.span(number, level)
    if number == f.TREE_MAP:
        _walk_map(path, pointer, how, key % keys, min(keys, 1 << 30))
    elif number == f.TREE_FREE_MAP:
        _walk_slots(path, pointer, how, key)
    elif number == f.TREE_SEALS:
        PagedTable(path, path.seals.tree).pointer = pointer
        run = f.Pointer(1, 6, 0, 1, 0).encode()
        with typed():
            path.pread(1 + key % (40 * SLOT), key >> 24, path.root_at(run))
    else:
        table = (lineage_table if number == f.TREE_LINEAGE else name_table)(path, FOLD)
        table.pointer = pointer
        with typed():
            table.read(key % keys)
        at: int | None = 0
        for _ in range(8):
            with typed():
                at = table.next(at)
                if at is None:
                    break
                page = table.read(at)
                at += f.KEYS_PER_LEAF[number]
                if page is not None and number == f.TREE_LINEAGE:
                    list(f.iter_essentials(page))


def _walk_map(path: ReadPath, pointer: bytes, how: int, key: int, blocks: int) -> None:
    root = path.root_at(pointer)
    block = min(key, blocks - 1)
    with typed():
        path.place(block, root)
    with typed():
        path.pread(min(1 + how * 200, (blocks - block) * path.block_bytes), block * path.block_bytes, root)
    with typed():
        path.extents(root, 0, blocks, 50)
    with typed():
        path.extents(root, block, blocks, 50, born_after=how)


def _walk_slots(path: ReadPath, pointer: bytes, how: int, key: int) -> None:
    slots = SlotMap(path.io, 0, FOLD, Mutex())
    table = PagedTable(path, slots.used)
    table.pointer = pointer
    slots.bound(SLOTS * (1 + how), [path.map])
    for call in (
        lambda: slots.find_free(2, SLOTS, 1 + key % 9),
        lambda: slots.find_free(key % (SLOTS * 300), SLOTS * 300, 16, 16),
        lambda: slots.count_busy(0, SLOTS * (1 + how)),
        lambda: slots.used_slots([(key % SLOTS, 1 + how)]),
        lambda: slots.mark_used([(key % SLOTS, 1 + how)]),
        lambda: slots.mark_used([(key, 1 + how)], False),
    ):
        with typed():
            call()


def tree_seeds() -> list[bytes]:
    """Of each tree and level, a path down to the leaf, and a leaf that says something."""
    seeds = []
    for number in range(5):
        for level in range(4):
            down = [ENTRY.pack(n, 0, f.POINTER_NODE << 56 | n + 3, 9) for n in range(level)]
            leaf = [ENTRY.pack(level, n, 1 << 56 | 6 + n, 3 + n) for n in range(3)]
            seeds.append(HEAD.pack(number, level, 1, 300, 9) + b"".join(down + leaf))
    seeds.append(HEAD.pack(0, 2, 1, 0, 9) + ENTRY.pack(0, 0, f.POINTER_RUN << 56 | 8, 3))
    return seeds


def _exactly(data: bytes) -> Any:
    """A buffer with nothing behind it that may be read: bytes have a zero there, and arrays some room."""
    return (ctypes.c_ubyte * len(data)).from_buffer_copy(data)


def kernels(data: bytes) -> None:
    """Checksum and seal of bytes at any place in memory; both ways to make a seal agree."""
    if len(data) < 9:
        return
    (number,) = struct.unpack_from("<Q", data)
    part = data[8 + min(data[8] & 15, len(data) - 9) :]
    xxh64(_exactly(part), number)
    block = _exactly(part[: len(part) & ~31])
    if seal_of(block, number) != seal_of(block, number, PORTABLE):
        raise Wrong("the processor's instruction gives another seal")


def kernel_seeds() -> list[bytes]:
    return [bytes(8) + bytes(range(256)) * n for n in (1, 2, 8)]


# -- stores ------------------------------------------------------------------------------------------------------------
FIELD = struct.Struct("<BBHQ")  # which record (0: the headers), how wide, where, and a number


@functools.cache
def _store_log() -> tuple[bytes, tuple[int, ...]]:
    log = store_files()["store.log"]
    return log, tuple(log_records(log))


def store_log(data: bytes) -> None:
    """Opens an edited store log, and as its owner commits to it and gives records up."""
    log, places = _store_log()
    edited = bytearray(log)
    for at in range(1, len(data) - FIELD.size + 1, FIELD.size):
        place, width, offset, number = FIELD.unpack_from(data, at)
        begin = places[place % (len(places) + 1) - 1] if place % (len(places) + 1) else 0
        count = 1 + width % 8
        offset = begin + offset % (512 if begin else 136)
        edited[offset : offset + count] = (number % (1 << 8 * count)).to_bytes(count, "little")
    edited[SLOT : 2 * SLOT] = edited[:SLOT]
    read_only = bool(data[:1] and data[0] & 1)
    log_file = StoreLog(disk_of(sealed_log(edited, list(places)), "/disk/l"), "/disk/l", read_only=read_only)
    try:
        log_file.snapshot_entries()
        if not read_only and log_file.reserve(200):
            record = store_layout.Record(
                type=store_layout.TYPE_DELETE, set_id=bytes(16), created_ns=1,
                members=(store_layout.RecordMember(volume_uuid=bytes(16), snapshot_id=1, epoch=1, sequence=1, tag=1),),
            )  # fmt: skip
            log_file.append(record)
            log_file.advance(log_file.tip_sequence)
    finally:
        log_file.close()


def store_log_seeds() -> list[bytes]:
    edits = [FIELD.pack(place, 7, offset, 1) for place in range(3) for offset in (8, 16, 48, 56, 96)]
    return [b"\0", b"\1", *(b"\0" + edit for edit in edits)]


POKE = struct.Struct("<HBB")


@functools.cache
def _catalogue() -> tuple[str, bytes, dict[int, int], bytes]:
    """A folder in memory, an intact catalogue, and what the store log says about it."""
    folder = _stack.enter_context(work_folder())
    files = store_files()
    name = next(name for name, data in files.items() if data.startswith(b"SQLite format 3"))
    for suffix in ("", "-wal"):
        if name + suffix in files:
            (folder / ("c" + suffix)).write_bytes(files[name + suffix])
    connection = sqlite3.connect(folder / "c")
    with contextlib.closing(connection):
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        connection.execute("PRAGMA journal_mode = DELETE").fetchall()
        meta = dict(connection.execute("SELECT key, value FROM meta"))
    positions = {meta["sequence"]: int.from_bytes(meta["checksum"], "big")}
    return str(folder), meta["store_uuid"], positions, (folder / "c").read_bytes()


_stack = contextlib.ExitStack()  # the folder lives as long as the process


def catalogue(data: bytes) -> None:
    """Opens an edited catalogue, believed or rebuilt, and asks it everything."""
    folder, store_uuid, positions, intact = _catalogue()
    edited = bytearray(intact)
    for at in range(0, len(data) - POKE.size + 1, POKE.size):
        offset, how, value = POKE.unpack_from(data, at)
        place = offset * (1 + how % 4) % len(edited)
        edited[place] = value if how & 4 else edited[place] ^ value
    path = os.path.join(folder, "d")
    for old in Path(folder).glob("d*"):
        old.unlink()
    Path(path).write_bytes(edited)
    found = Catalogue(path, store_uuid, positions)
    try:
        if found.sequence is None:
            found.rebuild(7, 8, [])
        for call in (
            found.sets, found.volume_names, found.all_documents, lambda: found.documents("job"),
            lambda: found.find_set("set1"), lambda: found.has_name("set1"),
            lambda: found.find_set("00000000-0000-0000-0000-000000000000"),
        ):  # fmt: skip
            with typed():
                call()
        gone = Record(type=TYPE_DELETE, set_id=bytes(16), created_ns=0, members=())
        found.add((found.sequence or 0) + 1, 5, gone, {})
        found.checkpoint()
    finally:
        found.close()


def catalogue_seeds() -> list[bytes]:
    return [b"", *(POKE.pack(offset, 4, 7) for offset in (16, 100, 4000, 8000))]
