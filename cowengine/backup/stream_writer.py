"""Writes one stream: records in order, made by a few threads, hashed, and handed to a sink in one forward pass.

Does not know where the bytes go. Format: docs/backup-format.md section 1.

Threads   One caller. Batches are read and compressed in a pool and leave in the order they came; at most `BATCHES_MAX`
          wait, so memory is bounded whatever the size of the backup. What only a record's place in the stream tells is
          entered when it leaves.
Durable   When the sink makes it so; nothing here syncs.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from cowengine.backup import layout
from cowengine.backup.batch import ReadMany, read_batch
from cowengine.backup.codec import checked_level, compress
from cowengine.backup.layout import PAYLOAD_BYTES_MAX, RECORD
from cowengine.backup.pieces import Pieces
from cowengine.backup.stream import StreamHeader, Totals, encode_header, encode_totals
from cowengine.core.checksum import xxh64, xxh64_rows
from cowengine.core.survey import NOWHERE
from cowengine.errors import OutOfRangeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCHES_MAX = 6


class Sink(Protocol):
    """Where a stream goes. `write` takes all of it or raises."""

    def write(self, data: bytes) -> None: ...


class Records(NamedTuple):
    """Records in a row, but for what follows from where they stand in the stream."""

    heads: NDArray[Any]
    payloads: list[bytes]


class StreamWriter:
    """Call `documents` at most once, then `batch` by volume and offset, then `finish`."""

    def __init__(self, sink: Sink, header: StreamHeader, pool: Executor, *, compression: str = "zstd") -> None:
        self._sink = sink
        self._pool = pool
        self._stream_id = header.stream_id
        self._level = checked_level(compression)
        self._sequence = 0
        self._waiting: deque[Future[Records]] = deque()
        self._hash = hashlib.sha256()
        self._counts = dict.fromkeys((layout.DATA, layout.HOLE, layout.DOCUMENTS), 0)
        self._sums = dict.fromkeys(self._counts, 0)
        self.bytes_written = 0
        payload = encode_header(header)
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise OutOfRangeError(f"{len(header.volumes)} volumes with such names do not fit into one backup")
        # The first record is never compressed: a reader knows nothing yet.
        self._emit(_of_payload(layout.HEADER, 0, None, payload))

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
            self._submit(_of_payload, layout.DOCUMENTS, offset, self._level, text[offset : offset + PAYLOAD_BYTES_MAX])

    def batch(self, volume: int, read_many: ReadMany, pieces: Pieces, *, holes: bool) -> None:
        """Append pieces of a volume, which are read in the pool; with `holes` also a record for each that is one.

        What reading raises is raised here or by `finish`, maybe some batches later.
        """
        self._submit(_of_pieces, volume, read_many, pieces, holes, self._level)

    def finish(self) -> Totals:
        """Write all that waits and the end record."""
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
        self._emit(_of_payload(layout.END, 0, None, encode_totals(totals)))
        return totals

    def _submit(self, make: Callable[..., Records], *what: Any) -> None:
        """Lets the pool make records."""
        self._drain(BATCHES_MAX - 1)
        self._waiting.append(self._pool.submit(make, *what))

    def _drain(self, left: int) -> None:
        while len(self._waiting) > left or (self._waiting and self._waiting[0].done()):
            self._emit(self._waiting.popleft().result())

    def _emit(self, records: Records) -> None:
        import numpy

        heads, count = records.heads, len(records.heads)
        if count == 0:
            return
        heads["sequence"], heads["stream"] = numpy.arange(self._sequence, self._sequence + count), self._stream_id
        checksums = xxh64_rows(heads.view(numpy.uint8), RECORD.bytes, RECORD.bytes - 8)
        heads["checksum"] = numpy.frombuffer(checksums, dtype="<u8")
        for kind in self._counts:
            lengths = heads["length"][heads["type"] == kind]
            self._counts[kind] += len(lengths)
            self._sums[kind] += int(lengths.sum())
        raw = memoryview(heads.tobytes())
        begins = range(0, len(raw), RECORD.bytes)
        pairs = ((raw[at : at + RECORD.bytes], payload) for at, payload in zip(begins, records.payloads, strict=True))
        data = b"".join(chain.from_iterable(pairs))
        self._hash.update(data)
        self._sink.write(data)
        self._sequence += count
        self.bytes_written += len(data)


def _of_payload(kind: int, offset: int, level: int | None, plain: bytes) -> Records:
    """One record that is no extent of a volume."""
    heads = _heads(1)
    heads["type"], heads["offset"] = kind, offset
    heads["plain_bytes"], heads["plain_checksum"] = len(plain), xxh64(plain)
    return _stored(heads, [plain], level)


def _of_pieces(volume: int, read_many: ReadMany, pieces: Pieces, holes: bool, level: int | None) -> Records:
    """The records of a batch, which is read here, in the pool."""
    parts, plain = read_batch(read_many, pieces)
    filled = parts["at"] != NOWHERE
    if not holes:
        parts, filled = parts[filled], filled[filled]
    heads = _heads(len(parts))
    heads["type"], heads["volume"] = layout.HOLE, volume
    heads["type"][filled] = layout.DATA
    heads["offset"], heads["length"] = parts["offset"], parts["length"]
    heads["plain_bytes"], heads["plain_checksum"] = parts["length"] * filled, parts["checksum"]
    places = zip(parts["at"].tolist(), heads["plain_bytes"].tolist(), strict=True)
    return _stored(heads, [plain[at : at + length] for at, length in places], level)


def _heads(count: int) -> NDArray[Any]:
    import numpy

    heads = numpy.zeros(count, RECORD.dtype())
    heads["magic"] = layout.MAGIC
    return heads


def _stored(heads: NDArray[Any], payloads: Sequence[bytes | memoryview], level: int | None) -> Records:
    """Compresses payloads, and enters how they are stored; what they are made of may change then."""
    heads["stored_bytes"], heads["stored_checksum"] = heads["plain_bytes"], heads["plain_checksum"]
    codecs, lengths, checksums = heads["codec"], heads["stored_bytes"], heads["stored_checksum"]
    kept = []
    for index, plain in enumerate(payloads):
        codec, stored = compress(plain, level)
        if codec != layout.CODEC_NONE:
            codecs[index], lengths[index], checksums[index] = codec, len(stored), xxh64(stored)
        kept.append(bytes(stored))
    return Records(heads, kept)
