"""Programs that run in the background as long as a subject does, and not longer."""

from __future__ import annotations

import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 60.0  # seconds until a program must have started
FILES = 65536  # that it may have open: a chain of overlays has one for each snapshot
ACCEPTING = "00010000"  # the flag in the list of sockets
GRACE = 10.0  # seconds that it has to end by itself


@contextmanager
def daemon(argv: list[str], log: Path, ready: Callable[[], bool]) -> Iterator[None]:
    """Runs a program until the block ends, once `ready` says that it answers; `log` gets what it prints.

    In a session of its own, so that Ctrl-C reaches only us, who then end it in order; and with the kernel's promise to
    kill it when we die without that.
    """
    files = min(FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", "prlimit", f"--nofile={files}", *argv],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        _wait(process, argv[0], log, ready)
        yield
    finally:
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], name: str, log: Path, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{name} did not start: {said}")
        time.sleep(0.005)


@contextmanager
def short_path(name: str) -> Iterator[Path]:
    """Where a socket may lie: paths of sockets have no more than 107 characters."""
    with tempfile.TemporaryDirectory(prefix="peer-") as folder:
        yield Path(folder, name)


def listens(socket: Path) -> bool:
    """Whether a program accepts connections there: for a moment before, its socket exists and refuses them."""
    with open("/proc/net/unix") as lines:
        return any(line.split()[3] == ACCEPTING and line.endswith(f" {socket}\n") for line in lines)


def run(*argv: str | Path) -> str:
    """Runs a program to its end, returns what it printed; RuntimeError with its complaint if it fails."""
    done = subprocess.run([str(word) for word in argv], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{argv[0]}: {done.stderr.strip()}")
    return done.stdout


def lacking(programs: dict[str, str]) -> list[str]:
    """Which of these programs are not there, each with its Debian package: {"qemu-nbd": "qemu-utils"}."""
    return [f"{program} (apt install {package})" for program, package in programs.items() if not shutil.which(program)]
