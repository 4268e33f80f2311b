"""A restore that is killed or interrupted leaves nothing under its final name, and the next one succeeds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from cowengine.backup import restore, write_backup
from cowengine.store import Store

CODE = """
import os, signal, sys
import cowengine.backup.progress as pace
from cowengine.backup import restore
from cowengine.store import Store
pace.INTERVAL_SECONDS = 0
target, backup_id, destination, kind, stop = sys.argv[1:]
def progress(done, total, phase):
    if done > total // 2:
        os.kill(os.getpid(), getattr(signal, stop))
place = Store.open(destination) if kind == "store" else destination
restore(target, backup_id, place, progress=progress)
"""


@pytest.mark.parametrize("stop", ["SIGKILL", "SIGINT"])
@pytest.mark.parametrize("kind", ["store", "folder"])
def test_a_stopped_restore_leaves_nothing_complete(make_origin: Any, tmp_path: Path, stop: str, kind: str) -> None:
    origin = make_origin(8 << 20)
    origin.write(0, origin.random.randbytes(6 << 20))
    backup = write_backup(tmp_path / "t", {"main": origin.snapshot("a")}, kind="full")
    destination = tmp_path / "there"
    if kind == "store":
        Store.create(str(destination)).close()
    else:
        destination.mkdir()
    command = [sys.executable, "-c", textwrap.dedent(CODE), tmp_path / "t", backup.id, destination, kind, stop]
    done = subprocess.run([str(word) for word in command], capture_output=True, timeout=60, check=False)
    assert done.returncode == -getattr(signal, stop), done.stderr
    if kind == "folder":
        assert os.listdir(destination) == ([".main.raw.restoring"] if stop == "SIGKILL" else [])
        restored = restore(tmp_path / "t", backup.id, destination)
        assert os.listdir(destination) == ["main.raw"]
        assert Path(restored["main"]).read_bytes() == origin.expected["a"]
        return
    with Store.open(str(destination)) as store:
        assert "main" not in store.volumes()
        assert len(store.volumes()) == (1 if stop == "SIGKILL" else 0)
        restore(tmp_path / "t", backup.id, store)
        assert store.volumes() == ["main"]
        with store.open_volume("main") as volume:
            assert volume.pread(volume.size, 0) == origin.expected["a"]
