"""A stream that was changed in any way is refused, with a typed error and without allocating what it claims."""

from __future__ import annotations

import io
import random
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import zstandard
from by_hand import leave, put
from hypothesis import given
from hypothesis import strategies as st

from cowengine.backup import verify_stream
from cowengine.backup.codec import decompress
from cowengine.backup.layout import DATA, END, HEADER, HOLE, MAGIC, RECORD
from cowengine.backup.stream import StreamHeader, VolumeEntry, encode_header
from cowengine.backup.stream_reader import Source, StreamReader
from cowengine.backup.stream_writer import StreamWriter
from cowengine.core.checksum import xxh64
from cowengine.errors import BackupError, FormatError, OutOfRangeError, UnsupportedVersionError

SIZE = 64 << 20


class Bytes:
    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> None:
        self.data += data


def header_of(*, count: int = 2, kind: str = "full", **changes: Any) -> StreamHeader:
    entries = tuple(
        VolumeEntry(
            name=f"volume {index}",
            uuid=str(uuid.UUID(int=index + 1)),
            size=SIZE,
            block_size=4096,
            mode="whole",
            from_id=None,
            to_id=f"{uuid.UUID(int=index + 1)}/1/ab",
        )
        for index in range(count)
    )
    values: dict[str, Any] = {
        "backup_id": str(uuid.UUID(int=7, version=4)),
        "chain": "default",
        "kind": kind,
        "number": 1,
        "base_id": None,
        "base_root": None,
        "created_ns": 1_700_000_000_000_000_000,
        "volumes": entries,
    }
    return StreamHeader(**values | changes)


def written(
    fill: Callable[[StreamWriter], None], header: StreamHeader | None = None, compression: str = "zstd"
) -> bytes:
    sink = Bytes()
    with ThreadPoolExecutor(2) as pool:
        writer = StreamWriter(sink, header or header_of(), pool, compression=compression)
        fill(writer)
        writer.finish()
    return bytes(sink.data)


def small(writer: StreamWriter) -> None:
    writer.documents({"components": ["one"], "note": "x" * 100})
    put(writer, 0, 0, b"a" * 512)
    leave(writer, 0, 4096, 8192)
    put(writer, 0, 12_288, random.Random(3).randbytes(1024))
    put(writer, 1, 512, b"b" * 4096)
    leave(writer, 1, 8192, SIZE - 8192)


def records_of(stream: bytes) -> Iterator[tuple[int, int]]:
    """(begin, end) of each record, by the lengths in the headers."""
    position = 0
    while position < len(stream):
        values = RECORD.unpack(stream, position)
        end = position + RECORD.bytes + values["stored_bytes"]
        yield position, end
        position = end


def forged(stream: bytes, index: int, payload: bytes | None = None, /, **changes: Any) -> bytes:
    """The stream with one record changed and its checksums made right again: what an adversary would send."""
    begin, end = list(records_of(stream))[index]
    values = RECORD.unpack(stream, begin) | changes
    body = stream[begin + RECORD.bytes : end] if payload is None else payload
    if payload is not None:
        values |= {"stored_checksum": xxh64(body), "stored_bytes": len(body)} | changes
    head = RECORD.pack(**values)[:-8]
    return stream[:begin] + head + xxh64(head).to_bytes(8, "little") + body + stream[end:]


def read_all(stream: bytes) -> list[tuple[int, int, int, bytes | None]]:
    with ThreadPoolExecutor(2) as pool:
        reader = StreamReader(Source(io.BytesIO(stream).read), pool)
        return [
            (extent.volume, extent.offset, extent.length, None if extent.plain is None else bytes(extent.plain))
            for extent in reader.records()
        ]


@pytest.mark.parametrize("compression", ["zstd", "zstd:1", "none"])
def test_what_was_written_is_read(compression: str) -> None:
    noise = random.Random(1).randbytes(300_000 // 512 * 512)

    def fill(writer: StreamWriter) -> None:
        small(writer)

    assert read_all(written(fill, compression=compression))[3] == (1, 512, 4096, b"b" * 4096)

    def many(writer: StreamWriter) -> None:
        for index in range(1000):
            put(writer, 0, index * 4096, index.to_bytes(2, "little") * 2048)
        put(writer, 1, 0, noise)

    extents = read_all(written(many, compression=compression))
    assert [extent[1] for extent in extents[:1000]] == [index * 4096 for index in range(1000)]
    assert extents[999][3] == (999).to_bytes(2, "little") * 2048
    assert extents[1000][3] == noise


def test_a_stream_is_the_same_bytes_whatever_the_threads_do() -> None:
    assert written(small) == written(small)


def test_documents_of_several_records_come_back() -> None:
    text = random.Random(5).randbytes(3 << 20).hex()
    stream = written(lambda writer: writer.documents({"text": text}))
    with ThreadPoolExecutor(1) as pool:
        assert StreamReader(Source(io.BytesIO(stream).read), pool).documents == {"text": text}


def test_every_flipped_byte_is_found() -> None:
    """Method: flip one random bit of each byte of a small stream in turn; each must make verify name a problem."""
    stream = written(small)
    assert verify_stream(io.BytesIO(stream)).ok
    chance = random.Random(2)
    for position in range(len(stream)):
        damaged = bytearray(stream)
        damaged[position] ^= 1 << chance.randrange(8)
        report = verify_stream(io.BytesIO(bytes(damaged)))
        assert not report.ok, f"byte {position}"


def test_every_truncation_is_found() -> None:
    stream = written(small)
    boundaries = {position for span in records_of(stream) for position in span}
    cuts = boundaries | {position + delta for position in boundaries for delta in (-1, 1, 40)} | set(range(0, 200, 7))
    for cut in sorted(cuts):
        if 0 <= cut < len(stream):
            assert not verify_stream(io.BytesIO(stream[:cut])).ok, f"cut at {cut}"


def test_removing_doubling_or_swapping_records_is_found() -> None:
    stream = written(small)
    parts = [stream[begin:end] for begin, end in records_of(stream)]
    for index in range(len(parts)):
        removed = parts[:index] + parts[index + 1 :]
        doubled = [*parts[: index + 1], *parts[index:]]
        assert not verify_stream(io.BytesIO(b"".join(removed))).ok, f"record {index} removed"
        assert not verify_stream(io.BytesIO(b"".join(doubled))).ok, f"record {index} doubled"
        for other in range(index):
            swapped = list(parts)
            swapped[index], swapped[other] = swapped[other], swapped[index]
            assert not verify_stream(io.BytesIO(b"".join(swapped))).ok, f"records {index} and {other} swapped"


def test_a_record_of_another_backup_is_refused() -> None:
    mine = written(small)
    other = written(small, header_of(backup_id=str(uuid.UUID(int=9 << 64, version=4))))
    spans = list(records_of(mine))
    for index, (begin, end) in enumerate(spans[1:], 1):
        spliced = mine[:begin] + other[slice(*list(records_of(other))[index])] + mine[end:]
        with pytest.raises(BackupError, match="another backup"):
            read_all(spliced)


@pytest.mark.parametrize(
    ("index", "changes", "message"),
    [
        (2, {"offset": SIZE}, "beyond the volume's size"),
        (2, {"offset": (1 << 64) - 512}, "beyond the volume's size"),
        (2, {"offset": 1}, "no multiple of 512"),
        (3, {"length": SIZE}, "beyond the volume's size"),
        (3, {"length": (1 << 64) - 512}, "beyond the volume's size"),
        (3, {"length": 0}, "empty"),
        (4, {"offset": 0}, "out of order"),
        (5, {"volume": 0}, "out of order"),
        (5, {"volume": 2}, "not in the header"),
        (5, {"volume": (1 << 32) - 1}, "not in the header"),
        (2, {"plain_bytes": (1 << 32) - 1}, "larger than"),
        (2, {"length": 1024}, "for an extent of"),
        (3, {"plain_bytes": 512}, "payload"),
        (4, {"codec": 1}, "codec"),
        (4, {"type": HEADER}, "header record"),
    ],
)
def test_a_forged_record_is_refused(index: int, changes: dict[str, Any], message: str) -> None:
    """The checksums are right, so only the rules can see it."""
    with pytest.raises(BackupError, match=message):
        read_all(forged(written(small), index, **changes))


def test_a_record_type_or_codec_of_the_future_says_so() -> None:
    for changes in ({"type": 6}, {"type": 0}, {"codec": 2}):
        with pytest.raises(UnsupportedVersionError):
            read_all(forged(written(small), 2, **changes))


def test_a_stream_format_of_the_future_says_so() -> None:
    stream = written(small)
    begin, end = next(records_of(stream))
    payload = (2).to_bytes(4, "little") + stream[begin + RECORD.bytes + 4 : end]
    with pytest.raises(UnsupportedVersionError, match="upgrade"):
        read_all(forged(stream, 0, payload, plain_checksum=xxh64(payload)))


def test_a_changed_total_is_found_although_its_checksums_are_right() -> None:
    stream = written(small)
    index = len(list(records_of(stream))) - 1
    begin, end = list(records_of(stream))[index]
    payload = bytearray(stream[begin + RECORD.bytes : end])
    for position in range(len(payload)):
        changed = bytes(payload[:position]) + bytes([payload[position] ^ 1]) + bytes(payload[position + 1 :])
        with pytest.raises(BackupError, match="does not fit"):
            read_all(forged(stream, index, changed, plain_checksum=xxh64(changed)))


def test_a_changed_record_with_right_checksums_breaks_the_root() -> None:
    stream = written(small, compression="none")
    payload = b"c" * 512
    with pytest.raises(BackupError, match="does not fit"):
        read_all(forged(stream, 2, payload, plain_checksum=xxh64(payload)))


def test_a_decompression_bomb_is_refused_in_bounded_memory() -> None:
    """A frame that declares 64 MiB and one that declares nothing, in a record that promises up to 4 MiB."""
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(64 << 20))
    compressor = zstandard.ZstdCompressor(write_content_size=False)
    streamed = compressor.compress(bytes(64 << 20))
    tracemalloc.start()
    try:
        for frame in (bomb, streamed):
            for plain_bytes in (512, 4 << 20):
                with pytest.raises(BackupError):
                    decompress(frame, 1, plain_bytes)
                stream = forged(
                    written(small), 2, frame, codec=1, plain_bytes=4 << 20, length=4 << 20, stored_bytes=len(frame)
                )
                with pytest.raises(BackupError, match=r"compressed payload|decompress"):
                    read_all(stream)
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()


def test_huge_counts_cost_no_memory() -> None:
    stream = written(small)
    begin, end = next(records_of(stream))
    payload = stream[begin + RECORD.bytes : end]
    tracemalloc.start()
    try:
        for count in (0, 4097, (1 << 32) - 1, 4096):
            changed = payload[:104] + count.to_bytes(4, "little") + payload[108:]
            with pytest.raises(BackupError):
                read_all(forged(stream, 0, changed, plain_checksum=xxh64(changed)))
        with pytest.raises(BackupError):
            read_all(forged(stream, 2, stored_bytes=(1 << 32) - 1, plain_bytes=(1 << 32) - 1))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_documents_nested_too_deep_are_refused() -> None:
    text = b"[" * 200_000
    stream = written(small)
    with pytest.raises(BackupError, match="JSON"):
        read_all(forged(stream, 1, text, codec=0, plain_bytes=len(text), plain_checksum=xxh64(text)))


def test_random_bytes_are_no_backup() -> None:
    chance = random.Random(4)
    for length in (0, 1, 79, 80, 5000):
        with pytest.raises(FormatError):
            read_all(chance.randbytes(length))
        with pytest.raises((FormatError, BackupError)):
            read_all(MAGIC + chance.randbytes(length))


@pytest.mark.parametrize(
    "change",
    [
        {"chain": "../x"},
        {"chain": ".hidden"},
        {"number": 0},
        {"kind": "incremental"},
        {"base_id": str(uuid.UUID(int=5, version=4)), "base_root": "00" * 32},
    ],
)
def test_a_header_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BackupError):
        read_all(written(small, header_of(**change)))


@pytest.mark.parametrize(
    "change",
    [{"name": "a/b"}, {"name": "..\0"}, {"name": ".."}, {"size": 0}, {"size": 513}, {"block_size": 5000},
     {"size": 1 << 49}, {"from_id": "x/1/2"}, {"to_id": ""}, {"mode": "changes"}],
)  # fmt: skip
def test_a_volume_in_a_header_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    header = header_of(count=1)
    entry = VolumeEntry(**vars(header.volumes[0]) | change)
    with pytest.raises(BackupError):
        read_all(written(lambda writer: None, header_of(volumes=(entry,))))


def test_two_volumes_of_one_name_are_refused() -> None:
    entry = header_of().volumes[0]
    with pytest.raises(BackupError, match="twice"):
        read_all(written(lambda writer: None, header_of(volumes=(entry, entry))))


def test_documents_that_are_no_json_are_refused_before_anything_is_written() -> None:
    for documents in ({"x": object()}, {"x": float("nan")}):
        with pytest.raises(OutOfRangeError):
            written(lambda writer, documents=documents: writer.documents(documents))  # type: ignore[misc]


def test_constants_of_the_tests_are_those_of_the_format() -> None:
    stream = written(small)
    kinds = [RECORD.unpack(stream, begin)["type"] for begin, _ in records_of(stream)]
    assert kinds == [HEADER, 4, DATA, HOLE, DATA, DATA, HOLE, END]
    assert len(encode_header(header_of(count=1))) < 4096


@given(
    index=st.integers(0, 7),
    field=st.sampled_from(sorted(set(RECORD.offsets) - {"reserved_6", "reserved_36", "checksum"})),
    value=st.one_of(
        st.integers(0, 8), st.integers(0, (1 << 64) - 1), st.sampled_from([511, 512, SIZE, (1 << 64) - 512])
    ),
)
def test_a_forged_field_gives_a_value_or_a_typed_error(index: int, field: str, value: int) -> None:
    width = RECORD.offsets[field][1]
    changed: Any = value.to_bytes(8, "little")[:4] if field == "magic" else value % (1 << 8 * width)
    original = written(small)
    stream = forged(original, index, **{field: changed})
    if stream != original:
        with pytest.raises((BackupError, FormatError)):
            read_all(stream)


@given(payload=st.binary(max_size=400), cut=st.integers(0, 300))
def test_a_forged_header_gives_a_typed_error(payload: bytes, cut: int) -> None:
    original = written(small)
    begin, end = next(records_of(original))
    changed = original[begin + RECORD.bytes : end][:cut] + payload
    stream = forged(original, 0, changed, plain_bytes=len(changed), plain_checksum=xxh64(changed))
    if stream != original:
        with pytest.raises((BackupError, FormatError)):
            read_all(stream)
