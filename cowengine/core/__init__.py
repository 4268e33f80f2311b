"""The compiled core: I/O table, checksum, radix tree and data path.

It knows blocks, epochs, bytes and file descriptors; paths, names, time and policy are decided above it.
Each module is one extension with a stub beside it; here only sub-interpreters are refused.
"""

from __future__ import annotations

from importlib import import_module


def _is_main_interpreter() -> bool:
    """Whether this is the process's first interpreter; also if this Python has no way to tell."""
    for name in ("_interpreters", "_xxsubinterpreters"):  # as of Python 3.13, and before
        try:
            interpreters = import_module(name)
        except ImportError:
            continue
        return bool(interpreters.get_current() == interpreters.get_main())
    return True


# Before any extension is loaded: one that a sub-interpreter has loaded cannot be loaded by the main one any more. Mutex
# and GIL (core/mutex.pyx) rely on there being one GIL.
if not _is_main_interpreter():
    raise ImportError("cowengine does not work in a sub-interpreter; import it in the main interpreter of the process")
