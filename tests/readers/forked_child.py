"""Work in a forked child, which shares descriptors and memory with the test."""

from __future__ import annotations

import os
import pkgutil
import signal
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module

import cowengine

HANGS_AFTER = 30  # seconds; what waits for the other end of a pipe would do so for ever


def in_child(work: Callable[[], object], *, uid: int | None = None) -> str:
    """The class of what `work` raised in a forked child, or "nothing"; as another user if `uid` is given."""
    return told_in_child(work, uid=uid).partition(":")[0]


def told_in_child(work: Callable[[], object], *, uid: int | None = None) -> str:
    """As `in_child`, and behind a colon the message. A child that was killed, also for hanging, tells "killed"."""
    _import_all()
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking while threads run is what some tests are about
        child = os.fork()
    if child == 0:
        outcome = "nothing"
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(HANGS_AFTER)
            if uid is not None:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)  # and with it all capabilities go
            work()
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
        finally:
            os.write(writer, outcome.encode())
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        outcome = pipe.read().decode()
    os.waitpid(child, 0)
    return outcome or "killed"


def _import_all() -> None:
    """All that may be imported late: the child may not be allowed to read where it lies."""
    import_module("numpy")
    for module in pkgutil.walk_packages(cowengine.__path__, "cowengine."):
        if not module.name.endswith("__main__"):
            with suppress(ImportError):
                import_module(module.name)
