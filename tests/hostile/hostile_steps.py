"""What a program may do with a volume file that somebody built to do harm: every call, in a child process with limits.

Allowed is a typed error, or data that stays what it was. `attack` forks; the child goes through `STEPS` and tells what
was wrong, or dies, which the parent sees.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import gc
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy  # the child imports nothing: its memory is limited

from cowengine import Snapshot, Volume
from cowengine.engine.check import check_file
from cowengine.engine.lineage import LIVE_NAME
from cowengine.errors import CowEngineError, PoisonedError

assert numpy
TRIES = 3  # a child that could tell nothing at all, for want of memory say, is asked again
FILE_BYTES = 64 << 20
READ_BYTES = 1 << 20
Digests = dict[tuple[str, int], str]


class Wrong(Exception):
    """Something that no hostile file may bring about."""


def _require_typed(error: BaseException) -> None:
    """A PoisonedError hides what interrupted a commit: that, too, is a typed error, or one of the system."""
    while isinstance(error, PoisonedError) and error.__cause__ is not None:
        error = error.__cause__
        if not isinstance(error, OSError | CowEngineError):
            raise Wrong("a volume was poisoned by what is no error of a file") from error


class Session(abc.ABC):
    """A hostile file, what is done with it, and what came of it."""

    address_space = 64 << 20

    def __init__(self, path: Path, seed: int, cpu_seconds: float) -> None:
        self.path = path
        self.rng = random.Random(seed)
        self.cpu_seconds = cpu_seconds
        self.step = ""
        self.note = -1
        self.errors: dict[str, str] = {}

    @abc.abstractmethod
    def run(self) -> None:
        """Everything that is tried."""

    def do(self, step: str, call: Callable[[], Any]) -> Any:
        """What a call returns; None where it raised a typed error. Anything else ends the child."""
        self.step = step
        os.pwrite(self.note, step.ljust(32).encode(), 0)
        signal.setitimer(signal.ITIMER_PROF, self.cpu_seconds)  # its signal ends the process
        try:
            return call()
        except CowEngineError as error:
            f"{error} {error!r}".encode()
            _require_typed(error)
            self.errors[step] = f"{type(error).__name__}: {error}"[:300]
            return None


class VolumeSession(Session):
    """A hostile volume file: every call there is."""

    def __init__(self, path: Path, seed: int, cpu_seconds: float) -> None:
        super().__init__(path, seed, cpu_seconds)
        self.sound = False
        self.before: Digests = {}
        self.gone: set[int] = set()

    def run(self) -> None:
        report = self.do("check", lambda: check_file(str(self.path)))
        self.sound = report is not None and report.ok
        self._look(self.before)
        self._use()
        report = self.do("check again", lambda: check_file(str(self.path)))
        if self.sound:
            if report is None or not report.ok:
                problems = [] if report is None else [text for text in report.problems if "leaked" not in text]
                if report is None or problems:  # space lost is no damage
                    raise Wrong(f"the file was sound and is not: {problems} {self.errors}")
            after: Digests = {}
            self._look(after)
            for key, digest in self.before.items():
                if key[1] not in self.gone and after.get(key) != digest:
                    raise Wrong(f"{key} has other bytes now, or none")

    def _look(self, found: Digests) -> None:
        volume = self.do("open read-only", lambda: Volume.open(self.path, read_only=True, background=False))
        if volume is None:
            return
        self._read_all(volume, found)
        for call in (volume.stats, volume.du, volume.policy, volume.given_up, volume.check):
            self.do(call.__name__, call)
        for name in self.do("heads", volume.heads) or []:
            self._look_at_clone(volume, name, found)
        self.do("close", volume.close)

    def _look_at_clone(self, volume: Volume, name: str, found: Digests) -> None:
        """The digest of a clone, by the number of its record; the live volume is no clone."""
        clone = self.do("open a clone", lambda: volume.open_head(name)) if name != LIVE_NAME else None
        if clone is not None:
            self._read("read a clone", clone, found, (name, volume.engine.lineage.find_head(name).id))
            for base in (self.do("list", volume.snapshots) or [])[:6]:
                self.do("changed, clone", functools.partial(clone.changed_extents, base))
            self.do("close a clone", clone.close)

    def _read_all(self, volume: Volume, found: Digests) -> None:
        snapshots = self.do("list", volume.snapshots) or []
        self.do("live extents", volume.allocated_extents)
        self._read("read the live volume", volume, found, ("", 0))
        for snapshot in snapshots[:20]:
            self._read("read a snapshot", snapshot, found, (snapshot.name, snapshot.id))
            for name in ("metadata", "created", "set_id", "hold_reason", "change_id", "is_anchor"):
                self.do(name, functools.partial(getattr, snapshot, name))
            self.do("space", snapshot.space)
            self.do("changed, live", functools.partial(volume.changed_extents, snapshot))
            for base in snapshots[:6]:
                self.do("changed", functools.partial(snapshot.changed_extents, base))

    def _read(self, step: str, source: Volume | Snapshot, found: Digests, key: tuple[str, int]) -> None:
        """Reads the allocated parts, and some more; notes a digest of what could be read in whole."""
        digest = hashlib.sha256(str(source.size).encode())
        rows = self.do("extents", lambda: source.allocated_extents(max_results=200))
        whole = rows is not None and len(rows) < 200
        left = READ_BYTES
        for offset, length in rows.tolist() if rows is not None else ():
            count = min(length, left)
            data = self.do(step, lambda offset=offset, count=count: source.pread(count, offset))
            whole = whole and data is not None and count == length
            digest.update(f"{offset} ".encode() + (data or b""))
            left -= count
            if left <= 0:
                whole = False
                break
        for _ in range(4):
            length = min(source.size, 10_000)
            offset = self.rng.randrange(source.size - length + 1)
            self.do(step, lambda offset=offset, length=length: source.pread(length, offset))
        if whole:
            found[key] = digest.hexdigest()

    def _use(self) -> None:
        """Opens the file for writing and does everything once, in any order."""
        without_store = self.rng.random() < 0.9
        opened = self.do("open", lambda: Volume.open(self.path, background=False, without_store=without_store))
        if opened is None:
            return
        self.gone.add(0)
        policy = self.do("policy", opened.policy)
        if policy is None or policy.when_full != "fail":  # the file's own policy: snapshots may be given up
            self.sound = False
        self._read_all(opened, {})
        actions: list[Callable[[Volume], None]] = [
            self._write, self._write, self._snapshot, self._snapshot, self._delete, self._delete, self._anchor,
            self._rollback, self._resize, self._compact, self._flatten, self._hold, self._policy, self._discard,
            self._checkpoint, self._seal, self._clone, self._clone, self._use_clone, self._delete_clone,
        ]  # fmt: skip
        self.rng.shuffle(actions)
        for action in actions:
            action(opened)
        self._read_all(opened, {})
        self.do("own check", opened.check)
        if self.rng.random() < 0.2:
            self.do("flatten in place", opened.flatten)
            if opened.closed:
                os._exit(0)  # a raw image now
        self.do("close for writing", opened.close)

    def _pick(self, volume: Volume) -> Snapshot | None:
        snapshots = self.do("list", volume.snapshots)
        return self.rng.choice(snapshots) if snapshots else None

    def _write(self, volume: Volume) -> None:
        length = min(volume.size, self.rng.choice((1, 512, 4096, 30_000)))
        offset = self.rng.choice((0, volume.size - length, self.rng.randrange(volume.size - length + 1)))
        self.do("write", lambda: volume.pwrite(self.rng.randbytes(length), offset))
        self.do("flush", volume.flush)

    def _discard(self, volume: Volume) -> None:
        offset = self.rng.randrange(volume.size)
        length = self.rng.choice((volume.size - offset, self.rng.randrange(volume.size - offset + 1)))
        self.do("discard", lambda: volume.discard(offset, length))
        self.do("write zeros", lambda: volume.write_zeroes(offset, min(length, 100_000)))

    def _snapshot(self, volume: Volume) -> None:
        self.do("snapshot", lambda: volume.snapshot(f"mine {self.rng.random()}", metadata={"mine": 1}))

    def _delete(self, volume: Volume) -> None:
        snapshot = self._pick(volume)
        if snapshot is not None:
            self.gone.add(snapshot.id)
            self.do("delete", snapshot.delete)

    def _anchor(self, volume: Volume) -> None:
        snapshot = self._pick(volume)
        if snapshot is not None:
            self.gone.add(snapshot.id)
            self.do("anchor", snapshot.to_anchor)

    def _rollback(self, volume: Volume) -> None:
        snapshot = self._pick(volume)
        if snapshot is not None:
            self.do("rollback", lambda: volume.rollback(snapshot))

    def _clone(self, volume: Volume) -> None:
        snapshot = self._pick(volume)
        clone = self.do("clone", lambda: snapshot.clone(f"mine {self.rng.random()}")) if snapshot else None
        if clone is not None:
            self._change(clone)

    def _pick_clone(self, volume: Volume) -> str | None:
        names = [name for name in self.do("heads", volume.heads) or [] if name != LIVE_NAME]
        return self.rng.choice(names) if names else None

    def _use_clone(self, volume: Volume) -> None:
        name = self._pick_clone(volume)
        clone = self.do("open a clone", lambda: volume.open_head(name)) if name else None
        if clone is not None:
            self.gone.add(volume.engine.lineage.find_head(name).id)
            self._change(clone)

    def _change(self, clone: Volume) -> None:
        """All that a head has of its own, in any order; it is left closed."""
        actions: list[Callable[[Volume], None]] = [
            self._write, self._write, self._snapshot, self._rollback, self._resize, self._discard, self._compact,
        ]  # fmt: skip
        self.rng.shuffle(actions)
        for action in actions:
            action(clone)
        self._read("read a clone", clone, {}, ("", 0))
        self.do("close a clone", clone.close)

    def _delete_clone(self, volume: Volume) -> None:
        name = self._pick_clone(volume)
        if name:
            self.gone.add(volume.engine.lineage.find_head(name).id)
            self.do("delete a clone", lambda: volume.delete_head(name))

    def _resize(self, volume: Volume) -> None:
        size = self.rng.choice((512, 4096 * 100, volume.size + 4096 * 700, volume.size // 1024 * 512 or 512))
        self.do("resize", lambda: volume.resize(size))

    def _compact(self, volume: Volume) -> None:
        if volume.size < 1 << 40:  # a live volume of many terabytes takes its time, and may
            self.do("compact", volume.compact)

    def _flatten(self, volume: Volume) -> None:
        self.do("flatten", lambda: volume.flatten(self.path.with_suffix(".raw")))

    def _hold(self, volume: Volume) -> None:
        snapshot = self._pick(volume)
        if snapshot is not None:
            self.do("release", snapshot.release)
            self.do("hold", lambda: snapshot.hold("mine"))
            self.do("release", snapshot.release)

    def _seal(self, volume: Volume) -> None:
        self.do("unsealed", volume.unsealed_bytes)
        self.do("seal", volume.seal)
        snapshot = self._pick(volume)
        if snapshot is not None:
            self.do("verify", snapshot.verify)

    def _policy(self, volume: Volume) -> None:
        self.do("policy", lambda: volume.policy(when_full="fail", keep_newest=1, snapshot_bytes_max=0))

    def _checkpoint(self, volume: Volume) -> None:
        self.do("checkpoint", volume.engine.checkpoint)
        self.do("reclaim", volume.reclaim)


def _limit(address_space: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + address_space
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)


def attack(data: bytes, folder: Path, seed: int, cpu_seconds: float = 10.0) -> tuple[str | None, dict[str, str]]:
    """Does everything with these bytes as a volume file. See `run_in_child`."""
    emptied(folder)
    (folder / "v").write_bytes(data)
    return run_in_child(VolumeSession(folder / "v", seed, cpu_seconds), folder / "step")


def emptied(folder: Path) -> None:
    """Removes what an earlier attack left."""
    for old in folder.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink()


def run_in_child(session: Session, note: Path) -> tuple[str | None, dict[str, str]]:
    """Runs a session in a child with limits. Returns what was wrong, if anything, and the typed errors that its steps
    met. The file `note` is where the child writes which step it is at."""
    for _ in range(TRIES):
        told, status = _told_by_child(session, note)
        if told or status:
            break
    errors = told.get("errors", {})
    if told.get("wrong"):
        return told["wrong"], errors
    if status:
        log = note.read_text() if note.exists() else "?"
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {status >> 8}"
        return f"died of {how} in step {log!r}", errors
    return None if told else "the child told nothing", errors


def _told_by_child(session: Session, note: Path) -> tuple[dict[str, Any], int]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _child(session, note, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = json.loads(pipe.read() or b"{}")
    return told, os.waitpid(child, 0)[1]


def _child(session: Session, note: Path, pipe: int) -> None:
    told: dict[str, Any] = {}
    try:
        gc.freeze()  # what a long test run left behind is not this session's to look through, nor to pay for
        session.note = os.open(note, os.O_CREAT | os.O_RDWR, 0o600)
        _limit(session.address_space)
        try:
            session.run()
        except BaseException as error:
            told["wrong"] = f"in step {session.step!r}: {type(error).__name__}"  # if there is no memory for more
            told["wrong"] = f"in step {session.step!r}: {traceback.format_exc(limit=-12)}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        told["errors"] = session.errors
    finally:
        os.write(pipe, json.dumps(told).encode()[:60_000])
        os._exit(0)


@contextlib.contextmanager
def work_folder() -> Iterator[Path]:
    """A folder in memory if there is one: syncing costs nothing there, and none of this is about crashes."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="cowengine-hostile-", dir=memory) as folder:
        yield Path(folder)
