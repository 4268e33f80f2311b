"""The volume against the model: Hypothesis picks the operations, both sides do them, everything visible must agree.

Runs on a disk in memory, where an example costs little, and on real files, where the kernels bypass Python; what other
processes and threads add is in shared_machine.py. The model (model_volume.py) imports nothing of cowengine.
"""

from __future__ import annotations

import datetime
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from crash_oracle import UNKNOWN_NAME
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from memory_disk import MemoryDisk
from model_volume import ModelSnapshot, ModelVolume, Rows

from cowengine import Volume
from cowengine.core.iotable import IOTable
from cowengine.engine import sealing
from cowengine.errors import (
    AnchorError,
    BusyError,
    ExistsError,
    FullBackupRequired,
    NotFoundError,
    OutOfRangeError,
    RetentionError,
)

SNAPSHOTS_MAX = 6
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # real files that no barrier has to wait for
RETAINED = datetime.datetime(2150, 1, 1, tzinfo=datetime.UTC)
fractions = st.floats(0, 1, exclude_max=True, allow_nan=False)
lengths = st.one_of(st.integers(0, 1024), st.sampled_from([4096, 8192, 16384, 65536, 70000]))


class VolumeMachine(RuleBasedStateMachine):
    """One volume on a disk in memory, and its model."""

    def __init__(self) -> None:
        super().__init__()
        self.serial = 0
        self.volume: Any = None
        self.metadata: dict[str, dict[str, int]] = {}
        self.disk = MemoryDisk(recorded=False)
        self.path = "/disk/volume"
        self.options: dict[str, Any] = {"io": self.disk, "background": False}

    def teardown(self) -> None:
        if self.volume is not None:
            self.volume.close()

    @initialize(
        shift=st.sampled_from([12, 14, 16]), blocks=st.integers(1, 20), less=st.integers(0, 7), adopted=st.booleans()
    )
    def create(self, shift: int, blocks: int, less: int, adopted: bool) -> None:
        size = (blocks << shift) - 512 * less
        options = {"block_size": 1 << shift, "log_size": 16384, **self.options}
        if adopted:
            io = self.options.get("io") or IOTable()
            image = io.open(self.path, os.O_RDWR | os.O_CREAT)
            io.truncate(image, size)
            io.close(image)
            self.volume = Volume.adopt(self.path, **options)
        else:
            self.volume = Volume.create(self.path, size, **options)
        self.model = ModelVolume(size, 1 << shift)

    def both(
        self, call: Callable[[], Any], expected: Callable[[Any], object] = lambda _: None,
        *, wrote: tuple[int, int] | None = None, commits: bool = True,
    ) -> Any:  # fmt: skip
        """Does something to the volume, then to the model, which gets what came of it; returns that.

        For machines whose calls fail: `wrote` is the range (offset, length) that a write or discard changes at most; of
        anything else all that was written before is durable when it returns, if it `commits`.
        """
        result = call()
        expected(result)
        return result

    # -- writing ----------------------------------------------------------------------------------------------------
    def place(self, where: float, length: int) -> tuple[int, int]:
        """A range inside the volume, often on the edge of a block."""
        offset = int(where * self.model.size)
        if self.serial % 3 == 0:
            offset -= offset % self.model.block_size
        return offset, min(length, self.model.size - offset)

    @rule(where=fractions, length=lengths)
    def pwrite(self, where: float, length: int) -> None:
        self.serial += 1
        offset, length = self.place(where, length)
        data = (self.serial.to_bytes(4, "little") * (length // 4 + 1))[:length]
        written = self.both(
            lambda: self.volume.pwrite(data, offset), lambda _: self.model.pwrite(data, offset), wrote=(offset, length)
        )  # fmt: skip
        assert written == length

    @rule(where=fractions, length=lengths)
    def discard(self, where: float, length: int) -> None:
        self.serial += 1
        at = self.place(where, length)
        self.both(lambda: self.volume.discard(*at), lambda _: self.model.discard(*at), wrote=at)

    @rule(where=fractions, length=lengths)
    def write_zeroes(self, where: float, length: int) -> None:
        self.serial += 1
        at = self.place(where, length)
        self.both(lambda: self.volume.write_zeroes(*at), lambda _: self.model.write_zeroes(*at), wrote=at)

    @rule()
    def flush(self) -> None:
        self.both(self.volume.flush)

    @rule()
    def checkpoint(self) -> None:
        self.both(self.volume.engine.checkpoint)

    @rule()
    def reopen(self) -> None:
        identities = [(s.id, s.name, s.epoch, s.change_id, s.metadata, s.created) for s in self.volume.snapshots()]
        self.both(self.volume.close)
        self.volume = Volume.open(self.path, **self.options)
        found = [(s.id, s.name, s.epoch, s.change_id, s.metadata, s.created) for s in self.volume.snapshots()]
        assert found == identities
        assert all(s.metadata == self.metadata.get(s.name, {}) for s in self.volume.snapshots())

    # -- snapshots --------------------------------------------------------------------------------------------------
    @precondition(lambda self: len(self.model.snapshots) < SNAPSHOTS_MAX)
    @rule(metadata=st.one_of(st.none(), st.dictionaries(st.text(max_size=4), st.integers(-99, 99), max_size=2)))
    def snapshot(self, metadata: dict[str, int] | None) -> None:
        self.serial += 1
        name = f"snapshot {self.serial}"
        self.metadata[name] = metadata or {}
        taken = self.both(lambda: self.volume.snapshot(name, metadata=metadata), lambda _: self.model.snapshot(name))
        assert taken.name == name
        assert taken.metadata == self.metadata[name]

    @precondition(lambda self: self.model.snapshots)
    @rule(number=st.integers(0, SNAPSHOTS_MAX))
    def take_a_name_twice(self, number: int) -> None:
        taken = self.model.snapshots[number % len(self.model.snapshots)]
        with pytest.raises(ExistsError):
            self.volume.snapshot(taken.name)

    def why_kept(self, chosen: ModelSnapshot) -> str | None:
        """What the refusal to give a snapshot back says; None if nothing stands against it."""
        return "retained until" if chosen.retain_until else chosen.hold_reason

    @precondition(lambda self: self.model.snapshots)
    @rule(number=st.integers(0, SNAPSHOTS_MAX))
    def delete(self, number: int) -> None:
        chosen = self.model.snapshots[number % len(self.model.snapshots)]
        name, snapshot = chosen.name, self.volume.get_snapshot(chosen.name)
        kept = self.why_kept(chosen)
        if kept:
            with pytest.raises((BusyError, RetentionError), match=kept):
                snapshot.delete()
            return
        self.both(snapshot.delete, lambda _: self.model.delete(name))
        with pytest.raises(NotFoundError):
            self.volume.get_snapshot(name)

    @precondition(lambda self: self.model.snapshots)
    @rule(number=st.integers(0, SNAPSHOTS_MAX), reason=st.sampled_from(["audit", "backup"]))
    def hold(self, number: int, reason: str) -> None:
        chosen = self.model.snapshots[number % len(self.model.snapshots)]
        snapshot = self.volume.get_snapshot(chosen.name)
        if chosen.hold_reason not in (None, reason):
            with pytest.raises(BusyError, match=chosen.hold_reason):
                snapshot.hold(reason)
            return
        self.both(
            lambda: snapshot.hold(reason), lambda _: self.model.hold(chosen.name, reason),
            commits=chosen.hold_reason is None,
        )  # fmt: skip

    @precondition(lambda self: self.model.snapshots)
    @rule(number=st.integers(0, SNAPSHOTS_MAX))
    def release(self, number: int) -> None:
        chosen = self.model.snapshots[number % len(self.model.snapshots)]
        snapshot, held = self.volume.get_snapshot(chosen.name), chosen.hold_reason is not None
        self.both(snapshot.release, lambda _: self.model.hold(chosen.name, None), commits=held)

    @precondition(lambda self: self.model.snapshots)
    @rule(number=st.integers(0, SNAPSHOTS_MAX), years=st.integers(1, 3))
    def retain(self, number: int, years: int) -> None:
        """At most one of them: nothing ends a retention, and the others shall be deleted."""
        retained = next((each for each in self.model.snapshots if each.retain_until), None)
        chosen = retained or self.model.snapshots[number % len(self.model.snapshots)]
        snapshot, until = self.volume.get_snapshot(chosen.name), RETAINED + years * datetime.timedelta(days=365)
        if chosen.retain_until and until < chosen.retain_until:
            with pytest.raises(RetentionError, match="never shortened"):
                snapshot.retain_until = until
            return
        self.both(
            lambda: setattr(snapshot, "retain_until", until), lambda _: self.model.retain(chosen.name, until),
            commits=until != chosen.retain_until,
        )  # fmt: skip

    @precondition(lambda self: self.model.snapshots)
    @rule(number=st.integers(0, SNAPSHOTS_MAX))
    def anchor(self, number: int) -> None:
        chosen = self.model.snapshots[number % len(self.model.snapshots)]
        name, snapshot = chosen.name, self.volume.get_snapshot(chosen.name)
        kept = self.why_kept(chosen)
        if kept and not chosen.anchor:
            with pytest.raises((BusyError, RetentionError), match=kept):
                snapshot.to_anchor()
            return
        self.both(snapshot.to_anchor, lambda _: self.model.anchor(name), commits=not chosen.anchor)
        assert snapshot.is_anchor

    @precondition(lambda self: 0 < len(self.model.snapshots) < SNAPSHOTS_MAX)
    @rule(number=st.integers(0, SNAPSHOTS_MAX))
    def rollback(self, number: int) -> None:
        target = self.model.snapshots[number % len(self.model.snapshots)]
        if target.anchor:
            with pytest.raises(AnchorError):
                self.volume.rollback(target.name)
            return
        snapshot = self.volume.get_snapshot(target.name)
        self.both(
            lambda: self.volume.rollback(snapshot),
            lambda kept: self.model.rollback(target.name, kept.name if kept else UNKNOWN_NAME),
        )  # fmt: skip

    @rule(blocks=st.one_of(st.integers(1, 40), st.integers(250, 270)), less=st.integers(0, 7))
    def resize(self, blocks: int, less: int) -> None:
        size = blocks * self.model.block_size - 512 * less
        self.both(lambda: self.volume.resize(size), lambda _: self.model.resize(size))
        assert self.volume.size == size

    @rule()
    def reclaim(self) -> None:
        self.volume.reclaim()

    @rule()
    def compact(self) -> None:
        self.both(self.volume.compact)

    @rule()
    def seal(self) -> None:
        self.volume.seal()
        assert self.volume.unsealed_bytes() == 0 == self.volume.stats()["snapshots_unsealed"]

    @rule()
    def seal_a_piece(self) -> None:
        """As the sealer does; what comes of it waits for a checkpoint."""
        number = sealing.oldest_unsealed(self.volume.engine, set())
        if number is not None:
            sealing.step(self.volume.engine, sealing.walk_of(self.volume.engine, number))

    # -- looking ----------------------------------------------------------------------------------------------------
    def snapshots(self) -> list[tuple[Any, ModelSnapshot]]:
        """Those of both sides."""
        shown = self.volume.snapshots()
        wanted = [(each.name, each.hold_reason, each.retain_until, each.anchor) for each in self.model.snapshots]
        assert [(each.name, each.hold_reason, each.retain_until, each.is_anchor) for each in shown] == wanted
        return list(zip(shown, self.model.snapshots, strict=True))

    def versions(self) -> list[tuple[Any, ModelSnapshot]]:
        """The snapshots of both sides, and the live volume as the last one."""
        return [*self.snapshots(), (self.volume, self.model.live_now())]

    def readable(self) -> list[tuple[Any, ModelSnapshot]]:
        """The versions that hold data; that the others do not is seen."""
        versions = self.versions()
        for shown, version in versions:
            if version.anchor:
                for call in (lambda s=shown: s.pread(1, 0), shown.allocated_extents, shown.open):
                    with pytest.raises(AnchorError):
                        call()
        return [(shown, version) for shown, version in versions if not version.anchor]

    @rule(where=fractions, length=lengths)
    def read(self, where: float, length: int) -> None:
        for shown, version in self.readable():
            offset = int(where * version.size)
            length = min(length, version.size - offset)
            assert shown.pread(length, offset) == version.content[offset : offset + length]
            buffer = bytearray(length)
            assert shown.pread_into(buffer, offset) == length
            assert buffer == version.content[offset : offset + length]
            backwards = [(offset, length), (0, offset)]
            buffer = bytearray(offset + length)
            assert shown.pread_many(buffer, backwards) == offset + length
            assert buffer == version.content[offset : offset + length] + version.content[:offset]

    @rule(where=fractions, length=lengths, most=st.integers(1, 4))
    def extents(self, where: float, length: int, most: int) -> None:
        """All pairs, whole and in a range, at once and restarted behind each `most` rows."""
        versions = self.versions()
        for target, new in self.readable():
            start = int(where * new.size)
            length = min(length, new.size - start)
            wanted = self.model.allocated_extents(new)
            assert rows(target.allocated_extents()) == wanted
            assert restarted(target.allocated_extents, most, new.size) == wanted
            assert rows(target.allocated_extents(start, length)) == self.model.allocated_extents(new, start, length)
        for target, new in versions:
            start = int(where * new.size)
            length = min(length, new.size - start)
            for base, old in versions[: len(self.model.snapshots)]:
                if not self.model.comparable(old, new):
                    with pytest.raises(FullBackupRequired):
                        target.changed_extents(base)
                    continue
                wanted = self.model.changed_extents(old, new)
                assert differing(old, new, self.model.block_size) <= set(blocks_of(wanted, self.model.block_size))
                assert rows(target.changed_extents(base)) == wanted
                assert rows(target.changed_extents(base.change_id)) == wanted
                assert restarted(lambda *a, t=target, b=base: t.changed_extents(b, *a), most, new.size) == wanted
                in_range = self.model.changed_extents(old, new, start, length)
                assert rows(target.changed_extents(base, start, length)) == in_range

    @rule()
    def pass_the_end(self) -> None:
        size = self.model.size
        for call in (lambda: self.volume.pread(1, size), lambda: self.volume.pwrite(b"x", size)):
            with pytest.raises(OutOfRangeError):
                call()

    @rule()
    def check(self) -> None:
        assert self.volume.check().problems == []
        assert self.volume.verify().problems == []

    @invariant()
    def contents_agree(self) -> None:
        if self.volume is not None:
            for shown, version in self.readable():
                assert shown.size == version.size
                assert shown.pread(version.size, 0) == version.content


def rows(extents: Any) -> Rows:
    assert extents.dtype == "uint64"
    return [(int(offset), int(length)) for offset, length in extents]


def blocks_of(found: Rows, block_size: int) -> Iterator[int]:
    """The blocks of some rows."""
    for offset, length in found:
        yield from range(offset // block_size, -(-(offset + length) // block_size))


def differing(old: ModelSnapshot, new: ModelSnapshot, block_size: int) -> set[int]:
    """The blocks of the new version whose bytes are not those of the old one: what a list of changes must have."""
    spans = [(at, min(at + block_size, new.size)) for at in range(0, new.size, block_size)]
    return {at // block_size for at, end in spans if new.content[at:end] != old.content[at:end]}


def restarted(extents: Any, most: int, size: int) -> Rows:
    """All rows, asked for `most` at a time from the end of the last one; joined where a row was cut in two."""
    found: Rows = []
    start = 0
    while start < size:
        part = rows(extents(start, None, most))
        assert len(part) <= most
        for offset, length in part:
            assert offset >= start
            if found and sum(found[-1]) == offset:
                found[-1] = (found[-1][0], found[-1][1] + length)
            else:
                found.append((offset, length))
            start = offset + length
        if not part:
            break
    return found


class FileMachine(VolumeMachine):
    """The same on a real file: no Python between the kernels and the kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir=MEMORY)
        self.path = os.path.join(self.folder.name, "volume")
        self.options = {"background": False}

    def teardown(self) -> None:
        super().teardown()
        self.folder.cleanup()
