"""Hostile backup streams, stores and intent files: what the other parsers read, changed and sealed again."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import random
import sqlite3
import tempfile
from pathlib import Path

from hostile_mutations import JSONS, NAMES
from hostile_steps import Session, emptied, run_in_child
from hostile_volumes import repeatable

from cowengine import Volume
from cowengine.backup import layout as backup_layout
from cowengine.backup.layout import RECORD, STREAM_END
from cowengine.backup.restore import restore_stream
from cowengine.backup.verify import verify_stream
from cowengine.backup.write import write_backup
from cowengine.core.checksum import xxh64
from cowengine.format import layout
from cowengine.format.intent import Intent, encode_intent
from cowengine.store import Store
from cowengine.store import layout as store_layout

assert sqlite3
BLOCK = 4096
Result = tuple[str | None, dict[str, str]]
EDGES = (0, 1, 2, 255, 511, 512, 4095, 4096, 4 << 20, 2**31, 2**32 - 1, 2**47, 2**48, 2**63 - 1, 2**63, 2**64 - 1)


def number(rng: random.Random, old: int, count: int) -> int:
    """Another integer for a field of `count` bytes."""
    return rng.choice((
        rng.choice(EDGES), rng.choice(EDGES), old + rng.choice((-1, 1, 512, -512)), old ^ 1 << rng.randrange(8 * count),
        rng.randrange(16), rng.getrandbits(8 * count), old << rng.randrange(1, 33),
    )) % (1 << 8 * count)  # fmt: skip


def change(rng: random.Random, data: bytearray, offset: int, count: int) -> None:
    """Changes a field: a number, or if it is longer a byte of it or odd text."""
    if count in (1, 2, 4, 8):
        old = int.from_bytes(data[offset : offset + count], "little")
        data[offset : offset + count] = number(rng, old, count).to_bytes(count, "little")
    elif count and rng.random() < 0.5:
        data[offset + rng.randrange(count)] ^= 1 << rng.randrange(8)
    else:
        text = rng.choice(NAMES)[:count]
        data[offset : offset + len(text)] = text


# -- streams -----------------------------------------------------------------------------------------------------------
@functools.cache
def stream() -> bytes:
    """A full backup of two volumes, and an incremental one behind it, with documents."""
    with tempfile.TemporaryDirectory() as folder, repeatable(5) as rng:
        pipe = io.BytesIO()
        volumes = {
            name: Volume.create(Path(folder) / name, 64 * BLOCK, log_size=16384, background=False)
            for name in ("one", "two")
        }
        base = None
        for kind in ("full", "incremental"):
            for volume in volumes.values():
                volume.pwrite(rng.randbytes(9000) + b"cow" * 9000, rng.randrange(20) * BLOCK)
                volume.discard(30 * BLOCK, 4 * BLOCK)
            snapshots = {name: volume.snapshot(kind) for name, volume in volumes.items()}
            base = write_backup(pipe, snapshots, kind=kind, base=base, documents={"components": [{"name": "c"}]})
        for volume in volumes.values():
            volume.close()
        return pipe.getvalue()


def parsed(data: bytes) -> list[tuple[bytearray, bytearray]]:
    """(header, payload) of each record."""
    records, at = [], 0
    while at < len(data):
        stored = RECORD.unpack(data, at)["stored_bytes"]
        body = at + RECORD.bytes
        records.append((bytearray(data[at:body]), bytearray(data[body : body + stored])))
        at = body + stored
    return records


def sealed(records: list[tuple[bytearray, bytearray]]) -> bytes:
    """The stream of some records, all of its checksums and totals right."""
    out, root, begin = bytearray(), hashlib.sha256(), 0

    def put(head: bytearray, field: str, value: int) -> None:
        offset, count = RECORD.offsets[field]
        head[offset : offset + count] = value.to_bytes(count, "little")

    for head, body in records:
        if head[4] == backup_layout.HEADER:
            begin, root = len(out), hashlib.sha256()
        if head[4] == backup_layout.END and len(body) == STREAM_END.bytes:
            offset, count = STREAM_END.offsets["stream_bytes"]
            body[offset : offset + count] = (len(out) - begin).to_bytes(count, "little")
            offset, count = STREAM_END.offsets["root"]
            body[offset : offset + count] = root.digest()
        put(head, "stored_checksum", xxh64(bytes(body)))
        if head[5] == backup_layout.CODEC_NONE:
            put(head, "plain_checksum", xxh64(bytes(body)))
        head[-8:] = xxh64(bytes(head[:-8])).to_bytes(8, "little")
        root.update(head)
        root.update(body)
        out += head + body
    return bytes(out)


def mutated_stream(rng: random.Random) -> bytes:
    """One to three changes of fields, payloads, or the order of records."""
    records = [(bytearray(head), bytearray(body)) for head, body in parsed(stream())]
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = rng.randrange(len(records))
        head, body = records[place]
        what = rng.randrange(8)
        if what < 3:
            offset, count = rng.choice(list(RECORD.offsets.values()))
            change(rng, head, offset, count)
        elif what < 6 and body:
            offset = rng.randrange(len(body))
            change(rng, body, offset, min(rng.choice((1, 2, 4, 8, 16)), len(body) - offset))
        elif what == 6:
            records.insert(place, records[rng.randrange(len(records))])
        else:
            text = rng.choice((*JSONS, b"", bytes(rng.randrange(5000))))
            offset, count = RECORD.offsets["stored_bytes"]
            head[offset : offset + count] = len(text).to_bytes(count, "little")
            offset, count = RECORD.offsets["plain_bytes"]
            head[offset : offset + count] = len(text).to_bytes(count, "little")
            head[5] = backup_layout.CODEC_NONE
            records[place] = head, bytearray(text)
    return sealed(records)


class StreamSession(Session):
    """Verifies a stream, and restores it into files and into a store."""

    address_space = 256 << 20  # with the stacks of four threads

    def run(self) -> None:
        data = self.path.read_bytes()
        self.do("verify", lambda: verify_stream(io.BytesIO(data)).ok)
        self.do("restore to files", lambda: restore_stream(io.BytesIO(data), self.path.parent / "raw"))
        store = Store.create(self.path.parent / "store", background=False, log_size=16384)
        self.do("restore to a store", lambda: restore_stream(io.BytesIO(data), store))
        store.close()


def attack_stream(seed: int, folder: Path, cpu_seconds: float) -> Result:
    """A hostile stream of this seed."""
    emptied(folder)
    (folder / "stream").write_bytes(mutated_stream(random.Random(seed)))
    return run_in_child(StreamSession(folder / "stream", seed, cpu_seconds), folder / "step")


# -- stores ------------------------------------------------------------------------------------------------------------
@functools.cache
def store_files() -> dict[str, bytes]:
    """The files of a store whose process died: two volumes, snapshot sets, a ledger, records in the log."""
    with tempfile.TemporaryDirectory() as folder, repeatable(6) as rng:
        path = Path(folder) / "store"
        store = Store.create(path, log_size=16384, background=False)
        volumes = [store.create_volume(name, 40 * BLOCK, log_size=16384) for name in ("one", "two")]
        for turn in range(4):
            for volume in volumes:
                volume.pwrite(rng.randbytes(5000), rng.randrange(30) * BLOCK)
            found = store.snapshot(["one", "two"], name=f"set{turn}", metadata={"turn": turn})
        store.put_document("job", "0001", {"is": "kept"})
        found.delete()
        files = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
        store.close()
        return files


def log_records(log: bytes) -> list[int]:
    """Offsets of the records in a store's log."""
    starts = range(store_layout.RING_OFFSET, len(log), 512)
    return [at for at in starts if log[at : at + 4] == store_layout.RECORD_MAGIC]


def mutated_store(rng: random.Random) -> dict[str, bytes]:
    """One to three changes: fields of the log, JSON documents, bytes of the catalogue, a file gone or another's."""
    files = dict(store_files())
    for _ in range(rng.choice((1, 1, 2, 3))):
        name = rng.choice(["store.log"] * 6 + sorted(files))
        data = bytearray(files.get(name, b""))
        if name == "store.log":
            files[name] = _mutated_log(rng, data)
        elif rng.random() < 0.15:
            files.pop(name, None)
        elif rng.random() < 0.1:
            files[name] = files.get(rng.choice(sorted(files)), b"")
        elif name.endswith(".json"):
            files[name] = rng.choice((*JSONS, b"{", data[: len(data) // 2], json.dumps({"a": [1] * 100}).encode()))
        else:
            for _ in range(rng.choice((1, 8))):
                if data:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            files[name] = bytes(data)
    return files


def _mutated_log(rng: random.Random, data: bytearray) -> bytes:
    places = log_records(data)
    if not places or rng.random() < 0.4:
        field = rng.choice(sorted(store_layout.HEADER_FIELDS))
        offset, count = store_layout.HEADER_FIELDS[field]
        for slot in (0, store_layout.HEADER_BYTES):
            if slot == 0 or rng.random() < 0.8:
                data[slot : slot + store_layout.HEADER_BYTES] = data[: store_layout.HEADER_BYTES]
        change(rng, data, offset, count)
        data[store_layout.HEADER_BYTES : 2 * store_layout.HEADER_BYTES] = data[: store_layout.HEADER_BYTES]
    else:
        at = rng.choice(places)
        fields = [*store_layout.RECORD_FIELDS.values()]
        members = [
            (store_layout.RECORD_HEADER_BYTES + offset, count) for offset, count in store_layout.MEMBER_FIELDS.values()
        ]
        behind = store_layout.RECORD_HEADER_BYTES + 2 * store_layout.MEMBER_BYTES
        offset, count = rng.choice([*fields, *members, *members, (behind, 4), (behind + 4, 16)])
        change(rng, data, at + offset, count)
    return sealed_log(data, places)


def sealed_log(data: bytearray, places: list[int]) -> bytes:
    """A store's log with all checksums of its headers and of these records right."""

    def put(fields: dict[str, tuple[int, int]], field: str, value: int, at: int) -> None:
        offset, count = fields[field]
        data[at + offset : at + offset + count] = value.to_bytes(count, "little")

    def get(fields: dict[str, tuple[int, int]], field: str, at: int) -> int:
        offset, count = fields[field]
        return int.from_bytes(data[at + offset : at + offset + count], "little")

    header, record = store_layout.HEADER_FIELDS, store_layout.RECORD_FIELDS
    offset, count = header["store_uuid"]
    uuid = bytes(data[offset : offset + count])
    checksums: dict[int, int] = {}
    for at in sorted(places, key=lambda at: get(record, "sequence", at)):
        sequence = get(record, "sequence", at)
        if sequence - 1 in checksums:
            put(record, "previous", checksums[sequence - 1], at)
        put(record, "checksum", 0, at)
        raw = bytes(data[at : at + get(record, "record_bytes", at)])
        checksums[sequence] = xxh64(raw, store_layout.record_seed(uuid, sequence))
        put(record, "checksum", checksums[sequence], at)
    for slot in (0, store_layout.HEADER_BYTES):
        for what in ("base", "tip"):
            sequence = get(header, what + "_sequence", slot)
            if sequence in checksums:
                put(header, what + "_checksum", checksums[sequence], slot)
        put(header, "checksum", xxh64(bytes(data[slot : slot + header["checksum"][0]])), slot)
    return bytes(data)


class StoreSession(Session):
    """Opens a store read-only and as its owner, reads and uses everything in it."""

    def run(self) -> None:
        store = self.do("open read-only", lambda: Store.open(self.path, read_only=True, background=False))
        if store is not None:
            self._look(store)
            self.do("close", store.close)
        store = self.do("open", lambda: Store.open(self.path, background=False))
        if store is not None:
            self._look(store)
            self._use(store)
            self.do("close", store.close)
        self.do("rebuild", lambda: Store.rebuild(self.path))
        self.do("open again", lambda: Store.open(self.path, background=False).close())

    def _look(self, store: Store) -> None:
        names = self.do("volumes", store.volumes) or []
        for call in (store.du, store.check, lambda: store.documents("job"), lambda: store.get_document("job", "0001")):
            self.do("look", call)
        for name in names:
            volume = self.do("open a volume", functools.partial(store.open_volume, name))
            if volume is not None:
                self.do("read", lambda volume=volume: [s.pread(s.size, 0) for s in volume.snapshots()])
        for found in self.do("sets", store.snapshot_sets) or []:
            self.do("set", lambda found=found: store.get_snapshot_set(found.name))
            self.do("set", lambda found=found: (found.created, found.volumes, found.snapshots))

    def _use(self, store: Store) -> None:
        names = self.do("volumes", store.volumes) or []
        if names:
            self.do("snapshot", lambda: store.snapshot(names, name="mine"))
        for found in (self.do("sets", store.snapshot_sets) or [])[:2]:
            self.do("delete a set", found.delete)
        self.do("document", lambda: store.put_document("job", "0002", {}))
        self.do("create", lambda: store.create_volume("new", 512, log_size=16384))
        if names:
            self.do("rename", lambda: store.rename_volume(names[0], "renamed"))
            self.do("detach", lambda: store.detach("renamed"))


def attack_store(seed: int, folder: Path, cpu_seconds: float) -> Result:
    """A hostile store of this seed."""
    return attack_files(mutated_store(random.Random(seed)), seed, folder, cpu_seconds)


def attack_files(files: dict[str, bytes], seed: int, folder: Path, cpu_seconds: float = 10.0) -> Result:
    """A store of these files."""
    emptied(folder)
    for name, data in files.items():
        path = folder / "store" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return run_in_child(StoreSession(folder / "store", seed, cpu_seconds), folder / "step")


# -- intent files ------------------------------------------------------------------------------------------------------
class IntentSession(Session):
    """A half-adopted file with a hostile intent file beside it."""

    def run(self) -> None:
        size = self.path.stat().st_size
        actions = [
            ("open", lambda: Volume.open(self.path, background=False).close()),
            ("undo", lambda: Volume.undo_adoption(self.path)),
            ("adopt", lambda: Volume.adopt(self.path, log_size=16384, background=False).close()),
        ]
        self.rng.shuffle(actions)
        for step, action in actions:
            self.do(step, action)
        assert self.path.stat().st_size <= size + (8 << 20), "the file grew without need"


def attack_intent(seed: int, folder: Path, cpu_seconds: float) -> Result:
    """A hostile intent file of this seed."""
    emptied(folder)
    rng = random.Random(seed)
    image = rng.randbytes(60 * BLOCK)
    (folder / "v").write_bytes(rng.choice((image, bytes(2 * BLOCK) + image[2 * BLOCK :])))
    head = image[: rng.choice((512, 4096, 24576))]
    data = bytearray(encode_intent(Intent(len(image), bytes(range(16)), head)))
    for _ in range(rng.choice((0, 1, 2))):
        field = rng.choice(layout.INTENT)
        change(rng, data, field.offset, field.bytes)
    if rng.random() < 0.8:
        data[40:48] = bytes(8)
        data[40:48] = xxh64(bytes(data), 0).to_bytes(8, "little")
    with open(folder / "v.adopting", "wb") as file:
        file.write(data if rng.random() < 0.9 else data[: rng.randrange(len(data))])
        if rng.random() < 0.1:
            file.truncate(1 << 40)
    return run_in_child(IntentSession(folder / "v", seed, cpu_seconds), folder / "step")
