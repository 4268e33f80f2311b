"""What system tests stand on: stores and volumes served by `cowengine serve` and `cowengine nbd`, and mounts of them.

Everything lies in a folder with a short path of its own, for sockets; whatever happens, nothing is left: servers end
with the test process, mounts are taken down, and what is still there afterwards fails the test.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cowengine import Store
from cowengine.mount import mount_volume, unmount
from cowengine.mount.chain import listens

COMMAND = [sys.executable, "-P", "-m", "cowengine"]
PATIENCE_SECONDS = 60.0
MIB = 1 << 20


def run(*words: object, **settings: Any) -> str:
    """What a program prints; AssertionError with its complaint if it fails."""
    done = subprocess.run(
        [str(word) for word in words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, **settings
    )
    assert done.returncode == 0, f"{' '.join(map(str, words))}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def cowengine(*words: object) -> Any:
    """The JSON document that a command prints."""
    return json.loads(run(*COMMAND, *words, "--json"))


@dataclass
class Server:
    """A server process: where it listens for NBD, and what it printed."""

    process: subprocess.Popen[bytes]
    socket: Path
    log: Path

    def uri(self, export: str = "") -> str:
        """Of one export, as libnbd and QEMU take it."""
        return f"nbd+unix:///{quote(export, safe='')}?socket={self.socket}"

    def kill(self) -> None:
        """As a loss of power, for this process."""
        self.process.kill()
        self.process.wait(PATIENCE_SECONDS)

    def stop(self) -> int:
        """Asks it to end; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_SECONDS)


@contextmanager
def server(socket: Path, log: Path, *words: object) -> Iterator[Server]:
    """A command that serves at `socket`, once it does, until the block ends; with the test process it dies."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *map(str, words)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    made = Server(process, socket, log)
    try:
        late = time.monotonic() + PATIENCE_SECONDS
        while not listens(str(socket)):
            said = log.read_text(errors="replace")[-4000:]
            assert process.poll() is None and time.monotonic() < late, f"the server did not start: {said}"
            time.sleep(0.01)
        yield made
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()


def served_store(store: Path, *options: object) -> Any:
    """`cowengine serve` of a store that exists: a context manager of its Server."""
    return server(store / "run" / "nbd.sock", store.parent / f"{store.name}.log", *COMMAND, "serve", store, *options)


def served_volume(address: object, socket: Path, *options: object) -> Any:
    """`cowengine nbd` of one volume or snapshot: a context manager of its Server; its export is the default one."""
    return server(socket, socket.with_suffix(".log"), *COMMAND, "nbd", address, "--socket", socket, *options)


@dataclass
class Bench:
    """A folder for stores and images, and the mounts that were made while it is there."""

    folder: Path

    def store(self, name: str, **volumes: int) -> Path:
        """A new store with volumes of these sizes in bytes."""
        with Store.create(self.folder / name) as store:
            for volume, size in volumes.items():
                store.create_volume(volume, size)
        return self.folder / name

    def directory(self, name: str) -> Path:
        """An empty directory to mount something at."""
        made = self.folder / name
        made.mkdir()
        return made

    def format(self, volume: object, *mkfs: str, store: object = None) -> None:
        """Makes a file system on a volume, a file or a name in a store: `mkfs` is the command without the device."""
        record = mount_volume(str(volume), store=None if store is None else str(store), loop=True)
        try:
            run(*mkfs, record.device)
        finally:
            unmount(record.id)


@contextmanager
def bench() -> Iterator[Bench]:
    """A Bench; what is mounted when the block ends is taken down, by force if need be."""
    before = os.environ.get("COWENGINE_MOUNTS")
    folder = Path(os.path.realpath(tempfile.mkdtemp(prefix="cow-")))
    os.environ["COWENGINE_MOUNTS"] = str(folder / "mounts")
    try:
        yield Bench(folder)
    finally:
        subprocess.run(
            [*COMMAND, "umount", "--all", "--force"], stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        left = leftovers(folder)
        _clear(folder)
        if before is None:
            del os.environ["COWENGINE_MOUNTS"]
        else:
            os.environ["COWENGINE_MOUNTS"] = before
        assert not left, left


def leftovers(folder: Path) -> list[str]:
    """What is there of mounts, loop devices and programs that have to do with a folder."""
    found = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{folder}/" in line]
    for each in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            found += [f"{each}: {text}" for text in [each.read_text().strip()] if text.startswith(f"{folder}/")]
    return found + [f"process {number}: {words}" for number, words in processes(folder)]


def processes(folder: Path) -> list[tuple[int, str]]:
    """Those whose words name the folder."""
    found = []
    for number in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            words = Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if f"{folder}/" in words and int(number) != os.getpid():
                found.append((int(number), words.strip()))
    return found


def _clear(folder: Path) -> None:
    """By force, in the order in which things stand on one another; then the folder itself."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{folder}/" in line]
    for place in reversed(mounts):
        subprocess.run(["umount", "--lazy", place], check=False, capture_output=True)
    for each in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            if each.read_text().startswith(f"{folder}/"):
                subprocess.run(["losetup", "--detach", f"/dev/{each.parts[3]}"], check=False, capture_output=True)
    for number, _ in processes(folder):
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)
