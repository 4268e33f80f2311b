"""Session: one writer, or the providers together, in one job: what was asked of them and what is still owed.

Holds state only; the coordinator decides. A session whose worker was lost (hung or died) goes on with a new worker,
in another thread or another process, so that abort and backup_shutdown still reach the writer.

Threads: one coordinator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from cowengine.errors import CowEngineError, ProviderError, WriterError, WriterTimeout, WriterVeto
from cowengine.vss.documents import Component, WriterMetadata
from cowengine.vss.provider import ProviderGroup
from cowengine.vss.worker import Call, Invoker, LocalInvoker, Worker
from cowengine.vss.writer import Level, Writer

Deliver = Callable[[Call], None]


class WriterSession:
    """One writer in one job."""

    role: Literal["writer"] = "writer"

    def __init__(self, writer: Writer, freeze_limit: float, deliver: Deliver) -> None:
        self.writer = writer
        self.name = writer.name
        self.level: Level | None = writer.level
        self.required = bool(writer.required)
        self.freeze_limit = min(float(writer.freeze_limit), freeze_limit)
        self.metadata = WriterMetadata(writer.name)
        self.notes: dict[str, Any] = {}  # what its events returned
        self.included = True  # still part of the job
        self.prepared = False  # owed an abort if the job fails
        self.freeze_deadline: float | None = None  # from when freeze was asked for until thaw is
        self.starting = False  # its next call has to wait for a new process
        self._deliver = deliver
        self.worker = Worker(self.name, self._invoker(), deliver)

    @property
    def components(self) -> tuple[Component, ...]:
        """What it owns."""
        return tuple(self.metadata.components)

    def overrides(self, event: str) -> bool:
        """Whether the writer does something at `event`; what is not overridden costs no round trip."""
        own = getattr(self.writer, event, None)
        return getattr(own, "__func__", own) is not getattr(Writer, event, None)

    def replace_worker(self) -> None:
        """Go on in a new thread or process."""
        self.starting = bool(self.writer.isolated)
        self.worker = Worker(self.name, self._invoker(), self._deliver)

    def failure(self, call: Call) -> CowEngineError:
        """The error that stands for a call that failed."""
        where = {"writer": self.name, "phase": call.event}
        if call.outcome == "timeout":
            text = f"writer {self.name!r} did not return from {call.event} within {call.limit:.3g} s and was given up"
            return WriterTimeout(text, **where)
        if call.outcome == "died":
            return WriterError(f"writer {self.name!r} died in {call.event}: {_reason(call.error)}", **where)
        return WriterVeto(f"writer {self.name!r} refused at {call.event}: {_reason(call.error)}", **where)

    def _invoker(self) -> Invoker:
        if not self.writer.isolated:
            return LocalInvoker(self.writer)
        from cowengine.vss.isolation import ProcessInvoker

        return ProcessInvoker(self.writer)


class ProviderSession:
    """The providers of one job, in one thread."""

    role: Literal["provider"] = "provider"
    level: Level | None = None
    required = True
    prepared = False
    included = True
    starting = False

    def __init__(self, group: ProviderGroup, deliver: Deliver) -> None:
        self.group = group
        self.name = group.name
        self._deliver = deliver
        self.worker = Worker(self.name, _GroupInvoker(group), deliver)

    def overrides(self, event: str) -> bool:
        """Whether a provider does something at `event`."""
        return event in ("check", "commit", "abort") or self.group.overrides(event)

    def replace_worker(self) -> None:
        """Go on in a new thread."""
        self.worker = Worker(self.name, _GroupInvoker(self.group), self._deliver)

    def failure(self, call: Call) -> CowEngineError:
        """The error that stands for a call that failed; one of cowengine's own goes through as it is."""
        if call.outcome == "timeout":
            limit = "hold limit, or a writer's freeze limit," if call.event == "commit" else "limit"
            return ProviderError(
                f"provider {self.name!r} did not finish {call.event} within the {limit} of {call.limit:.3g} s: no set"
            )
        if isinstance(call.error, CowEngineError):
            return call.error
        return ProviderError(f"provider {self.name!r} failed at {call.event}: {_reason(call.error)}")


class _GroupInvoker:
    """Runs a provider group's events in this process."""

    def __init__(self, group: ProviderGroup) -> None:
        self.invoke = group.invoke

    def kill(self) -> None:
        """A thread cannot be killed."""

    def close(self) -> None:
        """Nothing is held."""


Session = WriterSession | ProviderSession


def _reason(error: BaseException | None) -> str:
    if error is None:
        return "no reason given"
    text = str(error)
    plain = isinstance(error, RuntimeError) or not type(error).__module__.startswith("builtins")
    return text if text and plain else f"{type(error).__name__}: {text}"[:1000]
