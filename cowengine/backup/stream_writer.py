"""Writes one stream: records in order, compressed by a few threads, hashed, and handed to a sink in one forward pass.

Does not read snapshots and does not know where the bytes go. Format: docs/backup-format.md section 1.

Threads   One caller. Batches of records are compressed in a pool and leave in the order they came; at most
          `BATCHES_MAX` wait, so memory is bounded whatever the size of the backup.
Durable   When the sink makes it so; nothing here syncs.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from typing import Any, NamedTuple, Protocol

from cowengine.backup import layout
from cowengine.backup.codec import checked_level, compress
from cowengine.backup.layout import PAYLOAD_BYTES_MAX, RECORD
from cowengine.backup.stream import StreamHeader, Totals, encode_header, encode_totals
from cowengine.core.checksum import xxh64
from cowengine.errors import OutOfRangeError

BATCH_BYTES = 1 << 20
BATCH_RECORDS = 256
BATCHES_MAX = 8


class Sink(Protocol):
    """Where a stream goes. `write` takes all of it or raises."""

    def write(self, data: bytes) -> None: ...


class _Pending(NamedTuple):
    type: int
    volume: int
    offset: int
    length: int
    plain: bytes | memoryview


class StreamWriter:
    """Call `documents` at most once, then `data` and `hole` by volume and offset, then `finish`."""

    def __init__(self, sink: Sink, header: StreamHeader, pool: Executor, *, compression: str = "zstd") -> None:
        self._sink = sink
        self._pool = pool
        self._stream_id = header.stream_id
        self._level = checked_level(compression)
        self._sequence = 0
        self._batch: list[_Pending] = []
        self._batch_bytes = 0
        self._waiting: deque[Future[bytes]] = deque()
        self._hash = hashlib.sha256()
        self._counts = dict.fromkeys((layout.HEADER, layout.DATA, layout.HOLE, layout.DOCUMENTS), 0)
        self._sums = dict.fromkeys(self._counts, 0)
        self.bytes_written = 0
        payload = encode_header(header)
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise OutOfRangeError(f"{len(header.volumes)} volumes with such names do not fit into one backup")
        # The first record is never compressed: a reader knows nothing yet.
        self._emit(_encode([_Pending(layout.HEADER, 0, 0, 0, payload)], 0, self._stream_id, None))
        self._sequence = 1

    def documents(self, documents: Mapping[str, Any] | None) -> None:
        """Append a JSON object. Raises OutOfRangeError if it is none or has more than 64 MiB."""
        if not documents:
            return
        try:
            text = json.dumps(documents, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise OutOfRangeError(f"the documents of a backup are one JSON object: {error}") from None
        if len(text) > layout.DOCUMENTS_BYTES_MAX:
            raise OutOfRangeError(f"the documents have {len(text)} bytes; at most {layout.DOCUMENTS_BYTES_MAX} fit")
        for offset in range(0, len(text), PAYLOAD_BYTES_MAX):
            self._append(_Pending(layout.DOCUMENTS, 0, offset, 0, text[offset : offset + PAYLOAD_BYTES_MAX]))

    def data(self, volume: int, offset: int, plain: bytes | memoryview) -> None:
        """Append bytes of a volume; the buffer must not change until `finish`."""
        assert 0 < len(plain) <= PAYLOAD_BYTES_MAX
        self._append(_Pending(layout.DATA, volume, offset, len(plain), plain))

    def hole(self, volume: int, offset: int, length: int) -> None:
        """Append an extent that reads as zeros."""
        self._append(_Pending(layout.HOLE, volume, offset, length, b""))

    def finish(self) -> Totals:
        """Write all that waits and the end record."""
        self._submit()
        self._drain(0)
        totals = Totals(
            data_records=self._counts[layout.DATA],
            hole_records=self._counts[layout.HOLE],
            document_records=self._counts[layout.DOCUMENTS],
            data_bytes=self._sums[layout.DATA],
            hole_bytes=self._sums[layout.HOLE],
            stream_bytes=self.bytes_written,
            root=self._hash.hexdigest(),
        )
        end = _Pending(layout.END, 0, 0, 0, encode_totals(totals))
        self._emit(_encode([end], self._sequence, self._stream_id, None))
        return totals

    def _append(self, record: _Pending) -> None:
        self._batch.append(record)
        self._batch_bytes += len(record.plain)
        self._counts[record.type] += 1
        self._sums[record.type] += record.length
        if self._batch_bytes >= BATCH_BYTES or len(self._batch) >= BATCH_RECORDS:
            self._submit()

    def _submit(self) -> None:
        if not self._batch:
            return
        self._drain(BATCHES_MAX - 1)
        self._waiting.append(self._pool.submit(_encode, self._batch, self._sequence, self._stream_id, self._level))
        self._sequence += len(self._batch)
        self._batch, self._batch_bytes = [], 0

    def _drain(self, left: int) -> None:
        while len(self._waiting) > left or (self._waiting and self._waiting[0].done()):
            self._emit(self._waiting.popleft().result())

    def _emit(self, data: bytes) -> None:
        self._hash.update(data)
        self._sink.write(data)
        self.bytes_written += len(data)


def _encode(batch: list[_Pending], sequence: int, stream_id: int, level: int | None) -> bytes:
    """The bytes of consecutive records. Runs in the pool."""
    parts: list[bytes | memoryview] = []
    for index, record in enumerate(batch):
        codec, stored = compress(record.plain, level)
        stored_checksum = xxh64(stored)
        head = RECORD.pack(
            magic=layout.MAGIC,
            type=record.type,
            codec=codec,
            sequence=sequence + index,
            stream=stream_id,
            volume=record.volume,
            plain_bytes=len(record.plain),
            stored_bytes=len(stored),
            offset=record.offset,
            length=record.length,
            plain_checksum=stored_checksum if codec == layout.CODEC_NONE else xxh64(record.plain),
            stored_checksum=stored_checksum,
            checksum=0,
        )[:-8]
        parts += (head, xxh64(head).to_bytes(8, "little"), stored)
    return b"".join(parts)
