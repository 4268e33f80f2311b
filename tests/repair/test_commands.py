"""Salvage by the command line: the exit codes, the list, and addresses."""

from __future__ import annotations

import json

import pytest
from hostile_image import SLOT

from cowengine import Store, Volume
from cowengine.cli.main import main


@pytest.fixture
def command(capsys):
    """Runs a command: (exit code, what it prints as a document)."""

    def run(*arguments: object) -> tuple[int, dict]:
        code = main([str(argument) for argument in arguments] + ["--json"])
        printed = capsys.readouterr().out
        return code, json.loads(printed) if printed.strip() else {}

    return run


def test_salvage_of_a_damaged_file(tmp_path, command):
    path, image = tmp_path / "v", tmp_path / "image"
    with Volume.create(path, 64 * SLOT, background=False) as volume:
        volume.pwrite(b"a" * 8 * SLOT, 0)
        number = volume.snapshot("s").id
        volume.seal()
        slot, _ = volume.engine.path.place(3)
    code, document = command("volume", "export", path, image, "--salvage")
    assert code == 0 and document["ok"] and document["lost"] == [] and "record" in document["state"]
    image.unlink()
    data = bytearray(path.read_bytes())
    data[slot * SLOT] ^= 1
    path.write_bytes(data)
    for address in (f"{path}@s", f"{path}@#{number}"):
        code, document = command("volume", "export", address, image, "--salvage")
        assert code == 4 and [(lost["offset"], lost["length"]) for lost in document["lost"]] == [(3 * SLOT, SLOT)]
        assert image.read_bytes()[: 4 * SLOT] == b"a" * 3 * SLOT + bytes(SLOT)
        image.unlink()
    assert command("volume", "export", path, image)[0] == 2
    assert command("volume", "export", path, image, "--salvage", "--format", "qcow2")[0] == 2
    assert not image.exists()


def test_salvage_of_a_volume_of_a_store(tmp_path, command):
    with Store.create(tmp_path / "store") as store, store.create_volume("v", 64 * SLOT) as volume:
        volume.pwrite(b"a" * SLOT, 0)
    code, _ = command("volume", "export", f"{tmp_path}/store:v", tmp_path / "image", "--salvage")
    assert code == 0 and (tmp_path / "image").read_bytes() == b"a" * SLOT + bytes(63 * SLOT)


def test_check_with_repair(tmp_path, command):
    path = tmp_path / "v"
    with Volume.create(path, 64 * SLOT, background=False) as volume:
        volume.pwrite(b"a" * 8 * SLOT, 0)
        volume.engine.checkpoint()
        slot = volume.engine.superblock.free_map_root.slot
        volume.snapshot("s")
        data = path.read_bytes()
    damaged = bytearray(data)
    damaged[slot * SLOT] ^= 1
    path.write_bytes(damaged)
    assert command("volume", "check", path)[0] == 4
    code, document = command("volume", "check", path, "--repair")
    assert code == 0 and document["ok"] and "free map" in document["repaired"][0]
    code, document = command("volume", "check", path, "--repair")
    assert code == 0 and document["repaired"] == []
    assert command("volume", "check", path)[0] == 0
    with Volume.open(path, read_only=True, background=False) as volume:
        assert volume.get_snapshot("s").pread(8 * SLOT, 0) == b"a" * 8 * SLOT
        slot = volume.engine.superblock.lineage_root.slot
    damaged = bytearray(path.read_bytes())
    damaged[slot * SLOT] ^= 1
    path.write_bytes(damaged)
    assert command("volume", "check", path, "--repair")[0] == 4
    assert path.read_bytes() == damaged


def test_repair_through_a_store(tmp_path, command):
    with Store.create(tmp_path / "store") as store, store.create_volume("v", 64 * SLOT) as volume:
        volume.pwrite(b"a" * SLOT, 0)
    code, document = command("volume", "check", f"{tmp_path}/store:v", "--repair")
    assert code == 0 and document["repaired"] == []
    with Store.open(tmp_path / "store") as store:
        assert store.check().ok
