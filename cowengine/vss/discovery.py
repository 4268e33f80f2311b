"""Writers and providers of third parties, found through entry points.

Groups: `cowengine.writers` (a callable that takes the store and returns a Writer or several) and
`cowengine.providers` (a callable that takes the store and returns a Provider). Nothing is imported until it is asked
for by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from cowengine.errors import NotFoundError, ProviderError, WriterError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint, EntryPoints

    from cowengine.vss.provider import Provider
    from cowengine.vss.writer import Writer

WRITERS = "cowengine.writers"
PROVIDERS = "cowengine.providers"


def writer_names() -> list[str]:
    """Names of the installed writers, sorted."""
    return sorted(_entry_points(WRITERS).names)


def provider_names() -> list[str]:
    """Names of the providers that can be chosen, the engine's first."""
    return ["engine", *sorted(_entry_points(PROVIDERS).names - {"engine"})]


def load_writers(name: str, store: Any) -> list[Writer]:
    """The writers that the installed `name` makes for this store. Raises NotFoundError or WriterError."""
    from cowengine.vss.writer import Writer

    try:
        made = _entry_point(WRITERS, name).load()(store)
    except NotFoundError:
        raise
    except Exception as error:
        raise WriterError(f"writer {name!r} could not be made: {error}", writer=name, phase="load") from error
    writers = list(made) if isinstance(made, Iterable) else [made]
    if not all(isinstance(writer, Writer) for writer in writers):
        raise WriterError(f"entry point {name!r} of {WRITERS} made something that is no Writer", writer=name)
    return writers


def load_provider(name: str, store: Any) -> Provider:
    """The installed provider `name`, made for this store. Raises NotFoundError or ProviderError."""
    from cowengine.vss.provider import Provider

    try:
        made = _entry_point(PROVIDERS, name).load()(store)
    except NotFoundError:
        raise
    except Exception as error:
        raise ProviderError(f"provider {name!r} could not be made: {error}") from error
    if not isinstance(made, Provider):
        raise ProviderError(f"entry point {name!r} of {PROVIDERS} made something that is no Provider")
    return made


def _entry_point(group: str, name: str) -> EntryPoint:
    offered = _entry_points(group)
    found = tuple(offered.select(name=name))
    if not found:
        known = ", ".join(sorted(offered.names)) or "none"
        raise NotFoundError(f"no installed package offers {name!r} in the entry point group {group} (known: {known})")
    return found[0]


def _entry_points(group: str) -> EntryPoints:
    from importlib.metadata import entry_points  # slow to import, and seldom needed

    return entry_points(group=group)
