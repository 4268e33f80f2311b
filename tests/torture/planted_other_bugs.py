"""Planted bugs of sets, adoptions, threads, readers, failing calls, full disks and damaged files."""

from __future__ import annotations

import errno
import os
from typing import Any

from planted_beside import Beside, Readers
from planted_commit_bugs import CHECKPOINTS
from planted_files import Faults, Flips, FullDisk
from planted_hunts import ROTTEN, Adoptions, Crashes, SetCrashes
from planting import Plant, bug

from cowengine.core.checksum import xxh64
from cowengine.core.datapath import DataPath
from cowengine.engine import checkpoint, flatten, intent, setcommit
from cowengine.engine.allocator import Allocator, runs_of
from cowengine.engine.engine import Engine
from cowengine.engine.locks import FileLocks
from cowengine.engine.setcommit import Prepared
from cowengine.errors import StorageError
from cowengine.format import SnapshotEvent, superblock
from cowengine.format.layout import SLOT_BYTES, SUPERBLOCK_CHECKSUM_OFFSET
from cowengine.store.log import StoreLog

ADOPTIONS, FLATTENINGS = Adoptions("adopt"), Adoptions("flatten")


# -- snapshot sets -----------------------------------------------------------------------------------------------------
@bug("I23", SetCrashes(), "one member of a set gets its snapshot durably before the store log has the set")
def set_published_on_one_member_early(plant: Plant) -> None:
    @plant.method(Prepared, "commit_point")
    def commit_point(original: Any, self: Prepared) -> None:
        original(self)
        member = self.members[0]
        event = SnapshotEvent(member.snapshot_id, member.epoch, member.tag, 0, self._name, before=True)
        self._engines[0].commit([event], room_made=True)


@bug("I23", SetCrashes(), "the store log's record of a set is acknowledged without a barrier")
def store_log_without_barrier(plant: Plant) -> None:
    @plant.method(StoreLog, "append")
    def append(original: Any, self: StoreLog, *args: Any) -> Any:
        io, self._io = self._io, Unsynced(self._io)
        try:
            return original(self, *args)
        finally:
            self._io = io


class Unsynced:
    """An I/O table whose barrier does nothing."""

    def __init__(self, io: Any) -> None:
        self._io = io

    def __getattr__(self, name: str) -> Any:
        return (lambda *args: None) if name == "fdatasync" else getattr(self._io, name)


@bug("I23", SetCrashes(), "a set is written down before what its members hold is durable")
def set_before_its_members_are_durable(plant: Plant) -> None:
    @plant.function(setcommit, "_barriers")
    def barriers(original: Any, engines: Any) -> None:
        pass  # this is the bug


@bug("I24", SetCrashes(), "the store log gives a set up before each member's own log holds it")
def set_forgotten_too_early(plant: Plant) -> None:
    @plant.method(StoreLog, "append")
    def append(original: Any, self: StoreLog, *args: Any) -> Any:
        entry = original(self, *args)
        self.advance(entry.sequence)
        return entry


# -- adopting ----------------------------------------------------------------------------------------------------------
@bug("I30", ADOPTIONS, "the intent file is not synced before the image is touched")
def intent_without_its_barrier(plant: Plant) -> None:
    @plant.function(intent, "write_intent")
    def write_intent(original: Any, io: Any, path: str, found: Any) -> None:
        original(Unsynced(io), path, found)


@bug("I30", ADOPTIONS, "the directory of the intent file is not synced before the image is touched")
def intent_without_its_name(plant: Plant) -> None:
    @plant.function(intent, "write_intent")
    def write_intent(original: Any, io: Any, path: str, found: Any) -> None:
        fd = io.open(intent.intent_path(path), os.O_RDWR | os.O_CREAT)
        io.pwrite(fd, intent.encode_intent(found), 0)
        io.fdatasync(fd)
        io.close(fd)


@bug("I30", FLATTENINGS, "on the way back to a raw image both superblocks go together with all else")
def superblocks_go_with_the_rest(plant: Plant) -> None:
    @plant.function(intent, "put_back")
    def put_back(original: Any, io: Any, fd: int, path: str, found: Any) -> None:
        io.pwrite(fd, found.head, 0)
        io.truncate(fd, found.size)
        io.fdatasync(fd)
        intent.remove_intent(io, path)


@bug("I30", FLATTENINGS, "the intent file goes before the raw image is whole")
def intent_removed_too_early(plant: Plant) -> None:
    @plant.function(intent, "put_back")
    def put_back(original: Any, io: Any, fd: int, path: str, found: Any) -> None:
        intent.remove_intent(io, path)
        io.pwrite(fd, found.head, 0)
        io.truncate(fd, found.size)
        io.fdatasync(fd)


@bug("I30", Adoptions("copy"), "the raw image that a volume is copied into has its name before it is whole")
def raw_image_named_too_early(plant: Plant) -> None:
    @plant.function(flatten, "write_image")
    def write_image(original: Any, io: Any, *rest: Any) -> None:
        original(Unsynced(io), *rest)


# -- threads and readers -----------------------------------------------------------------------------------------------
class Hurried(DataPath):
    """The fence of a snapshot waits for no write."""

    def take_batch(self, keep: Any, vouched_max: int = 0, fenced: Any = None) -> Any:
        if fenced is not None:
            self.fence(fenced)
        frozen = [(head, head.frozen) for head in self.heads.values()]
        for head, _ in frozen:
            head.set_epochs(head.epoch, 0)
        try:
            return super().take_batch(keep, vouched_max)
        finally:
            for head, epoch in frozen:
                head.set_epochs(head.epoch, epoch)


@bug("I6", Beside("snapshot_beside_write"), "the fence of a snapshot misses a write in flight")
def write_in_flight_missed_by_the_fence(plant: Plant) -> None:
    plant.data_path(Hurried)


class Racing(DataPath):
    """A write of a part of a block reads the rest before it waits for its turn."""

    def pwrite(self, data: Any, offset: int, head: Any = None, done: int = 0, status: int = 0) -> int:
        size = int(self.block_bytes)
        block, skip = divmod(offset, size)
        if skip + len(data) > size or len(data) == size:
            return super().pwrite(data, offset, head, done, status)
        whole = bytearray(self.pread(size, block * size, head or self.live))
        whole[skip : skip + len(data)] = data
        super().pwrite(whole, block * size, head)
        return len(data)


@bug("I2", Beside("halves_beside"), "two writes of parts of one block copy the rest of it at the same time")
def rest_of_a_block_copied_before_the_wait(plant: Plant) -> None:
    plant.data_path(Racing)


@bug("I5", Beside("delete_beside_read", length=2), "a freed slot comes back while a read may still need it")
def slot_comes_back_under_a_read(plant: Plant) -> None:
    @plant.method(Allocator, "settle")
    def settle(original: Any, self: Allocator, *, punch_later: bool = False) -> None:
        while self.waiting:
            _, runs, _ = self.waiting.popleft()
            for run in runs_of(runs):
                self._punch(*run)
            self.give_back(runs_of(runs))


@bug("I4", Beside("flush_beside_flush"), "a flush counts on a commit that began before it was asked for")
def flush_counts_the_running_commit(plant: Plant) -> None:
    @plant.method(Engine, "flush")
    def flush(original: Any, self: Engine) -> None:
        running = self._takes if self._takes != self._takes_done else None
        with self.lock:
            if running is None or self._takes_done < running:
                self.commit()


@bug("I36", Readers(), "a delete does not heed that another process reads the snapshot")
def pin_of_a_reader_ignored(plant: Plant) -> None:
    plant.value(FileLocks, "is_read", lambda self, number: False)
    plant.value(FileLocks, "claim", lambda self, number: True)


# -- failing calls and full disks --------------------------------------------------------------------------------------
@bug("I10", Faults(), "a checkpoint goes on although the nodes of its lineage table were not written")
def failed_write_of_nodes_ignored(plant: Plant) -> None:
    @plant.function(checkpoint, "_write_lineage")
    def write_lineage(original: Any, engine: Engine, roots: Any) -> None:
        try:
            original(engine, roots)
        except (StorageError, OSError):
            engine.failure = None


class Deaf(DataPath):
    """A write that fails counts as done."""

    def pwrite(self, data: Any, offset: int, head: Any = None, done: int = 0, status: int = 0) -> int:
        try:
            return super().pwrite(data, offset, head, done, status)
        except StorageError:
            return len(data)


@bug("I3", Faults(), "a write that failed is told as done")
def failed_write_told_as_done(plant: Plant) -> None:
    plant.data_path(Deaf)


@bug("P8", FullDisk(), "no slots are kept in reserve for deletes on a full disk")
def reserve_not_kept(plant: Plant) -> None:
    plant.value(Allocator, "fill_reserve", lambda self: None)
    plant.value(Allocator, "_keep", lambda self, runs: self._return(runs))


@bug("P8", FullDisk(), "new space counts as written although the disk was full")
def full_disk_taken_for_room(plant: Plant) -> None:
    @plant.method(Allocator, "_written")
    def written(original: Any, self: Allocator, run: Any, data: bytes) -> bool:
        try:
            self._path.io.pwrite(self._path.fd, data, run[0] * SLOT_BYTES)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
        return True


# -- damaged files -----------------------------------------------------------------------------------------------------
@bug("I11", Crashes(CHECKPOINTS, length=3, plan=ROTTEN), "the checksum of a superblock is not verified")
def superblock_checksum_ignored(plant: Plant) -> None:
    @plant.function(superblock, "decode_superblock")
    def decode(original: Any, data: bytes) -> Any:
        body = data[:SUPERBLOCK_CHECKSUM_OFFSET]
        return original(body + xxh64(body, 0).to_bytes(8, "little"))


@bug("P1", Flips(), "the checksum of a snapshot's metadata is not verified")
def metadata_checksum_ignored(plant: Plant) -> None:
    @plant.method(Engine, "metadata")
    def metadata(original: Any, self: Engine, found: Any) -> bytes:
        if not found.metadata_slot:
            return bytes(original(self, found))
        return self.io.pread(self.fd, found.metadata_bytes, found.metadata_slot * SLOT_BYTES)
