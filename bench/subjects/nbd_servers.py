"""NBD servers of raw files and of volumes, each a process that runs as long as a block, and what measures them: fio
and nbdcopy, the tools that people use.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from race import Lane
from subjects.daemon import daemon, lacking, run, short_path

from cowengine.mount.chain import listens

PROGRAMS = {
    "fio": "fio", "nbdcopy": "libnbd-bin", "qemu-nbd": "qemu-utils", "nbdkit": "nbdkit", "setpriv": "util-linux",
}  # fmt: skip
MOUNTING = {"nbdfuse": "libnbd-bin", "fusermount3": "fuse3", "mkfs.ext4": "e2fsprogs"}
PEERS = ("qemu-nbd", "nbdkit file")


def io_uring() -> bool:
    """Whether the kernel lets anybody use it: QEMU is faster with it than with threads."""
    setting = Path("/proc/sys/kernel/io_uring_disabled")
    return not setting.exists() or setting.read_text().strip() == "0"


def why_missing() -> str:
    """What this machine lacks for these rows."""
    return ", ".join(lacking(PROGRAMS))


@contextmanager
def serving(kind: str, source: str | Path, log: Path) -> Iterator[Path]:
    """The socket of a server: of a raw file by one of PEERS, or of a volume or snapshot by "cowengine"."""
    with short_path("nbd.sock") as socket:
        words = {
            "qemu-nbd": [
                "qemu-nbd", "--format=raw", "--persistent", "--shared=16", "--cache=writeback",
                f"--aio={'io_uring' if io_uring() else 'threads'}", f"--socket={socket}", str(source),
            ],
            "nbdkit file": ["nbdkit", "--foreground", f"--unix={socket}", "file", str(source)],
            "cowengine": [sys.executable, "-P", "-m", "cowengine", "nbd", str(source), "--socket", str(socket)],
        }[kind]  # fmt: skip
        with daemon(words, log, lambda: listens(str(socket))):
            yield socket


def uri_of(socket: Path) -> str:
    return f"nbd+unix:///?socket={socket}"


@dataclass(frozen=True)
class ToldLane(Lane):
    """One whose `run` returns what it took, in seconds an operation: a program that measures itself."""

    run: Callable[[], float]

    def timed(self) -> float:
        self.prepare()
        return self.run()


def copied(socket: Path, size: int) -> Lane:
    """The whole export read by nbdcopy, which starts in it and is the same for every server; per MiB."""
    return Lane(lambda: run("nbdcopy", uri_of(socket), "null:"), operations=size >> 20)


def by_fio(pattern: str, seconds: float, *where: str) -> ToldLane:
    """Random 4 KiB reads or writes, 32 of them at once: seconds an operation by fio's own clock, without its start."""
    words = [
        "fio", "--name=row", f"--rw={pattern}", "--bs=4k", "--iodepth=32", "--time_based", *where,
        f"--runtime={seconds * 1000:.0f}ms", "--output-format=json",
    ]  # fmt: skip

    def measured() -> float:
        said = run(*words)  # its NBD engine prints a line of its own first
        told = json.loads(said[said.index("{") :])["jobs"][0]["read" if pattern == "randread" else "write"]
        return 1 / float(told["iops"])

    return ToldLane(measured)
