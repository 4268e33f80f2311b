"""kill -9 at random moments of adopting and flattening: the file is the raw image or the volume, whole."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from raw_images import settled, write_image

from cowengine import Volume

KILLS = 60
SIZE = 6 << 20


def killed(work: Callable[[], object], delay: float) -> None:
    """Runs something in a child that is killed after so many seconds; it may be done by then."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_kills_leave_the_raw_image_or_the_volume(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    data = write_image(path, SIZE)
    rng = random.Random(1)

    def adopt_and_flatten() -> None:
        Volume.adopt(path, background=False).flatten()

    durations = []
    for _ in range(3):
        started = time.monotonic()
        adopt_and_flatten()
        durations.append(time.monotonic() - started)
    found: list[str] = []
    while len(found) < KILLS or not {"interrupted", "volume"} <= set(found):
        assert len(found) < 30 * KILLS, "no kill fell into the work"
        killed(adopt_and_flatten, rng.random() * min(durations) * 1.2)
        found.append(settled(path, data))
    assert os.listdir(tmp_path) == ["disk.img"]
