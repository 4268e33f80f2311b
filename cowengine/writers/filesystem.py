"""FileSystemWriter: a mounted file system stands still while its snapshot is taken (FIFREEZE, FITHAW).

What was written to its files before is on its devices then, its journal is empty, and whoever writes waits. ext4, XFS,
btrfs and others can do that.

Invariants
    FW1  The thaw does not depend on this process: a watchdog of its own freezes, and thaws at the deadline or when this
         process is gone (guard.py, watchdog.py).
    FW2  Nothing is frozen that this process needs: its store and what that stands on, the root file system, files that
         it has open for writing, its temporary files, Python itself (needed.py).

Threads: events of one job come from one thread, abort from any.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cowengine.errors import BusyError, NotFoundError, OutOfRangeError, StorageError, WriterError, WriterTimeout
from cowengine.mounts import Mount, MountTable
from cowengine.names import check_path
from cowengine.vss.documents import Component, WriterMetadata
from cowengine.vss.writer import JobView, Level, Writer
from cowengine.writers.guard import Guard, WatchdogGone
from cowengine.writers.needed import check_not_needed

# Others are asked by freezing them for an instant beforehand: a file system cannot be asked in any other way.
_KNOWN_TYPES = {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "gfs2", "jfs", "nilfs2", "xfs"}
_CAP_SYS_ADMIN = 21
_MARGIN = 0.1  # seconds, at most: what is left of a time limit to say that it has passed


class FileSystemWriter(Writer):
    """One mounted file system as a writer.

    `mount_point` is where it is mounted. `volumes` names the volumes of the store that it lies on; the writer takes
    part in the sets that hold them, or in every set if none is named. `store` is the store, or its path: what it needs
    is not frozen, wherever it is open. Needs CAP_SYS_ADMIN.

    `freeze_limit` is in seconds; the watchdog keeps to it by its own clock. A file system must not stand still for
    long: everybody who writes to it waits.
    """

    def __init__(
        self,
        mount_point: str | os.PathLike[str],
        volumes: Sequence[str] = (),
        *,
        store: Any = None,
        name: str | None = None,
        level: Level = "system",
        required: bool = True,
        freeze_limit: float = 60.0,
    ) -> None:
        if isinstance(volumes, str | bytes):
            raise OutOfRangeError("volumes must be a list of names, not one string")
        self.mount_point = os.path.abspath(check_path(mount_point))
        self.volumes = tuple(volumes)
        self.name = name or f"filesystem:{'+'.join(self.volumes) or self.mount_point}"
        self.level = level
        self.required = required
        self.freeze_limit = freeze_limit
        self._store = store
        self._lock = threading.Lock()
        self._guards: dict[str, Guard] = {}  # by job

    def identify(self) -> WriterMetadata:
        """One component, the file system, on the volumes that were named."""
        components = [Component("filesystem", self.volumes, kind="files")] if self.volumes else []
        return WriterMetadata(self.name, components)

    def prepare_snapshot(self, job: JobView) -> Mapping[str, Any]:
        """Refuse what cannot or must not be frozen; start the watchdog; write out what is dirty.

        Raises WriterError (not mounted, needed by this process, cannot be frozen, no right to), NotFoundError,
        StorageError, WriterTimeout.
        """
        if not _may_freeze():
            raise self._error("it takes CAP_SYS_ADMIN (root) to freeze a file system", "prepare_snapshot")
        guard, mount = self._start(job)
        with self._lock:
            previous, self._guards[job.id] = self._guards.get(job.id), guard
        if previous is not None:
            previous.release(0.0)
        self._ask(guard, "sync", job)
        if mount.type not in _KNOWN_TYPES:
            self._ask(guard, f"freeze {job.deadline!r}", job)
            self._ask(guard, "thaw", job)
        return {"filesystem": mount.type}

    def freeze(self, job: JobView) -> None:
        """Stand still; what is dirty is written first.

        Raises BusyError if somebody else has frozen it, WriterTimeout if it does not come to rest in time: it is then
        thawed as soon as it does, WriterError.
        """
        guard = self._guard_of(job)
        if guard is None:
            raise self._error("the job was aborted, or not prepared", "freeze")
        self._ask(guard, f"freeze {job.deadline!r}", job)

    def thaw(self, job: JobView) -> None:
        """Go on. Raises WriterError if it did so before: the set may hold writes that were under way."""
        guard = self._guard_of(job)
        if guard is None:
            return
        try:
            self._ask(guard, "thaw", job)
        finally:
            self._release(job)

    def abort(self, job: JobView) -> None:
        """Go on, if it stands still. Raises WriterTimeout if that hangs; it is done as soon as it can be."""
        if not self._release(job):
            raise WriterTimeout("the file system hangs and is thawed as soon as it goes on", writer=self.name)

    def backup_shutdown(self, job: JobView) -> None:
        """Let go of the mount."""
        self._release(job)

    def _start(self, job: JobView) -> tuple[Guard, Mount]:
        table = MountTable()
        mount = table.of_path(self.mount_point)
        if os.path.realpath(self.mount_point) != mount.point:
            raise self._error(f"nothing is mounted at {self.mount_point}", "prepare_snapshot")
        check_not_needed(mount, table, _paths_of(self._store))
        try:
            fd = os.open(self.mount_point, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise StorageError(f"cannot be opened: {error.strerror}", self.mount_point, error.errno or 0) from error
        if table.of_fd(fd) != mount:
            os.close(fd)
            raise self._error(f"{self.mount_point} was mounted or unmounted just now", "prepare_snapshot")
        return Guard(fd, job.deadline), mount

    def _ask(self, guard: Guard, request: str, job: JobView) -> None:
        """Have the watchdog do it, until the event's deadline; else release it and raise."""
        phase = request.partition(" ")[0]
        left = job.deadline - time.monotonic()
        try:
            answer = guard.ask(request, job.deadline - min(_MARGIN, max(0.0, left) / 10))
        except WatchdogGone as error:
            raise self._error("its watchdog was killed or the job aborted; it was thawed at once", phase) from error
        except WriterTimeout as error:
            self._release(job)
            text = f"the {phase} of {self.mount_point} hangs; it is thawed as soon as it goes on"
            raise WriterTimeout(text, writer=self.name, phase=phase) from error
        if answer == "ok":
            return
        if answer in ("early", "lost"):
            who = "by its watchdog, as the freeze limit had passed," if answer == "early" else "by somebody else"
            raise self._error(f"{self.mount_point} was thawed {who} before the set was finished", phase)
        number = int(answer.partition(" ")[2])
        self._release(job)
        raise self._refusal(number, phase)

    def _refusal(self, number: int, phase: str) -> Exception:
        """What an errno of the freeze means."""
        where = self.mount_point
        if number == errno.EBUSY:
            return BusyError("somebody else has frozen this file system (fsfreeze -u thaws it)", where)
        if number == errno.ETIMEDOUT:
            text = f"{where} came to rest after the freeze limit had passed, and was thawed at once"
            return WriterTimeout(text, writer=self.name, phase=phase)
        if number in (errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS):
            return self._error(f"the file system at {where} cannot be frozen (ext4, XFS and btrfs can)", phase)
        if number in (errno.EPERM, errno.EACCES):
            return self._error(f"this process may not freeze {where}: it takes CAP_SYS_ADMIN (root)", phase)
        return self._error(f"{phase} of {where} failed: {os.strerror(number)}", phase)

    def _error(self, text: str, phase: str) -> WriterError:
        return WriterError(text, writer=self.name, phase=phase)

    def _guard_of(self, job: JobView) -> Guard | None:
        with self._lock:
            return self._guards.get(job.id)

    def _release(self, job: JobView) -> bool:
        """Whether the job's watchdog has ended, and nothing of it is frozen, by the event's deadline."""
        with self._lock:
            guard = self._guards.pop(job.id, None)
        left = job.deadline - time.monotonic()
        return guard is None or guard.release(min(left - min(_MARGIN, left / 10), 5.0))


def _may_freeze() -> bool:
    with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
        mask = next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), 0)
    return bool(mask >> _CAP_SYS_ADMIN & 1)


def _paths_of(store: Any) -> list[str]:
    """The store's folder, and its volume files, some of which may lie elsewhere."""
    if store is None:
        return []
    if isinstance(store, str | bytes | os.PathLike):
        return [check_path(store)]
    paths = [str(store.path)]
    for name in store.volumes():
        try:
            paths.append(str(store.volume_path(name)))
        except (NotFoundError, AttributeError):  # gone meanwhile; or a store that tells no paths
            continue
    return paths


def writers_of_argument(store: Any, argument: str) -> list[Writer]:
    """`--writer filesystem=[VOLUME:]MOUNT_POINT`: entry point "filesystem" of cowengine.configured_writers."""
    volume, separator, mount_point = argument.partition(":/")
    if separator and "/" not in volume:
        return [FileSystemWriter("/" + mount_point, (volume,), store=store)]
    return [FileSystemWriter(argument, store=store)]
