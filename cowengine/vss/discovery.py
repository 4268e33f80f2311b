"""Writers and providers of third parties, found through entry points.

Groups: `cowengine.writers` (a callable that takes the store and returns a Writer or several),
`cowengine.configured_writers` (the same, but it takes a text as well: what stands after `=` in `NAME=ARGUMENT`) and
`cowengine.providers` (a callable that takes the store and returns a Provider). Nothing is imported until it is asked
for by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from cowengine.errors import NotFoundError, OutOfRangeError, ProviderError, WriterError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint, EntryPoints

    from cowengine.vss.provider import Provider
    from cowengine.vss.writer import Writer

WRITERS = "cowengine.writers"
CONFIGURED_WRITERS = "cowengine.configured_writers"
PROVIDERS = "cowengine.providers"


def writer_names() -> list[str]:
    """Names of the installed writers that need no argument, sorted."""
    return sorted(_entry_points(WRITERS).names)


def configured_writer_names() -> list[str]:
    """Names of the installed writers that need one, as in `NAME=ARGUMENT`, sorted."""
    return sorted(_entry_points(CONFIGURED_WRITERS).names)


def provider_names() -> list[str]:
    """Names of the providers that can be chosen, the engine's first."""
    return ["engine", *sorted(_entry_points(PROVIDERS).names - {"engine"})]


def load_writers(name: str, store: Any) -> list[Writer]:
    """The writers that the installed `name`, or `name=argument`, makes for this store.

    Raises NotFoundError, OutOfRangeError (the argument cannot be) or WriterError.
    """
    from cowengine.vss.writer import Writer

    try:
        made = _make_writers(name, store)
    except (NotFoundError, OutOfRangeError):
        raise
    except Exception as error:
        raise WriterError(f"writer {name!r} could not be made: {error}", writer=name, phase="load") from error
    writers = list(made) if isinstance(made, Iterable) else [made]
    if not all(isinstance(writer, Writer) for writer in writers):
        raise WriterError(f"entry point {name!r} of {WRITERS} made something that is no Writer", writer=name)
    return writers


def _make_writers(name: str, store: Any) -> Any:
    kind, separator, argument = name.partition("=")
    if separator:
        return _entry_point(CONFIGURED_WRITERS, kind).load()(store, argument)
    if kind not in _entry_points(WRITERS).names and kind in _entry_points(CONFIGURED_WRITERS).names:
        raise NotFoundError(f"writer {kind!r} needs an argument: name it as {kind}=ARGUMENT")
    return _entry_point(WRITERS, kind).load()(store)


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
