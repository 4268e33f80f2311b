"""Work in a forked child, which shares descriptors and memory with the test."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from importlib import import_module


def in_child(work: Callable[[], object], *, uid: int | None = None) -> str:
    """The class of what `work` raised in a forked child, or "nothing"; as another user if `uid` is given."""
    import_module("numpy")  # the child may not be allowed to read where it lies
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking while threads run is what some tests are about
        child = os.fork()
    if child == 0:
        outcome = "nothing"
        try:
            if uid is not None:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            work()
        except BaseException as error:
            outcome = type(error).__name__
        finally:
            os.write(writer, outcome.encode())
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        outcome = pipe.read().decode()
    os.waitpid(child, 0)
    return outcome
