"""Guard: this process's side of a watchdog, which freezes and thaws one file system.

    ask("freeze ...")  ->  ask("thaw")  ->  release()

Invariants
    GD1  After `release`, or when this process dies, nothing of the watchdog's stays frozen: it thaws when the socket
         ends. If it is killed, this process thaws in its place, at once, as nobody is left who watches the time.
    GD2  No call waits longer than it was told to, also where the kernel hangs in the freeze: it hangs in the watchdog.

Threads: one thread asks; `release` may come from another at any time and ends what is being asked.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

from cowengine.errors import WriterError, WriterTimeout
from cowengine.writers.watchdog import FITHAW

_PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "watchdog.py")
_START_SECONDS = 30.0
_WAIT_SECONDS_MAX = 86400.0  # for what has no deadline


class WatchdogGone(WriterError):
    """The watchdog ended, or was told to, before it answered."""


class Guard:
    """One watchdog process. Raises WriterError if it cannot be started."""

    def __init__(self, mount_fd: int, until: float) -> None:
        """Takes `mount_fd` over. `until` in time.monotonic seconds: how long to wait for the process."""
        self._mount_fd = mount_fd
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._released = self._closed = False
        self._finished = threading.Event()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = ours
        command = [sys.executable, "-I", "-S", _PROGRAM, str(theirs.fileno()), str(mount_fd)]
        try:
            with theirs:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    pass_fds=[theirs.fileno(), mount_fd],
                    start_new_session=True,  # a Ctrl-C at this process's terminal is not meant for it
                )
        except OSError as error:
            ours.close()
            os.close(mount_fd)
            raise WriterError(f"the watchdog cannot be started with {sys.executable!r}: {error.strerror}") from error
        threading.Thread(target=self._await_end, name="cowengine watchdog", daemon=True).start()
        try:
            self._answer("start", min(until, time.monotonic() + _START_SECONDS))
        except WriterError:
            self.release(0.0)
            raise

    @property
    def pid(self) -> int:
        """The watchdog's process id."""
        return self._process.pid

    def ask(self, request: str, until: float) -> str:
        """The answer to one request (see watchdog.py). `until` in time.monotonic seconds.

        Raises WriterTimeout if there is none by then, WatchdogGone if there will be none.
        """
        with suppress(OSError):  # gone, or closed: the answer says so
            self._socket.send(request.encode())
        return self._answer(request.partition(" ")[0], until)

    def release(self, seconds: float) -> bool:
        """Have the watchdog thaw and end; wait at most `seconds`. False if it has not ended by then: it will (GD1).

        Idempotent, from any thread.
        """
        with self._lock:
            first, self._released = not self._released, True
        if first:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
            self._process.send_signal(signal.SIGCONT)  # somebody may have stopped it
        has_ended = self._finished.wait(max(0.0, seconds))
        self._close_if_done()
        return has_ended

    def _answer(self, event: str, until: float) -> str:
        with self._asking:
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            if not poll.poll(min(max(0.0, until - time.monotonic()), _WAIT_SECONDS_MAX) * 1000):
                raise WriterTimeout(f"the {event} has not ended in time")
            try:
                answer = self._socket.recv(64).decode()
            except OSError:
                answer = ""
        if not answer:
            raise WatchdogGone(f"the watchdog ended during the {event}")
        return answer

    def _await_end(self) -> None:
        """In a thread of its own: however the watchdog ends, nothing stays frozen (GD1)."""
        if self._process.wait() != 0:
            with suppress(OSError):  # EINVAL: nothing is frozen
                fcntl.ioctl(self._mount_fd, FITHAW, 0)
        self._finished.set()
        self._close_if_done()

    def _close_if_done(self) -> None:
        """When the watchdog has ended and nobody will ask any more."""
        with self._asking, self._lock:
            if self._released and self._finished.is_set() and not self._closed:
                self._closed = True
                self._socket.close()
                os.close(self._mount_fd)
