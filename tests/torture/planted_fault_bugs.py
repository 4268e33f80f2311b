"""Planted bugs of what is done about a call that failed: the machine of tests/model/faults_machine.py finds them."""

from __future__ import annotations

from typing import Any

from planted_machines import Machine
from planting import Plant, bug

from cowengine.core.datapath import DataPath
from cowengine.engine import engine as engine_module
from cowengine.engine.engine import Engine
from cowengine.errors import NoSpaceError, PoisonedError, StorageError
from cowengine.format.layout import SLOT_BYTES

WRITES = Machine(("pwrite", "discard", "write_zeroes", "check", "arm_write"), "faults")
COPIES = Machine(("pwrite", "snapshot", "arm_write"), "faults")
CRASHES = Machine(("pwrite", "crash", "arm_write"), "faults")
BARRIERS = Machine(("pwrite", "flush", "snapshot", "arm_barrier"), "faults")
OPENS = Machine(("pwrite", "reopen", "arm_barrier", "arm_read"), "faults")
DELETES = Machine(("pwrite", "snapshot", "delete", "reopen", "arm_read"), "faults", histories=80)


class Silent(DataPath):
    """A write whose blocks the disk refused counts as done."""

    def pwrite(self, data: Any, offset: int, head: Any = None, done: int = 0, status: int = 0) -> int:
        try:
            return int(super().pwrite(data, offset, head, done, status))
        except StorageError:
            return memoryview(data).nbytes


@bug("I3", WRITES, "a write that the disk refused returns as if it was done")
def error_of_a_data_write_swallowed(plant: Plant) -> None:
    plant.data_path(Silent)


class Forgetful(DataPath):
    """A write that finds the disk full throws away what the open batch has."""

    def pwrite(self, data: Any, offset: int, head: Any = None, done: int = 0, status: int = 0) -> int:
        try:
            return int(super().pwrite(data, offset, head, done, status))
        except NoSpaceError:
            self.take_batch([])
            raise


@bug("I4", CRASHES, "what was written before a full disk is in no record, and the flush behind it says it is durable")
def batch_lost_when_the_disk_is_full(plant: Plant) -> None:
    plant.data_path(Forgetful)


class Doubling(DataPath):
    """The home of a block whose write failed is free for that block, and the next slot for any other."""

    def set_regions(self, regions: Any) -> None:
        self.home = regions[0]
        super().set_regions(regions)

    def pwrite(self, data: Any, offset: int, head: Any = None, done: int = 0, status: int = 0) -> int:
        try:
            return int(super().pwrite(data, offset, head, done, status))
        except (NoSpaceError, StorageError):
            slots, block = self.block_bytes // SLOT_BYTES, offset // self.block_bytes
            _, slot, blocks = self.home
            if block < blocks:
                self.add_runway([(slot + block * slots, slots)])
            raise


@bug("I18", COPIES, "a slot whose write failed is free, and the next one to be given out as well: two get it")
def slot_given_out_twice_after_a_failed_write(plant: Plant) -> None:
    plant.data_path(Doubling)


@bug("I10", BARRIERS, "a poisoned handle commits nothing more, but is read and written as if nothing had happened")
def poisoned_handle_goes_on(plant: Plant) -> None:
    @plant.method(Engine, "poison")
    def poison(original: Any, self: Engine, cause: BaseException) -> PoisonedError:
        self.failure = self.failure or cause
        return PoisonedError(f"a sync or commit failed ({cause})")


@bug("I10", BARRIERS, "a poisoned handle recovers by itself: the call that failed says so, and no later one")
def poisoned_handle_recovers(plant: Plant) -> None:
    @plant.method(Engine, "poison")
    def poison(original: Any, self: Engine, cause: BaseException) -> PoisonedError:
        self._undone = 0
        return PoisonedError(f"a sync or commit failed ({cause})")


@bug("I7", DELETES, "a delete is noted in memory before anything of it can fail, and is undone by the next open")
def delete_noted_before_its_record(plant: Plant) -> None:
    @plant.method(Engine, "_release")
    def release(original: Any, self: Engine, number: int, event: Any, mark: Any) -> None:
        mark(number)
        original(self, number, event, lambda _: None)


@bug("I14", OPENS, "an open that fails leaves its descriptor open, and with it the lock of the owner")
def failed_open_leaves_its_descriptor(plant: Plant) -> None:
    @plant.function(engine_module, "close_unopened")
    def close_unopened(original: Any, io: Any, fd: int) -> None:
        return None
