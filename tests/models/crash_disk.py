"""The medium of the models: cells behind a write-back cache, with power cuts, kills, failing barriers and torn writes.

A cell is as much as a model writes at once: a superblock, a record, a block. At a power cut each cell has any of
the values it was given since it was last durable, or is torn. A kill leaves the cache. A barrier that fails leaves
each cell durable, or clean in the cache and old on the disk, or still dirty; the error is told once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

from exploring import Choose, Violation, pick

Cell = tuple[str, Hashable]
Opened = TypeVar("Opened")


class Crash(Exception):
    """The process ends here; what becomes of the machine is chosen where this is caught."""


class BarrierError(Exception):
    """The barrier failed."""


class Disk:
    """What was written, in three states: durable, in the cache, and which writes may be durable."""

    def __init__(self, choose: Choose) -> None:
        self.choose = choose
        self.durable: dict[Cell, Hashable] = {}
        self.cache: dict[Cell, Hashable] = {}
        self.pending: dict[Cell, list[tuple[int, Hashable]]] = {}
        self.serial = 0  # of the last write
        self.fuse: int | None = None  # so many steps until the process ends
        self.fail_in: int | None = None  # so many barriers until one fails
        self.untold = False  # a failed writeback that no barrier has told of

    def _step(self) -> None:
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                raise Crash

    def torn(self) -> Hashable:
        """A value that nobody wrote."""
        self.serial += 1
        return ("torn", self.serial)

    def read(self, cell: Cell) -> Hashable:
        """What the cell holds; None: nothing was written there."""
        return self.cache.get(cell)

    def write(self, cell: Cell, value: Hashable) -> None:
        """Into the cache."""
        self._step()
        self.serial += 1
        self.cache[cell] = value
        self.pending.setdefault(cell, []).append((self.serial, value))

    def barrier(self, began: int | None = None) -> None:
        """The end of a barrier. It covers what was written up to `began`, or all."""
        self._step()
        if self.fail_in is not None:
            self.fail_in -= 1
        failed, self.untold = self.untold or self.fail_in == -1, False
        for cell, writes in list(self.pending.items()):
            covered = [value for serial, value in writes if began is None or serial <= began]
            fate = self.choose(3) if failed and covered else 0  # durable; clean and old on the disk; still dirty
            if covered and fate == 0:
                self.durable[cell] = covered[-1]
            if fate < 2:
                self.pending[cell] = writes[len(covered) :]
                if not self.pending[cell]:
                    del self.pending[cell]
        if failed:
            self.fail_in = None
            raise BarrierError

    def lose(self) -> None:
        """Writeback fails behind everybody's back: pages become clean, and the next barrier tells."""
        for cell in list(self.pending):
            if self.choose(2):
                del self.pending[cell]
                self.untold = True

    def drop_cache(self) -> None:
        """What is clean is read from the disk from now on."""
        for cell in self.cache:
            if cell not in self.pending:
                self.cache[cell] = self.durable.get(cell)

    def power_cut(self) -> None:
        """What was pending arrives or not, each cell for itself."""
        for cell, writes in self.pending.items():
            options = [self.durable.get(cell)] + [value for _, value in writes]
            chosen = self.choose(len(options) + 1)
            self.durable[cell] = options[chosen] if chosen < len(options) else self.torn()
        self.cache, self.pending = dict(self.durable), {}
        self.untold, self.fail_in = False, None

    def end_process(self, how: str) -> None:
        """`power`: a power cut; `kill`: the machine goes on; `lose`: it does, and loses what it should write back."""
        if how == "power":
            self.power_cut()
        elif how == "lose":
            self.lose()


def operate(disk: Disk, trace: list[str], fuse: int | None, operation: Callable[[], str]) -> str:
    """One operation, which may be cut short; returns how the process ends, if it does."""
    disk.fuse = fuse
    try:
        ended = operation()
    except Crash:
        ended = pick(disk.choose, "power kill lose")
        trace[-1] += f", crash: {ended}"
    except BarrierError:
        ended = pick(disk.choose, "power kill")
        trace[-1] += f", barrier failed: {ended}"
    disk.fuse = None
    return ended


def reopened(
    disk: Disk,
    trace: list[str],
    fuse: Callable[[int], int | None],
    open_it: Callable[[], Opened],
    crash: Callable[[str], None],
) -> Opened:
    """What opens after a crash; attempts may be cut short themselves, as `fuse` says of each by its number."""
    for attempt in range(8):
        disk.fuse = fuse(attempt)
        try:
            opened = open_it()
            disk.fuse = None
            return opened
        except Crash:
            how = pick(disk.choose, "power kill lose")
        except BarrierError:
            how = "kill"
        disk.fuse = None
        trace.append(f"opening cut short: {how}")
        crash(how)
    raise Violation("opening does not end")
