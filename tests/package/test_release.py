"""What is released: the sdist holds all that the wheel is built from, and the wheel works in an empty environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import cowengine

ROOT = Path(__file__).parents[2]
NOT_SOURCES = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", "*.so", ".*_cache", ".hypothesis", "results"
)
USE = """
import cowengine, sys
with cowengine.Volume.create(sys.argv[1], 1 << 20) as volume:
    volume.pwrite(b"before", 0)
    snapshot = volume.snapshot("first")
    volume.pwrite(b"after!", 0)
    assert snapshot.pread(6, 0) == b"before" and volume.pread(6, 0) == b"after!"
    assert volume.changed_extents(snapshot).tolist() == [[0, 4096]]
print(cowengine.__file__)
"""


def run(*command: str | Path, cwd: Path) -> str:
    """The output of a command that must succeed, in an environment that leads nowhere but to the command itself."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, env=clean_environment(), timeout=900
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def clean_environment() -> dict[str, str]:
    ours = ("PYTHON", "COWENGINE", "VIRTUAL")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that what is tracked by no list, and what other builds left, cannot help."""
    folder = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, folder / "tree", ignore=NOT_SOURCES)
    build = "import sys, setuptools.build_meta as backend; backend.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, folder, cwd=folder / "tree")
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", sdist.parent]
    run(sys.executable, "-m", "pip", "wheel", *options, sdist, cwd=sdist.parent)
    return next(sdist.parent.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel and its run-time dependencies, and its bin folder."""
    folder = tmp_path_factory.mktemp("empty")
    venv.create(folder / "venv", with_pip=True)
    run(folder / "venv" / "bin" / "pip", "install", "--quiet", wheel, cwd=folder)
    return folder / "venv" / "bin"


def test_the_sdist_holds_the_tree_and_nothing_that_a_build_makes(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"pyproject.toml", "setup.py", "Makefile", "LICENSE", "README.md", "CHANGELOG.md", "docs/format.md"}
    wanted |= {"cowengine/core/checksum_impl.c", "cowengine/capi/handle.c", "cowengine/include/cowengine.h"}
    assert wanted | {"tests/conftest.py", ".ci/run"} <= names
    made = [name for name in names if name.endswith((".so", ".pyc")) or name.startswith((".git/", ".venv", "build"))]
    assert not made


def test_the_wheel_holds_the_package_its_stubs_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = message_from_string(archive.read(next(n for n in names if n.endswith("/METADATA"))).decode())
        points = archive.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"cowengine"}
    kernels = {path.stem for path in (ROOT / "cowengine" / "core").glob("*.pyx")}
    for kernel in kernels:
        assert f"cowengine/core/{kernel}.pyi" in names
        assert [name for name in names if name.startswith(f"cowengine/core/{kernel}.") and name.endswith(".so")]
    python = {str(path.relative_to(ROOT)) for path in (ROOT / "cowengine").rglob("*.py")}
    assert python | {"cowengine/py.typed"} <= names
    assert {f"cowengine/capi/{name}" for name in ("libcowengine.so", "cowengine.pc")} <= names
    assert "cowengine/include/cowengine.h" in names
    assert not [name for name in names if name.endswith((".c", ".pyc"))]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Version"] == cowengine.__version__
    assert "cowengine = cowengine.cli.main:main" in points
    assert "[cowengine.writers]\nsqlite = cowengine.sqlite.writer:writers_of_store" in points


def test_the_wheel_works_in_an_empty_environment(environment: Path, tmp_path: Path) -> None:
    imported = run(environment / "python", "-c", USE, tmp_path / "volume.cow", cwd=tmp_path)
    assert Path(imported.strip()).is_relative_to(environment.parent)


def test_the_installed_command_answers(environment: Path, tmp_path: Path) -> None:
    assert cowengine.__version__ in run(environment / "cowengine", "--version", cwd=tmp_path)
    assert "volume" in run(environment / "cowengine", "--help", cwd=tmp_path)
    assert cowengine.__version__ in run(environment / "python", "-m", "cowengine", "--version", cwd=tmp_path)


@pytest.mark.needs("gcc", "pkg-config")
def test_a_c_program_needs_nothing_but_the_environment(environment: Path, tmp_path: Path) -> None:
    folder = Path(run(environment / "python", "-m", "cowengine.capi", cwd=tmp_path).strip())
    assert folder.is_relative_to(environment.parent)
    flags = run("pkg-config", "--cflags", "--libs", folder / "cowengine.pc", cwd=tmp_path).split()
    source = ROOT / "tests" / "c_interface" / "program.c"
    run("gcc", "-pthread", "-o", tmp_path / "program", source, *flags, cwd=tmp_path)
    assert run(tmp_path / "program", "session", tmp_path / "volume.cow", cwd=tmp_path) == "ok\n"


def test_nothing_that_the_installed_package_needs_is_missing(environment: Path, tmp_path: Path) -> None:
    assert "No broken requirements" in run(environment / "pip", "check", cwd=tmp_path)
