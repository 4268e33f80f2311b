"""Handles that go while something still works on their head: another thread, a job, the garbage collector."""

from __future__ import annotations

import gc
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cowengine import Volume
from cowengine.errors import ClosedError

MIB = 1 << 20


def test_a_compaction_of_a_clone_ends_with_the_clone(tmp_path: Path) -> None:
    """It went on, and what it freed was freed by the deleted clone's reclaim as well."""
    with Volume.create(tmp_path / "v", 4 * MIB, background=False) as volume:
        clone = volume.snapshot("origin").clone("lab")
        clone.pwrite(b"1" * 4 * MIB, 0)
        between = clone.snapshot("between")
        clone.pwrite(b"2" * 4 * MIB, 0)
        between.delete()
        job = clone.start_compaction(rate=16 * MIB)
        clone.close()
        volume.delete_head("lab")
        with pytest.raises(ClosedError):
            job.wait()
        assert volume.check().problems == []
        volume.pwrite(b"3" * 4 * MIB, 0)
        assert volume.pread(4 * MIB, 0) == b"3" * 4 * MIB


CALLS: dict[str, Callable[[Volume], object]] = {
    "snapshot": lambda clone: clone.snapshot("late"),
    "shrink": lambda clone: clone.resize(2 * MIB),
    "grow": lambda clone: clone.resize(8 * MIB),
    "rollback": lambda clone: clone.rollback("origin"),
    "changed extents": lambda clone: clone.changed_extents("origin"),
}


@pytest.mark.parametrize("deleted", [True, False])
@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_waited_while_its_clone_went_says_so(tmp_path: Path, call: str, deleted: bool) -> None:
    """It wrote a record that no open accepted."""
    raised: list[type[BaseException]] = []
    with Volume.create(tmp_path / "v", 4 * MIB, background=False) as volume:
        clone = volume.snapshot("origin").clone("lab")
        clone.pwrite(b"b" * 8192, 0)

        def work() -> None:
            try:
                CALLS[call](clone)
            except ClosedError as error:
                raised.append(type(error))

        thread = threading.Thread(target=work)
        with volume.engine.lock:
            thread.start()
            time.sleep(0.05)  # for it to come to the lock; if it does not, it sees at once that its handle is closed
            clone.close()
            if deleted:
                volume.delete_head("lab")
        thread.join()
        assert raised == [ClosedError]
    with Volume.open(tmp_path / "v", background=False) as volume:
        assert [snapshot.name for snapshot in volume.snapshots()] == ["origin"]
        assert volume.check().problems == []


class Ring:
    """Goes by the garbage collector only."""

    def __init__(self, volume: Volume) -> None:
        self.volume, self.me = volume, self


@contextmanager
def collecting_after(allocations: int) -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(allocations)
    gc.enable()
    try:
        yield
    finally:
        gc.disable()
        gc.set_threshold(*before)


def test_a_clone_that_is_collected_in_the_middle_of_a_commit_disturbs_nobody(tmp_path: Path) -> None:
    """It poisoned the volume, or waited for a mutex that its own thread had."""
    gc.disable()
    try:
        with (
            warnings.catch_warnings(action="ignore", category=ResourceWarning),
            Volume.create(tmp_path / "v", 4 * MIB, background=False) as volume,
        ):
            volume.snapshot("origin").clone("lab").close()
            for allocations in range(1, 80):
                gc.collect()
                Ring(volume.open_head("lab"))
                volume.pwrite(b"z" * 4096, 0)
                with collecting_after(allocations):
                    volume.snapshot(f"s{allocations}")
            gc.collect()
            volume.delete_head("lab")
            assert volume.check().problems == []
    finally:
        gc.enable()


def test_a_volume_that_is_collected_in_the_middle_of_a_commit_is_closed_behind_it(tmp_path: Path) -> None:
    """A snapshot works without its volume's handle; it failed, poisoned, or waited for a mutex of its own thread."""
    path = tmp_path / "v"
    gc.disable()
    try:
        Volume.create(path, 4 * MIB, background=False).close()
        with warnings.catch_warnings(action="ignore", category=ResourceWarning):
            for allocations in range(1, 80, 2):
                volume = Volume.open(path, background=False)
                snapshot = volume.snapshot("s")
                gc.collect()
                Ring(volume)
                del volume
                with collecting_after(allocations), suppress(ClosedError):
                    snapshot.delete()
                gc.collect()
                for thread in threading.enumerate():
                    if thread.name == "cowengine-close":
                        thread.join()
                with Volume.open(path, background=False) as volume:
                    assert volume.check().problems == []
                    for left in volume.snapshots():
                        left.delete()
                del volume
    finally:
        gc.enable()
