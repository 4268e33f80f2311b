"""A compaction at the server that a client started: in a thread here that waits for it.

Threads   Any.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from cowengine.engine.compaction import Compaction, CompactionJob

if TYPE_CHECKING:
    from cowengine.volume import Volume


class RemoteCompaction(CompactionJob):
    """See CompactionJob: it can be asked how far it came, stopped and waited for."""

    def __init__(self, volume: Volume, start: int, rate: int | None) -> None:
        self._volume = volume
        self._rate = rate
        self._progress = Compaction(start)
        self._error: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cowengine-compaction", daemon=True)
        self._thread.start()

    def _run(self, *_: object) -> None:
        start, rate = self._progress.position, self._rate
        try:
            self._note(self._volume.compact(start, rate=rate, stop=self._stop, progress=self._note))
        except Exception as error:  # told to who waits
            self._error = error
