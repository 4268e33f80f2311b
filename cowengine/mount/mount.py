"""Mounting a volume or a snapshot, and unmounting: checks what is asked for, builds the chain, takes it down."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

from cowengine.errors import BusyError, CowEngineError, ExistsError, NotFoundError, OutOfRangeError
from cowengine.filesystems import START_BYTES, FileSystem, probe
from cowengine.mount.chain import Chain, listens
from cowengine.mount.kernel import is_mounted
from cowengine.mount.programs import require
from cowengine.mount.state import (
    READY,
    Record,
    boot_id,
    mount_namespace,
    mounts_folder,
    new_record,
    one_at_a_time,
    records,
    remove_unrecorded,
)
from cowengine.mounts import all_mounts
from cowengine.oserrors import typed
from cowengine.store.names import volume_file
from cowengine.volume import Volume

SERVED: Final = "run"  # below a store: the folder of its sockets
NBD_SOCKET: Final = "nbd.sock"


def mount_volume(
    volume: str,
    directory: str | None = None,
    *,
    store: str | None = None,
    snapshot: str | int | None = None,
    read_only: bool = False,
    writable: bool = False,
    kind: str = "",
    options: str = "",
    loop: bool = False,
) -> Record:
    """Mount the file system of a volume, a file or in a `store` the name of one, at an empty `directory`.

    Without `directory` there is only a block file, and with `loop` a loop device on it. A served store serves the
    volume; else a server is started, which `unmount` ends. A `snapshot` is mounted read-only, and never written to:
    what its journal must write when it is mounted goes to an overlay that is thrown away; `writable` makes that the
    place of all writes. `kind` and `options` are those of mount(8).

    What is flushed in the file system (fsync) is durable in the volume. Everything but a block file needs root. Raises
    NotFoundError, OutOfRangeError, BusyError, ExistsError (the directory is not empty), FormatError (no file system),
    StorageError; nothing is left behind then.
    """
    folder = mounts_folder()
    sweep()
    place = None if directory is None else _checked_directory(directory)
    if writable and (snapshot is None or read_only):
        raise OutOfRangeError("writable is for snapshots: what is written there is thrown away; not with read-only")
    if (place is not None or loop) and os.geteuid() != 0:
        raise OutOfRangeError("mounts and loop devices need root; as another user, ask for the block file (--device)")
    volume, store = os.path.realpath(volume) if store is None else volume, store and os.path.realpath(store)
    name, system = _looked_at(volume, store, snapshot)
    overlay = writable or (name is not None and place is not None and system.writes_when_mounted)
    needed = ["nbdfuse", "fusermount3", "setsid"]
    needed += (
        ["nbdkit"] * overlay + ["losetup"] * (loop or place is not None) + ["mount", "umount"] * (place is not None)
    )
    require(needed)

    address = volume if store is None else f"{store}:{volume}"
    is_read_only = read_only or (name is not None and not writable)
    with ExitStack() as stack:
        with one_at_a_time(folder):
            remove_unrecorded(folder)
            _require_alone(folder, address, name, is_read_only, place)
            record = new_record(folder, address, snapshot=name, directory=place, read_only=is_read_only)
            stack.enter_context(record.held())  # before a sweep can take it for one that somebody left
        try:
            with typed(record.folder):
                _up(Chain(record), volume, store, overlay=overlay, loop=loop, kind=kind, options=options)
        except BaseException:
            _undo(record)
            raise
    return record


def unmount(target: str, *, force: bool = False) -> Record:
    """Take a mount down, by its directory, its block file, its loop device or its id, however much of it is there.

    Raises NotFoundError, and BusyError that names who uses it: then it stays as it was. With `force` its programs are
    killed first, for one that hangs: what had not reached the server is lost, as if power had failed.
    """
    path = os.path.realpath(target)
    for record in records(mounts_folder()):
        if target == record.id or path in (record.directory, record.block_file, record.device):
            _take_down(record, force)
            return record
    raise NotFoundError("nothing that cowengine mounted", target)


def unmount_all(*, force: bool = False) -> tuple[list[Record], list[tuple[Record, CowEngineError]]]:
    """Take all mounts down, newest first; those that could not be, each with its error, stay."""
    done, left = [], []
    for record in reversed(records(mounts_folder())):
        try:
            _take_down(record, force)
            done.append(record)
        except CowEngineError as error:
            left.append((record, error))
    return done, left


def mounted() -> list[Record]:
    """All mounts that there are, oldest first, in whatever state."""
    return records(mounts_folder())


def sweep() -> list[Record]:
    """Take down what commands that died left half made, and what lost one of its programs; what is busy stays.

    Returns what is gone now.
    """
    gone = []
    for record in records(mounts_folder()):
        if record.boot == boot_id() and record.namespace != mount_namespace():
            continue  # it cannot be seen from here what is there
        with suppress(CowEngineError):
            with _held(record):
                if not _is_dead(record):
                    continue
                _down_and_forget(record, False)
            gone.append(record)
    return gone


# -- what is asked for -------------------------------------------------------------------------------------------------
def _checked_directory(directory: str) -> str:
    place = os.path.realpath(directory)
    if is_mounted(place):
        raise BusyError("something is mounted there already; unmount it, or choose another directory", directory)
    try:
        names = os.listdir(place)
    except FileNotFoundError:
        raise NotFoundError("there is no such directory; make it first", directory) from None
    except NotADirectoryError:
        raise OutOfRangeError("a file system is mounted at a directory, this is a file", directory) from None
    except PermissionError:
        raise OutOfRangeError("you may not read this directory", directory) from None
    if names:
        raise ExistsError("the directory is not empty: a mount would hide what it holds; choose another", directory)
    return place


def _looked_at(volume: str, store: str | None, snapshot: str | int | None) -> tuple[str | None, FileSystem]:
    """The snapshot's name, and what file system it holds. Raises NotFoundError if there is no such thing."""
    path = volume if store is None else volume_file(store, volume)
    if not os.path.exists(path):
        raise NotFoundError("there is no such volume", path)
    if snapshot is None:
        return None, FileSystem("", b"", True)
    with Volume.open(path, read_only=True) as opened:
        found = opened.get_snapshot(snapshot)
        return found.name, probe(bytes(found.pread(min(START_BYTES, found.size), 0)))


def _require_alone(folder: str, volume: str, snapshot: str | None, read_only: bool, place: str | None) -> None:
    """Two file systems that write to one volume would destroy it."""
    for record in records(folder):
        if place is not None and record.directory == place:
            raise BusyError(f"another mount ({record.id}) has this directory", place)
        if record.volume != volume:
            continue
        where = record.directory or record.block_file
        if "server" in record.steps:
            raise BusyError(
                f"it is mounted at {where} and served for that alone; several mounts of a volume and its snapshots "
                "need a served store (cowengine serve)",
                volume,
            )
        if record.snapshot is None and snapshot is None and not (read_only and record.read_only):
            raise BusyError(f"it is mounted at {where}; a volume is mounted once, or several times read-only", volume)


# -- up ----------------------------------------------------------------------------------------------------------------
def server_words(address: str, snapshot: str | None, socket: str) -> list[str]:
    """The command that serves one volume or snapshot for one mount."""
    source = address if snapshot is None else f"{address}@{snapshot}"
    return [sys.executable, "-P", "-m", "cowengine", "nbd", source, "--socket", socket, "--json"]


def _up(
    chain: Chain, volume: str, store: str | None, *, overlay: bool, loop: bool, kind: str, options: str
) -> None:  # fmt: skip
    record = chain.record
    if store is not None and listens(os.path.join(store, SERVED, NBD_SOCKET)):
        # By a link: the path of a store may be longer than that of a socket may be.
        os.symlink(os.path.join(store, SERVED), record.path(SERVED))
        record.socket = os.path.join(record.path(SERVED), NBD_SOCKET)
        record.export = volume if record.snapshot is None else f"{volume}@{record.snapshot}"
    else:
        record.socket = record.path(NBD_SOCKET)
        chain.start_server(server_words(record.volume, record.snapshot, record.socket))
    if overlay:
        chain.start_overlay()
    is_fixed = record.read_only and not overlay
    chain.start_fuse(is_fixed)
    if record.directory is not None or loop:
        chain.attach_loop(is_fixed)
    if record.directory is not None:
        chain.mount(record.directory, kind, _mount_options(record, options))
    record.state = READY
    record.save()


def _mount_options(record: Record, options: str) -> list[str]:
    given = [each for each in options.split(",") if each]
    with open(record.block_file, "rb") as file:
        system = probe(file.read(START_BYTES))
    if system.kind == "btrfs" and os.path.exists(f"/sys/fs/btrfs/{_written(system.uuid)}"):
        raise BusyError(
            f"a btrfs with the same id ({_written(system.uuid)}) is mounted, its origin perhaps: the kernel takes both "
            "for one file system and would mix them up; unmount that one first, or read this one on another machine"
        )
    if system.kind == "xfs" and "nouuid" not in given:
        if record.snapshot is not None:
            given.append("nouuid")  # its origin has the same id, and may be mounted
        else:
            _require_unknown_xfs(system.uuid)
    return [*given, "ro"] if record.read_only else given


def _require_unknown_xfs(uuid: bytes) -> None:
    for each in all_mounts():
        start = b""
        if each.type == "xfs":
            with suppress(OSError), open(each.source, "rb") as device:
                start = device.read(START_BYTES)
        if probe(start).uuid == uuid:
            raise BusyError(
                f"an XFS with the same id ({_written(uuid)}) is mounted at {each.point}; if this one is a copy of it, "
                "add -o nouuid"
            )


def _written(uuid: bytes) -> str:
    text = uuid.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


# -- down --------------------------------------------------------------------------------------------------------------
def _undo(record: Record) -> None:
    """After a failure, whose error counts; what cannot be undone now, the next sweep tries again."""
    with suppress(CowEngineError, OSError):
        _down_and_forget(record, False)


@contextmanager
def _held(record: Record) -> Iterator[None]:
    """As `Record.held`, of a record that is not just being made: its maker holds it then."""
    with ExitStack() as stack:
        with one_at_a_time(os.path.dirname(record.folder)):
            stack.enter_context(record.held())
        yield


def _take_down(record: Record, force: bool) -> None:
    with _held(record):
        if record.boot == boot_id() and record.namespace != mount_namespace():
            raise BusyError("it was mounted in another mount namespace; unmount it there", record.directory)
        _down_and_forget(record, force)


def _down_and_forget(record: Record, force: bool) -> None:
    if record.boot == boot_id():
        require(
            ["fusermount3", *(["losetup"] if "loop" in record.steps else []), *(["umount"] * ("mount" in record.steps))]
        )
        with typed(record.folder):
            Chain(record).down(force=force)
    record.remove()


def _is_dead(record: Record) -> bool:
    """Whether nobody can use it any more: left half made, or without one of its parts. Nobody works on it."""
    if record.boot != boot_id() or record.state != READY:
        return True
    chain = Chain(record)
    programs = [each for each in (chain.server, chain.overlay, chain.fuse) if each.name in record.steps]
    if any(each.number() is None for each in programs):
        return True
    return record.directory is not None and not is_mounted(record.directory, record.device)


def describe(record: Record) -> dict[str, object]:
    """A mount as scripts see it."""
    return {
        "id": record.id,
        "volume": record.volume,
        "snapshot": record.snapshot,
        "directory": record.directory,
        "device": record.device,
        "block_file": record.block_file,
        "read_only": record.read_only,
        "overlay": "overlay" in record.steps,
        "own_server": "server" in record.steps,
        "state": record.state,
    }


__all__: Sequence[str] = ["describe", "mount_volume", "mounted", "sweep", "unmount", "unmount_all"]
