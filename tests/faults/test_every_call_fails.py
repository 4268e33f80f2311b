"""Every call fails: a part of what tests/faults/every_call.py goes through, and planted faults that it finds."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from crash_workload import SMALL
from every_call import all_cases, faults_in, violation
from failing_table import FailingTable
from fault_cases import Case
from faulty_disk import KINDS, Fault, FaultyDisk
from memory_disk import MemoryDisk
from planted import BUGS, Bug
from planted_files import Faults, step_faults
from planting import Plant
from public_operations import FROM_MEMORY, OTHERWISE, Noted, operations, recorded
from torture import LINES

from cowengine.core.iotable import IOTable
from cowengine.engine.engine import Engine
from cowengine.errors import NoSpaceError
from cowengine.volume import Volume

SIZE = 40 * 4096
STRIDE = 61  # of the faults, one in so many; prime, so that no kind is left out


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module, name, value in SMALL:
        monkeypatch.setattr(module, name, value)
    yield


# Where it found bugs: descriptors and files that stayed, errors without a type, a number of a backup given twice.
FOUND_THERE = {
    ("backup:incremental", "open"), ("backup:restore", "lock"), ("backup:restore", "is_file"),
    ("open:clean", "is_file"), ("adopt:3", "size"), ("flatten:3", "punch"), ("flatten:3", "is_sole"),
    ("flatten-snapshot", "sync_directory"), ("flatten-snapshot", "lock"), ("busy:delete-1", "lock"),
    ("busy:delete-1", "locked"), ("busy:close", "unlock"), ("busy:repair", "pread"),
    ("sealed:reader_beside", "pread"), ("store:close", "unlock"), ("store:set", "is_file"),
    ("displaced:compact", "forget"), ("sealed:verify", "forget"), ("store:look", "names"), ("store:look", "size"),
    ("sqlite:extract", "rename"), ("sqlite:transaction", "pwrite"),
}  # fmt: skip


@cache
def everything() -> tuple[list[tuple[Case, Fault]], Noted]:
    """All faults of all cases; and the public operations in which they are."""
    with recorded() as noted:
        return [(case, fault) for case in all_cases() for fault in faults_in(case)], noted


def test_calls_fail_in_every_public_operation() -> None:
    _, noted = everything()
    lacking = operations().keys() - noted.covered - FROM_MEMORY - OTHERWISE.keys()
    assert not lacking, "they need a case of every_call.py, or a place in public_operations.py"
    assert not noted.by_itself & FROM_MEMORY
    assert FROM_MEMORY | OTHERWISE.keys() <= operations().keys()


def test_a_part_of_the_list_breaks_no_promise() -> None:
    faults, _ = everything()
    (line,) = [line for line in LINES if line.name == "R3"]
    assert len(faults) >= line.goal
    assert {fault.call for _, fault in faults} == KINDS.keys()
    assert {(case.name, fault.call) for case, fault in faults} >= FOUND_THERE
    again = [(case, fault) for case, fault in faults if (case.name, fault.call) in FOUND_THERE]
    chosen = faults[::STRIDE] + again
    broken = [problem for case, fault in chosen if (problem := violation(case, fault)) is not None]
    assert not broken, broken[:3]


def test_the_table_of_kinds_knows_every_call() -> None:
    calls = {name for name in vars(IOTable) if not name.startswith("_")} & {*vars(FaultyDisk), *vars(MemoryDisk)}
    cannot_fail = {"close", "begin_write"}
    assert calls - cannot_fail == KINDS.keys() - {"create"}


def descriptor_is_left(plant: Plant) -> None:
    @plant.method(Engine, "close")
    def close(original: Any, self: Engine) -> None:
        if self.failure is None:
            original(self)
        self.closed = True


LEAK = Bug("descriptor-is-left", "", "a poisoned volume keeps its descriptor", Faults(), descriptor_is_left)
FOUND = ("failed-barrier-does-not-poison", "failed-write-of-nodes-ignored", "failed-write-told-as-done")


@pytest.mark.parametrize("one", [*(BUGS[name] for name in FOUND), LEAK], ids=lambda one: one.name)
def test_a_planted_fault_is_found(one: Bug) -> None:
    faults = step_faults()
    with one.planted():
        found = next((each for each in faults if violation(*each) is not None), None)
    assert found is not None
    assert violation(*found) is None


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
