"""What Ctrl-C once broke."""

from __future__ import annotations

import gc
import linecache
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from cowengine import Store, Volume
from cowengine.core.iotable import IOTable
from cowengine.errors import PoisonedError

BLOCK = 4096


class PauseInterrupted:
    """A data path on which Ctrl-C comes while `pause` waits for writers: Python raises it when `pause` returns."""

    def __init__(self, path: Any) -> None:
        self._path = path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._path, name)

    def pause(self, heads: Any) -> None:
        self._path.pause(heads)
        raise KeyboardInterrupt


@pytest.mark.parametrize("call", ["rollback", "check", "grow", "shrink"])
def test_ctrl_c_while_writers_are_being_paused_lets_them_go_on(tmp_path: Path, call: str) -> None:
    """The pause began before the `try` that ends it: an interrupted rollback left every later write waiting."""
    with Volume.create(tmp_path / "v", 16 * BLOCK, log_size=16384, background=False) as volume:
        volume.pwrite(b"a" * BLOCK, 0)
        volume.snapshot("s")
        path = volume.engine.path
        volume.engine.path = PauseInterrupted(path)  # type: ignore[assignment]
        calls = {
            "rollback": lambda: volume.rollback("s"),
            "check": volume.check,
            "grow": lambda: volume.resize(20 * BLOCK),
            "shrink": lambda: volume.resize(10 * BLOCK),
        }
        with pytest.raises(KeyboardInterrupt):
            calls[call]()
        volume.engine.path = path
        writer = threading.Thread(target=volume.pwrite, args=(b"b" * BLOCK, 0))
        writer.start()
        writer.join(10)
        waits_for_ever = writer.is_alive()
        path.resume((path.live,))
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


class SecondInterrupt:
    """A trace function: Ctrl-C again at the first call of a function of that name, on the way out of the first."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_name == self._name and "volume.py" not in frame.f_code.co_filename:
            sys.settrace(None)
            raise KeyboardInterrupt("the second")


@pytest.mark.parametrize("where", ["__exit__", "poison"])
@pytest.mark.parametrize("call", ["flush", "snapshot", "set"])
def test_a_second_ctrl_c_cannot_keep_the_first_from_poisoning(tmp_path: Path, call: str, where: str) -> None:
    """It hit the handler of the first; `close` then wrote a checkpoint of steps half done, its free map wrong."""
    with Store.create(tmp_path / "store") as store:
        store.create_volume("v", 64 * BLOCK, log_size=16384)
        store.create_volume("w", 64 * BLOCK, log_size=16384)

    def interrupted(*arguments: Any) -> None:
        sys.settrace(SecondInterrupt(where))
        raise KeyboardInterrupt("the first")

    before = sys.gettrace()
    try:
        with pytest.raises((KeyboardInterrupt, PoisonedError)), Store.open(tmp_path / "store") as store:
            volume = store.open_volume("v")
            for number in range(9):
                volume.pwrite(b"a" * 9000, number * 5000)
                store.snapshot(["v", "w"], f"s{number}")
            volume.pwrite(b"b" * 50_000, 0)
            volume.engine._acknowledge = interrupted  # type: ignore[method-assign]
            if call == "flush":
                volume.flush()
            elif call == "snapshot":
                volume.snapshot("t")
            else:
                store.snapshot(["v", "w"], "t")
    finally:
        sys.settrace(before)
    with Store.open(tmp_path / "store") as store:
        for name in "v", "w":
            volume = store.open_volume(name)
            assert volume.check().problems == []
            assert [s.name for s in volume.snapshots()][:9] == [f"s{number}" for number in range(9)]


class InterruptAtLine:
    """A trace function: Ctrl-C at the `at`-th line that the engine runs.

    Python looks for signals behind calls. So not at the end of a `with`, which is a line for tracing only, and not
    where a `finally` lets writers go on.
    """

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if "engine" not in frame.f_code.co_filename:
            return self
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        if event == "line" and not line.startswith(("with ", "self.path.resume(")):
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self


class Unsynced(IOTable):
    """Barriers that cost no time: nothing here can tell what is durable."""

    def fdatasync(self, fd: int) -> None:
        pass


@pytest.mark.parametrize("size", [500 * BLOCK, 30 * BLOCK + 512])
def test_ctrl_c_at_any_line_of_a_resize_leaves_the_one_size_or_the_other(tmp_path: Path, size: int) -> None:
    """`check` says that nothing leaked, whether the volume goes on or must be opened again."""
    before = sys.gettrace()
    for at in range(1, 4000):
        path, full = tmp_path / f"v{at}", b"a" * (60 * BLOCK)
        volume = Volume.create(path, len(full), log_size=16384, background=False, io=Unsynced())
        volume.pwrite(full, 0)
        snapshot = volume.snapshot("s")
        interrupted = True
        gc.disable()  # the end of an earlier volume is not to be what is interrupted
        try:
            sys.settrace(InterruptAtLine(at))
            volume.resize(size)
            interrupted = False
        except (KeyboardInterrupt, PoisonedError):
            pass
        finally:
            sys.settrace(before)
            gc.enable()
        with suppress(PoisonedError):  # perhaps the volume is told only now
            volume.flush()
            assert volume.size in (len(full), size)
            volume.reclaim()
            assert snapshot.pread(len(full), 0) == full
            volume.pwrite(b"b" * BLOCK, BLOCK)
            volume.engine.checkpoint()
            assert volume.check().problems == [], f"interrupted at line {at}"
        try:
            volume.close()
        except OSError:
            assert volume.engine.failure is not None
        with Volume.open(path, background=False, io=Unsynced()) as again:
            kept = min(again.size, len(full)) - 2 * BLOCK
            assert again.size in (len(full), size)
            assert again.pread(kept, 2 * BLOCK) == b"a" * kept
            assert not any(again.pread(again.size - kept - 2 * BLOCK, kept + 2 * BLOCK))
            again.reclaim()
            again.engine.checkpoint()
            assert again.check().problems == [], f"interrupted at line {at}"
        path.unlink()
        if not interrupted:
            return
    pytest.fail("it never came to its end")
