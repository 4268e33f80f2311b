"""Each call of a workload fails once or from then on: nothing acknowledged is lost, no byte wrong, errors are typed."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from failing_table import FailingTable

from cowengine.errors import CowEngineError, NoSpaceError, PoisonedError
from cowengine.volume import Volume

SIZE = 40 * 4096
BLOCK = 4096


class History:
    """What was acknowledged, and what may have happened since."""

    def __init__(self) -> None:
        self.live = bytearray(SIZE)
        self.flushed = bytes(SIZE)
        self.since: list[bytes] = []  # live contents since the last acknowledged flush
        self.snapshots: dict[str, bytes] = {}
        self.maybe: dict[str, bytes] = {}  # taken or deleted by a call that failed
        self.doubtful_live = False
        self.anchored = False  # s2 is an anchor, acknowledged

    def wrote(self) -> None:
        self.since.append(bytes(self.live))

    def acknowledged(self) -> None:
        self.flushed = bytes(self.live)
        self.since = []


def workload(volume: Volume, history: History) -> None:
    """Some of everything; each step may raise."""
    for round_ in range(3):
        for block in (1, 5, 6, 30):
            data = bytes([16 * round_ + block]) * (BLOCK + 100)
            history.live[block * BLOCK : block * BLOCK + len(data)] = data
            history.wrote()
            volume.pwrite(data, block * BLOCK)
        name = f"s{round_}"
        history.maybe[name] = bytes(history.live)
        volume.snapshot(name)
        history.snapshots[name] = history.maybe.pop(name)
        history.acknowledged()
        history.live[5 * BLOCK : 9 * BLOCK] = bytes(4 * BLOCK)
        history.wrote()
        volume.discard(5 * BLOCK, 4 * BLOCK)
        volume.flush()
        history.acknowledged()
        volume.engine.checkpoint()
    history.maybe["s1"] = history.snapshots.pop("s1")
    volume.get_snapshot("s1").delete()
    history.maybe.pop("s1")
    history.maybe["s2"] = history.snapshots.pop("s2")
    volume.get_snapshot("s2").to_anchor()
    history.maybe.pop("s2")
    history.anchored = True
    history.doubtful_live = True
    before = bytes(history.live)
    history.maybe["before-rollback-4"] = before
    kept = volume.rollback("s0")
    history.doubtful_live = False
    history.snapshots[kept.name] = history.maybe.pop("before-rollback-4")
    history.live[:] = history.snapshots["s0"]
    history.acknowledged()
    assert volume.check().ok


def verify(path: Path, history: History) -> None:
    """What a fresh handle finds."""
    with Volume.open(path, io=FailingTable(), background=False) as volume:
        report = volume.check()
        assert report.ok, report.problems
        anchors = [snapshot.name for snapshot in volume.snapshots() if snapshot.is_anchor]
        assert anchors == ["s2"] or (anchors == [] and not history.anchored)
        found = {snapshot.name: snapshot.pread(SIZE, 0) for snapshot in volume.snapshots() if not snapshot.is_anchor}
        for name, contents in history.snapshots.items():
            assert found.pop(name) == contents, f"snapshot {name} is lost or wrong"
        for name, contents in found.items():
            assert history.maybe.get(name) == contents, f"snapshot {name} from nowhere"
        live = volume.pread(SIZE, 0)
        allowed = [history.flushed, *history.since]
        if history.doubtful_live:
            allowed += history.snapshots.values()
        for sector in range(0, SIZE, 512):
            got = live[sector : sector + 512]
            assert any(got == state[sector : sector + 512] for state in allowed), f"live byte {sector} is wrong"


def calls_of_the_workload(path: Path) -> tuple[int, int]:
    """Calls until the volume is created, and in all."""
    table = FailingTable()
    with Volume.create(path, SIZE, log_size=16384, io=table, background=False) as volume:
        created = table.calls
        workload(volume, History())
    return created, table.calls


@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for_ever"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_nothing_acknowledged_is_lost_when_a_call_fails(tmp_path: Path, number: int, for_ever: bool) -> None:
    created, total = calls_of_the_workload(tmp_path / "dry")
    assert total > 80
    kinds: set[str] = set()
    for fail_at in range(1, total + 1):
        path = tmp_path / f"v{fail_at}"
        table = FailingTable(fail_at, number, for_ever=for_ever)
        history = History()
        try:
            volume = Volume.create(path, SIZE, log_size=16384, io=table, background=False)
        except CowEngineError:
            assert fail_at <= created
            assert not path.exists(), "a volume that could not be made leaves no file"
            kinds.update(table.failed)
            continue
        # A full disk may cost a new volume its reserve for checkpoints, and nothing else.
        assert fail_at > created or number != errno.EIO
        try:
            workload(volume, history)
        except CowEngineError:
            pass
        try:
            volume.close()
        except CowEngineError:
            pass
        assert volume.closed
        assert table.failed
        kinds.update(table.failed)
        verify(path, history)
        path.unlink()
    assert {"pwrite", "fdatasync", "pread", "punch"} <= kinds


def test_a_failed_barrier_poisons_and_the_next_open_tells(tmp_path: Path) -> None:
    path = tmp_path / "v"
    table = FailingTable()
    volume = Volume.create(path, SIZE, log_size=16384, io=table, background=False)
    volume.pwrite(b"old" * 100, 0)
    volume.snapshot("kept")
    volume.pwrite(b"new" * 100, 0)
    table.fail_at, table.number = table.calls + 1, errno.EIO
    with pytest.raises(PoisonedError):
        volume.flush()
    calls = (volume.flush, lambda: volume.pwrite(b"x", 0), lambda: volume.pread(1, 0), lambda: volume.snapshot("no"))
    for call in calls:
        with pytest.raises(PoisonedError):
            call()
    volume.close()
    with Volume.open(path) as volume:
        assert volume.get_snapshot("kept").pread(300, 0) == b"old" * 100
        assert volume.check().ok


def test_a_volume_goes_on_after_running_out_of_space(tmp_path: Path) -> None:
    """P8: the write fails, nothing is lost, deleting works, and what it gives back can be used."""
    path = tmp_path / "v"
    table = FailingTable(number=errno.ENOSPC, for_ever=True)
    volume = Volume.create(path, SIZE, log_size=65536, io=table, background=False)
    volume.pwrite(b"a" * SIZE, 0)
    snapshot = volume.snapshot("full")
    table.fail_at = table.calls + 1
    with pytest.raises(NoSpaceError):
        volume.pwrite(b"b" * SIZE, 0)
    table.fail_at = 0
    assert volume.pread(SIZE, 0) == b"a" * SIZE
    snapshot.delete()
    volume.pwrite(b"b" * SIZE, 0)
    volume.flush()
    assert volume.pread(SIZE, 0) == b"b" * SIZE
    assert volume.check().ok
    volume.close()
