"""The way from an NBD export to a mounted file system, step by step, and the way back from wherever it stands.

    server    cowengine nbd, where no other process serves the volume
    overlay   nbdkit's cow filter, where what is written shall be thrown away
    fuse      nbdfuse: the export as a file
    loop      a loop device on that file
    mount     the file system on the device

Each step is entered into the record before it is done. `down` takes back what is there, and looks at that instead of
believing the record: a program may have died, a step may never have happened.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import quote

from cowengine import errors
from cowengine.errors import BusyError, CowEngineError, FormatError, OutOfRangeError, StorageError
from cowengine.mount.kernel import is_mounted, loop_devices, users_of
from cowengine.mount.programs import PATIENCE_SECONDS, POLL_SECONDS, Program, run
from cowengine.mount.state import Record
from cowengine.mounts import all_mounts

SOCKET_PATH_MAX: Final = 107
LET_GO_SECONDS: Final = 10.0  # for the kernel to close what nobody uses any more
PASSING_SECONDS: Final = 3.0  # for programs that look at every device there is


class Chain:
    """The steps of one record. The caller holds the record's lock."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.server = Program(record, "server")
        self.overlay = Program(record, "overlay")
        self.fuse = Program(record, "fuse")

    # ---- up ----

    def start_server(self, words: Sequence[str]) -> None:
        """Starts a server that listens at `record.socket`, and waits until it does."""
        self.record.begin("server")
        self._start_listening(self.server, words, self.record.socket)

    def start_overlay(self) -> None:
        """From here on what is written is kept in a temporary file that goes with the overlay."""
        below, export = self.record.socket, self.record.export
        self.record.socket, self.record.export = self.record.path("overlay.sock"), ""
        self.record.begin("overlay")
        words = ["nbdkit", "--foreground", f"--unix={self.record.socket}", "--filter=cow", "nbd"]
        self._start_listening(self.overlay, [*words, f"socket={below}", f"export={export}"], self.record.socket)

    def start_fuse(self, read_only: bool) -> None:
        """The export becomes the record's block file."""
        self.record.begin("fuse")
        uri = f"nbd+unix:///{quote(self.record.export, safe='')}?socket={quote(self.record.socket)}"
        ready = self.record.path("ready")
        words = ["nbdfuse", *(["--readonly"] if read_only else []), "--pidfile", ready, self.record.block_file, uri]
        self.fuse.start(words)
        self._wait(self.fuse, lambda: os.path.exists(ready), "nbdfuse")

    def attach_loop(self, read_only: bool) -> str:
        """A loop device on the block file."""
        self.record.begin("loop")
        words = ["losetup", "--find", "--show", "--direct-io=off", *(["--read-only"] if read_only else [])]
        self.record.device = run(*words, self.record.block_file).strip()
        self.record.save()
        return self.record.device

    def mount(self, directory: str, kind: str, options: Sequence[str]) -> None:
        """Mounts the loop device. Raises FormatError if there is no file system of that kind, or none that is known."""
        assert self.record.device is not None
        self.record.directory = directory
        self.record.begin("mount")
        words = ["mount", *(["-t", kind] if kind else []), *(["-o", ",".join(options)] if options else [])]
        done = _run_unhurried([*words, "--", self.record.device, directory])
        if done.returncode:
            said = done.stderr.strip()
            if "wrong fs type" in said or "unknown filesystem" in said:
                raise FormatError(
                    "there is no file system that could be mounted, or the options do not fit it (the kernel's log may "
                    f"say more): {said}"
                )
            raise StorageError(said or f"mount ended with {done.returncode}")

    def _start_listening(self, program: Program, words: Sequence[str], path: str) -> None:
        if len(os.fsencode(path)) > SOCKET_PATH_MAX:
            raise OutOfRangeError(
                f"the path of a socket has at most {SOCKET_PATH_MAX} bytes, {path} has more; set COWENGINE_MOUNTS to a "
                "folder with a shorter path"
            )
        program.start(words)
        self._wait(program, lambda: listens(path), words[0])

    def _wait(self, program: Program, ready: Callable[[], bool], name: str) -> None:
        late = time.monotonic() + PATIENCE_SECONDS
        while not ready():
            if program.has_ended():
                others = [each for each in (self.server, self.overlay) if each.name in self.record.steps]
                below = "".join(f"; the {each.name} {each.tells()}" for each in others if each is not program)
                raise _told(program.said()) or StorageError(f"{name} {program.tells()}{below}")
            if time.monotonic() > late:
                raise StorageError(f"{name} was not ready within {PATIENCE_SECONDS:.0f} s: {program.said()}")
            time.sleep(POLL_SECONDS)

    # ---- down ----

    def down(self, *, force: bool = False) -> None:
        """Takes back what there is. Raises BusyError that names who uses it, before anything else is taken back.

        With `force` the programs are killed first: what had not reached the server is lost, as if power had failed.
        """
        for program in (self.server, self.overlay, self.fuse):
            program.forbid()
        if force:
            self.fuse.end(gently=False)
            self.overlay.end(gently=False)
        devices = self._devices()
        if self.record.directory is not None:
            self._unmount(self.record.directory, devices)
        else:
            self._require_unused([self.record.block_file, *devices])
        self._detach(devices)
        self.end_fuse()
        self.overlay.end()
        self.server.end()

    def end_fuse(self) -> None:
        """The block file is a plain, empty file again, and nbdfuse has ended."""
        if not is_mounted(self.record.block_file):
            self.fuse.end()  # before it has mounted anything
        late = time.monotonic() + LET_GO_SECONDS
        while is_mounted(self.record.block_file):
            done = _run_unhurried(["fusermount3", "-u", self.record.block_file])
            if done.returncode and time.monotonic() > late:
                self._require_unused([self.record.block_file])
                raise StorageError(f"{self.record.block_file} cannot be unmounted: {done.stderr.strip()}")
            if done.returncode:
                time.sleep(10 * POLL_SECONDS)
        if not self.fuse.wait(LET_GO_SECONDS):
            self.fuse.end()  # it hangs on its server

    def _devices(self) -> list[str]:
        """The loop devices of this record: more than one if the user made some of the block file."""
        return loop_devices(self.record.block_file)

    def _unmount(self, directory: str, devices: Sequence[str]) -> None:
        places = [each.point for each in all_mounts() if each.source in devices]
        others = [place for place in places if place != directory]
        if others:
            raise BusyError(f"its device is mounted at {', '.join(others)}, too; unmount that first")
        while is_mounted(directory) and directory in places:
            top = [each.source for each in all_mounts() if each.point == directory][-1]
            if top not in devices:
                raise BusyError(f"something else ({top}) is mounted over {directory}; unmount that first")
            done = _run_unhurried(["umount", "--", directory])
            if done.returncode and is_mounted(directory):
                if "busy" not in done.stderr:
                    raise StorageError(f"{directory} cannot be unmounted: {done.stderr.strip()}")
                raise BusyError(_in_use(directory, users_of([], below=directory)))
            places.remove(directory)

    def _require_unused(self, paths: Sequence[str]) -> None:
        late = time.monotonic() + PASSING_SECONDS
        while users := users_of(paths):
            if time.monotonic() > late:
                raise BusyError(_in_use(self.record.device or self.record.block_file, users))
            time.sleep(10 * POLL_SECONDS)

    def _detach(self, devices: Sequence[str]) -> None:
        for device in devices:
            run("losetup", "--detach", device)
        late = time.monotonic() + LET_GO_SECONDS
        while self._devices():
            if time.monotonic() > late:
                users = users_of(devices) or ["another mount namespace, a container perhaps, which has the mount still"]
                raise BusyError(
                    f"it is unmounted here, but {', '.join(devices)} is in use by {', '.join(users)}; the rest goes "
                    "with the next umount after that has ended"
                )
            time.sleep(POLL_SECONDS)


def listens(path: str) -> bool:
    """Whether somebody accepts connections at a Unix socket, whose path may be of any length."""
    try:
        folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as tried:
            tried.settimeout(PATIENCE_SECONDS)
            tried.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
    except OSError:
        return False
    finally:
        os.close(folder)
    return True


def _run_unhurried(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """What mounts and unmounts takes as long as the journal, or what is still to be written, is long."""
    return subprocess.run(
        list(words), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
        env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip


def _in_use(what: str, users: Sequence[str]) -> str:
    return f"{what} is in use by {', '.join(users) or 'somebody who cannot be seen from here'}; nothing was undone"


def _told(said: str) -> CowEngineError | None:
    """The error of a command of our own that was asked for JSON, as it was raised there."""
    for line in reversed(said.splitlines()):
        try:
            about = json.loads(line)
            kind = getattr(errors, about["error"])
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
        if isinstance(kind, type) and issubclass(kind, CowEngineError):
            return kind(about["message"])
    return None
