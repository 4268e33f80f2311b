"""Found by tests/torture/soak.py after half a million commits: two threads that asked for the root of one snapshot at
the same time could get two. A delete then reached one of them; who read, or sealed, by the other one did so in slots
that others wrote by then.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from weakref import WeakValueDictionary

from cowengine import Volume
from cowengine.core.roots import Root

TOGETHER_SECONDS = 1.0


class Slow(WeakValueDictionary[int, Root]):
    """What the real one does, if all threads that look for something missing look before any of them enters it."""

    def __init__(self) -> None:
        super().__init__()
        self.looked = threading.Barrier(2)

    def setdefault(self, key: int, default: Root) -> Root:  # type: ignore[override]
        found = self.get(key)
        with suppress(threading.BrokenBarrierError):
            self.looked.wait(TOGETHER_SECONDS)
        if found is None:
            self[key] = found = default
        return found


def test_a_snapshot_has_one_root_whoever_asks_for_it_at_once(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "volume", 1 << 20, background=False) as volume:
        number = volume.snapshot("read by two").id
        volume.engine.checkpoint()
        lineage = volume.engine.lineage
        lineage.loaded_roots.clear()
        lineage._roots = Slow()
        with ThreadPoolExecutor(2) as readers:
            one, other = readers.map(lineage.root, [number, number])
        assert one is other
