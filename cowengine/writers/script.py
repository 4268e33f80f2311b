"""Runs one script: with a time limit, its output captured within bounds, and nothing of this process handed on.

The script gets a session and process group of its own, /dev/null as standard input, and no other descriptor than its
output. What it leaves running in the background goes on, but its output is no longer read. If it takes too long its
whole group is told to end (SIGTERM), and killed a moment later.

Threads: any number at once.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cowengine.errors import WriterError

GRACE_SECONDS = 1.0  # between SIGTERM and SIGKILL, and for the end after that
_PIECE_BYTES = 1 << 16


@dataclass(frozen=True)
class Run:
    """How a script ended. `status` is its exit status, or minus the signal that ended it; `seconds` it took;
    `output` the end of what it wrote, of `output_bytes` in all.
    """

    name: str
    status: int | None
    seconds: float
    output: str
    output_bytes: int
    timed_out: bool = False

    @property
    def succeeded(self) -> bool:
        """Whether it ended in time and with status 0."""
        return self.status == 0 and not self.timed_out

    def describe(self) -> str:
        """How it ended, for an error message."""
        if self.timed_out:
            ending = f"took longer than {self.seconds:.3g} s and was killed"
        elif self.status is not None and self.status < 0:
            ending = f"was ended by signal {-self.status}"
        else:
            ending = f"ended with status {self.status}"
        said = self.output.strip()
        return f"{self.name} {ending}" + (f", saying: {said[-500:]}" if said else "")

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "name": self.name,
            "status": self.status,
            "timed_out": self.timed_out,
            "seconds": round(self.seconds, 3),
            "output": self.output,
            "output_bytes": self.output_bytes,
        }


class _Tail:
    """The end of a stream."""

    def __init__(self, fd: int, bytes_max: int) -> None:
        self.fd = fd
        self.kept = bytearray()
        self.count = 0
        self._bytes_max = bytes_max
        os.set_blocking(fd, False)

    def read(self) -> bool:
        """Take what is there; False at the end of the stream."""
        with suppress(BlockingIOError):
            while data := os.read(self.fd, _PIECE_BYTES):
                self.kept += data
                self.count += len(data)
                del self.kept[: -self._bytes_max]
                if len(data) < _PIECE_BYTES:
                    return True
            return False
        return True


def run_script(path: str, argument: str, environment: Mapping[str, str], limit: float, output_max: int) -> Run:
    """Run the file `path` with one argument for at most `limit` seconds; keep `output_max` bytes of what it says.

    Returns at most 2 * GRACE_SECONDS later than `limit`. Raises WriterError if it cannot be started.
    """
    name = os.path.basename(path)
    began = time.monotonic()
    try:
        process = subprocess.Popen(
            [path, argument],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=dict(environment),
            start_new_session=True,
        )
    except OSError as error:
        reason = "it is no program and names no interpreter (#!)" if error.errno == 8 else error.strerror
        raise WriterError(f"{path} cannot be run: {reason}") from error
    assert process.stdout is not None
    with process.stdout as pipe:
        tail = _Tail(pipe.fileno(), output_max)
        in_time = _follow(process, tail, began + limit)
        seconds = min(time.monotonic() - began, limit)
        if not in_time:
            _end(process, tail)
        with suppress(OSError):
            tail.read()
    text = bytes(tail.kept).decode("utf-8", "replace")
    return Run(name, process.poll(), seconds, text, tail.count, timed_out=not in_time)


def _follow(process: subprocess.Popen[bytes], tail: _Tail, deadline: float) -> bool:
    """Read until the process ends (True) or until `deadline` (False)."""
    ended = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(tail.fd, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            ready = {fd for fd, _ in poll.poll(left * 1000)}
            if tail.fd in ready and not tail.read():
                poll.unregister(tail.fd)
            if ended in ready:
                process.wait()
                return True
        return False
    finally:
        os.close(ended)


def _end(process: subprocess.Popen[bytes], tail: _Tail) -> None:
    """End the whole group of a process that was started and has not been waited for."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    _follow(process, tail, time.monotonic() + GRACE_SECONDS)
    with suppress(ProcessLookupError):  # the group outlives its leader
        os.killpg(process.pid, signal.SIGKILL)
    if process.returncode is None:
        _follow(process, tail, time.monotonic() + GRACE_SECONDS)
