"""Programs that a mount stands on: run to their end, or started in the background and found again by others.

One in the background writes its process number into a file beside the record before it becomes the program, and each
has that folder's name among its words: so a number that another process got meanwhile is not taken for it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Final

from cowengine.errors import NotFoundError, StorageError
from cowengine.mount.state import Record
from cowengine.oserrors import typed

PACKAGES: Final = {
    "nbdfuse": "Debian, Ubuntu: libnbd-bin; Fedora: nbdfuse",
    "nbdkit": "Debian, Ubuntu: nbdkit; Fedora: nbdkit and nbdkit-cow-filter, nbdkit-nbd-plugin",
    "fusermount3": "Debian, Ubuntu, Fedora: fuse3",
    "losetup": "Debian, Ubuntu: mount; Fedora: util-linux",
    "mount": "Debian, Ubuntu: mount; Fedora: util-linux",
    "umount": "Debian, Ubuntu: mount; Fedora: util-linux",
    "setsid": "util-linux",
}
PATIENCE_SECONDS: Final = 60.0
SAID_MAX: Final = 2000
POLL_SECONDS: Final = 0.01
_BEGIN: Final = 'read -r _; echo $$ >"$0" && exec "$@" </dev/null'
NUMBER_SECONDS: Final = 10.0  # within which a file that was made has its number in it


def require(programs: Sequence[str]) -> None:
    """Raises NotFoundError that names what is missing and the package that has it."""
    missing = [f"{name} ({PACKAGES[name]})" for name in programs if shutil.which(name) is None]
    if missing:
        raise NotFoundError(f"not installed: {'; '.join(missing)}")


def run(*words: str) -> str:
    """What the program prints. Raises StorageError with its complaint if it fails, or takes longer than a minute."""
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
            timeout=PATIENCE_SECONDS, env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise StorageError(f"{words[0]} did not end within {PATIENCE_SECONDS:.0f} s") from None
    if done.returncode:
        raise StorageError(f"{words[0]}: {done.stderr.strip()[-SAID_MAX:] or f'it ended with {done.returncode}'}")
    return done.stdout


class Program:
    """A program of a record, by its step's name; it may have been started by another process, or not at all."""

    def __init__(self, record: Record, name: str) -> None:
        self.record = record
        self.name = name
        self._number_file = record.path(f"{name}.pid")
        self._output = record.path(f"{name}.log")

    def start(self, words: Sequence[str]) -> None:
        """In a session of its own, so that no Ctrl-C reaches it; one of the words must have the record's folder."""
        assert any(self.record.folder in word for word in words)
        with typed(self.record.folder), ExitStack() as stack:
            output = stack.enter_context(open(self._output, "ab"))
            reading, writing = os.pipe()
            stack.callback(os.close, writing)
            stack.callback(os.close, reading)
            # noclobber: the shell makes the file itself or becomes nothing (`forbid`). It waits for the end of its
            # input, when whoever forked it is gone: nbdkit asks for SIGTERM at the death of its parent.
            done = subprocess.run(
                ["setsid", "--fork", "sh", "-C", "-c", _BEGIN, self._number_file, *words],
                stdin=reading, stdout=output, stderr=output, check=False, cwd="/",
            )  # fmt: skip
        if done.returncode:
            raise StorageError(f"{words[0]} could not be started: {self.said()}")

    def number(self) -> int | None:
        """Its process number while it runs."""
        try:
            with open(self._number_file, encoding="ascii") as file:
                number = int(file.read())
            words = b""
            while not words:  # while a process becomes another program it has none
                if _is_over(number):
                    return None
                with open(f"/proc/{number}/cmdline", "rb") as file:
                    words = file.read()
        except (OSError, ValueError):
            return None
        return number if os.fsencode(self.record.folder) in words else None

    def forbid(self) -> None:
        """Nothing is started any more: who was about to finds its number's file made by somebody else."""
        try:
            os.close(os.open(self._number_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            late = time.monotonic() + NUMBER_SECONDS
            while not self._has_number() and time.monotonic() < late:
                time.sleep(POLL_SECONDS)

    def has_ended(self) -> bool:
        """Whether it was started and runs no more."""
        return self._has_number() and self.number() is None  # in this order: the number may be written in between

    def _has_number(self) -> bool:
        with suppress(OSError):
            return os.path.getsize(self._number_file) > 0
        return False

    def said(self) -> str:
        """The end of what it printed."""
        with suppress(OSError), open(self._output, "rb") as file:
            return file.read()[-SAID_MAX:].decode(errors="replace").strip()
        return ""

    def tells(self) -> str:
        """How it is, for an error."""
        return f"{'ended' if self.has_ended() else 'runs'}: {self.said() or 'it said nothing'}"

    def end(self, gently: bool = True) -> None:
        """Ends it if it runs, and waits. Raises StorageError if it does not end within a minute of being asked; then
        it is still there, for what it must still write would be lost.
        """
        number = self.number()
        if number is None:
            return
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGTERM if gently else signal.SIGKILL)
        if not self.wait(PATIENCE_SECONDS):
            raise StorageError(f"process {number} ({self.name}) does not end; look at {self._output}")

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, within so many seconds."""
        late = time.monotonic() + seconds
        while self.number() is not None:
            if time.monotonic() > late:
                return False
            time.sleep(POLL_SECONDS)
        return True


def _is_over(number: int) -> bool:
    """Whether a process has ended and nobody has waited for it. Raises OSError if it is gone."""
    with open(f"/proc/{number}/stat", "rb") as file:
        return file.read().rpartition(b") ")[2][:1] in (b"Z", b"X")
