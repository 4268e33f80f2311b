"""What stands in the files and what does not; what the environment cannot change."""

from __future__ import annotations

import getpass
import os
import platform
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cowengine
from cowengine import Store, Volume
from cowengine.backup import write_backup
from cowengine.core.iotable import IOTable

SIZE = 1 << 20
NEEDLE = "a-folder-whose-name-is-a-secret"


def told_of_the_machine(folder: Path) -> Iterator[bytes]:
    """What must not stand in a file: where it lies, whose it is, and on which machine."""
    names = {str(folder), NEEDLE, platform.node(), pwd.getpwuid(os.geteuid()).pw_dir, os.getcwd(), sys.executable}
    names |= {f"/{getpass.getuser()}/", os.environ.get("HOME", "")}
    for name in names:
        if len(name) > 3:  # what is shorter stands anywhere by chance
            yield name.encode()
            yield name.encode("utf-16-le")


class Keeping(IOTable):
    """Keeps what the intent files held, which are gone in the end."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def unlink(self, path: str) -> None:
        self.kept[path] = Path(path).read_bytes()
        super().unlink(path)


def test_no_file_tells_where_it_lies_whose_it_is_and_on_which_machine(tmp_path: Path) -> None:
    folder = tmp_path / NEEDLE
    folder.mkdir()
    io = Keeping()
    (folder / "image").write_bytes(bytes(SIZE))
    with Volume.adopt(folder / "image", raw=True, io=io) as volume:
        volume.snapshot("s", metadata={"a": 1})
        volume.get_snapshot("s").delete()
        volume.reclaim()
        volume.flatten()
    with Volume.create(folder / "v", SIZE, io=io) as volume, Store.create(folder / "store") as store:
        volume.pwrite(b"data", 0)
        snapshot = volume.snapshot("s", metadata={"a": 1})
        snapshot.hold("a reason")
        snapshot.clone("c").close()
        write_backup(folder / "target", {"v": snapshot}, kind="full")
        store.create_volume("x", SIZE)
        store.snapshot(["x"], "set")
        volume.resize(2 * SIZE)
        volume.flush()
    files = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert any(name.endswith(".adopting") for name in io.kept) and len(files) > 6
    for name, data in {**files, **io.kept}.items():
        found = [needle for needle in told_of_the_machine(folder) if needle in data]
        assert not found, f"{name}: {found}"


@pytest.mark.parametrize("way", ["rename", "copy"])
def test_a_volume_goes_on_wherever_it_is_taken(tmp_path: Path, way: str) -> None:
    with Volume.create(tmp_path / "v", SIZE) as volume:
        volume.pwrite(b"data", 0)
        volume.snapshot("s").clone("c").close()
    (tmp_path / "elsewhere").mkdir()
    (os.rename if way == "rename" else shutil.copy)(tmp_path / "v", tmp_path / "elsewhere" / "w")
    with Volume.open(tmp_path / "elsewhere" / "w") as volume:
        assert volume.get_snapshot("s").pread(4, 0) == b"data" and volume.heads() == ["live", "c"]
        assert volume.check().ok


PROGRAM = """
import sys
from cowengine import Store, Volume
from cowengine.backup import write_backup
with Volume.create("v", 1 << 20) as volume:
    write_backup("target", {"v": volume.snapshot("s")}, kind="full")
    volume.get_snapshot("s").flatten("flat")
with Store.create("store") as store:
    store.create_volume("x", 1 << 20)
    store.snapshot(["x"], "set")
"""


def test_no_variable_of_the_environment_leads_a_file_elsewhere(tmp_path: Path) -> None:
    work, lure = tmp_path / "work", tmp_path / "lure"
    work.mkdir()
    lure.mkdir()
    names = ("HOME", "TMPDIR", "TEMP", "TMP", "SQLITE_TMPDIR", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME",
             "COWENGINE_STORE", "COWENGINE_PATH", "COWENGINE_TMPDIR", "COWENGINE_LOG")  # fmt: skip
    environment = {**os.environ, **dict.fromkeys(names, str(lure)), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    subprocess.run([sys.executable, "-P", "-c", PROGRAM], cwd=work, env=environment, check=True)
    assert sorted(os.listdir(work)) == ["flat", "store", "target", "v"]
    assert os.listdir(lure) == []


def test_a_command_looks_for_no_module_where_it_is_run(tmp_path: Path) -> None:
    """A folder that somebody else filled is no place to take code from."""
    for name in ("numpy.py", "sqlite3.py", "zstandard.py", "cowengine.py", "json.py"):
        (tmp_path / name).write_text("open('ran', 'w')\n")
    command = shutil.which("cowengine", path=os.path.dirname(sys.executable))
    assert command is not None
    environment = {**os.environ, "PYTHONPATH": str(Path(cowengine.__file__).parents[1])}
    for words in (["volume", "create", "v", "1M"], ["snapshot", "create", "v@s"], ["volume", "check", "v"]):
        subprocess.run([command, *words], cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert not (tmp_path / "ran").exists()
