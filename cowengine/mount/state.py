"""What is mounted: a folder for each mount, in which its record, its block file and its programs' output lie.

Every step is entered into the record before it is done, so whoever finds a record finds all that may be there. Who
works on a mount holds a lock on its folder's `lock` file; a record that nobody holds and that is not `ready` was left
by a command that died.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from cowengine.errors import BusyError, NotFoundError, OutOfRangeError
from cowengine.oserrors import typed

FOLDER_VARIABLE: Final = "COWENGINE_MOUNTS"
RECORD_NAME: Final = "record.json"
LOCK_NAME: Final = "lock"
GONE_PREFIX: Final = "."
BLOCK_FILE_NAME: Final = "disk"
MAKING, READY = "making", "ready"


@dataclass
class Record:
    """One mount: what was asked for, how far it is, and what it stands on."""

    folder: str
    volume: str  # as the user named it
    snapshot: str | None = None
    directory: str | None = None  # where the file system is mounted; None for a bare block file
    device: str | None = None  # the loop device, once it is known
    socket: str = ""  # where its NBD server listens
    export: str = ""
    read_only: bool = False
    state: str = MAKING
    steps: list[str] = field(default_factory=list)  # those begun, in order
    boot: str = ""  # of the kernel and of its table of mounts: what is of another one cannot be seen from here
    namespace: str = ""

    @property
    def id(self) -> str:
        """The name of its folder."""
        return os.path.basename(self.folder)

    @property
    def block_file(self) -> str:
        """The file that nbdfuse makes of the export."""
        return os.path.join(self.folder, BLOCK_FILE_NAME)

    def path(self, name: str) -> str:
        """A file beside the record."""
        return os.path.join(self.folder, name)

    def begin(self, step: str) -> None:
        """Enters a step that is about to be done."""
        self.steps.append(step)
        self.save()

    def save(self) -> None:
        """In one piece, so that nobody reads half of it. A crash of the system takes the mount along, so no sync."""
        written = self.path(RECORD_NAME + ".new")
        with typed(self.folder):
            with open(written, "w", encoding="utf-8") as file:
                json.dump({key: value for key, value in asdict(self).items() if key != "folder"}, file)
            os.rename(written, self.path(RECORD_NAME))

    def remove(self) -> None:
        """Forgets it: nothing of it is left. The name goes first: a program that a dead command was about to start
        looks for its place under it, and must not find it half empty.
        """
        gone = os.path.join(os.path.dirname(self.folder), f"{GONE_PREFIX}{self.id}")
        with suppress(OSError):
            os.rename(self.folder, gone)
        shutil.rmtree(gone, ignore_errors=True)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else works on it meanwhile. Raises BusyError if somebody does, NotFoundError if it is gone."""
        try:
            fd = os.open(self.path(LOCK_NAME), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFoundError("it was unmounted meanwhile", self.folder) from None
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BusyError("another command is mounting or unmounting it; try again", self.folder) from None
            if not os.path.exists(self.path(LOCK_NAME)):
                raise NotFoundError("it was unmounted meanwhile", self.folder)
            yield
        finally:
            os.close(fd)


def mounts_folder() -> str:
    """Where the records lie, made if it is missing: for root in /run, for others in their run-time folder.

    The environment variable COWENGINE_MOUNTS names another. Raises OutOfRangeError if there is none, or somebody else
    could write there.
    """
    chosen = os.environ.get(FOLDER_VARIABLE) or os.path.join(_run_folder(), "cowengine", "mounts")
    folder = os.path.realpath(chosen)
    with typed(folder):
        os.makedirs(folder, mode=0o700, exist_ok=True)
        about = os.stat(folder)
    if about.st_uid != os.geteuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OutOfRangeError(
            f"{folder} must belong to you, and nobody else may write there; set {FOLDER_VARIABLE} to another folder"
        )
    return folder


def _run_folder() -> str:
    if os.geteuid() == 0:
        return "/run"
    folder = os.environ.get("XDG_RUNTIME_DIR")
    if not folder:  # in a folder that others write to, they could exchange what is made there
        raise OutOfRangeError(f"XDG_RUNTIME_DIR is not set; set {FOLDER_VARIABLE} to a folder that is yours alone")
    return folder


@contextmanager
def one_at_a_time(folder: str) -> Iterator[None]:
    """Nobody else makes a record in the folder of records meanwhile; waits for who does."""
    with typed(folder):
        fd = os.open(os.path.join(folder, LOCK_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def new_record(folder: str, volume: str, **about: Any) -> Record:
    """A record with its folder, its lock file and an empty block file."""
    made = Record(os.path.join(folder, secrets.token_hex(4)), volume, **about)
    made.boot, made.namespace = boot_id(), mount_namespace()
    with typed(folder):
        os.mkdir(made.folder, 0o700)
        for name in (LOCK_NAME, BLOCK_FILE_NAME):
            os.close(os.open(made.path(name), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    made.save()
    return made


def records(folder: str) -> list[Record]:
    """All that lie there, oldest first."""
    found: list[Record] = []
    places: list[tuple[int, str]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # unmounted meanwhile
                if entry.is_dir(follow_symlinks=False) and entry.name[0] != GONE_PREFIX:
                    places.append((entry.stat(follow_symlinks=False).st_ctime_ns, entry.path))
    for _, place in sorted(places):
        record = _read(place)
        if record is not None:
            found.append(record)
    return found


def _read(place: str) -> Record | None:
    known = {each.name for each in fields(Record)} - {"folder"}
    try:
        with open(os.path.join(place, RECORD_NAME), encoding="utf-8") as file:
            values = json.load(file)
        return Record(place, **{key: value for key, value in values.items() if key in known})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def remove_unrecorded(folder: str) -> None:
    """Folders without a record were left before their first step, or behind the last. Call it one at a time."""
    with os.scandir(folder) as entries:
        places = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    for place in places:
        if os.path.basename(place)[0] == GONE_PREFIX or not os.path.exists(os.path.join(place, RECORD_NAME)):
            shutil.rmtree(place, ignore_errors=True)


def boot_id() -> str:
    """Which start of the system this is."""
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
    return ""


def mount_namespace() -> str:
    """Which table of mounts this process sees."""
    with suppress(OSError):
        return os.readlink("/proc/self/ns/mnt")
    return ""
