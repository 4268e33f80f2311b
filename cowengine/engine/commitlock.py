"""The lock of one volume under which everything that ends in a barrier is done, one after the other.

A plain lock goes to whoever asks at the right moment: beside a dozen threads that commit all the time, who closes the
volume would wait for seconds. So who closes says so, and from then on nobody else gets in.

Threads   any.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from cowengine.errors import ClosedError


class CommitLock:
    """Re-entrant, as a context manager. Raises ClosedError while another thread waits to close the volume or does."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.RLock()
        self._closing: set[int] = set()  # threads

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def acquire(self, *, blocking: bool = True) -> bool:
        """False if it is taken, without `blocking`."""
        mine = self._lock._is_owned()  # type: ignore[attr-defined]
        if self._closing and not mine:
            raise self._closed()
        if not self._lock.acquire(blocking):
            return False
        if self._closing and not mine:  # it was waited for
            self._lock.release()
            raise self._closed()
        return True

    def release(self) -> None:
        """Ends `acquire`."""
        self._lock.release()

    def is_mine(self) -> bool:
        """Whether this thread has it."""
        return bool(self._lock._is_owned())  # type: ignore[attr-defined]

    def is_closing(self) -> bool:
        """Whether a thread is in `to_close`, or waits for it."""
        return bool(self._closing)

    @contextmanager
    def to_close(self) -> Iterator[None]:
        """Takes it before all others that wait: they are told that the volume is closed."""
        thread = threading.get_ident()
        self._closing.add(thread)
        try:
            with self._lock:
                yield
        finally:
            self._closing.discard(thread)

    def _closed(self) -> ClosedError:
        return ClosedError("the volume is being closed", self._name)
