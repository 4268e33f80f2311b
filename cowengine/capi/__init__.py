"""The C interface: where cowengine.h, libcowengine.so and cowengine.pc lie. The guide is docs/c-interface.md.

Holds no logic of the engine: handle.c and exports.py call what the package offers.
"""

from __future__ import annotations

import os

_HERE = os.path.dirname(os.path.abspath(__file__))


def get_include() -> str:
    """The folder of cowengine.h, for the compiler's -I."""
    return os.path.join(os.path.dirname(_HERE), "include")


def get_library() -> str:
    """The path of libcowengine.so; it is not there if the Python that built it has no shared library of its own."""
    return os.path.join(_HERE, "libcowengine.so")


def get_pkg_config_path() -> str:
    """The folder of cowengine.pc, for PKG_CONFIG_PATH."""
    return _HERE
