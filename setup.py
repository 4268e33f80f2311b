"""The extensions of cowengine.core and how they are compiled; everything else is in pyproject.toml.

Each cowengine/core/<name>.pyx is one extension. The C helpers beside them (*_impl.c) are linked into all, because one
kernel may call another's helper; the linker drops what is not called.
COWENGINE_DEBUG=1 builds with bounds checks and assertions, in a build directory of its own.
"""

import os
from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("COWENGINE_DEBUG", "0") not in ("", "0")
BUILD = "build/debug" if DEBUG else "build/release"

DIRECTIVES = {
    "language_level": 3,
    "binding": True,
    "auto_pickle": False,
    "embedsignature": False,
    "cdivision": True,
    "boundscheck": DEBUG,
    "wraparound": DEBUG,
    "initializedcheck": DEBUG,
}
FLAGS = ["-O1", "-g", "-Wall", "-Wextra"] if DEBUG else ["-O3", "-g0"]
SECTIONS = ["-fvisibility=hidden", "-ffunction-sections"]
HARDENING = ["-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]


def extension(pyx: str) -> Extension:
    return Extension(
        pyx.removesuffix(".pyx").replace("/", "."),
        sources=[pyx, *sorted(glob("cowengine/core/*_impl.c"))],
        include_dirs=["cowengine/core"],
        depends=["setup.py", *glob("cowengine/core/*.h")],
        define_macros=[("COWENGINE_DEBUG", "1")] if DEBUG else [("CYTHON_WITHOUT_ASSERTIONS", "1")],
        undef_macros=["NDEBUG"] if DEBUG else [],
        extra_compile_args=["-std=gnu11", *FLAGS, *SECTIONS, *HARDENING],
        extra_link_args=["-Wl,-z,relro,-z,now,--gc-sections"],
    )


setup(
    ext_modules=cythonize(
        [extension(pyx) for pyx in sorted(glob("cowengine/core/*.pyx"))],
        build_dir=f"{BUILD}/cython",
        compiler_directives=DIRECTIVES,
        quiet=True,
    ),
    options={"build": {"build_base": BUILD}},
)
