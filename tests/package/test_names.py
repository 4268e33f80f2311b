"""The public names: all there, none imported before it is asked for."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cowengine

# Each costs tens of milliseconds to import, or brings in what does.
HEAVY = {"numpy", "cffi", "zstandard", "apsw", "sqlite3", "asyncio", "multiprocessing", "importlib.metadata"}


def loaded_after(statements: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after these statements."""
    program = f"import sys\n{statements}\nprint(*sys.modules, file=sys.stderr)"
    run = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    return set(run.stderr.split())


@pytest.mark.parametrize("name", cowengine.__all__)
def test_the_public_name_exists(name: str) -> None:
    assert name in dir(cowengine)
    assert getattr(cowengine, name) is getattr(cowengine, name)


def test_type_checkers_see_the_same_names_from_the_same_modules() -> None:
    tree = ast.parse(Path(cowengine.__file__).read_text())
    seen = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cowengine.")
        for alias in node.names
    }
    assert seen == {name: f"cowengine.{cowengine._MODULES.get(name, 'errors')}" for name in cowengine.__all__}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Disk'"):
        _ = cowengine.Disk


def test_importing_the_package_loads_no_extension_and_no_dependency() -> None:
    loaded = loaded_after("import cowengine")
    assert not HEAVY & loaded
    assert {name for name in loaded if name.startswith("cowengine")} == {"cowengine", "cowengine.version"}


def test_asking_for_the_version_loads_nothing_heavy() -> None:
    """What keeps `cowengine --version` under 100 ms on any machine that starts Python in 20."""
    loaded = loaded_after("from cowengine.cli.main import main\nassert main(['--version']) == 0")
    assert not HEAVY & loaded
    assert not {name for name in loaded if name.startswith("cowengine.core.")}


# What a program that has a volume needs: servers, clients, writers and stores are loaded by who has them.
NEEDED_BY_A_VOLUME = {
    *("closing", "core", "engine", "errors", "extents", "format", "names", "oserrors", "ranges", "snapshot"),
    *("version", "volume"),
}


def test_a_volume_at_work_loads_neither_numpy_nor_the_rest_of_the_package(tmp_path: Path) -> None:
    path = str(tmp_path / "volume")
    loaded = loaded_after(
        f"import cowengine\nwith cowengine.Volume.create({path!r}, 1 << 20) as v:\n v.pwrite(b'x', 0)\n"
        f" s = v.snapshot('s')\n v.pwrite(b'y', 0)\n s.pread(1, 0)\n s.delete()\n"
        f"cowengine.Volume.open({path!r}).close()"
    )
    assert not {*HEAVY, "ssl", "socket", "subprocess"} & loaded
    assert {name.split(".")[1] for name in loaded if name.startswith("cowengine.")} == NEEDED_BY_A_VOLUME
