"""Reads one stream in one forward pass and believes nothing: each rule of docs/backup-format.md is checked before use.

Does not apply what it reads. Whoever does must not publish the result before `records` has come to its end, which is
where the end record, its totals and the root are compared with what was read.

Threads   One caller; payloads are decompressed and checksummed in a pool, and come out in order.
Memory    At most `WAITING_BYTES` plain bytes wait, whatever the stream claims.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, NamedTuple

from cowengine.backup import layout
from cowengine.backup.codec import decompress
from cowengine.backup.layout import DATA, DOCUMENTS, END, HEADER, HOLE, PAYLOAD_BYTES_MAX, RECORD, SECTOR_BYTES
from cowengine.backup.stream import StreamHeader, Totals, decode_header, decode_totals
from cowengine.core.checksum import xxh64
from cowengine.errors import BackupError, FormatError, UnsupportedVersionError

READ_BYTES = 1 << 20
WAITING_BYTES = 16 << 20
WAITING_RECORDS = 64
# Below this, handing a payload to another thread costs more than it gains.
INLINE_BYTES = 32 << 10


class Source:
    """Bytes from a file or a pipe, in order. The caller's `read(n)` returns up to n bytes; none only at the end."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._buffer = memoryview(b"")
        self.position = 0

    def take(self, length: int) -> memoryview:
        """The next `length` bytes, or fewer at the end of the source."""
        if len(self._buffer) < length:
            parts: list[bytes | memoryview] = [self._buffer]
            missing = length - len(self._buffer)
            while missing > 0:
                more = self._read(max(missing, READ_BYTES))
                if not more:
                    break
                parts.append(more)
                missing -= len(more)
            self._buffer = memoryview(b"".join(parts))
        taken, self._buffer = self._buffer[:length], self._buffer[length:]
        self.position += len(taken)
        return taken

    def at_end(self) -> bool:
        """Whether nothing follows; waits for a byte or the end."""
        if not self._buffer:
            self._buffer = memoryview(self._read(READ_BYTES))
        return not self._buffer


class Extent(NamedTuple):
    """A piece of a volume (by index in the header): its bytes, or None if it reads as zeros."""

    volume: int
    offset: int
    length: int
    plain: bytes | memoryview | None


class _Head(NamedTuple):
    type: int
    codec: int
    volume: int
    plain_bytes: int
    offset: int
    length: int
    plain_checksum: int
    where: str


class StreamReader:
    """`header` and `documents` are there after construction; then iterate `records` to the end; then `totals` is."""

    def __init__(self, source: Source, pool: Executor) -> None:
        self._source = source
        self._pool = pool
        self._start = source.position
        self._hash = hashlib.sha256()
        self._sequence = 0
        self._counts = dict.fromkeys((HEADER, DATA, HOLE, DOCUMENTS), 0)
        self._sums = dict.fromkeys(self._counts, 0)
        self._next = (0, 0)  # volume and offset at which the next extent may begin
        self._found = (0, "")  # bytes before the end record, and their SHA-256
        self.totals: Totals | None = None
        self._stream_id: int | None = None
        head, stored = self._record()
        with _located(head.where):
            self.header: StreamHeader = decode_header(_decoded(head, stored))
            if self._stream_id != self.header.stream_id:
                raise BackupError("the header record belongs to another backup")
        self._ahead: tuple[_Head, memoryview] = self._record()
        self.documents: dict[str, Any] = self._read_documents()

    def records(self) -> Iterator[Extent]:
        """The extents in order; at the end everything is compared with the end record. Raises BackupError."""
        waiting: deque[tuple[_Head, Future[bytes | memoryview] | bytes | memoryview]] = deque()
        waiting_bytes = 0
        head, stored = self._ahead
        while head.type != END:
            self._check_extent(head)
            if len(stored) < INLINE_BYTES:
                waiting.append((head, _decoded(head, stored)))
            else:
                waiting.append((head, self._pool.submit(_decoded, head, stored)))
            waiting_bytes += head.plain_bytes
            while waiting and (
                waiting_bytes > WAITING_BYTES or len(waiting) > WAITING_RECORDS or not isinstance(waiting[0][1], Future)
            ):
                extent = _extent(*waiting.popleft())
                waiting_bytes -= 0 if extent.plain is None else extent.length
                yield extent
            head, stored = self._record()
        while waiting:
            yield _extent(*waiting.popleft())
        self._check_end(head, stored)

    def _record(self) -> tuple[_Head, memoryview]:
        """The next record's header, checked, and its payload as stored."""
        begin = self._source.position
        where = f"record {self._sequence} at byte {begin - self._start} of the stream"
        raw = self._source.take(RECORD.bytes)
        with _located(where):
            values = self._checked_head(raw)
            stored = self._source.take(values["stored_bytes"])
            if len(stored) < values["stored_bytes"]:
                raise BackupError("the stream ends in the middle of the record")
            if xxh64(stored) != values["stored_checksum"]:
                raise BackupError("the payload's checksum is wrong")
        if values["type"] == END:
            self._found = (begin - self._start, self._hash.hexdigest())
        self._hash.update(raw)
        self._hash.update(stored)
        self._sequence += 1
        head = _Head(where=where, **{name: values[name] for name in _Head._fields if name != "where"})
        if head.type != END:
            self._counts[head.type] += 1
            self._sums[head.type] += head.length
        return head, stored

    def _checked_head(self, raw: memoryview) -> dict[str, Any]:
        if self._sequence == 0 and bytes(raw[:4]) != layout.MAGIC:
            raise FormatError("not a cowengine backup, or its beginning is lost")
        if len(raw) < RECORD.bytes:
            raise BackupError("the stream ends before its end record")
        if xxh64(raw[: RECORD.bytes - 8]) != int.from_bytes(raw[RECORD.bytes - 8 :], "little"):
            raise BackupError("the record header's checksum is wrong")
        values = RECORD.unpack(raw)
        if values["magic"] != layout.MAGIC or values["sequence"] != self._sequence:
            raise BackupError(f"record {values['sequence']} is out of order")
        if self._stream_id is None:
            self._stream_id = values["stream"]
        if values["stream"] != self._stream_id:
            raise BackupError("the record belongs to another backup")
        if (values["type"] == HEADER) != (self._sequence == 0):
            raise BackupError("a header record is missing or out of place")
        if not HEADER <= values["type"] <= END or values["codec"] not in (layout.CODEC_NONE, layout.CODEC_ZSTD):
            raise UnsupportedVersionError(
                f"record type {values['type']}, codec {values['codec']}: made by a newer cowengine; upgrade"
            )
        _check_lengths(values)
        return values

    def _read_documents(self) -> dict[str, Any]:
        parts: list[bytes | memoryview] = []
        total = 0
        head, stored = self._ahead
        where = head.where
        while head.type == DOCUMENTS:
            with _located(head.where):
                if head.offset != total or head.length or total + head.plain_bytes > layout.DOCUMENTS_BYTES_MAX:
                    raise BackupError("a documents record is out of order, or the documents are too large")
            parts.append(_decoded(head, stored))
            total += head.plain_bytes
            self._ahead = head, stored = self._record()
        if not parts:
            return {}
        with _located(where):
            return _parsed(b"".join(parts))

    def _check_extent(self, head: _Head) -> None:
        with _located(head.where):
            if head.type not in (DATA, HOLE):
                raise BackupError("a documents record lies behind the data")
            if head.volume >= len(self.header.volumes):
                raise BackupError(f"volume {head.volume} is not in the header")
            size = self.header.volumes[head.volume].size
            if head.length == 0 or head.offset % SECTOR_BYTES or head.length % SECTOR_BYTES:
                raise BackupError(f"the extent {head.offset}+{head.length} is empty or no multiple of {SECTOR_BYTES}")
            if head.offset > size or head.length > size - head.offset:
                raise BackupError(f"the extent {head.offset}+{head.length} lies beyond the volume's size {size}")
            if (head.volume, head.offset) < self._next:
                raise BackupError(f"the extent {head.offset}+{head.length} is out of order")
            self._next = (head.volume, head.offset + head.length)

    def _check_end(self, head: _Head, stored: memoryview) -> None:
        position, root = self._found
        with _located(head.where):
            found = Totals(
                data_records=self._counts[DATA],
                hole_records=self._counts[HOLE],
                document_records=self._counts[DOCUMENTS],
                data_bytes=self._sums[DATA],
                hole_bytes=self._sums[HOLE],
                stream_bytes=position,
                root=root,
            )
            if decode_totals(_decoded(head, stored)) != found:
                raise BackupError("the end record does not fit what was read: the stream was changed")
        self.totals = found


class _located:
    """Adds the place in the stream to an error's message."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (BackupError, FormatError)):
            raise type(error)(f"{self._where}: {error}") from None


def _check_lengths(values: dict[str, Any]) -> None:
    plain_bytes, stored_bytes = values["plain_bytes"], values["stored_bytes"]
    if plain_bytes > PAYLOAD_BYTES_MAX:
        raise BackupError(f"a payload of {plain_bytes} bytes is larger than {PAYLOAD_BYTES_MAX}")
    if stored_bytes > plain_bytes or (stored_bytes == plain_bytes) != (values["codec"] == layout.CODEC_NONE):
        raise BackupError(f"the payload has {stored_bytes} bytes for {plain_bytes}, codec {values['codec']}")
    plain_type = values["type"] in (HEADER, HOLE, END)
    if plain_type and values["codec"] != layout.CODEC_NONE:
        raise BackupError("a record that is never compressed is compressed")
    if values["type"] in (HEADER, END) and (values["volume"] or values["offset"] or values["length"]):
        raise BackupError("a header or end record names an extent")
    if values["type"] == DATA and plain_bytes != values["length"]:
        raise BackupError(f"{plain_bytes} bytes of data for an extent of {values['length']}")
    if values["type"] == HOLE and plain_bytes:
        raise BackupError("a hole has a payload")


def _decoded(head: _Head, stored: memoryview) -> bytes | memoryview:
    """The plain payload, its checksum compared. Runs in the pool or inline."""
    with _located(head.where):
        plain = decompress(stored, head.codec, head.plain_bytes)
        if xxh64(plain) != head.plain_checksum:
            raise BackupError("the checksum of the plain bytes is wrong")
        return plain


def _extent(head: _Head, plain: Future[bytes | memoryview] | bytes | memoryview) -> Extent:
    if isinstance(plain, Future):
        plain = plain.result()
    return Extent(head.volume, head.offset, head.length, None if head.type == HOLE else plain)


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        documents = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BackupError(f"the documents are no JSON: {error}") from None
    if not isinstance(documents, dict):
        raise BackupError("the documents are no JSON object")
    return documents
