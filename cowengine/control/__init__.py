"""A store that another process serves: the control protocol, its server and its client. The public names; no logic.

The protocol is described in docs/control.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cowengine.control.connecting import connect

if TYPE_CHECKING:
    from cowengine.control.server import ControlServer

__all__ = ["ControlServer", "connect"]


def __getattr__(name: str) -> object:
    if name != "ControlServer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cowengine.control.server import ControlServer

    return ControlServer
