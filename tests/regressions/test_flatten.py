"""What flattening in place once got wrong."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from cowengine import ClosedError, Volume
from cowengine.core.iotable import IOTable

BLOCK = 4096


class AtTheEnd(IOTable):
    """Begins a write in another thread when the file has become the raw image and the intent file is about to go."""

    def __init__(self) -> None:
        self.volume: Volume | None = None
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def unlink(self, path: str) -> None:
        if self.volume is not None:
            self.thread = threading.Thread(target=self._write, args=(self.volume,))
            self.volume = None
            self.thread.start()
            time.sleep(0.1)  # it waits, as the volume is paused
        super().unlink(path)

    def _write(self, volume: Volume) -> None:
        try:
            volume._path.pwrite(b"late" * 1024, 8 * BLOCK)  # it was asked before whether the volume can be written
        except BaseException as error:
            self.error = error


def test_a_write_that_waited_does_not_reach_the_raw_image(tmp_path: Path) -> None:
    """Writers waited for the end of the step, and then wrote into a file that was a volume no more."""
    path, contents, table = tmp_path / "image", bytes(range(256)) * 16 * 40, AtTheEnd()
    path.write_bytes(contents)
    with Volume.adopt(path, log_size=16384, io=table, background=False) as volume:
        table.volume = volume
        volume.flatten()
    assert table.thread is not None
    table.thread.join()
    assert isinstance(table.error, ClosedError)
    assert path.read_bytes() == contents
