"""Each call fails once or from then on while a volume grows and shrinks: it has the old size or the new one, whole."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from failing_table import FailingTable

from cowengine.errors import CowEngineError
from cowengine.volume import Volume

BLOCK = 4096
SIZE = 40 * BLOCK
LOG = 16384


class History:
    """The live volume as acknowledged last, and what it may be since; each as long as the volume then is."""

    def __init__(self) -> None:
        self.live = bytes(SIZE)
        self.allowed = [self.live]
        self.snapshots: dict[str, bytes] = {}
        self.maybe: dict[str, bytes] = {}

    def becomes(self, live: bytes) -> None:
        self.live = live
        self.allowed.append(live)

    def acknowledged(self) -> None:
        self.allowed = [self.live]

    def fits(self, found: bytes) -> bool:
        """Whether every sector is that of a state which may be; behind its end a state has zeros."""
        if found in self.allowed:
            return True
        longest = max(map(len, [found, *self.allowed]))
        states = [state.ljust(longest, b"\0") for state in self.allowed]
        return len(found) in map(len, self.allowed) and all(
            any(found[at : at + 512] == state[at : at + 512] for state in states) for at in range(0, len(found), 512)
        )


def write(volume: Volume, history: History, block: int, count: int) -> None:
    data = bytes([(block + count) % 255 + 1]) * (count * BLOCK)
    history.becomes(history.live[: block * BLOCK] + data + history.live[block * BLOCK + len(data) :])
    volume.pwrite(data, block * BLOCK)
    volume.flush()
    history.acknowledged()


def resize(volume: Volume, history: History, size: int) -> None:
    history.becomes(history.live[:size].ljust(size, b"\0"))
    volume.resize(size)
    history.acknowledged()


def workload(volume: Volume, history: History) -> None:
    """Growing and shrinking at a block's edge and inside, with and without a snapshot that holds what is cut off."""
    write(volume, history, 0, 40)
    resize(volume, history, 30 * BLOCK + 512)
    resize(volume, history, SIZE)
    history.maybe["s"] = history.live
    volume.snapshot("s")
    history.snapshots["s"] = history.maybe.pop("s")
    write(volume, history, 20, 20)
    resize(volume, history, 300 * BLOCK)
    write(volume, history, 280, 20)
    resize(volume, history, 290 * BLOCK)
    volume.engine.checkpoint()
    resize(volume, history, 25 * BLOCK + 1024)
    write(volume, history, 2, 1)
    resize(volume, history, 20 * BLOCK)
    resize(volume, history, SIZE)


def verify(volume: Volume, history: History) -> None:
    report = volume.check()
    assert report.ok, report.problems
    assert history.fits(volume.pread(volume.size, 0))
    found = {snapshot.name: snapshot.pread(snapshot.size, 0) for snapshot in volume.snapshots()}
    assert history.snapshots.items() <= found.items() <= (history.snapshots | history.maybe).items()


@pytest.mark.parametrize(("number", "for_ever"), [(errno.EIO, False), (errno.ENOSPC, False), (errno.ENOSPC, True)])
def test_a_resize_of_which_a_call_fails_is_done_or_not(tmp_path: Path, number: int, for_ever: bool) -> None:
    table = FailingTable()
    with Volume.create(tmp_path / "dry", SIZE, log_size=LOG, io=table, background=False) as volume:
        created = table.calls
        workload(volume, History())
    assert table.calls - created > 80
    for fail_at in range(created + 1, table.calls + 1):
        path, history = tmp_path / f"v{fail_at}", History()
        failing = FailingTable(fail_at, number, for_ever=for_ever)
        volume = Volume.create(path, SIZE, log_size=LOG, io=failing, background=False)
        try:
            workload(volume, history)
        except CowEngineError:
            if volume.engine.failure is None:  # it goes on as it was
                failing.fail_at = 0
                assert len(volume.pread(volume.size, 0)) in map(len, history.allowed)
                verify(volume, history)
                volume.pwrite(b"x" * BLOCK, 0)
                history.becomes(b"x" * BLOCK + history.live[BLOCK:])
                history.becomes(history.live[: volume.size].ljust(volume.size, b"\0"))
                volume.flush()
        try:
            volume.close()
        except CowEngineError:
            pass
        assert failing.failed
        with Volume.open(path, io=FailingTable(), background=False) as volume:
            verify(volume, history)
        path.unlink()
