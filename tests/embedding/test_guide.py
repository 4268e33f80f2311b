"""docs/embedding.md says nothing that was not run."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from raw_images import write_image
from remotely import served

import cowengine
from cowengine import errors

GUIDE = Path(__file__).parents[2] / "docs" / "embedding.md"


def run_example(number: int) -> None:
    code = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)[number]
    exec(compile(code, str(GUIDE), "exec"), {"__name__": "guide", "cowengine": cowengine})


def test_the_example_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_example(0)
    with cowengine.Volume.open(tmp_path / "data.cow", read_only=True) as volume:
        assert volume.snapshots() == []


def test_the_example_of_clones_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cowengine.Volume.create("data.cow", 1 << 20).close()
    run_example(1)
    with cowengine.Volume.open("data.cow", read_only=True) as volume:
        assert (volume.heads(), volume.snapshots(), volume.pread(9, 0)) == (["live"], [], b"as it was")


def test_the_example_of_raw_images_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_image(tmp_path / "disk.img", 20 << 20)
    run_example(2)
    assert [(tmp_path / name).read_bytes() for name in ("disk.img", "copy.img", "before.img")] == [data] * 3


@pytest.mark.needs("qemu-img")
def test_the_example_of_other_formats_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "disk.img", 1 << 20)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "disk.img", "disk.qcow2"], check=True)
    run_example(3)
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "vhdx", "disk.img", "disk.vhdx"], check=True)


def test_the_example_of_retention_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cowengine.Volume.create("data.cow", 1 << 20).close()
    run_example(4)
    with cowengine.Volume.open("data.cow") as volume, pytest.raises(cowengine.RetentionError):
        volume.get_snapshot("year-end").delete()


def test_the_example_of_space_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cowengine.Volume.create("data.cow", 1 << 20).close()
    run_example(5)
    with cowengine.Volume.open("data.cow", read_only=True) as volume:
        assert volume.policy() == ("give-up", 10, 64 << 30)


def test_every_error_class_stands_in_the_guide() -> None:
    text = GUIDE.read_text()
    classes = [
        value for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.CowEngineError) and not value.__name__.startswith("_")
    ]  # fmt: skip
    missing = [kind.__name__ for kind in classes if f"{kind.__name__}`" not in text]
    assert not missing
    assert len(classes) > 15


def test_the_example_of_a_served_store_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    store = cowengine.Store.create("store")
    store.create_volume("mail", 1 << 20).close()
    with served(store) as client:
        run_example(next(number for number, block in enumerate(blocks) if "connect(" in block))
        assert [snapshot.name for snapshot in client.open_volume("mail").snapshots()] == ["monday"]
