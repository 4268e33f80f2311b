"""The C source of the library's Python half, made from cowengine.h: the header is the one place that declares anything.

Every function of the header that handle.c does not define is written in Python (exports.py); its C side asks `ce_enter`
whether Python may be called, then calls it. Used by setup.py when it builds; imports nothing of the package.
"""

from __future__ import annotations

import re
from pathlib import Path

MODULE = "_cowengine_capi"
INIT = "import cowengine.capi.exports"

CAPI = Path(__file__).parent
HEADER = CAPI.parent / "include" / "cowengine.h"
PROTOTYPE = re.compile(r"^(\w+ \**)(\w+)\(([^)]*)\);", re.MULTILINE)
DEFINITION = re.compile(r"^\w+ \**(\w+)\([^)]*\) \{", re.MULTILINE)


def declarations(header: Path) -> str:
    """A header without what only a compiler needs: comments, directives, `extern "C"`."""
    text = re.sub(r"/\*.*?\*/", "", header.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r"#ifdef __cplusplus.*?#endif", "", text, flags=re.DOTALL)
    return re.sub(r"^#.*$", "", text, flags=re.MULTILINE)


def prototypes(text: str) -> dict[str, tuple[str, str]]:
    """The functions that a text declares: name -> (type, parameters)."""
    return {name: (kind, " ".join(parameters.split())) for kind, name, parameters in PROTOTYPE.findall(text)}


def in_python() -> dict[str, tuple[str, str]]:
    """The functions of the header that exports.py has to define."""
    defined = set(DEFINITION.findall((CAPI / "handle.c").read_text(encoding="utf-8")))
    return {name: rest for name, rest in prototypes(declarations(HEADER)).items() if name not in defined}


def write_source(path: Path) -> None:
    """Writes the C file, unless it stands there already."""
    from cffi import FFI

    public = in_python()
    internal = prototypes(declarations(CAPI / "handle.h"))
    types = PROTOTYPE.sub("", declarations(HEADER))
    called = [f"{kind}py_{name}({parameters});" for name, (kind, parameters) in public.items()]
    called += [f"{kind}{name}({parameters});" for name, (kind, parameters) in internal.items() if name[:3] == "py_"]
    ours = [f"{kind}{name}({parameters});" for name, (kind, parameters) in internal.items() if name[:3] == "ce_"]

    ffi = FFI()
    ffi.embedding_api("")
    ffi.embedding_init_code(INIT)
    ffi.cdef("\n".join([types, *ours, 'extern "Python+C" {', *called, "}"]))
    gates = [gate(kind, name, parameters) for name, (kind, parameters) in public.items()]
    public_header = '#pragma GCC visibility push(default)\n#include "cowengine.h"\n#pragma GCC visibility pop'
    ffi.set_source(MODULE, "\n".join([public_header, '#include "handle.h"', *called, *gates]))
    path.parent.mkdir(parents=True, exist_ok=True)
    ffi.emit_c_code(str(path))


def gate(kind: str, name: str, parameters: str) -> str:
    """The public function that leads into Python; its first parameter is the handle."""
    arguments = [re.findall(r"\w+", parameter)[-1] for parameter in parameters.split(",")]
    return (
        f"{kind}{name}({parameters}) {{\n"
        f"    int status = ce_enter({arguments[0]});\n"
        f"    return status != COWENGINE_OK ? status : py_{name}({', '.join(arguments)});\n"
        "}"
    )
