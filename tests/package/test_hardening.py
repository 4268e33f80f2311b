"""What is released is hardened, whatever flags Python itself was built with: docs/notes/0009-hardening.md."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest
from elf import (
    DF_1_NOW,
    DF_BIND_NOW,
    DF_TEXTREL,
    DT_FLAGS,
    DT_FLAGS_1,
    DT_TEXTREL,
    PF_W,
    PF_X,
    PT_GNU_RELRO,
    PT_GNU_STACK,
    PT_LOAD,
    library,
)

import cowengine

LIBRARIES = sorted(Path(cowengine.__file__).parent.rglob("*.so"))


def test_every_kernel_is_looked_at() -> None:
    names = {path.name.partition(".")[0] for path in LIBRARIES}
    kernels = Path(__file__).parents[2] / "cowengine" / "core"
    assert names >= {path.stem for path in kernels.glob("*.pyx")}


@pytest.mark.parametrize("path", LIBRARIES, ids=lambda path: path.name.partition(".")[0])
def test_a_library_is_hardened(path: Path) -> None:
    found = library(path)
    flags = dict(found.segments)
    assert PT_GNU_RELRO in flags, "what the linker filled in stays writable"
    assert found.dynamic.get(DT_FLAGS, 0) & DF_BIND_NOW or found.dynamic.get(DT_FLAGS_1, 0) & DF_1_NOW, "bound lazily"
    assert PT_GNU_STACK in flags and not flags[PT_GNU_STACK] & PF_X, "the stack is executable"
    assert not [kind for kind, flag in found.segments if kind == PT_LOAD and flag & PF_X and flag & PF_W]
    assert DT_TEXTREL not in found.dynamic and not found.dynamic.get(DT_FLAGS, 0) & DF_TEXTREL, "code is relocated"
    assert "__stack_chk_fail" in found.wanted, "no stack protector"
    # libcowengine.so brings libpython along; kernels are loaded by a Python that is there.
    assert found.paths == ([sysconfig.get_config_var("LIBDIR")] if path.name == "libcowengine.so" else [])


def test_calls_of_the_c_library_are_fortified() -> None:
    """Where the compiler can prove that nothing overflows it calls the plain function: so not in each library."""
    wanted = set().union(*(library(path).wanted for path in LIBRARIES))
    assert {"__memcpy_chk", "__vsnprintf_chk"} <= wanted
