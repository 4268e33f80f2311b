"""Waiting for a job of the requestor so that Ctrl-C ends it properly: everybody thawed, nothing half made left."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from cowengine.errors import CowEngineError

if TYPE_CHECKING:
    from cowengine import Job


def finished(job: Job) -> Any:
    """The job's result. Ctrl-C cancels it, waits until all it had begun is undone, and goes on as Ctrl-C."""
    try:
        return job.wait()
    except KeyboardInterrupt:
        job.cancel()
        with suppress(CowEngineError):
            job.wait()
        raise
