"""The process that freezes and thaws one file system. Run as a program of its own; imports nothing of cowengine.

Nobody else freezes, so a freeze that hangs and returns late is always followed by the thaw, in the same thread. It
thaws when it is told to, when the deadline has passed, when whoever started it is gone, or on SIGTERM: whatever comes
first. Its memory is locked before the freeze, and it opens and writes no file, so nothing frozen can hold it up.

Arguments   the descriptor of a SOCK_SEQPACKET socket, and one of the file system (any open file on it)
Requests    "sync"; "freeze DEADLINE" (time.monotonic seconds); "thaw"; end of stream: thaw, and end
Answers     "ready" when it runs; then to each request "ok", "error ERRNO", or to a thaw "early" if it thawed before by
            itself, "lost" if somebody else did
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import os
import select
import signal
import socket
import sys
import time

FIFREEZE = 0xC0045877
FITHAW = 0xC0045878
_LOCK_ALL = 3  # MCL_CURRENT | MCL_FUTURE
_WAIT_SECONDS_MAX = 3600.0  # what poll can take, and more


class Watchdog:
    """Answers the requests of one socket about one file system."""

    def __init__(self, control: socket.socket, mount_fd: int, libc: ctypes.CDLL) -> None:
        self._control = control
        self._mount_fd = mount_fd
        self._libc = libc
        self._frozen = False
        self._early = False
        self._deadline = 0.0

    def serve(self, ended: int) -> None:
        """Until the other side hangs up or `ended` can be read; leaves nothing frozen."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(ended, select.POLLIN)
        self._answer(b"ready")
        while True:
            left = max(0.0, self._deadline - time.monotonic())
            ready = {fd for fd, _ in poll.poll(min(left, _WAIT_SECONDS_MAX) * 1000 if self._frozen else None)}
            if ended in ready:
                break
            if not ready:
                self._early = left <= _WAIT_SECONDS_MAX and self._thaw() == b"ok"
                continue
            try:
                request = self._control.recv(64)
            except OSError:
                break
            if not request:
                break
            self._answer(self._carry_out(request))
        if self._frozen:
            self._thaw()

    def _carry_out(self, request: bytes) -> bytes:
        if request == b"sync":
            return b"ok" if self._libc.syncfs(self._mount_fd) == 0 else b"error %d" % ctypes.get_errno()
        if request == b"thaw":
            return self._thaw() if self._frozen else b"early" if self._early else b"lost"
        self._early = False
        self._deadline = float(request.split()[1])
        if time.monotonic() >= self._deadline:
            return b"error %d" % errno.ETIMEDOUT
        try:
            fcntl.ioctl(self._mount_fd, FIFREEZE, 0)
        except OSError as error:
            return b"error %d" % (error.errno or errno.EIO)
        self._frozen = True
        if time.monotonic() >= self._deadline:
            self._thaw()
            return b"error %d" % errno.ETIMEDOUT
        return b"ok"

    def _thaw(self) -> bytes:
        self._frozen = False
        try:
            fcntl.ioctl(self._mount_fd, FITHAW, 0)
        except OSError as error:
            return b"lost" if error.errno == errno.EINVAL else b"error %d" % (error.errno or errno.EIO)
        return b"ok"

    def _answer(self, text: bytes) -> None:
        try:
            self._control.send(text)
        except OSError:
            pass  # whoever asked is gone; the next recv sees it too


def main() -> None:
    """The program."""
    control = socket.socket(fileno=int(sys.argv[1]))
    libc = ctypes.CDLL(None, use_errno=True)
    waker, ended = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)[::-1]
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGTERM, lambda *_: None)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
            score.write("-1000")  # who is out of memory shall not find this one first
    except OSError:
        pass
    gc.disable()
    libc.mlockall(_LOCK_ALL)
    Watchdog(control, int(sys.argv[2]), libc).serve(ended)


if __name__ == "__main__":
    main()
