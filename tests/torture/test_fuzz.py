"""The fuzzer finds what is planted: an error without a type in a parser, and a read beyond a buffer in a kernel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

import cowengine

PACKAGE = Path(cowengine.__file__).parent
SOURCES = Path(__file__).parents[2] / "cowengine"
FUZZ = str(Path(__file__).parent / "fuzz.py")
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def fuzz(crashes: Path, site: Path, *arguments: str) -> tuple[int, list[str], dict[str, Any]]:
    """Status, what was said, and the row. The cowengine of `site` is fuzzed."""
    run = subprocess.run(
        [sys.executable, "-P", FUZZ, "--row", "--crashes", str(crashes), *arguments],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(site)},
    )  # fmt: skip
    *said, row = run.stdout.splitlines() or [run.stderr]
    return run.returncode, [*said, run.stderr], json.loads(row)


def copied(site: Path) -> Path:
    """A copy of the package as it is tested, to plant a fault in."""
    shutil.copytree(PACKAGE, site / "cowengine", ignore=shutil.ignore_patterns("__pycache__"))
    return site / "cowengine"


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


@pytest.mark.needs(modules=["atheris"])
def test_an_error_without_a_type_is_found_and_can_be_had_again(tmp_path: Path) -> None:
    site = tmp_path / "site"
    caught = 'except UnicodeDecodeError:\n        raise CorruptionError("a name is not UTF-8")'
    replace(copied(site) / "format" / "lineage.py", caught, caught.replace("UnicodeDecode", "ZeroDivision"))
    status, said, row = fuzz(tmp_path, site, "--target", "lineage", "--seconds", "60", "--plain")
    assert (status, row["violations"], row["skipped"]) == (1, 1, "")
    assert "UnicodeDecodeError" in "\n".join(said)
    (crash,) = tmp_path.glob("lineage-crash-*")
    again = subprocess.run(
        [sys.executable, "-P", FUZZ, "--replay", str(crash)], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(site)},
    )  # fmt: skip
    assert again.returncode == 1
    assert "UnicodeDecodeError" in again.stderr


@pytest.mark.needs("gcc", modules=["atheris"])
def test_a_read_beyond_a_buffer_in_a_kernel_is_found(tmp_path: Path) -> None:
    """The checksum takes a byte too many where the length is odd; nothing but a sanitizer sees that."""
    site, work = tmp_path / "site", tmp_path / "core"
    core = copied(site) / "core"
    shutil.copytree(SOURCES / "core", work, ignore=shutil.ignore_patterns("*.so"))
    replace(work / "checksum.pyx", "result = ce_xxh64(start, <size_t>length, seed)\n    return",
            "result = ce_xxh64(start, <size_t>(length + (length & 1)), seed)\n    return")  # fmt: skip
    source = work / "checksum.c"
    subprocess.run([sys.executable, "-m", "cython", "-3", str(work / "checksum.pyx"), "-o", str(source)], check=True)
    library = next(core.glob("checksum.*.so"))
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", "-g", *SANITIZE, f"-I{sysconfig.get_path('include')}", f"-I{work}",
         str(source), *map(str, work.glob("*_impl.c")), "-o", str(library)],
        check=True, capture_output=True,
    )  # fmt: skip
    status, said, row = fuzz(
        tmp_path, PACKAGE.parent, "--target", "kernels", "--seconds", "60", "--sanitized-site", str(site)
    )
    assert (status, row["violations"], row["skipped"]) == (1, 1, "")
    assert "heap-buffer-overflow" in "\n".join(said)


@pytest.mark.needs(modules=["atheris"])
def test_all_targets_run(tmp_path: Path) -> None:
    names = ["--target", "lineage", "--target", "stream", "--target", "store_log", "--target", "catalogue"]
    status, said, row = fuzz(tmp_path, PACKAGE.parent, *names, "--target", "volume", "--seconds", "5", "--seed", "7")
    assert (status, row["violations"], row["seed"]) == (0, 0, 7), said
    assert row["count"] > 100  # the seeds alone
