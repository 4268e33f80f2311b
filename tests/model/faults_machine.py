"""The machine of clones_machine.py on a disk whose calls fail: in whatever it does, and as its model says all the same.

A rule arms a failure: the n-th call of a kind fails in one of the ways in which the system's can, once or for some
operations. What is done next either succeeds, or raises a typed error. The machine then looks what came of it:

  - a handle that was not poisoned shows the state before or after the operation, whole (of a write, sector by sector),
    and every rule goes on with that;
  - a poisoned one says so at every call. The volume is opened again, with the failure still there if it lasts, and
    shows what was acknowledged last or the operation in flight; of what was written since, each sector may be old;
  - all snapshots are what they were, lists of changes between all pairs exact, and no descriptor is left open.
"""

from __future__ import annotations

import copy
import errno
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from clones_machine import ClonesMachine
from doubts import Change, Possible, View, settle
from failing_table import FailingTable
from faulty_disk import ALL, HALF, KINDS, Fault, FaultyDisk, Kind
from hypothesis import strategies as st
from hypothesis.stateful import RULE_MARKER, rule
from memory_disk import Durable
from model_volume import ModelSnapshot, Shared
from other_process import digest
from shared_machine import OTHERS
from volume_machine import SNAPSHOTS_MAX, UNKNOWN_NAME

from cowengine import Volume
from cowengine.errors import CowEngineError, PoisonedError

BARRIER, WRITE = "fdatasync", "pwrite"
READS = ("pread", "pread_into")
OTHER_CALLS = ("open", "punch", "truncate", "lock", "unlock", "locked", "is_file", "size", "stands", "space", "forget")
LONGEST = 5  # operations for which a failure lasts
nths = st.integers(1, 6)
ways = st.integers(0, 7)
lasting = st.one_of(st.just(0), st.integers(1, LONGEST))


class Armed:
    """The n-th call of a kind fails; with `lasts`, all that can in this way until so many operations have met it."""

    def __init__(self, nth: int, call: str, way: int, lasts: int) -> None:
        kinds = [kind for kind in KINDS[call] if kind.number != errno.EINTR]  # the table itself asks again then
        self.call, self.kind = call, kinds[way % len(kinds)]
        self.left, self.lasts = nth, lasts
        self.fault: Fault | None = None

    def of(self, number: int, call: str) -> Kind | None:
        """How a call fails, if it does; `number` counts all calls."""
        if self.fault is None and call == self.call:
            self.left -= 1
            if self.left == 0:
                self.fault = Fault(number, call, self.kind, self.lasts > 0)
        failing = self.fault is not None and call in (BARRIER, WRITE, *READS, *OTHER_CALLS)
        return self.fault.of(number, call) if failing else None


class FaultsMachine(ClonesMachine):
    """Clones, snapshots and all else, on a disk in memory that fails."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Any = FaultyDisk(Durable())
        self.options["io"] = self.disk = self.table
        self.armed: Armed | None = None
        self.changes: list[Change] = []  # since the last commit that was acknowledged
        self.in_flight: list[Change] = []  # of the operation that failed
        self.before: Shared | None = None  # the model as it was, if the operation that failed would have altered more
        self.shown: list[Any] = []  # the snapshots, as they were listed behind the operation before
        self.shown_by: Any = None  # which engine did
        self.identities: dict[str, tuple[Any, ...]] = {}

    def teardown(self) -> None:
        super().teardown()
        if self.volume is not None:
            self.volume.close()  # the newest handle, if it failed while it was opened
        self.require_closed()

    # -- what fails ---------------------------------------------------------------------------------------------------
    @rule(nth=nths, way=ways, lasts=lasting)
    def arm_write(self, nth: int, way: int, lasts: int) -> None:
        self.armed = Armed(nth, WRITE, way, lasts)

    @rule(nth=nths, way=ways, lasts=lasting)
    def arm_barrier(self, nth: int, way: int, lasts: int) -> None:
        self.armed = Armed(nth, BARRIER, way, lasts)

    @rule(nth=nths, call=st.sampled_from(READS), way=ways, lasts=lasting)
    def arm_read(self, nth: int, call: str, way: int, lasts: int) -> None:
        self.armed = Armed(nth, call, way, lasts)

    @rule(nth=nths, call=st.sampled_from(OTHER_CALLS), way=ways, lasts=lasting)
    def arm_other(self, nth: int, call: str, way: int, lasts: int) -> None:
        self.armed = Armed(nth, call, way, lasts)

    # -- under it -----------------------------------------------------------------------------------------------------
    def meet(self, operation: Callable[..., None]) -> None:
        """Does what a rule says while the armed call fails, and settles what came of it."""
        hits, self.in_flight, self.before = len(self.table.hits), [], None
        self.table.watch(self.armed)
        try:
            operation()
            self.table.end()
            assert BARRIER not in [call for call, _ in self.table.hits[hits:]], "a barrier failed, and nobody was told"
        except CowEngineError as error:
            self.table.end()
            if len(self.table.hits) == hits:
                raise
            self.look(error)
        finally:
            self.table.end()
        self.wear_out(len(self.table.hits) > hits)
        self.compare_identities()

    @rule()
    def check(self) -> None:
        hits = len(self.table.hits)
        assert self.volume.check().problems == []
        assert self.volume.verify().problems == [] or len(self.table.hits) > hits  # of blocks that could not be read

    def wear_out(self, hit: bool) -> None:
        if hit and self.armed is not None:
            self.armed.lasts -= 1
            if self.armed.lasts < 0:
                self.armed = None

    def both(
        self, call: Callable[[], Any], expected: Callable[[Any], object] = lambda _: None,
        *, wrote: tuple[int, int] | None = None, commits: bool = True,
    ) -> Any:  # fmt: skip
        old = View.of(self.model, *wrote) if wrote else None
        try:
            result = call()
        except CowEngineError:
            if old is None:
                self.before = copy.deepcopy(self.model.shared)
            expected(None)
            self.in_flight = [] if old is None else self.changed(old, wrote, failed=True)
            self.changes += self.in_flight
            raise
        expected(result)
        if old is not None:
            self.changes += self.changed(old, wrote)
        elif commits:
            self.changes = []
        return result

    def changed(self, old: View, wrote: Any, *, failed: bool = False) -> list[Change]:
        return [Change(self.model.name, old, View.of(self.model, *wrote), failed)]

    # -- what came of it ----------------------------------------------------------------------------------------------
    def look(self, error: CowEngineError) -> None:
        """An operation raised: the volume is looked at, opened again if it has to be, and the model made what it is."""
        chosen, live = self.model.name, self.handles["live"]
        if live.closed and chosen == "live":
            live = self.volume  # which was opened a moment ago, or is closed as well
        is_poisoned = not live.closed and live.engine.failure is not None
        assert is_poisoned or live.closed or not isinstance(error, PoisonedError), "poisoned, and is not"
        if is_poisoned:
            self.require_poisoned()
        gone = is_poisoned or live.closed
        if gone:
            live.close()
            live = self.opened_again()
        self.open_heads(live)
        self.settle(gone)
        self.choose(chosen if chosen in self.handles else "live")
        ClonesMachine.extents(self, 0.4, 70000, 2)

    def require_poisoned(self) -> None:
        """Every call of every handle says it."""
        for handle in self.handles.values():
            if handle.closed:
                continue
            calls: list[Callable[[], Any]] = [
                lambda v=handle: v.pread(1, 0), lambda v=handle: v.pwrite(b"x", 0), handle.flush, handle.snapshots,
                lambda v=handle: v.discard(0, v.size), lambda v=handle: v.write_zeroes(0, 1), handle.engine.checkpoint,
                lambda v=handle: v.snapshot("no"), lambda v=handle: v.resize(v.size + 512), handle.allocated_extents,
                handle.reclaim, handle.compact, handle.seal, handle.check, handle.heads,
            ]  # fmt: skip
            if self.shown_by is handle.engine:
                for snapshot in self.shown:
                    calls += [partial(snapshot.pread, 1, 0), snapshot.delete, partial(snapshot.hold, "x")]
            for call in calls:
                with pytest.raises(PoisonedError):
                    call()

    def opened_again(self) -> Any:
        """The live volume, opened while what lasts goes on failing, and else without that."""
        self.require_closed()
        hits = len(self.table.hits)
        self.table.watch(self.armed)
        try:
            return Volume.open(self.path, **self.options)
        except CowEngineError:
            assert len(self.table.hits) > hits
        finally:
            self.table.end()
        self.require_closed()
        return Volume.open(self.path, **self.options)

    def require_closed(self) -> None:
        assert not self.table.files, "a descriptor is left open"

    def open_heads(self, live: Any) -> None:
        """A handle for each head that there is."""
        old, self.handles = self.handles, {"live": live}
        for name in live.heads()[1:]:
            handle = old.get(name)
            self.handles[name] = live.open_head(name) if handle is None or handle.closed else handle

    def settle(self, gone: bool) -> None:
        """Makes the model the one of the possible states that the volume shows, with the older one `gone` if it is."""
        after = self.model.shared
        states = [(after, self.changes if gone else self.in_flight)]
        if self.before is not None:
            old = (self.before, self.changes if gone else [])
            states = [(after, []), old] if gone else [old, (after, [])]
        faults = []
        for shared, changes in states:
            fault = self.fault_of(shared, changes)
            if fault is None:
                self.model = shared.heads[0]
                if gone or (shared is after and self.before is not None):
                    self.changes = []
                return
            faults.append(fault)
        raise AssertionError(f"neither before nor after the operation: {'; '.join(faults)}")

    def fault_of(self, shared: Shared, changes: list[Change]) -> str | None:
        """What does not fit a state; None if all does, and then the state is what is shown where it was open."""
        heads = [head.name for head in shared.heads]
        if heads != list(self.handles):
            return f"heads {list(self.handles)}, expected {heads}"
        shown = self.handles["live"].snapshots()
        if len(shown) != len(shared.snapshots):
            names = [each.name for each in shared.snapshots]
            return f"snapshots {[each.name for each in shown]}, expected {names}"
        for number, snapshot in enumerate(shown):
            wanted = shared.snapshots[number]
            if wanted.name == UNKNOWN_NAME:
                wanted = shared.snapshots[number] = wanted.renamed(snapshot.name)
            fault = fault_of_snapshot(snapshot, wanted)
            if fault is not None:
                return fault
        faults = (
            settle(head, self.handles[head.name], Possible.after(changes, head.name), shared.snapshots)
            for head in shared.heads
        )
        return next((fault for fault in faults if fault is not None), None)

    def compare_identities(self) -> None:
        """A snapshot is the same one for its whole life."""
        self.shown, self.shown_by = self.volume.snapshots(), self.volume.engine
        identities = {each.name: (each.id, each.epoch, each.change_id, each.created) for each in self.shown}
        for name, identity in identities.items():
            assert self.identities.get(name, identity) == identity
        self.identities = identities


def fault_of_snapshot(shown: Any, wanted: ModelSnapshot) -> str | None:
    found = (shown.name, shown.hold_reason, shown.retain_until, shown.is_anchor, shown.size)
    expected = (wanted.name, wanted.hold_reason, wanted.retain_until, wanted.anchor, wanted.size)
    if found != expected:
        return f"a snapshot {found}, expected {expected}"
    if not wanted.anchor and shown.pread(wanted.size, 0) != wanted.content:
        return f"snapshot {wanted.name} has other bytes"
    return None


def let_fail(machine: type[FaultsMachine]) -> None:
    """Every rule of the machines that it extends meets what is armed."""
    for name in dir(machine):
        marked = getattr(getattr(machine, name), RULE_MARKER, None)
        if marked is None or name.startswith("arm_"):
            continue

        def met(self: FaultsMachine, original: Callable[..., None] = marked.function, **chosen: Any) -> None:
            self.meet(partial(original, self, **chosen))

        met.__name__ = name
        setattr(met, RULE_MARKER, replace(marked, function=met))
        setattr(machine, name, met)


let_fail(FaultsMachine)


class FaultyFile(FailingTable):
    """A real file, of which those calls fail that a FailingTable knows; used as a FaultyDisk is."""

    def __init__(self) -> None:
        super().__init__()
        self.armed: Armed | None = None
        self.hits: list[tuple[str, int]] = []
        self.files: set[int] = set()

    def watch(self, armed: Armed | None) -> None:
        self.armed = armed

    def end(self) -> None:
        self.armed = None

    def _count(self, what: str, fd: int = -1, half: tuple[Any, int] | None = None) -> None:
        self.calls += 1
        kind = None if self.armed is None else self.armed.of(self.calls, what)
        if kind is None:
            return
        self.hits.append((what, fd))
        if half is not None and kind.done in (HALF, ALL):
            data = bytes(half[0])
            os.pwrite(fd, data[: len(data) // 2] if kind.done == HALF else data, half[1])
        raise OSError(kind.number, os.strerror(kind.number))

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        fd = super().open(path, flags, mode)
        self.files.add(fd)
        return fd

    def close(self, fd: int) -> None:
        super().close(fd)
        self.files.remove(fd)


class FaultsOnFileMachine(FaultsMachine):
    """The same on a real file, which another process opens before it is opened again."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = os.path.join(self.folder.name, "volume")
        self.options["io"] = self.disk = self.table = FaultyFile()

    def teardown(self) -> None:
        super().teardown()
        self.folder.cleanup()

    def opened_again(self) -> Any:
        self.require_closed()
        shown = self.shown_elsewhere()
        live = super().opened_again()
        listed = [(s.id, s.name, s.epoch, s.change_id, s.size, s.is_anchor) for s in live.snapshots()]
        digests = [digest(s.pread(s.size, 0)) for s in live.snapshots() if not s.is_anchor]
        assert shown == (listed, digests), "another process saw something else"
        return live

    def shown_elsewhere(self, take: str | None = None) -> tuple[Any, Any]:
        """Another process is the owner for a while: what it sees, and a snapshot that it may take."""
        other = OTHERS.get("owner")
        other.call("open", self.path, False)
        listed = [tuple(each) for each in other.call("listed")]
        names = [name for _, name, *_, is_anchor in listed if not is_anchor]
        for name in names:
            other.call("hold", name)
        digests = [other.call("digest", name) for name in names]
        if take is not None:
            other.call("take", take)
        other.call("close")
        return listed, digests

    @rule()
    def another_owner(self) -> None:
        self.meet(self.leave_to_another)

    def leave_to_another(self) -> None:
        """Closes the volume; another process takes a snapshot of it, if there is room for one."""
        self.serial += 1
        name = f"snapshot {self.serial}" if len(self.model.snapshots) < SNAPSHOTS_MAX else None
        self.choose("live")
        self.both(self.volume.close)
        self.shown_elsewhere(name)
        if name is not None:
            self.model.snapshot(name)
        self.open_heads(Volume.open(self.path, **self.options))
        self.choose("live")
