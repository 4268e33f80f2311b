"""The byte calls of `Volume` and `Snapshot`: what is unusual about one takes another way and comes to the same.

A plain call goes to the data path from core/handle.pyx at once; each test here is of something that is not plain.
"""

from __future__ import annotations

import errno
import gc
import inspect
import pydoc
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

from cowengine import AnchorError, Snapshot, Volume
from cowengine.core.datapath import DataPath
from cowengine.core.iotable import IOTable
from cowengine.errors import (
    BusyError,
    ClosedError,
    NotFoundError,
    OutOfRangeError,
    PoisonedError,
    ReadOnlyError,
    StorageError,
)

BLOCK, SIZE = 4096, 1 << 20
BYTES = bytes(range(251)) * 200
BUSY = 1 << 63  # no call may take this for a small number


class Disk(IOTable):
    """Fails once if it is told to."""

    failing = ""

    def pread_into(self, fd: int, buffer: Any, offset: int) -> int:
        if self.failing == "read":
            self.failing = ""
            raise OSError(errno.EIO, "planted")
        return super().pread_into(fd, buffer, offset)

    def pwrite(self, fd: int, data: Any, offset: int) -> None:
        if self.failing == "write":
            self.failing = ""
            raise OSError(errno.EIO, "planted")
        super().pwrite(fd, data, offset)


class Odd(int):
    """An int that is not exactly one."""


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def volume(tmp_path: Path, disk: Disk) -> Iterator[Volume]:
    with Volume.create(tmp_path / "volume", SIZE, log_size=16384, background=False, io=disk) as volume:
        volume.pwrite(BYTES, 0)
        yield volume


@pytest.fixture(params=["volume", "snapshot", "snapshot not read yet"])
def source(volume: Volume, request: pytest.FixtureRequest) -> Volume | Snapshot:
    """What can be read, and holds BYTES; the snapshot's root is known or not."""
    if request.param == "volume":
        return volume
    snapshot = volume.snapshot("taken")
    if request.param == "snapshot":
        snapshot.pread(1, 0)
    volume.pwrite(bytes(len(BYTES)), 0)
    return snapshot


def all_reads(source: Any, length: int, offset: int) -> list[Callable[[], Any]]:
    return [lambda: source.pread(length, offset), lambda: source.pread_into(bytearray(length), offset)]


# -- numbers -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("one", [True, Odd(1), numpy.uint64(1), numpy.int8(1)], ids=lambda one: type(one).__name__)
def test_whatever_counts_as_an_int_is_one(volume: Volume, source: Volume | Snapshot, one: Any) -> None:
    buffer = bytearray(5)
    assert source.pread(one, one) == BYTES[1:2]
    assert source.pread_into(buffer, one) == 5 and buffer == BYTES[1:6]
    assert volume.pwrite(b"here", one) == 4
    assert volume.pread(4, 1) == b"here"


@pytest.mark.parametrize(
    "wrong", [1.0, "1", None, -1, SIZE + 1, BUSY - 1, BUSY, 1 << 64, (1 << 64) + 1, -1 << 64, numpy.int64(-1)]
)
def test_what_lies_nowhere_is_refused_and_writes_nothing(
    volume: Volume, source: Volume | Snapshot, wrong: Any
) -> None:  # fmt: skip
    buffer, before = bytearray(b"as it was"), volume.pread(SIZE, 0)
    for call in (
        lambda: source.pread(1, wrong), lambda: source.pread(wrong, 0), lambda: source.pread_into(buffer, wrong),
        lambda: volume.pwrite(b"!", wrong),
    ):  # fmt: skip
        with pytest.raises(OutOfRangeError):
            call()
    assert volume.pread(SIZE, 0) == before and buffer == b"as it was"


def test_the_last_byte_can_be_reached_and_the_one_behind_it_not(volume: Volume, source: Volume | Snapshot) -> None:
    assert source.pread(1, SIZE - 1) == b"\0" and source.pread_into(bytearray(1), SIZE - 1) == 1
    assert volume.pwrite(b"!", SIZE - 1) == 1
    for call in (
        lambda: source.pread(2, SIZE - 1), lambda: source.pread_into(bytearray(2), SIZE - 1),
        lambda: volume.pwrite(b"!!", SIZE - 1), lambda: source.pread(SIZE + 1, 0),
        lambda: volume.pwrite(bytes(SIZE + 1), 0),
    ):  # fmt: skip
        with pytest.raises(OutOfRangeError, match=str(SIZE)):
            call()


def test_no_bytes_are_read_and_written_as_well(volume: Volume, source: Volume | Snapshot) -> None:
    for offset in 0, 5, SIZE:
        assert source.pread(0, offset) == b"" and source.pread_into(bytearray(), offset) == 0
        assert volume.pwrite(b"", offset) == 0
    for call in (
        lambda: source.pread(0, SIZE + 1), lambda: source.pread_into(b"", 0), lambda: volume.pwrite(b"", SIZE + 1)
    ):  # fmt: skip
        with pytest.raises(OutOfRangeError):
            call()


# -- buffers -----------------------------------------------------------------------------------------------------------
def test_any_buffer_whose_bytes_lie_one_after_the_other_will_do(volume: Volume, source: Volume | Snapshot) -> None:
    for buffer in bytearray(48), memoryview(bytearray(60))[4:52], numpy.zeros((2, 3)), numpy.zeros(6, ">i8"):
        assert source.pread_into(buffer, 7) == 48  # type: ignore[arg-type]
        assert bytes(buffer) == BYTES[7:55]
        assert volume.pwrite(buffer, 8192) == 48  # type: ignore[arg-type]
        assert volume.pread(48, 8192) == BYTES[7:55]


def released() -> memoryview:
    view = memoryview(bytearray(8))
    view.release()
    return view


def test_what_lends_no_bytes_is_refused_by_its_name(volume: Volume, source: Volume | Snapshot) -> None:
    strided: Any = numpy.zeros(16, "u1")[::2]
    anything: Any
    for anything, said in (("text", "str"), (None, "NoneType"), (5, "int"), (strided, "contiguous"),
                           (memoryview(bytearray(8))[::2], "contiguous"), (released(), "memoryview")):  # fmt: skip
        with pytest.raises(OutOfRangeError, match=said):
            source.pread_into(anything, 0)
        with pytest.raises(OutOfRangeError, match=said):
            volume.pwrite(anything, 0)
    for fixed in b"12345678", memoryview(b"12345678"):
        with pytest.raises(OutOfRangeError, match="read-only"):
            source.pread_into(fixed, 0)


# -- states ------------------------------------------------------------------------------------------------------------
def test_nothing_is_read_or_written_once_it_is_closed(volume: Volume, source: Volume | Snapshot) -> None:
    volume.close()
    for call in [*all_reads(source, 4, 0), lambda: volume.pwrite(b"late", 0), lambda: volume.pwrite(b"", 0)]:
        with pytest.raises(ClosedError):
            call()


def test_nothing_is_read_or_written_once_it_is_poisoned(tmp_path: Path) -> None:
    volume = Volume.create(tmp_path / "volume", SIZE, background=False)
    snapshot = volume.snapshot("taken")
    snapshot.pread(1, 0)
    volume.engine.poison(RuntimeError("planted"))
    for call in [*all_reads(volume, 4, 0), *all_reads(snapshot, 4, 0), lambda: volume.pwrite(b"late", 0)]:
        with pytest.raises(PoisonedError):
            call()
    volume.close()


def test_a_clone_that_was_closed_is_not_the_one_that_is_opened_again(volume: Volume) -> None:
    clone = volume.snapshot("taken").clone("clone")
    clone.pwrite(b"of the clone", 0)
    clone.close()
    again = volume.open_head("clone")
    assert again.pread(12, 0) == b"of the clone"
    for call in [*all_reads(clone, 4, 0), lambda: clone.pwrite(b"late", 0)]:
        with pytest.raises(ClosedError):
            call()
    again.close()


def test_a_volume_that_may_not_be_changed_any_more_refuses_writes(volume: Volume) -> None:
    """As a flattening in place leaves it, if its last step fails."""
    volume.pwrite(b"before", 0)
    volume.engine.path.read_only = True
    assert volume.read_only
    for data in b"after", b"":
        with pytest.raises(ReadOnlyError):
            volume.pwrite(data, 0)
    assert volume.pread(6, 0) == b"before"
    volume.engine.path.read_only = False


def test_the_head_of_another_owner_is_busy_and_its_snapshots_are_not(volume: Volume) -> None:
    volume.snapshot("taken")
    with Volume.open(volume.path, read_only=True) as reader:
        for call in all_reads(reader, 4, 0):
            with pytest.raises(BusyError):
                call()
        with pytest.raises(ReadOnlyError):
            reader.pwrite(b"mine", 0)
        snapshot = reader.get_snapshot("taken")
        buffer = bytearray(4)
        for _ in range(2):
            assert snapshot.pread(4, 7) == BYTES[7:11] and snapshot.pread_into(buffer, 7) == 4
        assert buffer == BYTES[7:11]


def test_an_object_that_was_never_made_is_no_crash() -> None:
    for thing in Volume.__new__(Volume), Snapshot.__new__(Snapshot):
        for call in all_reads(thing, 4, 0):
            with pytest.raises((AttributeError, OutOfRangeError)):
                call()
    with pytest.raises(AttributeError):
        Volume.__new__(Volume).pwrite(b"data", 0)


# -- snapshots that go -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["delete", "to_anchor"])
@pytest.mark.parametrize("was_read", [True, False])
def test_a_snapshot_that_was_given_up_is_not_read(volume: Volume, how: str, was_read: bool) -> None:
    snapshot, other = volume.snapshot("taken"), volume.get_snapshot("taken")
    volume.snapshot("later")
    if was_read:
        assert other.pread(4, 0) == BYTES[:4]
    kept = volume.engine.lineage.root(snapshot.id)  # as by a walk over it
    getattr(snapshot, how)()
    for each in snapshot, other:
        for call in all_reads(each, 4, 0):
            with pytest.raises(AnchorError if how == "to_anchor" else NotFoundError):
                call()
    del kept


def test_a_delete_ends_reads_between_two_of_them(volume: Volume) -> None:
    snapshot, begun, errors = volume.snapshot("taken"), threading.Event(), []

    def read() -> None:
        buffer = bytearray(BLOCK)
        try:
            while True:
                snapshot.pread_into(buffer, BLOCK)
                assert buffer == BYTES[BLOCK : 2 * BLOCK]
                begun.set()
        except NotFoundError as error:
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    begun.wait()
    volume.pwrite(bytes(SIZE), 0)
    snapshot.delete()
    volume.pwrite(b"\xff" * SIZE, 0)
    reader.join()
    assert len(errors) == 1 and "taken" in str(errors[0])


# -- memory ------------------------------------------------------------------------------------------------------------
def test_a_snapshot_object_keeps_nothing_of_the_map(volume: Volume) -> None:
    """Its root goes with the lineage's, and comes back at the next read."""
    lineage = volume.engine.lineage
    snapshot = volume.snapshot("taken")
    volume.pwrite(bytes(len(BYTES)), 0)
    volume.engine.checkpoint()
    assert snapshot.pread(4, 7) == BYTES[7:11]
    root = weakref.ref(lineage.root(snapshot.id))
    lineage.unload_roots()
    lineage.unload_roots()
    assert root() is None and not lineage.loaded_roots
    for _ in range(2):
        assert snapshot.pread(4, 7) == BYTES[7:11]
    assert list(lineage.loaded_roots) == [snapshot.id]
    snapshot.delete()
    volume.engine.commit()
    assert not lineage.loaded_roots and list(lineage._roots) == []


def test_what_is_read_again_is_among_what_can_be_dropped(volume: Volume) -> None:
    """Somebody else keeps the root that the lineage gave up, and so the snapshot finds it still."""
    lineage, path = volume.engine.lineage, volume.engine.path
    snapshot = volume.snapshot("taken")
    volume.pwrite(bytes(len(BYTES)), 0)
    volume.engine.checkpoint()
    assert snapshot.pread(4, 7) == BYTES[7:11]
    kept = lineage.root(snapshot.id)
    lineage.unload_roots()
    lineage.unload_roots()
    assert not lineage.loaded_roots
    path.node_limit = 0
    assert snapshot.pread(4, 7) == BYTES[7:11]
    assert lineage.loaded_roots == {snapshot.id: kept}


def test_a_volume_in_a_ring_goes_with_it(volume: Volume) -> None:
    snapshot = volume.snapshot("taken")
    snapshot.pread(1, 0)
    ring: Any = volume.get_snapshot("taken")
    ring.pread(1, 0)
    ring.itself, gone = ring, weakref.ref(ring)
    del ring
    gc.collect()
    assert gone() is None and snapshot.pread(4, 0) == BYTES[:4]


# -- the size ----------------------------------------------------------------------------------------------------------
def test_another_size_holds_from_the_next_call_on(volume: Volume) -> None:
    snapshot = volume.snapshot("taken")
    volume.resize(SIZE + BLOCK)
    assert volume.pwrite(b"behind", SIZE) == 6 and volume.pread(6, SIZE) == b"behind"
    volume.resize(BLOCK)
    for call in [*all_reads(volume, 1, BLOCK), lambda: volume.pwrite(b"!", BLOCK)]:
        with pytest.raises(OutOfRangeError, match=f"has {BLOCK} bytes"):
            call()
    assert snapshot.pread(SIZE, 0) == BYTES + bytes(SIZE - len(BYTES))
    for call in all_reads(snapshot, 1, SIZE):
        with pytest.raises(OutOfRangeError, match=f"the snapshot has {SIZE} bytes"):
            call()


def test_a_write_that_waits_for_a_shrinking_finds_the_new_size(volume: Volume) -> None:
    path, head, errors = volume.engine.path, volume.engine.path.live, []

    def write() -> None:
        try:
            volume.pwrite(b"!" * BLOCK, SIZE - BLOCK)
        except OutOfRangeError as error:
            errors.append(str(error))

    path.pause((head,))
    writer = threading.Thread(target=write)
    writer.start()
    head.set_size(SIZE // 2)
    path.resume((head,))
    writer.join()
    assert len(errors) == 1 and f"has {SIZE // 2} bytes" in errors[0]
    head.set_size(SIZE)


# -- what a write stops for --------------------------------------------------------------------------------------------
def test_a_write_goes_on_where_it_stopped_for_slots_or_a_commit(tmp_path: Path) -> None:
    size = 16 << 20
    data = b"".join(number.to_bytes(8, "little") for number in range(size // 8))
    with Volume.create(tmp_path / "volume", size, log_size=16384, background=False) as volume:
        volume.pwrite(bytes(size), 0)
        for offset in range(0, size, 2 * BLOCK):  # what is placed anew lies in many runs, and makes many deltas
            volume.discard(offset, BLOCK)
        volume.snapshot("taken")
        volume.pwrite(data[:BLOCK], 0)  # now there are slots for the first piece
        before = volume.stats()
        assert volume.pwrite(data, 0) == size
        after = volume.stats()
        assert after["commits"] > before["commits"]  # the batch was full
        assert after["written_bytes"] - before["written_bytes"] == size  # no piece twice
        assert volume.pread(size, 0) == data


@pytest.mark.parametrize("call", ["read", "write"])
def test_what_fails_is_not_tried_again(disk: Disk, volume: Volume, call: str) -> None:
    disk.failing = call
    with pytest.raises(StorageError):
        volume.pread(BLOCK, 0) if call == "read" else volume.pwrite(b"x" * BLOCK, 0)
    assert disk.failing == "" and volume.pread(4, 0) in (BYTES[:4], b"xxxx")
    snapshot = volume.snapshot("taken")
    snapshot.pread(1, 0)
    disk.failing = "read"
    with pytest.raises(StorageError):
        snapshot.pread_into(bytearray(BLOCK), 0)
    assert disk.failing == ""


# -- as methods of Python ----------------------------------------------------------------------------------------------
def test_they_look_like_methods_of_python() -> None:
    for kind, name, parameters in (
        (Volume, "pwrite", ["self", "data", "offset"]), (Volume, "pread", ["self", "length", "offset"]),
        (Snapshot, "pread_into", ["self", "buffer", "offset"]),
    ):  # fmt: skip
        method = getattr(kind, name)
        assert list(inspect.signature(method).parameters) == parameters
        assert inspect.getdoc(method) and name in pydoc.plain(pydoc.render_doc(method))
    assert not hasattr(Snapshot, "pwrite")


def test_they_can_be_replaced_and_called_by_keyword(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, seen = Volume.pwrite, []

    def noting(self: Volume, data: Any, offset: int) -> int:
        seen.append(offset)
        return plain(self, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(Volume, "pwrite", noting)
        assert volume.pwrite(data=b"noted", offset=BLOCK) == 5 and seen == [BLOCK]
    assert volume.pwrite(offset=BLOCK, data=b"again") == 5 and seen == [BLOCK]
    assert volume.pread(offset=BLOCK, length=5) == b"again"


def test_a_data_path_whose_methods_are_overridden_is_asked_by_them(volume: Volume) -> None:
    """So tests plant bugs in it."""
    asked = []

    class Noting(DataPath):
        def pread(self, length: int, offset: int, root: Any = None) -> bytes:
            asked.append("pread")
            return bytes(length)

        def pread_into(self, buffer: Any, offset: int, length_max: int, root: Any = None) -> int:
            asked.append("pread_into")
            return length_max

        def pwrite(self, data: Any, offset: int, head: Any = None, done: int = 0, status: int = 0) -> int:
            asked.append("pwrite")
            return len(data)

    snapshot = volume.snapshot("taken")
    snapshot.pread(1, 0)
    path = Noting(volume.engine.io, volume.engine.fd, 0, 12, 1 << 16, None, None)
    path.live.set_size(SIZE)
    volume._bind(path, path.live)
    snapshot._bind(path, SIZE)
    assert volume.pread(3, 0) == bytes(3) == snapshot.pread(3, 0)
    assert volume.pread_into(bytearray(3), 0) == 3 == snapshot.pread_into(bytearray(3), 0)
    assert volume.pwrite(b"three", 0) == 5
    assert asked == ["pread"] * 2 + ["pread_into"] * 2 + ["pwrite"]
    volume._bind(volume.engine.path, volume.engine.path.live)
