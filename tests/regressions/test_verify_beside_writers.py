"""Verifying beside writers: it waited for the mutex of the core with the GIL held, which the owner of the mutex needed."""

from __future__ import annotations

import threading
from pathlib import Path

from cowengine import Volume

MIB = 1 << 20


def test_verifying_waits_for_no_writer(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "v", 16 * MIB, background=False) as volume:
        volume.pwrite(b"a" * 16 * MIB, 0)
        snapshot = volume.snapshot("s")
        volume.seal()
        ended = threading.Event()

        def write(first: int) -> None:
            while not ended.is_set():
                for offset in range(first, 16 * MIB, 2 * MIB):
                    volume.pwrite(b"b" * 4096, offset)

        threads = [threading.Thread(target=write, args=(first,)) for first in (0, MIB)]
        for thread in threads:
            thread.start()
        reports = [snapshot.verify() for _ in range(20)]
        ended.set()
        for thread in threads:
            thread.join()
        assert all(report.ok and report.counts["verified"] == 4096 for report in reports)
