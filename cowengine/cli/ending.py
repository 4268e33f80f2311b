"""Commands that run until they are told to end."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def told_to_end() -> Iterator[tuple[Callable[[], object], Callable[[], object]]]:
    """(a function that waits for SIGTERM, SIGINT or the other one to be called, that other one).

    What came before it waits counts.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def end(*_: object) -> None:
        with suppress(BlockingIOError):
            os.write(writing, b"x")  # in a signal handler nothing may wait for a lock

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: os.read(reading, 1), end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)


def allow_many_files() -> None:
    """A server has a file open for each volume and each client: as many as the system allows may be."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
