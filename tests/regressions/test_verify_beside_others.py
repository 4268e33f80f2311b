"""Verifying beside others: it waited for the core's mutex with the GIL held, which the mutex's owner needed."""

from __future__ import annotations

import threading
from pathlib import Path

from cowengine import Volume

MIB = 1 << 20


def test_verifying_beside_others_comes_to_its_end(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "v", 16 * MIB, background=False) as volume:
        volume.pwrite(b"a" * 16 * MIB, 0)
        snapshot = volume.snapshot("s")
        volume.seal()
        ended = threading.Event()

        def look() -> None:
            while not ended.is_set():
                volume.engine.path.batch_fill()

        threads = [threading.Thread(target=look, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        reports = [snapshot.verify() for _ in range(20)]
        ended.set()
        for thread in threads:
            thread.join()
        assert all(report.ok and report.counts["verified"] == 4096 for report in reports)
