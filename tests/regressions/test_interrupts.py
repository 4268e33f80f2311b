"""What Ctrl-C once broke."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from cowengine import Volume
from cowengine.core.iotable import IOTable

BLOCK = 4096


class PauseInterrupted:
    """A data path on which Ctrl-C comes while `pause` waits for writers: Python raises it when `pause` returns."""

    def __init__(self, path: Any) -> None:
        self._path = path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._path, name)

    def pause(self) -> None:
        self._path.pause()
        raise KeyboardInterrupt


@pytest.mark.parametrize("call", ["rollback", "check"])
def test_ctrl_c_while_writers_are_being_paused_lets_them_go_on(tmp_path: Path, call: str) -> None:
    """The pause began before the `try` that ends it: an interrupted rollback left every later write waiting."""
    with Volume.create(tmp_path / "v", 16 * BLOCK, log_size=16384, background=False) as volume:
        volume.pwrite(b"a" * BLOCK, 0)
        volume.snapshot("s")
        path = volume.engine.path
        volume.engine.path = volume._path = PauseInterrupted(path)
        with pytest.raises(KeyboardInterrupt):
            volume.rollback("s") if call == "rollback" else volume.check()
        volume.engine.path = volume._path = path
        writer = threading.Thread(target=volume.pwrite, args=(b"b" * BLOCK, 0))
        writer.start()
        writer.join(10)
        waits_for_ever = writer.is_alive()
        path.resume()
        writer.join()
        assert not waits_for_ever
        assert volume.pread(BLOCK, 0) == b"b" * BLOCK


class Interrupting(IOTable):
    """Ctrl-C in the `at`-th write of metadata to come."""

    at = 0

    def pwrite(self, fd: int, data: Any, offset: int) -> None:
        self.at -= 1
        if self.at == 0:
            raise KeyboardInterrupt
        super().pwrite(fd, data, offset)


def test_ctrl_c_inside_a_checkpoint_leaks_no_slot(tmp_path: Path) -> None:
    """Slots were marked as used before the nodes for them were written, and stayed so when that never happened."""
    for at in range(1, 12):
        table = Interrupting()
        path = tmp_path / f"v{at}"
        volume = Volume.create(path, 64 * BLOCK, log_size=16384, background=False, io=table)
        for block in range(0, 64, 3):
            volume.pwrite(bytes([block]) * BLOCK, block * BLOCK)
        volume.snapshot("s", metadata={"number": 1})
        volume.pwrite(b"a" * BLOCK, 0)
        table.at = at
        try:
            volume.engine.checkpoint()
        except BaseException:  # KeyboardInterrupt, or PoisonedError where half a step was done
            pass
        table.at = 0
        if volume.engine.failure is None:
            volume.pwrite(b"b" * BLOCK, 0)
            volume.engine.checkpoint()
            assert volume.check().problems == [], f"interrupted at write {at}"
        try:
            volume.close()
        except OSError:
            assert volume.engine.failure is not None
        with Volume.open(path, background=False) as again:
            again.engine.checkpoint()
            assert again.check().problems == [], f"interrupted at write {at}"
