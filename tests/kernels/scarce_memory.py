"""Lets allocations of the kernels fail, in this process and on any build.

A kernel calls `malloc` through a slot that the linker filled in. While `ScarceMemory` is entered, the slots of the
kernels that it is told of lead here, where allocations are counted, and the one asked for gets no memory. What Python
allocates is not touched.
"""

from __future__ import annotations

import ctypes
import importlib
import mmap
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SECTION_HEADERS, SECTION_COUNTS = 40, 58  # where the header of an ELF file says where they are
RELOCATIONS = 4  # a section's type
WRITABLE = 1 | 2  # PROT_READ | PROT_WRITE
SIGNATURES = {"malloc": 1, "calloc": 2, "realloc": 2}  # how many words each takes

Slots = dict[str, list[int]]  # the addresses where a kernel looks up each function


def slots_of(kernel: str) -> Slots:
    """Where the library of a kernel, which is loaded, looks up its allocator."""
    file = importlib.import_module(f"cowengine.core.{kernel}").__file__
    assert file is not None
    file = os.path.realpath(file)
    base = min(
        int(line.split("-")[0], 16) for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(file)
    )
    data = Path(file).read_bytes()
    (start,) = struct.unpack_from("<Q", data, SECTION_HEADERS)
    size, count = struct.unpack_from("<HH", data, SECTION_COUNTS)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, start + i * size) for i in range(count)]
    found: Slots = {name: [] for name in SIGNATURES}
    for _, kind, _, _, offset, length, link, *_ in sections:
        if kind == RELOCATIONS:
            symbols, names = sections[link][4], sections[sections[link][6]][4]
            for address, info, _ in struct.iter_unpack("<QQq", data[offset : offset + length]):
                (name_at,) = struct.unpack_from("<I", data, symbols + 24 * (info >> 32))
                name = data[names + name_at : data.index(b"\0", names + name_at)].decode()
                if name in found:
                    found[name].append(base + address)
    return found


class ScarceMemory:
    """Within a `with` block, allocation number `at` of some kernels fails, counted from 1; none if that is 0."""

    def __init__(self, kernels: Sequence[str], at: int = 0) -> None:
        self.at, self.count = at, 0
        self.slots = [slots_of(kernel) for kernel in kernels]
        self.before: list[tuple[int, int]] = []
        self.hooks = {name: self._hook(name, words) for name, words in SIGNATURES.items()}

    def _hook(self, name: str, words: int) -> Any:
        kind = ctypes.CFUNCTYPE(ctypes.c_void_p, *[ctypes.c_size_t] * words)
        allocate: Callable[..., int | None] = kind((name, ctypes.CDLL(None)))

        def hook(*arguments: int) -> int | None:
            self.count += 1
            return None if self.count == self.at else allocate(*arguments)

        return kind(hook)

    def __enter__(self) -> Self:
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        for slots in self.slots:
            for name, addresses in slots.items():
                for address in addresses:
                    page = address // mmap.PAGESIZE * mmap.PAGESIZE
                    assert protect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), WRITABLE) == 0
                    self.before.append((address, ctypes.c_size_t.from_address(address).value))
                    ctypes.c_void_p.from_address(address).value = ctypes.cast(self.hooks[name], ctypes.c_void_p).value
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for address, value in self.before:
            ctypes.c_size_t.from_address(address).value = value
        self.before.clear()
