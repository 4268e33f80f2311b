"""What is fuzzed: by name, what parses an input, what it begins with, and its share of the time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import fuzz_formats as formats
import fuzz_volumes as volumes
from fuzz_formats import Wrong

from cowengine.errors import CowEngineError

Parse = Callable[[bytes], None]
CPU_SECONDS_MAX = 5.0  # of one input, on any machine and under any sanitizer; a healthy one takes a thousandth of it


@dataclass(frozen=True)
class Target:
    """`parse` raises nothing but typed errors; `seeds` makes real inputs; `bytes_max` bounds what is tried.

    `in_kernels`: the bytes reach C, so that it is run with the sanitized kernels.
    """

    parse: Parse
    seeds: Callable[[], list[bytes]]
    share: float
    bytes_max: int = 4096
    in_kernels: bool = False
    words: tuple[str, ...] = ()  # for the dictionary

    @property
    def what(self) -> str:
        return (self.parse.__doc__ or self.parse.__name__.replace("_", " ")).splitlines()[0]


JSON = ('"', '":', "{", "}", "[", "]", "null", "true", "1e999", "NaN", "-1", "\\u0000", "18446744073709551616")
MANIFEST = (*JSON, '"volumes"', '"full"', '"mode"', '"changes"', '"created_ns"', '"base"', '"number"')
DOCUMENT = (*JSON, '"components"', '"volumes"', '"properties"', '"version"', '"writers"', '"metadata"', '"kind"')
TARGETS = {
    "superblock": Target(formats.superblock, formats.superblock_seeds, 0.07, 1200),
    "record": Target(formats.record, formats.record_seeds, 0.09, 2048),
    "events": Target(formats.events, formats.event_seeds, 0.09, 1024),
    "lineage": Target(formats.lineage, formats.lineage_seeds, 0.09, 512),
    "pointer": Target(formats.pointer, formats.pointer_seeds, 0.03, 32),
    "intent": Target(formats.intent, formats.intent_seeds, 0.04, 2048),
    "store_header": Target(formats.store_header, formats.store_header_seeds, 0.04, 256),
    "store_record": Target(formats.store_record, formats.store_record_seeds, 0.05, 1024),
    "stream_header": Target(formats.stream_header, formats.stream_header_seeds, 0.06, 1024),
    "totals": Target(formats.totals, formats.totals_seeds, 0.01, 96),
    "payload": Target(formats.payload, formats.payload_seeds, 0.04, 2048),
    "stream": Target(formats.backup_stream, formats.stream_seeds, 0.05, 64 << 10),
    "manifest": Target(formats.manifest, formats.manifest_seeds, 0.03, words=MANIFEST),
    "writer_document": Target(formats.writer_document, formats.writer_document_seeds, 0.03, words=DOCUMENT),
    "backup_document": Target(formats.backup_document, formats.backup_document_seeds, 0.03, words=DOCUMENT),
    "store_document": Target(formats.store_document, formats.store_document_seeds, 0.01, words=JSON),
    "store_log": Target(volumes.store_log, volumes.store_log_seeds, 0.03, 256),
    "catalogue": Target(volumes.catalogue, volumes.catalogue_seeds, 0.02, 256),
    "volume": Target(volumes.volume, volumes.volume_seeds, 0.08, 160),
    "kernels": Target(volumes.kernels, volumes.kernel_seeds, 0.05, 4096, in_kernels=True),
    "tree": Target(volumes.tree, volumes.tree_seeds, 0.05, 1024, in_kernels=True),
    "volume_kernels": Target(volumes.volume_kernels, volumes.volume_seeds, 0.08, 160, in_kernels=True),
}


def contract(parse: Parse) -> Parse:
    """A parser that raises what breaks the contract, and nothing else."""

    def one(data: bytes) -> None:
        started = time.process_time()
        try:
            parse(data)
        except CowEngineError as error:
            str(error)
        seconds = time.process_time() - started
        if seconds > CPU_SECONDS_MAX:
            raise Wrong(f"{seconds:.1f} seconds for {len(data)} bytes")

    return one
