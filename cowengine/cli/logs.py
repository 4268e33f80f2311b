"""What the engine and its servers log, on stderr as a command's own messages are: for commands that run for long."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from cowengine.cli.output import Output


class _ToOutput(logging.Handler):
    def __init__(self, out: Output) -> None:
        super().__init__(logging.WARNING)
        self._out = out

    def emit(self, record: logging.LogRecord) -> None:
        try:
            # A traceback is for --debug and for who configures logging; here a message is one line.
            self._out.log(record.levelname.lower(), record.getMessage(), logger=record.name)
        except Exception:
            self.handleError(record)


@contextmanager
def logged_to(out: Output) -> Iterator[None]:
    """Warnings and errors of all parts of cowengine go to stderr, one line each."""
    handler = _ToOutput(out)
    logger = logging.getLogger("cowengine")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
