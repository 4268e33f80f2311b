"""The disk in memory, with one call that fails in one of the ways in which the system's can, or all from then on."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from memory_disk import Durable, MemoryDisk

NOTHING, HALF, ALL = "nothing", "half", "all"  # how much of the call was done although it failed
FATES = {"durable": 0, "lost": 1, "dirty": 2}  # of the pages that a failed barrier should have covered


@dataclass(frozen=True)
class Kind:
    """A way to fail. Number 0 is no error: the call did less than it was asked to, and says so."""

    number: int
    done: str = NOTHING

    def __str__(self) -> str:
        name = errno.errorcode[self.number] if self.number else "short"
        return name if self.done == NOTHING else f"{name}:{self.done}"


def kinds(*numbers: int, done: str = NOTHING) -> tuple[Kind, ...]:
    """Errors after which as much was done."""
    return tuple(Kind(number, done) for number in numbers)


EIO, EINTR, ENOSPC, EDQUOT = errno.EIO, errno.EINTR, errno.ENOSPC, errno.EDQUOT
FULL = (ENOSPC, EDQUOT)
OPENED = kinds(EIO, EINTR, errno.ENOMEM, errno.EMFILE)
NAMED = kinds(EIO, EINTR, *FULL) + kinds(EIO, done=ALL)
KINDS: dict[str, tuple[Kind, ...]] = {
    "open": OPENED,
    "create": OPENED + kinds(*FULL),
    "size": kinds(EIO),
    "stands": kinds(EIO),
    "is_folder": kinds(EIO),
    "space": kinds(EIO, EINTR),
    "pread_into": kinds(EIO, EINTR),
    "pread": kinds(EIO, EINTR),
    "pwrite": kinds(EIO, ENOSPC) + kinds(EIO, EINTR, *FULL, done=HALF) + kinds(EIO, done=ALL),
    "fdatasync": tuple(Kind(EIO, fate) for fate in FATES) + kinds(*FULL, done="lost") + kinds(EINTR, done="dirty"),
    "truncate": kinds(EIO, EINTR, *FULL) + kinds(EIO, done=ALL),
    "punch": kinds(EIO, EINTR, ENOSPC, errno.EOPNOTSUPP),
    "forget": kinds(EIO),
    "lock": kinds(EIO, EINTR, errno.ENOLCK),
    "unlock": kinds(EIO, errno.ENOLCK),
    "locked": kinds(EIO, EINTR),
    "is_sole": kinds(EIO),
    "next_data": kinds(EIO),
    "copy_range": kinds(EIO, EINTR, *FULL) + kinds(EIO, done=HALF) + (Kind(0, HALF), Kind(0)),
    "sync_directory": kinds(EIO, EINTR, ENOSPC, errno.EMFILE) + kinds(EIO, done=ALL),
    "rename": NAMED,
    "unlink": NAMED,
    "mkdir": NAMED,
    "rmdir": NAMED,
    "names": kinds(EIO, errno.ENOMEM),
    "is_file": kinds(EIO),
    "same_file_system": kinds(EIO),
}
ONE_EACH = {  # and what a full memory does, a full table of descriptors does as well
    call: tuple({kind.number: kind for kind in reversed(each) if kind.number != errno.ENOMEM}.values())
    for call, each in KINDS.items()
}
BARRIERS = ("fdatasync", "sync_directory")


@dataclass(frozen=True)
class Fault:
    """Call number `at` (from 1), which must be a `call`, fails; with `for_ever` all later ones that can in this way."""

    at: int
    call: str
    kind: Kind
    for_ever: bool = False

    def __str__(self) -> str:
        return f"{self.at}/{self.call}/{self.kind}/{'for-ever' if self.for_ever else 'once'}"

    def of(self, number: int, call: str) -> Kind | None:
        """How a call fails, if it does. A full disk fails its barriers only if it was a barrier that began it."""
        if number == self.at:
            return self.kind
        if not self.for_ever or number < self.at:
            return None
        if self.kind.number in FULL and call in BARRIERS and self.call not in BARRIERS:
            return None
        if self.kind.number == errno.EOPNOTSUPP or call == self.call:
            return self.kind if call == self.call else None
        return next((kind for kind in KINDS[call] if kind.number == self.kind.number), None)


def faults_of(calls: list[str], *, briefly: bool = False) -> list[Fault]:
    """Each call in each way, once and for ever. What is interrupted or short is so once.

    Briefly: each error number in one way.
    """
    return [
        Fault(at, call, kind, for_ever)
        for at, call in enumerate(calls, 1)
        for kind in (ONE_EACH if briefly else KINDS)[call]
        for for_ever in (False, True)
        if not for_ever or kind.number not in (0, EINTR)
    ]


class FaultyDisk(MemoryDisk):
    """Counts the calls while it is watched, and fails them as a `Fault` says. Threads call it one at a time."""

    def __init__(self, durable: Durable) -> None:
        super().__init__(durable)
        self.calls: list[str] = []
        self.hits: list[tuple[str, str]] = []  # call and path, of those that failed
        self.fault: Fault | None = None
        self.watched = self.inside = False
        self.threads = ""  # only calls of threads count whose name begins so
        self.turn = threading.RLock()

    def watch(self, fault: Fault | None) -> None:
        """From now on calls count."""
        self.watched, self.fault = True, fault

    def end(self) -> None:
        """All is well again; no call counts any more."""
        self.watched, self.fault = False, None

    def failed(self, *calls: str, path: str | None = None) -> bool:
        """Whether one of these calls failed, of that file."""
        return any(call in calls and path in (None, where) for call, where in self.hits)

    def counted(self, name: str, original: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """A call from outside; a subclass of the table calls itself, too."""
        with self.turn:
            if self.inside or not self.watched or not threading.current_thread().name.startswith(self.threads):
                return original(self, *args)
            call = "create" if name == "open" and args[1] & os.O_CREAT else name
            self.calls.append(call)
            kind = self.fault.of(len(self.calls), call) if self.fault is not None else None
            self.inside = True
            try:
                return original(self, *args) if kind is None else self._fail(call, kind, original, args)
            finally:
                self.inside = False

    def _fail(self, call: str, kind: Kind, original: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        path = args[0] if isinstance(args[0], str) else self.files[args[0]].path
        self.hits.append((call, path))
        if kind.number == 0:
            return original(self, *args[:-1], args[-1] // 2) if kind.done == HALF else 0
        if call == "fdatasync":
            self.fail_barrier, self.fate = 0, lambda: FATES[kind.done]
            try:
                original(self, *args)
            except OSError:
                pass
        elif kind.done == ALL:
            original(self, *args)
        elif kind.done == HALF and call == "pwrite":
            data = bytes(args[1])
            original(self, args[0], data[: len(data) // 2], args[2])
        elif kind.done == HALF:
            original(self, *args[:-1], args[-1] // 2)
        raise OSError(kind.number, os.strerror(kind.number), path)


def _counted(name: str) -> Callable[..., Any]:
    original = getattr(MemoryDisk, name)

    def call(self: FaultyDisk, *args: Any) -> Any:
        return self.counted(name, original, args)

    return call


for _name in KINDS.keys() - {"create"}:
    setattr(FaultyDisk, _name, _counted(_name))
