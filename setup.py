"""The extensions of cowengine.core and how they are compiled; everything else is in pyproject.toml.

Each cowengine/core/<name>.pyx is one extension. The C helpers beside them (*_impl.c) are compiled once and linked into
all, because one kernel may call another's helper; the linker drops what is not called.
libcowengine.so, the library for C programs, is one more, if this Python has a shared library to link it with.
COWENGINE_DEBUG=1 builds with bounds checks and assertions, in a build directory of its own. So does
COWENGINE_SANITIZE=address,undefined (or thread) with the sanitizers of gcc or clang, whose runtimes must be preloaded.
COWENGINE_COVERAGE=1 builds what gcc counts branches in, for tests/torture/kernel_branches.py.
"""

import os
import runpy
import sys
import sysconfig
from glob import glob
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

DEBUG = os.environ.get("COWENGINE_DEBUG", "0") not in ("", "0")
SANITIZE = os.environ.get("COWENGINE_SANITIZE", "")
COVERAGE = os.environ.get("COWENGINE_COVERAGE", "0") not in ("", "0")
SANITIZED = f"build/{'tsan' if 'thread' in SANITIZE else 'asan'}"
BUILD = SANITIZED if SANITIZE else "build/gcov" if COVERAGE else "build/debug" if DEBUG else "build/release"

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
# What each costs, and what was left out: docs/notes/0009-hardening.md. They come behind whatever Python was built with,
# and so count.
HARDENING = [
    "-fstack-protector-strong", "-fstack-clash-protection", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3",
    "-fno-strict-aliasing", "-fno-strict-overflow", "-fno-delete-null-pointer-checks",
    "-Wformat", "-Werror=format-security",
]  # fmt: skip
MACHINE = sysconfig.get_platform().rpartition("-")[2]
HARDENING += {"x86_64": ["-fcf-protection"], "aarch64": ["-mbranch-protection=standard"]}.get(MACHINE, [])
LINK = ["-Wl,-z,relro,-z,now,-z,noexecstack,-z,separate-code"]
if SANITIZE:  # fortified functions would hide reads and writes from it
    FLAGS = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", f"-fsanitize={SANITIZE}"]
    HARDENING = ["-U_FORTIFY_SOURCE"]
    LINK += [f"-fsanitize={SANITIZE}"]
if COVERAGE:  # as it stands in the C, with no branch folded into another
    FLAGS, HARDENING = ["-O0", "--coverage", "-fprofile-update=atomic"], ["-U_FORTIFY_SOURCE"]
    LINK += ["--coverage"]
COMPILE = ["-std=gnu11", *FLAGS, *SECTIONS, *HARDENING]
HELPERS = sorted(glob("cowengine/core/*_impl.c"))


def extension(pyx: str) -> Extension:
    return Extension(
        pyx.removesuffix(".pyx").replace("/", "."),
        sources=[pyx],
        include_dirs=["cowengine/core"],
        depends=["setup.py", *HELPERS, *glob("cowengine/core/*.h")],
        define_macros=[("COWENGINE_DEBUG", "1")] if DEBUG else [("CYTHON_WITHOUT_ASSERTIONS", "1")],
        undef_macros=["NDEBUG"] if DEBUG else [],
        extra_compile_args=COMPILE,
        extra_link_args=["-Wl,--gc-sections", *LINK],
    )


LIBRARY = "cowengine.capi.libcowengine"


def c_library() -> list[Extension]:
    """libcowengine.so, which starts a Python of its own: see docs/c-interface.md."""
    name = sysconfig.get_config_var("LDLIBRARY") or ""
    folder = sysconfig.get_config_var("LIBDIR") or ""
    if ".so" not in name or not os.path.exists(os.path.join(folder, name)):
        print(
            f"warning: {sys.executable} comes without a shared library (no {name or 'libpython'} in {folder}):"
            " libcowengine.so, the interface for C programs, is NOT built. All else works. On Debian, install"
            " python3-dev; with pyenv, build Python with --enable-shared.",
            file=sys.stderr,
        )
        return []
    source = f"{BUILD}/capi/libcowengine.c"
    runpy.run_path("cowengine/capi/declarations.py")["write_source"](Path(source))
    return [
        Extension(
            LIBRARY,
            sources=[source, "cowengine/capi/handle.c"],
            include_dirs=["cowengine/include", "cowengine/capi", "cowengine/core"],
            depends=["setup.py", *glob("cowengine/capi/*.[hi]*"), *glob("cowengine/*/*.h")],
            define_macros=[("_CFFI_NO_LIMITED_API", None)],
            libraries=[name.removeprefix("lib").partition(".so")[0]],
            library_dirs=[folder],
            runtime_library_dirs=[folder],
            extra_compile_args=[*COMPILE, "-Wno-unused-parameter"],
            extra_link_args=["-Wl,-z,nodelete,-soname,libcowengine.so", *LINK],
        )
    ]


class BuildExtensions(build_ext):
    """Builds side by side; names the library as linkers look for it, and lays its pkg-config file beside it."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or len(os.sched_getaffinity(0))

    def build_extensions(self) -> None:
        # A Python of one's own is often linked with the folder where it lies; what is released has no such path.
        linker = [part for part in self.compiler.linker_so if not part.startswith("-Wl,-rpath")]
        self.compiler.set_executable("linker_so", linker)
        helpers = self.compiler.compile(HELPERS, output_dir=self.build_temp, extra_postargs=COMPILE)
        for extension in self.extensions:
            extension.extra_objects = [] if extension.name == LIBRARY else helpers
        super().build_extensions()

    def get_ext_filename(self, name: str) -> str:
        ours = name.split(".")[-1] == "libcowengine"
        return name.replace(".", "/") + ".so" if ours else super().get_ext_filename(name)

    def build_extension(self, extension: Extension) -> None:
        super().build_extension(extension)
        if extension.name == LIBRARY:
            self.describe_library(Path(self.get_ext_fullpath(LIBRARY)).parent)

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        if LIBRARY in self.ext_map:
            self.describe_library(Path("cowengine/capi"))

    def describe_library(self, folder: Path) -> None:
        template = Path("cowengine/capi/cowengine.pc.in").read_text()
        (folder / "cowengine.pc").write_text(template.replace("@VERSION@", self.distribution.get_version()))


setup(
    ext_modules=cythonize(
        [extension(pyx) for pyx in sorted(glob("cowengine/core/*.pyx"))],
        build_dir=f"build/{'debug' if DEBUG else 'release'}/cython",  # the others take the release's
        compiler_directives=DIRECTIVES,
        quiet=True,
    )
    + c_library(),
    cmdclass={"build_ext": BuildExtensions},
    options={"build": {"build_base": BUILD}},
)
