"""The little of an ELF file that tells how it was hardened; see elf(5). 64 bits, little-endian."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

PT_LOAD, PT_DYNAMIC, PT_GNU_STACK, PT_GNU_RELRO = 1, 2, 0x6474E551, 0x6474E552
PF_X, PF_W = 1, 2
DT_STRTAB, DT_SYMTAB, DT_RPATH, DT_TEXTREL, DT_RUNPATH, DT_FLAGS, DT_FLAGS_1 = 5, 6, 15, 22, 29, 30, 0x6FFFFFFB
DF_TEXTREL, DF_BIND_NOW, DF_1_NOW = 4, 8, 1


@dataclass
class Library:
    """A shared library: segments as (type, flags), dynamic entries, paths, and the names it asks others for."""

    segments: list[tuple[int, int]]
    dynamic: dict[int, int]
    paths: list[str] = field(default_factory=list)
    wanted: set[str] = field(default_factory=set)


def library(path: Path) -> Library:
    """Reads one."""
    data = path.read_bytes()
    assert data[:6] == b"\x7fELF\x02\x01", path
    first, size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    headers = [struct.unpack_from("<IIQQQQQQ", data, first + i * size) for i in range(count)]
    loads = [(address, length, offset) for kind, _, offset, address, _, length, *_ in headers if kind == PT_LOAD]

    def place(address: int) -> int:
        return next(offset + address - start for start, length, offset in loads if start <= address < start + length)

    offset, length = next((header[2], header[5]) for header in headers if header[0] == PT_DYNAMIC)
    entries = list(struct.iter_unpack("<QQ", data[offset : offset + length]))
    dynamic = dict(entries)
    strings = place(dynamic[DT_STRTAB])

    def text(at: int) -> str:
        return data[strings + at : data.index(b"\0", strings + at)].decode()

    found = Library([header[:2] for header in headers], dynamic)
    found.paths = [text(value) for tag, value in entries if tag in (DT_RPATH, DT_RUNPATH)]
    for at in range(place(dynamic[DT_SYMTAB]), strings, 24):  # every linker puts the names behind the symbols
        name, _, _, section, *_ = struct.unpack_from("<IBBHQQ", data, at)
        if section == 0 and name:
            found.wanted.add(text(name))
    return found
