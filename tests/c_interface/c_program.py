"""Compiles a C program against the installed cowengine, as a vendor would: with what pkg-config says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

STRICT = ["-std=c99", "-pedantic", "-O2", "-pthread", "-Wall", "-Wextra", "-Werror"]


def compiled(source: Path, target: Path) -> Path:
    """The program that a source file makes."""
    folder = output(sys.executable, "-P", "-m", "cowengine.capi").strip()
    flags = output("pkg-config", "--cflags", "--libs", "cowengine", PKG_CONFIG_PATH=folder).split()
    made = subprocess.run(["gcc", *STRICT, "-o", target, source, *flags], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return target


def output(*command: str, **variables: str) -> str:
    """What a command that must succeed prints."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def environment() -> dict[str, str]:
    """Where the program finds the packages that this interpreter uses; and nothing else of Python's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
    return {**kept, "COWENGINE_PYTHON": sys.executable}
