"""A C program does all that cowengine.h offers; what it leaves on the disk is what Python finds there."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from c_program import compiled, environment

import cowengine
from cowengine import errors
from cowengine.capi import get_include, get_library

BLOCK = 4096
ROOT = Path(__file__).parents[2]
# It reads sources that are not installed.
DECLARATIONS = runpy.run_path(str(ROOT / "cowengine" / "capi" / "declarations.py"))
HEADER = Path(get_include()) / "cowengine.h"

pytestmark = pytest.mark.needs("gcc", "pkg-config")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(Path(__file__).with_name("program.c"), tmp_path_factory.mktemp("c") / "program")


def play(program: Path, scene: str, path: Path) -> None:
    done = subprocess.run([program, scene, path], capture_output=True, text=True, env=environment())
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


@pytest.mark.parametrize("scene", ["errors", "leaks", "forks", "unlocked"])
def test_the_volume_is_whole_after(program: Path, tmp_path: Path, scene: str) -> None:
    play(program, scene, tmp_path / "volume")
    with cowengine.Volume.open(str(tmp_path / "volume")) as volume:
        assert volume.check().ok


def test_a_session_leaves_what_it_was_told_to(program: Path, tmp_path: Path) -> None:
    play(program, "session", tmp_path / "volume")
    data = bytes((i * 31 + i // 251) & 255 for i in range(2 << 20))
    with cowengine.Volume.open(str(tmp_path / "volume")) as volume:
        assert volume.pread(len(data), 1000) == data
        assert volume.get_snapshot("monday").pread(len(data), 1000) == data
        assert [each.id for each in volume.snapshots()] == [1, 3]
        assert volume.check().ok


def test_what_rotted_is_not_returned(program: Path, tmp_path: Path) -> None:
    path = tmp_path / "volume"
    with cowengine.Volume.create(path, 1 << 20, background=False) as volume:
        volume.pwrite(os.urandom(8 * BLOCK), 0)
        volume.snapshot("sealed")
        volume.seal()
        slot, _ = volume.engine.path.place(1)
    with open(path, "r+b") as file:
        file.seek(slot * BLOCK)
        file.write(b"rotten")
    play(program, "damaged", path)


def test_two_threads_write_and_read_while_snapshots_are_taken(program: Path, tmp_path: Path) -> None:
    play(program, "threads", tmp_path / "volume")
    with cowengine.Volume.open(str(tmp_path / "volume")) as volume:
        assert volume.check().ok
        for place in range(1024):
            for half in range(2):
                first = ((half * 1024 + place) * 5 + 4) * 2654435761 % (1 << 32)
                assert int.from_bytes(volume.pread(4, (2 * place + half) * BLOCK), "little") == first, (place, half)


def test_a_program_that_ends_has_closed_what_it_left_open(program: Path, tmp_path: Path) -> None:
    play(program, "leaves", tmp_path / "volume")
    with cowengine.Volume.open(str(tmp_path / "volume"), read_only=True) as volume:
        assert volume.engine.superblock.clean
        assert volume.pread(11, 4000) == b"not flushed"


@pytest.mark.parametrize(
    ("there", "reason"),
    [(False, "there is no interpreter"), (True, "Python has started, but not cowengine: No module")],
)
def test_a_program_is_told_why_the_engine_could_not_start(
    program: Path, tmp_path: Path, there: bool, reason: str
) -> None:
    """It is pointed to nothing, or to an environment that has none of the packages that are needed."""
    if there:
        venv.create(tmp_path / "venv", symlinks=True)
    settings = {**environment(), "COWENGINE_PYTHON": str(tmp_path / "venv" / "bin" / "python3")}
    done = subprocess.run([program, "leaks", tmp_path / "volume"], capture_output=True, text=True, env=settings)
    assert done.returncode == 1
    assert re.search(f"status -3 instead of 0: .*{reason}.*COWENGINE_PYTHON", done.stderr), done.stderr


def test_a_host_may_load_the_library_as_a_plugin(tmp_path: Path) -> None:
    """Nothing of the library is global then; Python's own symbols are, because extension modules look for them."""
    host = compiled(Path(__file__).with_name("plugin.c"), tmp_path / "host")
    done = subprocess.run([host, get_library(), tmp_path / "volume"], capture_output=True, text=True, env=environment())
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


def test_a_host_may_run_a_python_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "volume"
    host = f"""
from ctypes import CDLL, byref, c_uint64, c_void_p
library, handle = CDLL({get_library()!r}), c_void_p()
assert library.cowengine_new(1, byref(handle)) == 0
assert library.cowengine_create(handle, {os.fsencode(path)!r}, c_uint64(1 << 20), 0) == 0
assert library.cowengine_pwrite(handle, b"not flushed", c_uint64(11), c_uint64(0)) == 0
"""
    done = subprocess.run([sys.executable, "-P", "-c", host], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    with cowengine.Volume.open(str(path), read_only=True) as volume:
        assert volume.pread(11, 0) == b"not flushed"


def test_the_statuses_are_the_codes_of_the_exceptions() -> None:
    statuses = re.search(r"enum cowengine_status \{.*?\}", DECLARATIONS["declarations"](HEADER), re.DOTALL)
    assert statuses is not None
    codes = {name: int(number) for name, number in re.findall(r"COWENGINE_(\w+) = (-?\d+)", statuses.group())}
    named = {"OK": 0, "NO_MEMORY": -1, "INTERNAL": -2, "UNAVAILABLE": -3, "ERROR": errors.CowEngineError.code}
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.CowEngineError):
            words = re.findall(r"[A-Z][a-z]+", name.removesuffix("Error"))
            named["_".join(words).upper()] = kind.code
    assert len(codes) >= 18
    assert codes == {name: named[name] for name in codes}


def test_every_function_of_the_header_is_there_and_documented() -> None:
    header = HEADER.read_text()
    exports = (ROOT / "cowengine" / "capi" / "exports.py").read_text()
    names = DECLARATIONS["prototypes"](DECLARATIONS["declarations"](HEADER))
    in_python = DECLARATIONS["in_python"]()
    assert len(names) >= 20 and "cowengine_pread" not in in_python
    symbols = subprocess.run(["nm", "-D", "--defined-only", get_library()], check=True, capture_output=True, text=True)
    for name in names:
        assert re.search(rf"\*/\n[\w ]+\**{name}\(", header), f"{name} stands without a comment"
        assert re.search(rf" T {name}$", symbols.stdout, re.MULTILINE)
    for name in in_python:
        assert re.search(rf"@exported\ndef {name.removeprefix('cowengine_')}\(\s*handle: Any", exports), name


def test_the_program_of_the_guide_runs(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "c-interface.md").read_text()
    (tmp_path / "guide.c").write_text(re.findall(r"```c\n(.*?)```", guide, re.DOTALL)[0])
    guided = compiled(tmp_path / "guide.c", tmp_path / "guide")
    told = subprocess.run([guided, tmp_path / "volume"], capture_output=True, text=True, env=environment())
    assert (told.stdout, told.stderr) == ("changed: 4096 bytes at 0\nmonday: first\n", "")
    again = subprocess.run([guided, tmp_path / "volume"], capture_output=True, text=True, env=environment())
    assert again.returncode == 1 and "create: status 6" in again.stderr


@pytest.mark.needs("g++")
def test_the_header_is_good_for_cplusplus(tmp_path: Path) -> None:
    source = tmp_path / "vendor.cpp"
    source.write_text(
        '#include "cowengine.h"\nint main() { return cowengine_flush(nullptr) + int(cowengine_abi()); }\n'
    )
    strict = ["-std=c++11", "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    done = subprocess.run(["g++", *strict, "-I", get_include(), source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
