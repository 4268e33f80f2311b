"""Provider: makes the snapshots of a set. The engine itself is the default one.

A provider is asked in this order: is_volume_supported, begin_prepare, end_prepare (all before anybody is frozen);
pre_commit, hold, commit, release, post_commit (while the writers stand still); pre_final_commit, post_final_commit
(after the thaw). If the job fails it gets abort, and delete if it had committed already.

Point in time: a provider whose `can_hold` is true stops all writing to its volumes from `hold` to `release`. A set
over volumes of several providers is one instant only if all of them hold before the first commits; so providers that
cannot hold are refused in such a set. The engine cannot hold and need not: its fence stops nobody.

Threads: all calls of one job come from one thread; after a hang `release` may come from another.
"""

# ruff: noqa: B027 - events that do nothing unless overridden are the point
from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cowengine.errors import OutOfRangeError, ProviderError
from cowengine.vss import discovery
from cowengine.vss.writer import JobView


class Provider(ABC):
    """Base of all providers. `job.volumes` are the volumes this provider is to snapshot, `job.set_name` the name."""

    name: str = ""
    can_hold: bool = False

    @abstractmethod
    def is_volume_supported(self, job: JobView, volume: str) -> bool:
        """False refuses the volume, and with it the set."""

    @abstractmethod
    def commit(self, job: JobView) -> Any:
        """Make the set, durably, and return it: an object with id, name, created, snapshots and delete()."""

    @abstractmethod
    def delete(self, job: JobView) -> None:
        """Remove the committed job.snapshot_set again."""

    def begin_prepare(self, job: JobView) -> None:
        """Start slow work and return."""

    def end_prepare(self, job: JobView) -> None:
        """Wait for that work. The last event before anybody is frozen."""

    def pre_commit(self, job: JobView) -> None:
        """The writers stand still."""

    def hold(self, job: JobView) -> None:
        """Flush, and hold all writing to the volumes from here on; not later than job.deadline."""

    def release(self, job: JobView) -> None:
        """Let writing go on. Idempotent; comes after every hold, also after one that failed."""

    def post_commit(self, job: JobView) -> None:
        """Writing goes on; the writers still stand still."""

    def pre_final_commit(self, job: JobView) -> None:
        """The writers are thawed and have seen the set."""

    def post_final_commit(self, job: JobView) -> None:
        """The set is final."""

    def abort(self, job: JobView) -> None:
        """The job failed. Idempotent."""

    def rehearse(self, job: JobView) -> None:
        """Do, without making a set, what costs as much time as hold and commit."""

    def keep_ledger(self, job: JobView, ledger: dict[str, Any]) -> None:
        """Keep the freeze ledger with job.snapshot_set."""


class EngineProvider(Provider):
    """Snapshots of a store's volumes by the engine; serves any number of jobs at once."""

    name = "engine"

    def __init__(self, store: Any) -> None:
        self._store = store
        self._pending: dict[str, Any] = {}  # by job id

    def is_volume_supported(self, job: JobView, volume: str) -> bool:
        """True for every volume of the store."""
        return volume in self._store.volumes()

    def begin_prepare(self, job: JobView) -> None:
        """Open the volumes, reserve the name and the room. Raises ExistsError, NotFoundError and the like."""
        self._pending[job.id] = self._store.prepare_set(list(job.volumes), job.set_name)

    def end_prepare(self, job: JobView) -> None:
        """Flush early, so that the flush inside the freeze window finds little to do."""
        self._pending[job.id].flush()

    def commit(self, job: JobView) -> Any:
        """All volumes at one fence, durable when it returns."""
        return self._pending[job.id].commit()

    def delete(self, job: JobView) -> None:
        """Delete the set."""
        job.snapshot_set.delete()

    def post_final_commit(self, job: JobView) -> None:
        """Forget the job."""
        self._pending.pop(job.id, None)

    def abort(self, job: JobView) -> None:
        """Give the prepared set up; no effect on a committed one."""
        pending = self._pending.pop(job.id, None)
        if pending is not None:
            pending.abort()

    def rehearse(self, job: JobView) -> None:
        """Flush every volume: the same barrier as a snapshot, without one."""
        self._pending[job.id].flush()

    def keep_ledger(self, job: JobView, ledger: dict[str, Any]) -> None:
        """In the store, with the set."""
        job.snapshot_set.put_ledger(ledger)


@dataclass(frozen=True)
class ProviderSet:
    """A set whose snapshots come from several providers; one instant, because all of them held."""

    id: str
    name: str
    created: Any
    snapshots: Mapping[str, Any]
    parts: Sequence[tuple[Provider, JobView]]
    ledger: dict[str, Any] | None = None

    def delete(self) -> None:
        """Delete every part, also after one failed; raises the first failure."""
        errors: list[Exception] = []
        for provider, job in self.parts:
            try:
                provider.delete(job)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]


ProviderChoice = Provider | str | Mapping[str, "Provider | str"] | None


class ProviderGroup:
    """The providers of one job, called as one. Lives in the job's provider thread."""

    def __init__(self, choice: ProviderChoice, store: Any, volumes: Sequence[str]) -> None:
        named: dict[str, Provider] = {}
        self.members: list[tuple[Provider, tuple[str, ...]]] = []
        volumes_of: dict[int, list[str]] = {}
        providers: dict[int, Provider] = {}
        engine = EngineProvider(store)
        for volume in volumes:
            provider = _choose(choice, volume, engine, store, named)
            providers[id(provider)] = provider
            volumes_of.setdefault(id(provider), []).append(volume)
        self.members = [(provider, tuple(volumes_of[key])) for key, provider in providers.items()]
        self._committed: list[tuple[Provider, JobView]] = []

    @property
    def name(self) -> str:
        """The providers' names, for the ledger."""
        return "+".join(provider.name for provider, _ in self.members) or "none"

    def check(self, job: JobView) -> None:
        """Raise ProviderError if a provider refuses a volume, or if they cannot make one instant together."""
        for provider, volumes in self.members:
            for volume in volumes:
                if not provider.is_volume_supported(job, volume):
                    raise ProviderError(
                        f"provider {provider.name!r} does not support volume {volume!r}: "
                        "choose another provider for it or leave it out"
                    )
        cannot = [provider.name for provider, _ in self.members if not provider.can_hold]
        if len(self.members) > 1 and cannot:
            raise ProviderError(
                f"a set over several providers needs each of them to hold writes, and {', '.join(cannot)} cannot: "
                "make one set for each provider"
            )

    def overrides(self, event: str) -> bool:
        """Whether any member does something at `event`."""
        return any(getattr(type(provider), event) is not getattr(Provider, event) for provider, _ in self.members)

    def invoke(self, event: str, job: Any) -> Any:
        """Run `event` on every member. Entered by the worker thread."""
        if event == "commit":
            return self._commit(job)
        if event == "keep_ledger":
            return self.keep_ledger(job)
        if event in ("abort", "check"):
            return self._abort(job) if event == "abort" else self.check(job)
        for provider, volumes in self.members:
            getattr(provider, event)(replace(job, volumes=volumes))
        return None

    def keep_ledger(self, ledger: dict[str, Any]) -> None:
        """Give the ledger to every member that committed."""
        for provider, view in self._committed:
            provider.keep_ledger(view, ledger)

    def _commit(self, job: JobView) -> Any:
        """Hold all, commit all, release all."""
        try:
            for provider, volumes in self.members:
                provider.hold(replace(job, volumes=volumes))
            for provider, volumes in self.members:
                if time.monotonic() > job.deadline:
                    raise ProviderError("the hold limit had passed before every provider had committed")
                view = replace(job, volumes=volumes)
                part = provider.commit(view)
                self._committed.append((provider, replace(view, snapshot_set=part)))
        finally:
            self.release(job)
        return self._combine(job)

    def _combine(self, job: JobView) -> Any:
        parts = [view.snapshot_set for _, view in self._committed]
        if len(parts) == 1:
            return parts[0]
        snapshots = {volume: snapshot for part in parts for volume, snapshot in part.snapshots.items()}
        return ProviderSet(job.id, job.set_name, parts[0].created, snapshots, tuple(self._committed))

    def release(self, job: JobView) -> None:
        """Release every member that can hold, whatever another one does."""
        errors: list[Exception] = []
        for provider, volumes in self.members:
            try:
                provider.release(replace(job, volumes=volumes))
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _abort(self, job: JobView) -> None:
        """Delete what was committed, even too late, and tell everybody; raises the first failure."""
        errors: list[Exception] = []
        committed, self._committed = self._committed, []
        for provider, view in committed:
            try:
                provider.delete(view)
            except Exception as error:
                errors.append(error)
        for provider, volumes in self.members:
            try:
                provider.abort(replace(job, volumes=volumes))
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]


def _choose(
    choice: ProviderChoice, volume: str, engine: EngineProvider, store: Any, named: dict[str, Provider]
) -> Provider:
    wanted = choice.get(volume) if isinstance(choice, Mapping) else choice
    if wanted is None or wanted == engine.name:
        return engine
    if isinstance(wanted, str):
        if wanted not in named:
            named[wanted] = discovery.load_provider(wanted, store)
        return named[wanted]
    if not isinstance(wanted, Provider):
        raise OutOfRangeError(f"provider of volume {volume!r} must be a Provider or a name, not {wanted!r:.80}")
    return wanted
