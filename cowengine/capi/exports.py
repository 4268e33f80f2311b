"""The management calls of the C interface, as cffi calls them. What they do and promise stands in cowengine.h.

Loaded by libcowengine.so only, which provides the module `_cowengine_capi`. Reads and writes are in handle.c and come
here when they need something or fail.

Threads   Any. A handle's entry lives until the handle is freed, because its reads use the path and the root unseen.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from _cowengine_capi import ffi, lib

from cowengine.core.calltable import addresses, settle
from cowengine.core.datapath import DataPath
from cowengine.core.roots import Root
from cowengine.engine import memory
from cowengine.errors import BusyError, ClosedError, CorruptionError, CowEngineError, OutOfRangeError
from cowengine.snapshot import Snapshot
from cowengine.volume import Volume

if TYPE_CHECKING:
    from cowengine.extents import ExtentArray

LIVE = (1 << 64) - 1  # the size of what knows its own; as a length: to the end


@dataclass
class Opened:
    """What a handle has open."""

    target: Volume | Snapshot
    volume: Volume
    path: DataPath
    root: Root | None
    closed: bool = False


_opened: dict[int, Opened] = {}


def exported(function: Callable[..., object]) -> Callable[..., object]:
    """Makes a function the C interface's one of that name; what it raises becomes the handle's error and a status."""

    @ffi.def_extern(name=f"py_cowengine_{function.__name__}", error=lib.COWENGINE_INTERNAL)  # type: ignore[untyped-decorator]
    def call(handle: Any, *arguments: Any) -> int:
        try:
            function(handle, *arguments)
        except BaseException as error:
            return failed(handle, error)
        return 0

    return function


def failed(handle: Any, error: BaseException) -> int:
    """Notes an error with its handle; returns its status."""
    text = str(error) if isinstance(error, CowEngineError) else f"{type(error).__name__}: {error}"
    lib.ce_fail(handle, getattr(error, "errno", None) or 0, text.encode("utf-8", "surrogateescape"))
    if isinstance(error, CowEngineError):
        return error.code
    return int(lib.COWENGINE_NO_MEMORY if isinstance(error, MemoryError) else lib.COWENGINE_INTERNAL)


def key_of(handle: Any) -> int:
    return int(ffi.cast("uintptr_t", handle))


def opened(handle: Any) -> Opened:
    """What a handle has open, or ClosedError."""
    found = _opened.get(key_of(handle))
    if found is None or found.closed:
        raise ClosedError("this handle is not open")
    return found


def volume_of(handle: Any) -> Volume:
    """The volume that a handle has open. Raises OutOfRangeError if it is a snapshot."""
    target = opened(handle).target
    if not isinstance(target, Volume):
        raise OutOfRangeError("this handle has a snapshot open, and the call is for volumes")
    return target


def text_of(pointer: Any, what: str) -> str:
    """A string that a caller passed. Raises OutOfRangeError if it is NULL."""
    return os.fsdecode(ffi.string(required(pointer, what)))


def required(pointer: Any, what: str) -> Any:
    """The pointer, unless it is NULL: OutOfRangeError."""
    if pointer == ffi.NULL:
        raise OutOfRangeError(f"{what} is NULL")
    return pointer


def bind(handle: Any, target: Volume | Snapshot, volume: Volume, root: Root | None) -> None:
    """Gives a handle what its reads and writes need."""
    path = volume.engine.path
    size = LIVE if isinstance(target, Volume) else target.size
    writable = isinstance(target, Volume) and not target.read_only
    _opened[key_of(handle)] = Opened(target, volume, path, root)
    lib.ce_bind(handle, *addresses(path, root), size, writable)


def require_unused(handle: Any) -> None:
    """Raises BusyError if a handle was opened before."""
    if key_of(required(handle, "the handle")) in _opened:
        raise BusyError("this handle was opened before; make another one")


def describe(info: Any, snapshot: Snapshot) -> None:
    """Fills a cowengine_snapshot_info."""
    info.id, info.epoch, info.size = snapshot.id, snapshot.epoch, snapshot.size
    info.created_ns = snapshot.created_ns
    info.name, info.change_id = snapshot.name.encode(), snapshot.change_id.encode()


def hand_out(rows: ExtentArray, extents: Any, count: Any) -> None:
    """Copies rows of (offset, length) to the caller's array; a row is a cowengine_extent as it is."""
    ffi.memmove(extents, rows.tobytes(), rows.nbytes)
    count[0] = len(rows)


# -- called by handle.c -----------------------------------------------------------------------------------------------
@ffi.def_extern()  # type: ignore[untyped-decorator]
def py_ready() -> int:
    """Says that this module could be loaded."""
    return 1


@ffi.def_extern(error=lib.COWENGINE_INTERNAL)  # type: ignore[untyped-decorator]
def py_settle(handle: Any, status: int) -> int:
    """A read or write stopped with a kernel's status: gets what it needs, or makes it an error."""
    found = _opened[key_of(handle)]
    try:
        settle(found.path, status)
    except CorruptionError as error:
        snapshot = found.target.name if isinstance(found.target, Snapshot) else None
        return failed(handle, error.found_in(found.volume.path, snapshot))
    except BaseException as error:
        return failed(handle, error)
    return 0


@ffi.def_extern()  # type: ignore[untyped-decorator]
def py_trim(handle: Any) -> int:
    """After a read that found more of the map in memory than there should be."""
    found = _opened[key_of(handle)]
    engine = found.volume.engine
    if isinstance(found.target, Snapshot):
        with suppress(CowEngineError):
            engine.lineage.root(found.target.id)  # what is read now is among what can be unloaded
    memory.trim(engine)
    return 0


@ffi.def_extern()  # type: ignore[untyped-decorator]
def py_release(handle: Any) -> int:
    """The handle is about to be freed."""
    close_quietly(handle)
    _opened.pop(key_of(handle), None)
    return 0


@ffi.def_extern()  # type: ignore[untyped-decorator]
def py_close_all() -> int:
    """The process ends, or the Python of a program that had one: closes every volume."""
    for key in list(_opened):
        close_quietly(ffi.cast("cowengine_handle *", key))
    return 0


atexit.register(py_close_all)


def close_quietly(handle: Any) -> None:
    """Closes where nobody can be told of an error any more; the engine has logged it."""
    try:
        close(handle)
    except Exception as error:
        failed(handle, error)


# -- handles ----------------------------------------------------------------------------------------------------------
@exported
def create(handle: Any, path: Any, size: int, block_size: int) -> None:
    require_unused(handle)
    volume = Volume.create(text_of(path, "the path"), size, block_size=block_size or 4096)
    bind(handle, volume, volume, None)


@exported
def open(handle: Any, path: Any, flags: int) -> None:
    require_unused(handle)
    if flags & ~lib.COWENGINE_OPEN_READ_ONLY:
        raise OutOfRangeError(f"flags {flags:#x}: not all of them are known")
    volume = Volume.open(text_of(path, "the path"), read_only=bool(flags & lib.COWENGINE_OPEN_READ_ONLY))
    bind(handle, volume, volume, None)


@exported
def close(handle: Any) -> None:
    found = _opened.get(key_of(handle))
    if found is None or found.closed:
        return
    found.closed = True
    lib.ce_unbind(handle)
    if isinstance(found.target, Volume):
        found.target.close()


@exported
def geometry(handle: Any, size: Any, block_size: Any) -> None:
    target = opened(handle).target
    if size != ffi.NULL:
        size[0] = target.size
    if block_size != ffi.NULL:
        block_size[0] = target.block_size


# -- the live volume --------------------------------------------------------------------------------------------------
@exported
def discard(handle: Any, offset: int, length: int) -> None:
    volume_of(handle).discard(offset, length)


@exported
def flush(handle: Any) -> None:
    volume_of(handle).flush()


@exported
def rollback(handle: Any, name: Any, info: Any) -> None:
    replaced = volume_of(handle).rollback(text_of(name, "the name"))
    if info != ffi.NULL:
        describe(info, replaced)


# -- snapshots --------------------------------------------------------------------------------------------------------
@exported
def snapshot(handle: Any, name: Any, info: Any) -> None:
    taken = volume_of(handle).snapshot(text_of(name, "the name"))
    if info != ffi.NULL:
        describe(info, taken)


@exported
def list_snapshots(handle: Any, start: int, infos: Any, infos_max: int, count: Any) -> None:
    required(count, "the count")
    if infos_max:
        required(infos, "the array")
    found = volume_of(handle).snapshots(start, infos_max)
    for number, each in enumerate(found):
        describe(infos[number], each)
    count[0] = len(found)


@exported
def open_snapshot(handle: Any, name: Any, into: Any) -> None:
    require_unused(into)
    volume = volume_of(handle)
    found = volume.get_snapshot(text_of(name, "the name"))
    found.pread(min(1, found.size), 0)  # raises what every read of it would
    bind(into, found, volume, volume.engine.lineage.root(found.id))


@exported
def delete_snapshot(handle: Any, name: Any) -> None:
    volume_of(handle).get_snapshot(text_of(name, "the name")).delete()


# -- extents ----------------------------------------------------------------------------------------------------------
@exported
def allocated_extents(handle: Any, start: int, length: int, extents: Any, extents_max: int, count: Any) -> None:
    required(extents, "the array"), required(count, "the count")
    target = opened(handle).target
    hand_out(target.allocated_extents(start, None if length == LIVE else length, extents_max), extents, count)


@exported
def changed_extents(
    handle: Any, base: Any, start: int, length: int, extents: Any, extents_max: int, count: Any
) -> None:
    required(extents, "the array"), required(count, "the count")
    target = opened(handle).target
    known = text_of(base, "the base")
    hand_out(target.changed_extents(known, start, None if length == LIVE else length, extents_max), extents, count)
