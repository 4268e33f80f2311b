"""The machine of volume_machine.py with others beside it: readers and owners in other processes, threads in this one.

Readers open the file while its owner writes: what they list and read is what the model has, a snapshot that they read
cannot be given back, and one that was killed holds nothing. Another owner takes the file over and closes it, or is
killed behind a flush. Threads write parts of the same blocks, and snapshots are taken while somebody writes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from model_volume import ModelSnapshot
from other_process import Failed, Nursery, OtherProcess, digest
from volume_machine import SNAPSHOTS_MAX, FileMachine, fractions, lengths, rows

from cowengine import Volume
from cowengine.errors import BusyError

READERS = 2
readers = st.integers(0, READERS - 1)


class Others:
    """Processes that outlive a history, because starting one takes longer than most histories do."""

    def __init__(self) -> None:
        self._processes: dict[str, OtherProcess] = {}
        self._nursery: Nursery | None = None

    def get(self, name: str) -> OtherProcess:
        self._nursery = self._nursery or Nursery()
        if name not in self._processes:
            self._processes[name] = self._nursery.fork()
        return self._processes[name]

    def kill(self, name: str) -> None:
        if name in self._processes:
            self._processes.pop(name).__exit__(None, None, None)

    def end(self) -> None:
        for name in list(self._processes):
            self.kill(name)
        if self._nursery is not None:
            self._nursery.close()
            self._nursery = None


OTHERS = Others()


class SharedFileMachine(FileMachine):
    """A volume on a file, whose other readers and owners are other processes."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, dict[str, ModelSnapshot]] = {}  # of each reader that has the file open

    def teardown(self) -> None:
        for number in list(self.held):
            self.reader_closes(number, False)
        super().teardown()

    # -- readers ------------------------------------------------------------------------------------------------------
    def why_kept(self, chosen: ModelSnapshot) -> str | None:
        is_read = not chosen.anchor and any(chosen.name in held for held in self.held.values())
        return super().why_kept(chosen) or ("another process is reading it" if is_read else None)

    @rule(number=readers)
    def reader_opens(self, number: int) -> None:
        if number not in self.held:
            OTHERS.get(f"reader {number}").call("open", self.path, True)
            self.held[number] = {}

    @precondition(lambda self: self.held)
    @rule(number=readers)
    def reader_lists(self, number: int) -> None:
        number = number if number in self.held else next(iter(self.held))
        shown = [[s.id, s.name, s.epoch, s.change_id, s.size, s.is_anchor] for s in self.volume.snapshots()]
        assert OTHERS.get(f"reader {number}").call("listed") == shown

    @precondition(lambda self: self.held and self.model.snapshots)
    @rule(number=readers, which=st.integers(0, SNAPSHOTS_MAX))
    def reader_pins(self, number: int, which: int) -> None:
        number = number if number in self.held else next(iter(self.held))
        chosen = self.model.snapshots[which % len(self.model.snapshots)]
        OTHERS.get(f"reader {number}").call("hold", chosen.name)
        if not chosen.anchor:
            self.held[number][chosen.name] = chosen

    @precondition(lambda self: any(self.held.values()))
    @rule()
    def readers_read(self) -> None:
        """All that is pinned, whatever has happened since; and what changed between any two of it."""
        for number, held in self.held.items():
            process = OTHERS.get(f"reader {number}")
            for name, version in held.items():
                assert process.call("digest", name) == digest(version.content)
                assert as_rows(process.call("allocated", name)) == self.model.allocated_extents(version)
                for base in held.values():
                    changed = as_rows(process.call("changed", name, self.volume.get_snapshot(base.name).change_id))
                    assert changed == self.model.changed_extents(base, version)

    @precondition(lambda self: any(self.held.values()))
    @rule(number=readers)
    def reader_lets_go(self, number: int) -> None:
        number = number if self.held.get(number) else next(n for n, held in self.held.items() if held)
        name = next(iter(self.held[number]))
        OTHERS.get(f"reader {number}").call("drop", name)
        del self.held[number][name]

    @precondition(lambda self: self.held)
    @rule(number=readers, killed=st.booleans())
    def reader_closes(self, number: int, killed: bool) -> None:
        number = number if number in self.held else next(iter(self.held))
        if killed:
            OTHERS.kill(f"reader {number}")
        else:
            OTHERS.get(f"reader {number}").call("close")
        del self.held[number]

    # -- another owner ------------------------------------------------------------------------------------------------
    @rule(where=fractions, length=lengths, named=st.booleans(), killed=st.booleans())
    def another_owner(self, where: float, length: int, named: bool, killed: bool) -> None:
        """Takes the file over, writes, flushes or takes a snapshot, and closes or is killed."""
        self.serial += 1
        owner = OTHERS.get("owner")
        with pytest.raises(Failed, match="BusyError"):
            owner.call("open", self.path, False)
        self.volume.close()
        owner.call("open", self.path, False)
        with pytest.raises(BusyError):
            Volume.open(self.path)
        data, offset = self.stamped(where, length)
        owner.call("write", data.hex(), offset)
        self.model.pwrite(data, offset)
        if named and len(self.model.snapshots) < SNAPSHOTS_MAX:
            owner.call("take", f"snapshot {self.serial}")
            self.model.snapshot(f"snapshot {self.serial}")
        else:
            owner.call("flush")
        if killed:
            OTHERS.kill("owner")
        else:
            owner.call("close")
        self.volume = Volume.open(self.path, **self.options)

    # -- threads ------------------------------------------------------------------------------------------------------
    def stamped(self, where: float, length: int) -> tuple[bytes, int]:
        """Bytes that no other write has, and where they go."""
        offset, length = self.place(where, length)
        return (self.serial.to_bytes(4, "little") * (length // 4 + 1))[:length], offset

    @rule(where=fractions, length=lengths, cuts=st.lists(fractions, min_size=1, max_size=3))
    def threads_write(self, where: float, length: int, cuts: list[float]) -> None:
        """One range, cut anywhere, its parts written at once while somebody reads and lists changes."""
        self.serial += 1
        data, offset = self.stamped(where, length)
        edges = [0, *sorted(int(cut * len(data)) for cut in cuts), len(data)]
        parts = [(data[start:end], offset + start) for start, end in pairwise(edges)]
        together(*[lambda part=part: self.volume.pwrite(*part) for part in parts], self.look_on)
        for part in parts:
            self.model.pwrite(*part)

    def look_on(self) -> None:
        """What stands still while others write."""
        for shown, version in zip(self.volume.snapshots(), self.model.snapshots, strict=True):
            if not version.anchor:
                assert shown.pread(version.size, 0) == version.content
                assert rows(shown.allocated_extents()) == self.model.allocated_extents(version)

    @precondition(lambda self: len(self.model.snapshots) < SNAPSHOTS_MAX)
    @rule(where=fractions)
    def snapshot_beside_a_write(self, where: float) -> None:
        """The snapshot has all of a write, or nothing."""
        self.serial += 1
        data, offset = self.stamped(where, 4096)
        if self.model.content[offset : offset + len(data)] == data:
            return
        name = f"snapshot {self.serial}"
        together(lambda: self.volume.pwrite(data, offset), lambda: self.volume.snapshot(name))
        is_in = self.volume.get_snapshot(name).pread(len(data), offset) == data
        if is_in:
            self.model.pwrite(data, offset)
        self.model.snapshot(name)
        if not is_in:
            self.model.pwrite(data, offset)


def as_rows(found: list[list[int]]) -> list[tuple[int, int]]:
    return [(offset, length) for offset, length in found]


def together(*work: Callable[[], Any]) -> None:
    """Calls, each in a thread of its own; raises what the first of them raised that did."""
    problems: list[BaseException] = []
    begin = threading.Barrier(len(work))

    def run(call: Callable[[], Any]) -> None:
        try:
            begin.wait()
            call()
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]
