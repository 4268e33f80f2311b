"""Exit codes: the one table that says which code a script sees for which outcome.

docs/cli.md and `cowengine help exit-codes` print this table; a test compares them.
"""

from __future__ import annotations

import errno

from cowengine import errors

OK = 0
ERROR = 1
USAGE = 2
DIFFERS = 3
CORRUPT = 4
BUSY = 5
NO_SPACE = 6
WRITER_FAILED = 7
INTERRUPTED = 130

MEANINGS: dict[int, str] = {
    OK: "done",
    ERROR: "failed; the message says why",
    USAGE: "the command or an argument cannot be; nothing was done",
    DIFFERS: "differs or changed (`--exit-code`), or the base does not match and a full backup is needed",
    CORRUPT: "corrupt, or not what it should be: check, verify or a checksum found damage",
    BUSY: "busy, held, retained or owned by another process; try again later",
    NO_SPACE: "no space left, or over the quota",
    WRITER_FAILED: "a writer failed, refused or took too long; no snapshot was made",
    INTERRUPTED: "interrupted, or the job was cancelled",
}

# The first class that fits decides, so a subclass stands before its base.
CLASSES: tuple[tuple[type[BaseException], int], ...] = (
    (errors.OutOfRangeError, USAGE),
    (errors.FullBackupRequired, DIFFERS),
    (errors.UnsupportedVersionError, ERROR),
    (errors.FormatError, CORRUPT),
    (errors.CorruptionError, CORRUPT),
    (errors.BusyError, BUSY),
    (errors.RetentionError, BUSY),
    (errors.NoSpaceError, NO_SPACE),
    (errors.WriterError, WRITER_FAILED),
    (errors.CancelledError, INTERRUPTED),
    (KeyboardInterrupt, INTERRUPTED),
    (errors.CowEngineError, ERROR),
)

ERRNOS: dict[int, int] = {
    errno.ENOSPC: NO_SPACE,
    errno.EDQUOT: NO_SPACE,
    errno.EBUSY: BUSY,
    errno.EAGAIN: BUSY,
    errno.ETXTBSY: BUSY,
}


def exit_code(error: BaseException) -> int:
    """The exit code of an exception: its class's row, then its errno's; one that no row names is `ERROR`."""
    code = next((code for kind, code in CLASSES if isinstance(error, kind)), ERROR)
    if code == ERROR and isinstance(error, OSError) and error.errno is not None:
        return ERRNOS.get(error.errno, ERROR)
    return code


def table() -> list[tuple[int, str, str]]:
    """Rows of (code, meaning, the exception classes and errnos that lead to it)."""
    rows = []
    for code, meaning in MEANINGS.items():
        causes = [kind.__name__ for kind, of_class in CLASSES if of_class == code]
        causes += [errno.errorcode[number] for number, of_errno in ERRNOS.items() if of_errno == code]
        rows.append((code, meaning, ", ".join(causes)))
    return rows
