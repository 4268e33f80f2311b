"""HookWriter: every program in a folder is run with `freeze` before a snapshot and with `thaw` after it.

The folder is laid out as the QEMU guest agent's fsfreeze-hook.d, and its programs run here as they are. What differs:
a program that fails at freeze vetoes the set, each has a time limit, and what it says is kept.

Invariants
    HW1  Each program whose freeze was begun gets its thaw, in the opposite order, also if that freeze failed.
    HW2  Programs of one folder are never run for two jobs at once, from whatever process.

Threads: one job at a time in one object. As an isolated writer, which is the default, it lives in a process of its
own, so that the programs are told to thaw even if the requestor's process is killed.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cowengine.errors import BusyError, OutOfRangeError, StorageError, WriterError
from cowengine.names import check_path
from cowengine.vss.documents import Component, WriterMetadata
from cowengine.vss.writer import JobView, Level, Writer
from cowengine.writers.script import GRACE_SECONDS, Run, run_script
from cowengine.writers.trust import check_trusted

# What editors and packagers leave beside a program, as the guest agent's own list has it.
IGNORED_ENDINGS = (
    "~", ".bk", ".bak", ".orig", ".rej", ".rpmnew", ".rpmorig", ".rpmsave", ".sample",
    ".dpkg-old", ".dpkg-new", ".dpkg-tmp", ".dpkg-dist", ".dpkg-bak", ".dpkg-backup", ".dpkg-remove",
)  # fmt: skip
PROGRAMS_MAX = 1000
_OUTPUT_BYTES_EACH = 4096
_OUTPUT_BYTES_ALL = 1 << 16


class HookWriter(Writer):
    """The programs of one folder as a writer.

    `directory` and its programs must belong to root or this process's user, and nobody else may write to them; names
    that begin with a dot or end as those of IGNORED_ENDINGS are passed over, and so is what is not executable.

    They are called in the order of their names with one argument, `freeze`, and in the opposite order with `thaw`;
    the environment has COWENGINE_JOB, COWENGINE_KIND, COWENGINE_SET and COWENGINE_VOLUMES (one name a line). A status
    other than 0 at freeze is a veto: those that were begun are thawed, and the set is not made. `thaw` must do no harm
    where nothing is frozen.

    `volumes`: the volumes of the store that the application lies on; without any it takes part in every set.
    `script_limit` is in seconds, for each program; all freezes together get at most half of the freeze limit.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        volumes: Sequence[str] = (),
        *,
        name: str | None = None,
        level: Level = "front-end",
        required: bool = True,
        freeze_limit: float = 60.0,
        script_limit: float = 10.0,
        isolated: bool = True,
    ) -> None:
        if isinstance(volumes, str | bytes):
            raise OutOfRangeError("volumes must be a list of names, not one string")
        if not 0 < script_limit < float("inf"):
            raise OutOfRangeError(f"script_limit must be a positive number of seconds, not {script_limit!r}")
        self.directory = os.path.abspath(check_path(directory))
        self.volumes = tuple(volumes)
        self.name = name or f"hook:{os.path.basename(self.directory)}"
        self.level = level
        self.required = required
        self.freeze_limit = freeze_limit
        self.script_limit = script_limit
        self.isolated = isolated
        self._known: set[str] = set()  # jobs that this very object was told of
        self._programs: dict[str, list[str]] = {}  # by job, as they stood when it was prepared
        self._begun: dict[str, list[str]] = {}  # by job, those whose freeze was begun
        self._locks: dict[str, int] = {}

    def identify(self) -> WriterMetadata:
        """One component on the volumes that were named, or none."""
        components = [Component("hooks", self.volumes, kind="files")] if self.volumes else []
        return WriterMetadata(self.name, components)

    def prepare_backup(self, job: JobView) -> None:
        """Remember the job: an abort without it comes to a copy that knows nothing of what was frozen."""
        self._known.add(job.id)

    def prepare_snapshot(self, job: JobView) -> Mapping[str, Any]:
        """Find the programs. Raises WriterError if others could change them, NotFoundError without the folder."""
        self._programs[job.id] = _programs(self.directory)
        return {"programs": [os.path.basename(path) for path in self._programs[job.id]]}

    def freeze(self, job: JobView) -> Mapping[str, Any]:
        """Run all with `freeze`. Raises WriterError if one refuses or takes too long, BusyError (HW2)."""
        self._lock(job)
        self._begun[job.id] = []
        runs: list[Run] = []
        until = time.monotonic() + max(0.0, job.deadline - time.monotonic()) / 2
        programs = self._programs.get(job.id, [])
        try:
            for path in programs:
                limit = min(self.script_limit, until - time.monotonic() - GRACE_SECONDS)
                if limit <= 0:
                    raise WriterError(f"no time was left for {os.path.basename(path)}: raise freeze_limit")
                self._begun[job.id].append(path)
                runs.append(run_script(path, "freeze", self._environment(job), limit, _output_max(programs)))
                if not runs[-1].succeeded:
                    raise WriterError(f"hook {runs[-1].describe()}")
        except WriterError as error:
            reasons = [str(error), *_problems(self._thaw(job))]
            raise WriterError("; ".join(reasons), writer=self.name, phase="freeze") from error
        return {"freeze": [run.to_dict() for run in runs]}

    def thaw(self, job: JobView) -> Mapping[str, Any]:
        """Run all with `thaw`, each whatever the others do. Raises WriterError if one failed."""
        runs = self._thaw(job)
        if problems := _problems(runs):
            raise WriterError("; ".join(problems), writer=self.name, phase="thaw")
        return {"thaw": [run.to_dict() for run in runs if isinstance(run, Run)]}

    def abort(self, job: JobView) -> None:
        """Thaw what was frozen; in a copy made after the first one was lost, all. Raises WriterError if one failed."""
        if job.id not in self._known:
            self._known.add(job.id)
            try:
                self._lock(job)
            except BusyError:  # frozen again already for another job, which will thaw all
                return
            self._begun[job.id] = _programs(self.directory)
        problems = _problems(self._thaw(job))
        if problems:
            raise WriterError("; ".join(problems), writer=self.name, phase="abort")

    def backup_shutdown(self, job: JobView) -> None:
        """Forget the job."""
        self._known.discard(job.id)
        self._programs.pop(job.id, None)

    def _thaw(self, job: JobView) -> list[Run | WriterError]:
        """HW1; no time limit but each program's own: what stands still has to go on."""
        begun = self._begun.pop(job.id, [])
        outcomes: list[Run | WriterError] = []
        for path in reversed(begun):
            try:
                limit = self.script_limit
                outcomes.append(run_script(path, "thaw", self._environment(job), limit, _output_max(begun)))
            except WriterError as error:
                outcomes.append(error)
        lock = self._locks.pop(job.id, None)
        if lock is not None:
            os.close(lock)
        return outcomes

    def _environment(self, job: JobView) -> dict[str, str]:
        """This process's own, and what the job is."""
        return {
            **os.environ,
            "COWENGINE_JOB": job.id,
            "COWENGINE_KIND": job.kind,
            "COWENGINE_SET": job.set_name,
            "COWENGINE_VOLUMES": "\n".join(job.volumes),
        }

    def _lock(self, job: JobView) -> None:
        """HW2, until the thaw; the kernel lets go of it if this process dies."""
        try:
            fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise StorageError(f"cannot be opened: {error.strerror}", self.directory, error.errno or 0) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise BusyError("another job has frozen with the programs of this folder", self.directory) from None
        self._locks[job.id] = fd


def _programs(directory: str) -> list[str]:
    """The programs of the folder in the order of their names."""
    if not stat.S_ISDIR(check_trusted(directory).st_mode):
        raise OutOfRangeError("this is no folder", directory)
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        raise StorageError(f"cannot be listed: {error.strerror}", directory, error.errno or 0) from error
    paths = [os.path.join(directory, name) for name in names if not name.startswith(".")]
    found = [path for path in paths if not path.endswith(IGNORED_ENDINGS) and _is_program(path)]
    if len(found) > PROGRAMS_MAX:
        raise OutOfRangeError(f"{len(found)} programs; {PROGRAMS_MAX} are allowed", directory)
    return found


def _is_program(path: str) -> bool:
    """Whether it is run; what others could change and would be run is refused rather than passed over."""
    return os.path.isfile(path) and os.access(path, os.X_OK) and bool(check_trusted(path))


def _output_max(programs: Sequence[str]) -> int:
    return min(_OUTPUT_BYTES_EACH, _OUTPUT_BYTES_ALL // max(1, len(programs)))


def _problems(outcomes: Iterable[Run | WriterError]) -> list[str]:
    failed = [outcome for outcome in outcomes if isinstance(outcome, WriterError) or not outcome.succeeded]
    return [f"at thaw: {one if isinstance(one, WriterError) else one.describe()}" for one in failed]


def writers_of_argument(store: Any, argument: str) -> list[Writer]:
    """`--writer hook=DIRECTORY`: entry point "hook" of the group cowengine.configured_writers."""
    return [HookWriter(argument)]
