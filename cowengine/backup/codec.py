"""Payloads of records: compressed or not, and never more than was declared.

Does no I/O. Threads: every function may be called from any thread; compressors and decompressors are kept per thread.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import zstandard

from cowengine.backup.layout import CODEC_NONE, CODEC_ZSTD
from cowengine.errors import BackupError, OutOfRangeError

LEVEL_DEFAULT = 3
WORKERS_MAX = 4
_per_thread = threading.local()


def checked_level(compression: str) -> int | None:
    """The zstd level that "zstd" or "zstd:LEVEL" (1 to 19) asks for, or None for "none". Raises OutOfRangeError."""
    if compression == "none":
        return None
    name, _, level = compression.partition(":") if isinstance(compression, str) else ("", "", "")
    if name == "zstd" and not level:
        return LEVEL_DEFAULT
    if name == "zstd" and level.isascii() and level.isdigit() and len(level) <= 2 and 1 <= int(level) <= 19:
        return int(level)
    raise OutOfRangeError(f"compression is 'none', 'zstd' or 'zstd:1' to 'zstd:19', not {compression!r:.40}")


def compress(plain: bytes | memoryview, level: int | None) -> tuple[int, bytes | memoryview]:
    """The codec to record, and the payload: `plain` itself if compression is off or gains nothing."""
    if level is None or len(plain) == 0:
        return CODEC_NONE, plain
    packed: bytes = _compressor(level).compress(plain)
    return (CODEC_ZSTD, packed) if len(packed) < len(plain) else (CODEC_NONE, plain)


def decompress(stored: bytes | memoryview, codec: int, plain_bytes: int) -> bytes | memoryview:
    """The payload of exactly `plain_bytes`. Raises BackupError before anything larger could be allocated."""
    if codec == CODEC_NONE:
        if len(stored) != plain_bytes:
            raise BackupError(f"a stored payload has {len(stored)} bytes instead of {plain_bytes}")
        return stored
    try:
        frame = zstandard.get_frame_parameters(stored)
        if frame.content_size != plain_bytes or frame.dict_id:
            raise BackupError(f"a compressed payload declares {frame.content_size} bytes instead of {plain_bytes}")
        plain: bytes = _decompressor().decompress(stored, max_output_size=plain_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise BackupError(f"a payload cannot be decompressed: {error}") from None
    if len(plain) != plain_bytes:
        raise BackupError(f"a payload has {len(plain)} bytes instead of {plain_bytes}")
    return plain


def worker_pool() -> ThreadPoolExecutor:
    """Threads that compress or decompress: zstandard and the checksum release the GIL."""
    return ThreadPoolExecutor(min(WORKERS_MAX, os.cpu_count() or 1), thread_name_prefix="cowengine-backup")


def _compressor(level: int) -> Any:
    made = getattr(_per_thread, "compressors", None)
    if made is None:
        made = _per_thread.compressors = {}
    if level not in made:
        made[level] = zstandard.ZstdCompressor(level=level, write_content_size=True)
    return made[level]


def _decompressor() -> Any:
    made = getattr(_per_thread, "decompressor", None)
    if made is None:
        # A frame's window is part of what it may make us allocate; every decoder must offer 8 MiB.
        made = _per_thread.decompressor = zstandard.ZstdDecompressor(max_window_size=8 << 20)
    return made
