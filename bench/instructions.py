"""Runs operations so many times that valgrind can count the instructions of one. Started by test_instructions.py.

    valgrind --tool=callgrind --callgrind-out-file=FOLDER/counts.%p python instructions.py FOLDER COUNT

Prints a JSON list: the name of an operation, the subject, and the processes that did it once and COUNT + 1 times. Each
is a fork of one interpreter; what the interpreter did before is counted in both, so the difference is COUNT operations,
and, like that of the two that do nothing, the fork between them.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

from workload import BLOCK, MiB, Workload

import cowengine

SIZE = 16 * MiB
CHANGED = 256
SEALED, LISTED = "4 KiB read of a sealed snapshot", f"list of {CHANGED} scattered changed blocks"
NAMES = (
    "4 KiB write in place",
    "4 KiB write in place, flushed",
    "4 KiB write, first after a snapshot",
    "4 KiB read",
    "4 KiB read of a snapshot",
    SEALED,
    "durable snapshot",
    LISTED,
    "snapshot, 4 KiB write, delete",
)
RAW_NAMES = tuple(name for name in NAMES if name not in (SEALED, *NAMES[-2:]))
Operations = dict[str, Callable[[], object]]


def of_cowengine(path: Path, work: Workload) -> Operations:
    """On an open volume with a snapshot, all of whose blocks but the first it holds; nobody closes it."""
    volume = cowengine.Volume.open(path, background=False)
    snapshot, names, offsets = volume.get_snapshot("held"), map(str, count()), work.each_once(SIZE)
    buffer, block = bytearray(BLOCK), work.block
    if work.name == SEALED:
        volume.seal()
    if work.name == LISTED:
        for offset in work.offsets(SIZE, CHANGED):
            volume.pwrite(block, offset)

    def in_place() -> None:
        volume.pwrite(block, 0)

    def durable() -> None:
        volume.pwrite(block, 0)
        volume.flush()

    def delete() -> None:
        taken = volume.snapshot(next(names))
        volume.pwrite(block, next(offsets))
        taken.delete()

    return {
        "4 KiB write in place": in_place,
        "4 KiB write, first after a snapshot": lambda: volume.pwrite(block, next(offsets)),
        "4 KiB write in place, flushed": durable,
        "4 KiB read": lambda: volume.pread_into(buffer, next(offsets)),
        "4 KiB read of a snapshot": lambda: snapshot.pread_into(buffer, next(offsets)),
        SEALED: lambda: snapshot.pread_into(buffer, next(offsets)),
        "durable snapshot": lambda: volume.snapshot(next(names)),
        LISTED: lambda: volume.changed_extents("held"),
        "snapshot, 4 KiB write, delete": delete,
    }


def of_raw_file(path: Path, work: Workload) -> Operations:
    """The same by the system call, as far as there is any; a snapshot is a write and a barrier."""
    fd, offsets = os.open(path, os.O_RDWR), work.each_once(SIZE)
    buffers, block = [bytearray(BLOCK)], work.block

    def durable() -> None:
        os.pwrite(fd, block, 0)
        os.fdatasync(fd)

    return {
        "4 KiB write in place": lambda: os.pwrite(fd, block, 0),
        "4 KiB write, first after a snapshot": lambda: os.pwrite(fd, block, next(offsets)),
        "4 KiB write in place, flushed": durable,
        "4 KiB read": lambda: os.preadv(fd, buffers, next(offsets)),
        "4 KiB read of a snapshot": lambda: os.preadv(fd, buffers, next(offsets)),
        "durable snapshot": durable,
    }


def forked(work: Callable[[], object]) -> int:
    """Does it in a process of its own, which ends before what it returns is freed; the id of that."""
    child = os.fork()
    if not child:
        kept = work()
        os._exit(0 if kept is not None else 1)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("a process that was to be counted failed")
    return child


def repeated(operations: Callable[[Path, Workload], Operations], source: Path, name: str, times: int) -> Operations:
    """On a copy of the file, so that each process finds the same. What is returned keeps the volume open."""
    path = source.with_name(f"{source.name}-copy")
    shutil.copyfile(source, path)
    made = operations(path, Workload(name))
    operation = made[name]
    for _ in range(times):
        operation()
    path.unlink()
    return made


def main(folder: Path, times: int) -> None:
    work = Workload("instructions")
    with cowengine.Volume.create(folder / "cowengine", SIZE, background=False) as volume:
        work.fill(volume.pwrite, SIZE, BLOCK)
        volume.snapshot("held")
        volume.pwrite(work.block, 0)
    (folder / "raw").write_bytes(bytes(SIZE))
    found = [("nothing", "nothing", forked(int), forked(int))]
    for subject, operations in ("cowengine", of_cowengine), ("raw", of_raw_file):
        for name in NAMES if subject == "cowengine" else RAW_NAMES:
            once = forked(partial(repeated, operations, folder / subject, name, 1))
            often = forked(partial(repeated, operations, folder / subject, name, times + 1))
            found.append((name, subject, once, often))
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
