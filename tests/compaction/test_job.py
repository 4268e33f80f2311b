"""Compaction in the background: it ends by itself, when told, with the volume and with the process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from cowengine import BusyError, OutOfRangeError, PoisonedError, ReadOnlyError, Volume
from cowengine.core.iotable import IOTable
from cowengine.engine.compaction import Compaction, CompactionJob

BLOCK = 4096
BLOCKS = 512
SIZE = BLOCKS * BLOCK


class FailingBarrier(IOTable):
    failing = False

    def fdatasync(self, fd: int) -> None:
        if self.failing:
            raise OSError(5, os.strerror(5))
        super().fdatasync(fd)


@pytest.fixture
def table() -> FailingBarrier:
    return FailingBarrier()


@pytest.fixture
def displaced(tmp_path: Path, table: FailingBarrier) -> Iterator[Volume]:
    """A volume of which every second block is away from home, which is free."""
    with Volume.create(tmp_path / "v", SIZE, background=False, io=table) as volume:
        volume.pwrite(b"a" * SIZE, 0)
        snapshot = volume.snapshot("s")
        for block in range(0, BLOCKS, 2):
            volume.pwrite(b"b" * BLOCK, block * BLOCK)
        snapshot.delete()
        yield volume
        table.failing = False


def at_home(volume: Volume) -> int:
    home = volume.engine.regions[0].slot
    return sum(volume.engine.path.place(block)[0] == home + block for block in range(BLOCKS))


def test_a_job_comes_to_its_end_by_itself(displaced: Volume) -> None:
    job = displaced.start_compaction()
    assert job.wait() == job.progress
    assert job.progress.done and job.progress.moved_bytes == SIZE // 2 and job.progress.position == SIZE
    assert not job.running
    assert at_home(displaced) == BLOCKS
    assert displaced.pread(2 * BLOCK, 0) == b"b" * BLOCK + b"a" * BLOCK
    assert displaced.start_compaction().wait().moved_bytes == 0


def test_the_page_cache_lets_go_of_what_came_home_in_pieces(tmp_path: Path) -> None:
    """Else it keeps a folio of 4 KiB for each block, and a read of 1 MiB takes three times as long."""

    class Noting(IOTable):
        forgotten: ClassVar[set[int]] = set()

        def forget(self, fd: int, offset: int = 0, length: int = 0) -> None:
            self.forgotten |= set(range(offset // BLOCK, (offset + length) // BLOCK))
            super().forget(fd, offset, length)

    table = Noting()
    with Volume.create(tmp_path / "v", 16 << 20, background=False, io=table) as volume:
        volume.pwrite(b"a" * (16 << 20), 0)
        snapshot = volume.snapshot("s")
        displaced = [*range(256, 700, 5), 3000]
        for block in displaced:
            volume.pwrite(b"b" * BLOCK, block * BLOCK)
        snapshot.delete()
        table.forgotten.clear()
        assert volume.compact().moved_bytes == len(displaced) * BLOCK
        came_home = {volume.engine.path.place(block)[0] for block in displaced}
        assert came_home <= table.forgotten
        untouched = {volume.engine.path.place(block)[0] for block in (*range(1100, 2600), *range(3600, 4096))}
        assert not untouched & table.forgotten, "what lies elsewhere stays in the cache"


def test_one_job_at_a_time_which_can_be_stopped_and_gone_on_with(displaced: Volume) -> None:
    job = displaced.start_compaction(rate=1)  # after the first move it waits for hours
    with pytest.raises(BusyError):
        displaced.start_compaction()
    result = job.wait(0.01)
    assert job.running and not result.done
    stopped = job.stop()
    assert not stopped.done and not job.running
    rest = displaced.start_compaction(stopped.position).wait()
    assert rest.done and stopped.moved_bytes + rest.moved_bytes == SIZE // 2
    assert job.stop() == stopped  # once more does nothing
    assert displaced.check().problems == []


def test_closing_the_volume_ends_it(displaced: Volume) -> None:
    job = displaced.start_compaction(rate=1)
    displaced.close()
    assert not job.running and not job.wait().done
    with Volume.open(displaced.path, background=False) as again:
        assert again.check().problems == []
        assert again.start_compaction(job.progress.position).wait().done
        assert at_home(again) == BLOCKS


def test_what_ended_it_is_told_to_who_waits(displaced: Volume, table: FailingBarrier) -> None:
    table.failing = True
    job = displaced.start_compaction()
    with pytest.raises(PoisonedError):
        job.wait()
    with pytest.raises(PoisonedError):
        job.stop()


def test_bad_arguments_are_refused_before_it_begins(displaced: Volume) -> None:
    for start, rate in ((-1, None), (SIZE + 1, None), ("0", None), (0, 0), (0, "x")):
        with pytest.raises(OutOfRangeError):
            displaced.start_compaction(start, rate=rate)  # type: ignore[arg-type]
    displaced.close()
    with Volume.open(displaced.path, read_only=True) as reader, pytest.raises(ReadOnlyError):
        reader.start_compaction()


PROGRAM = """
import os, sys
from cowengine import Volume
volume = Volume.open(sys.argv[1])
job = volume.start_compaction(rate=1)
child = os.fork()
if child == 0:
    volume.close()
    assert not job.running
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert job.running
print("goes on", flush=True)
if sys.argv[2] == "close":
    volume.close()
"""


@pytest.mark.parametrize("how", ["close", "exit"])
def test_neither_a_fork_nor_the_end_of_the_process_waits_for_ever(displaced: Volume, how: str) -> None:
    displaced.close()
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, displaced.path, how]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "goes on\n", "")
    with Volume.open(displaced.path, background=False) as again:
        assert again.check().problems == []


def test_a_job_that_ends_itself_does_not_wait_for_itself(displaced: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own thread may be the one that drops the volume, and so closes it."""
    note, ends = CompactionJob._note, list[bool]()

    def end_and_note(job: CompactionJob, progress: Compaction) -> None:
        ends.append(threading.current_thread() is job._thread)
        job.end()
        note(job, progress)

    monkeypatch.setattr(CompactionJob, "_note", end_and_note)
    progress = displaced.start_compaction().wait()  # would raise what the thread met
    assert ends and all(ends)
    assert at_home(displaced) >= progress.moved_bytes // BLOCK
