"""Fuzz targets without I/O: the codecs of the volume file, the store log, backup streams and documents.

Where a checksum would end every mutation, it is made right first. What a codec takes must be exactly what it gives back
when it is encoded again: nothing it does not understand may pass through it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import struct
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

from hostile_image import SLOT, Image
from hostile_others import store_files, stream
from hostile_volumes import VOLUMES, build

from cowengine import format as f
from cowengine.backup import layout as backup_layout
from cowengine.backup.codec import compress, decompress
from cowengine.backup.layout import RECORD, STREAM_END
from cowengine.backup.manifest import Backup, decode_manifest, encode_manifest
from cowengine.backup.stream import decode_header, decode_totals, encode_header, encode_totals
from cowengine.backup.stream_reader import Source, StreamReader
from cowengine.core.checksum import xxh64
from cowengine.engine.intent import Intent
from cowengine.format.intent import decode_intent, encode_intent, intent_bytes
from cowengine.store import layout as store_layout
from cowengine.store.documents import decode_document, encode_document
from cowengine.vss.documents import BackupComponents, Component, WriterMetadata, WriterRecord

FOLD = 0x1122334455667788
CHECKSUM = struct.Struct("<Q")
UUID = bytes(range(16))


class Wrong(Exception):
    """A parser took what it does not give back, or took its time over it."""


def require_same(again: object, data: object) -> None:
    """What was decoded and encoded is what it was."""
    if again != data:
        raise Wrong(f"{data!r:.300} was taken for {again!r:.300}")


@functools.cache
def images() -> dict[str, Image]:
    """Real volumes of a few megabytes, by name."""
    folder = os.environ.get("COWENGINE_FUZZ_VOLUMES")
    made = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())} if folder else volumes()
    return {name: Image(data) for name, data in made.items()}


def volumes() -> dict[str, bytes]:
    """The same, made by the engine now."""
    return {name: build(name) for name in VOLUMES if name not in ("resized", "largest_blocks")}


def _padded(data: bytes, count: int) -> bytearray:
    padded = bytearray(count)
    padded[: min(len(data), count)] = data[:count]
    return padded


# -- the volume file ---------------------------------------------------------------------------------------------------
def superblock(data: bytes) -> None:
    block = _padded(data, SLOT)
    CHECKSUM.pack_into(block, 4088, xxh64(memoryview(block)[:4088]))
    raw = bytes(block)
    require_same(f.encode_superblock(f.decode_superblock(raw)), raw)


def superblock_seeds() -> list[bytes]:
    found = [bytes(image.data[at : at + 4088]) for image in images().values() for at in (0, SLOT)]
    return [block.rstrip(b"\0") for block in found if block[: len(f.MAGIC)] == f.MAGIC]


def record(data: bytes) -> None:
    """The first byte says whether the lengths are made right, too; the rest is the record."""
    raw = bytearray(data[1:])
    if len(raw) >= f.RECORD_HEADER_BYTES:
        raw[:4] = f.RECORD_MAGIC
        if not data[0] & 1:
            struct.pack_into("<I", raw, 4, len(raw))
            *counts, _ = struct.unpack_from("<5I", raw, 60)
            fixed = f.RECORD_HEADER_BYTES + 32 * counts[0] + 16 * sum(counts[1:])
            struct.pack_into("<I", raw, 76, max(0, len(raw) - fixed))
        CHECKSUM.pack_into(raw, 120, 0)
        (sequence,) = CHECKSUM.unpack_from(raw, 16)
        CHECKSUM.pack_into(raw, 120, xxh64(raw, f.record_seed(FOLD, sequence)))
        found = f.decode_record(raw, 0, len(raw), FOLD, sequence)
        if found is not None:
            require_same(f.encode_record(found[0], FOLD), bytes(raw))


@functools.cache
def _records() -> list[bytes]:
    found = []
    for image in images().values():
        for at in image.records:
            count = int.from_bytes(image.data[at + 4 : at + 8], "little")
            found.append(bytes(image.data[at : at + count]))
    return found


def record_seeds() -> list[bytes]:
    return [b"\0" + raw for raw in _records() if len(raw) < 2000]


def events(data: bytes) -> None:
    data = data[: len(data) & ~7]
    require_same(b"".join(f.encode_event(event) for event in f.decode_events(data)), data)


def event_seeds() -> list[bytes]:
    counts = [struct.unpack_from("<I", raw, 76)[0] for raw in _records()]
    found = {raw[len(raw) - count :] for raw, count in zip(_records(), counts, strict=True) if count}
    every: list[f.Event] = [
        f.CloneEvent(1, 7, 3, 9, 1, "a clone"), f.DeleteHeadEvent(1, 10), f.RegionEvent(100, 5000, 40),
        f.ResizeEvent(0, 8192, 4), f.StoreEvent(5), f.GiveUpEvent(3, 1), f.HoldEvent(2, "held"), f.AnchorEvent(3),
        f.ReclaimEvent(3, 7), f.ReclaimedEvent(3), f.RollbackEvent(0, 2, 9, 4096), f.PolicyEvent(1, 2, 3),
    ]  # fmt: skip
    return [*found, *map(f.encode_event, every)]


def lineage(data: bytes) -> None:
    raw = bytes(_padded(data, f.LINEAGE_BYTES))
    require_same(f.encode_lineage(f.decode_lineage(raw)), raw)


def _lineage_leaves() -> list[bytes]:
    leaves = []
    for image in images().values():
        for slot, place in image.walk(image.superblock + 376, f.TREE_LINEAGE):
            if place.tree == f.TREE_LINEAGE and place.level == 0:
                leaves.append(bytes(image.data[slot * SLOT : slot * SLOT + SLOT]))
    return leaves


def lineage_seeds() -> list[bytes]:
    size = f.LINEAGE_BYTES
    records = {leaf[at : at + size] for leaf in _lineage_leaves() for at in range(0, SLOT, size)}
    return sorted(raw for raw in records if raw[0])[:60]


def pointer(data: bytes) -> None:
    raw = bytes(_padded(data, f.POINTER_BYTES))
    require_same(f.Pointer.decode(raw).encode(), raw)


def pointer_seeds() -> list[bytes]:
    return [f.hole(2, 5).encode(), f.Pointer(2, 300, 1, 7, 99).encode(), f.Pointer(1, 300, 1, 7, 0).encode()]


def intent(data: bytes) -> None:
    """The first byte says how the checksum and the length are made right; the next is what the image begins with."""
    raw = bytearray(data[2:])
    if len(raw) >= 48 and not data[0] & 1:
        struct.pack_into("<I", raw, 12, len(raw) - 48)
        CHECKSUM.pack_into(raw, 40, 0)
        CHECKSUM.pack_into(raw, 40, xxh64(raw))
    intent_bytes(bytes(raw))
    found = decode_intent(bytes(raw))
    require_same(encode_intent(found), bytes(raw))
    found.explains(found.head[: data[1] * 8])


def intent_seeds() -> list[bytes]:
    return [b"\0\xff" + encode_intent(Intent(8192, UUID, bytes(range(256)) * 2 * n)) for n in (0, 1, 3)]


# -- the store log -----------------------------------------------------------------------------------------------------
def store_header(data: bytes) -> None:
    raw = _padded(data, SLOT)
    CHECKSUM.pack_into(raw, 4088, xxh64(bytes(raw[:4088])))
    header = store_layout.decode_header(bytes(raw))
    if header is not None:
        require_same(store_layout.encode_header(header), bytes(raw))


def store_header_seeds() -> list[bytes]:
    return [store_files()["store.log"][:136]]


def store_record(data: bytes) -> None:
    """The first byte says whether the length is made right, too."""
    raw = bytearray(data[1:])
    if len(raw) < store_layout.RECORD_HEADER_BYTES:
        return
    if not data[0] & 1:
        struct.pack_into("<I", raw, 4, len(raw))
    CHECKSUM.pack_into(raw, 88, 0)
    (sequence,) = CHECKSUM.unpack_from(raw, 16)
    CHECKSUM.pack_into(raw, 88, xxh64(bytes(raw), store_layout.record_seed(UUID, sequence)))
    found = store_layout.peek_record(bytes(raw), 0, 4096, UUID)
    if found is not None:
        again, _ = store_layout.encode_record(store_layout.decode_record(found[1]), found[0], UUID)
        require_same(again, bytes(raw))


def store_record_seeds() -> list[bytes]:
    log = store_files()["store.log"]
    places = [at for at in range(store_layout.RING_OFFSET, len(log), 512) if log[at : at + 4] == b"CWSR"]
    return [b"\0" + log[at : at + int.from_bytes(log[at + 4 : at + 8], "little")] for at in places]


# -- backups -----------------------------------------------------------------------------------------------------------
def stream_header(data: bytes) -> None:
    found = decode_header(data)
    if not int.from_bytes(data[16:24], "little") and found.base_id:  # features that are ignored; a base that is none
        require_same(encode_header(found), data)


def stream_header_seeds() -> list[bytes]:
    return [body for head, body in _stream_records(stream()) if head[4] == backup_layout.HEADER]


def totals(data: bytes) -> None:
    require_same(encode_totals(decode_totals(data)), data)


def totals_seeds() -> list[bytes]:
    return [body for head, body in _stream_records(stream()) if head[4] == backup_layout.END]


def _stream_records(data: bytes) -> list[tuple[bytes, bytes]]:
    """(header, payload) of each record, as far as there are whole headers."""
    records, at = [], 0
    while len(data) - at >= RECORD.bytes:
        stored = int.from_bytes(data[at + 32 : at + 36], "little")
        body = at + RECORD.bytes
        records.append((data[at:body], data[body : body + stored]))
        at = body + stored
    return records


def payload(data: bytes) -> None:
    """Codec, declared length, and what was stored."""
    if len(data) > 4:
        plain_bytes = int.from_bytes(data[1:4], "little")
        plain = decompress(data[4:], data[0] & 1, plain_bytes)
        if len(plain) != plain_bytes:
            raise Wrong(f"{len(plain)} bytes instead of {plain_bytes}")


def payload_seeds() -> list[bytes]:
    plain = [b"cow" * 3000, bytes(1 << 20), bytes(range(256)) * 16]
    return [b"\1" + len(text).to_bytes(3, "little") + bytes(compress(text, 3)[1]) for text in plain]


class Inline(Executor):
    """Runs what it is given at once: a fuzzer forks, and threads do not."""

    def submit(self, function: Any, /, *values: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*values, **named))
        except Exception as error:
            future.set_exception(error)
        return future


def sealed_stream(data: bytes) -> bytes:
    """Its checksums, totals and roots made right, and the plain checksums of what is not compressed."""
    out, root, begin = bytearray(), hashlib.sha256(), 0
    for head, body in _stream_records(data):
        if head[4] == backup_layout.HEADER:
            begin, root = len(out), hashlib.sha256()
        if head[4] == backup_layout.END and len(body) == STREAM_END.bytes:
            body = body[:40] + (len(out) - begin).to_bytes(8, "little") + root.digest()
        sealed = bytearray(head)
        if head[5] == backup_layout.CODEC_NONE:
            CHECKSUM.pack_into(sealed, 56, xxh64(body))
        CHECKSUM.pack_into(sealed, 64, xxh64(body))
        CHECKSUM.pack_into(sealed, 72, xxh64(bytes(sealed[:72])))
        root.update(sealed)
        root.update(body)
        out += sealed + body
    return bytes(out)


def backup_stream(data: bytes) -> None:
    """One or more streams, read to the end: extents in order, within their volumes, and no more bytes than declared."""
    file = io.BytesIO(sealed_stream(data))
    source = Source(file.read)
    while not source.at_end():
        reader = StreamReader(source, Inline())
        for extent in reader.records():
            size = reader.header.volumes[extent.volume].size
            if extent.offset + extent.length > size or (
                extent.plain is not None and len(extent.plain) != extent.length
            ):
                raise Wrong(f"an extent of {extent.length} bytes at {extent.offset} of {size}")
        if reader.totals is None:
            raise Wrong("a stream came to its end without its totals")


def stream_seeds() -> list[bytes]:
    """The full backup alone, the incremental one alone, and both, with short payloads."""
    data = stream()
    records = _stream_records(data)
    second = next(n for n, (head, _) in enumerate(records) if n and head[4] == backup_layout.HEADER)
    parts = [b"".join(head + body for head, body in part) for part in (records[:second], records[second:])]
    return [part for part in (*parts, data) if len(part) < 64 << 10] or [parts[1]]


def manifest(data: bytes) -> None:
    """As JSON, with its hash made right."""
    raw = data
    with contextlib.suppress(ValueError, RecursionError):
        values = json.loads(data)
        if isinstance(values, dict):
            values.pop("hash", None)
            values["hash"] = hashlib.sha256(_canonical(values)).hexdigest()
            raw = _canonical(values)
    require_same(encode_manifest(decode_manifest(raw)), raw)


def _canonical(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


def manifest_seeds() -> list[bytes]:
    reader = StreamReader(Source(io.BytesIO(stream()).read), Inline())
    list(reader.records())
    assert reader.totals is not None
    return [encode_manifest(Backup(reader.header, reader.totals, ({"name": "c"},)))]


# -- documents ---------------------------------------------------------------------------------------------------------
def writer_document(data: bytes) -> None:
    document = WriterMetadata.from_json(data)
    with contextlib.suppress(TypeError):  # NaN is no JSON that we write
        require_same(WriterMetadata.from_json(document.to_json()), document) if b"NaN" not in data else None


def writer_document_seeds() -> list[bytes]:
    component = Component("db", ("one", "two"), path="a/b", caption="c", properties={"k": [1, None, 2.5, True]})
    return [WriterMetadata("w", (component,), properties={"x": {}}).to_json().encode()]


def backup_document(data: bytes) -> None:
    document = BackupComponents.from_json(data)
    require_same(BackupComponents.from_json(document.to_json()), document) if b"NaN" not in data else None


def backup_document_seeds() -> list[bytes]:
    writers = [WriterRecord("w", True, "ok", ("db",), {"m": 1})]
    return [BackupComponents("job", "full", ("one",), {"id": "1", "name": "s"}, writers).to_json().encode()]


def store_document(data: bytes) -> None:
    document = decode_document(data, "job-1.json")
    with contextlib.suppress(ValueError):
        encode_document(document)


def store_document_seeds() -> list[bytes]:
    return [b'{"is":"kept","n":[1,2.5,null,true,"\\u00e9"],"o":{"a":{}}}']
