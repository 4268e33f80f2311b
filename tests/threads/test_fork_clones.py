"""A child of fork that inherits open clones: it may use none of them, and takes nothing from the parent."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forked_child import in_child

from cowengine import Volume
from cowengine.errors import BusyError, ClosedError

BLOCK = 4096
SIZE = 64 * BLOCK
CALLS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "pread": lambda volume, clone, base: clone.pread(512, 0),
    "pwrite": lambda volume, clone, base: clone.pwrite(b"child", 0),
    "discard": lambda volume, clone, base: clone.discard(0, BLOCK),
    "write zeros": lambda volume, clone, base: clone.write_zeroes(0, BLOCK),
    "flush": lambda volume, clone, base: clone.flush(),
    "snapshot": lambda volume, clone, base: clone.snapshot("child"),
    "rollback": lambda volume, clone, base: clone.rollback("base"),
    "resize": lambda volume, clone, base: clone.resize(2 * SIZE),
    "compact": lambda volume, clone, base: clone.compact(),
    "changed extents": lambda volume, clone, base: clone.changed_extents("base"),
    "allocated extents": lambda volume, clone, base: clone.allocated_extents(),
    "heads": lambda volume, clone, base: clone.heads(),
    "check": lambda volume, clone, base: clone.check(),
    "open another": lambda volume, clone, base: volume.open_head("shut"),
    "clone a snapshot": lambda volume, clone, base: base.clone("child"),
    "delete another": lambda volume, clone, base: volume.delete_head("shut"),
}


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    """A volume with a clone that is closed, "shut"."""
    with Volume.create(tmp_path / "v", SIZE, log_size=16384) as volume:
        volume.pwrite(b"live", 0)
        volume.snapshot("base").clone("shut").close()
        yield volume


@pytest.fixture
def clone(volume: Volume) -> Iterator[Volume]:
    """An open clone, with a write that is not flushed."""
    with volume.get_snapshot("base").clone("open") as clone:
        clone.pwrite(b"clone", 0)
        yield clone


def goes_on(volume: Volume, clone: Volume) -> None:
    """The parent has all it had, and can use all of it; so has who opens the file after it."""
    clone.pwrite(b"more", BLOCK)
    clone.snapshot("of the clone")
    volume.pwrite(b"more", 2 * BLOCK)
    assert (volume.pread(5, 0), clone.pread(5, 0), clone.pread(4, BLOCK)) == (b"live\0", b"clone", b"more")
    assert volume.heads() == ["live", "shut", "open"]
    assert [snapshot.name for snapshot in volume.snapshots()] == ["base", "of the clone"]
    assert volume.check().problems == []
    path = volume.path
    volume.close()
    with Volume.open(path) as again, again.open_head("open") as head:
        assert (again.pread(5, 0), head.pread(5, 0)) == (b"live\0", b"clone")
        assert (again.pread(4, 2 * BLOCK), head.pread(4, BLOCK)) == (b"more", b"more")


@pytest.mark.parametrize("name", CALLS)
def test_a_forked_child_cannot_use_an_inherited_clone(volume: Volume, clone: Volume, name: str) -> None:
    base = volume.get_snapshot("base")
    assert in_child(lambda: CALLS[name](volume, clone, base)) == ClosedError.__name__
    goes_on(volume, clone)


def test_closing_in_the_child_closes_nothing_of_the_parent(volume: Volume, clone: Volume) -> None:
    def close() -> None:
        clone.close()
        volume.close()
        assert clone.closed and volume.closed
        clone.close()

    assert in_child(close) == "nothing"
    assert not clone.closed
    with pytest.raises(BusyError):
        volume.open_head("open")
    with pytest.raises(BusyError):
        volume.delete_head("open")
    with pytest.raises(BusyError):
        Volume.open(volume.path)
    goes_on(volume, clone)


def test_dropping_the_handles_in_the_child_does_nothing_to_the_parent(volume: Volume, clone: Volume) -> None:
    """No ResourceWarning either: what the child drops was never its own."""
    handles = [volume, clone]

    def drop() -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for handle in handles:
                handle.__del__()  # the frames of the test keep them from going
            gc.collect()
        assert not caught, caught

    assert in_child(drop) == "nothing"
    goes_on(volume, clone)


def test_a_clone_that_was_dropped_open_before_the_fork_can_be_opened_after_it(volume: Volume) -> None:
    with pytest.warns(ResourceWarning):
        volume.get_snapshot("base").clone("open").pwrite(b"clone", 0)
        gc.collect()
    assert in_child(lambda: volume.open_head("open")) == ClosedError.__name__
    with volume.open_head("open") as clone:
        goes_on(volume, clone)


def test_a_fork_in_the_middle_of_writes_to_clones_leaves_a_child_that_can_end(volume: Volume) -> None:
    """Threads of the parent hold its mutex and its lock at any moment; no thread of the child ever frees them."""
    clones = [volume.get_snapshot("base").clone(f"c{number}") for number in range(2)]
    stop = threading.Event()

    def write(head: Volume, number: int) -> None:
        step = 0
        while not stop.is_set():
            head.pwrite(bytes([number]) * BLOCK, step % 60 * BLOCK)
            step += 1
            if step % 7 == 0:
                head.flush()

    threads = [threading.Thread(target=write, args=(head, number)) for number, head in enumerate((volume, *clones), 1)]
    for thread in threads:
        thread.start()

    def use_and_end() -> None:
        for handle in (*clones, volume):
            handle.close()
            with pytest.raises(ClosedError):
                handle.pread(1, 0)
        gc.collect()

    try:
        outcomes = {in_child(use_and_end) for _ in range(20)}
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert outcomes == {"nothing"}
    assert volume.check().problems == []
    for number, head in enumerate((volume, *clones), 1):
        assert set(head.pread(BLOCK, 0)) == {number}
    for head in clones:
        head.close()


def test_a_child_may_open_the_clones_when_the_parent_has_closed_the_volume(volume: Volume, clone: Volume) -> None:
    path = volume.path
    volume.close()

    def use() -> None:
        with Volume.open(path) as mine, mine.open_head("open") as head:
            assert head.pread(5, 0) == b"clone"
            head.pwrite(b"child", 0)

    assert in_child(use) == "nothing"
    with Volume.open(path) as again, again.open_head("open") as head:
        assert head.pread(5, 0) == b"child"


PROGRAM = """
import gc, os, sys, warnings
from cowengine import Volume
volume = Volume.create(sys.argv[1], 64 * 4096)
volume.pwrite(b"live", 0)
clone = volume.snapshot("base").clone("open")
clone.pwrite(b"clone", 0)
child = os.fork()
if child:
    assert os.waitpid(child, 0)[1] == 0
    clone.pwrite(b"more", 4096)
    assert clone.pread(5, 0) == b"clone"
    assert volume.check().problems == []
    clone.close()
    volume.close()
elif sys.argv[2] == "collect":
    del clone, volume
    gc.collect()
"""


@pytest.mark.parametrize("end", ["collect", "exit"])
def test_a_child_whose_interpreter_ends_does_so_in_silence_and_the_parent_goes_on(tmp_path: Path, end: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-X", "faulthandler", "-c", PROGRAM, str(tmp_path / "v"), end],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    with Volume.open(tmp_path / "v") as volume, volume.open_head("open") as head:
        assert (volume.pread(4, 0), head.pread(5, 0), head.pread(4, BLOCK)) == (b"live", b"clone", b"more")
