"""The table of methods: which there are, what they take, and whether they change anything.

Nothing but what is declared here can be called. docs/control.md has the same table; a test compares them.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from cowengine.control.encoding import decode_bytes, decode_date, decode_set
from cowengine.control.protocol import INVALID_PARAMS, METHOD_NOT_FOUND, Message, ProtocolError
from cowengine.errors import OutOfRangeError

if TYPE_CHECKING:
    from cowengine.control.session import Call
    from cowengine.store.catalogue import CatalogueSet

Run = Callable[..., Any]
R = TypeVar("R", bound=Run)


class VolumeRef(NamedTuple):
    """Which volume a call is about: its name and, if it must be that very one, its id; and which head of it."""

    name: str
    id: str | None = None
    head: str = "live"


class Method(NamedTuple):
    """One method: its parameters by name and kind (optional with a ?), and what it returns."""

    name: str
    params: dict[str, str]
    result: str
    changes: bool
    run: Run


METHODS: Final[dict[str, Method]] = {}


def method(called: str, result: str = "null", /, *, changes: bool = False, **params: str) -> Callable[[R], R]:
    """Declares the decorated function to be a method."""

    def declare(run: R) -> R:
        METHODS[called] = Method(called, params, result, changes, run)
        return run

    return declare


def find(name: str) -> Method:
    """The method of a name. Raises ProtocolError."""
    found = METHODS.get(name)
    if found is None:
        raise ProtocolError(METHOD_NOT_FOUND, f"there is no method {name[:60]!r} in this version of the protocol")
    return found


def invoke(method: Method, call: Call, params: Message) -> Any:
    """Checks the parameters and runs the method."""
    return method.run(call, **checked(method, params))


def checked(method: Method, params: Message) -> Message:
    """The parameters as the method takes them. Raises ProtocolError for unknown, missing and wrong ones."""
    unknown = sorted(set(params) - set(method.params))
    if unknown:
        raise ProtocolError(INVALID_PARAMS, f"{method.name} takes no parameter {unknown[0][:60]!r}")
    values = {}
    for name, kind in method.params.items():
        value = params.get(name)
        if value is None:
            if not kind.endswith("?"):
                raise ProtocolError(INVALID_PARAMS, f"{method.name} needs the parameter {name!r}")
            continue
        try:
            values[name] = KINDS[kind.removesuffix("?")](value)
        except (TypeError, OutOfRangeError) as error:
            message = f"{method.name}: {name!r} must be of the kind {kind}: {error}"
            raise ProtocolError(INVALID_PARAMS, message) from None
    return values


# -- kinds of parameters -----------------------------------------------------------------------------------------------
def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} is no text")
    return value


def _path(value: object) -> str:
    path = _text(value)
    if not path.startswith("/"):
        raise TypeError("it is not absolute")
    return path


def _integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{type(value).__name__} is no integer")
    return value


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{type(value).__name__} is no boolean")
    return value


def _object(value: object) -> Message:
    if not isinstance(value, dict):
        raise TypeError(f"{type(value).__name__} is no object")
    return value


def _texts(value: object) -> list[str]:
    if not isinstance(value, list):
        raise TypeError(f"{type(value).__name__} is no array")
    return [_text(each) for each in value]


def _integers(value: object) -> list[int]:
    if not isinstance(value, list):
        raise TypeError(f"{type(value).__name__} is no array")
    return [_integer(each) for each in value]


def _reference(value: object) -> str | int:
    return value if isinstance(value, str) else _integer(value)


def _bytes(value: object) -> bytes:
    return decode_bytes(_text(value))


def _date(value: object) -> datetime.datetime:
    return decode_date(_text(value))


def _volume(value: object) -> VolumeRef:
    fields = _object(value)
    if not set(fields) <= {"name", "id", "head"}:
        raise TypeError("a volume has a name and perhaps an id and a head")
    number = fields.get("id")
    return VolumeRef(
        _text(fields.get("name")), None if number is None else _text(number), _text(fields.get("head", "live"))
    )


def _set(value: object) -> CatalogueSet:
    return decode_set(_object(value))


KINDS: Final[dict[str, Callable[[object], Any]]] = {
    "text": _text,
    "path": _path,
    "integer": _integer,
    "boolean": _boolean,
    "object": _object,
    "texts": _texts,
    "integers": _integers,
    "reference": _reference,
    "bytes": _bytes,
    "date": _date,
    "volume": _volume,
    "set": _set,
}
