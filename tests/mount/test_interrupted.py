"""A mount is taken down from wherever it stands: a program of it died, the command died in any step, a step failed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import MIB, Bench, bench, leftovers, run

from cowengine import CowEngineError, Volume
from cowengine.mount import mount_volume, mounted, sweep, unmount
from cowengine.mount.chain import Chain

pytestmark = pytest.mark.privileged("nbdfuse", "fusermount3", "losetup", "mkfs.ext4", "nbdkit", "setpriv")

STEPS = ["server", "overlay", "fuse", "loop", "mount"]

# Mounts a snapshot, and dies before or behind a step; the words: step, when, volume, directory.
DYING = """
import os, signal, sys
from cowengine.mount import chain, mount_volume
step, when, volume, directory = sys.argv[1:]
methods = {"server": "start_server", "overlay": "start_overlay", "fuse": "start_fuse", "loop": "attach_loop"}
name = methods.get(step, step)
done = getattr(chain.Chain, name)
def dying(self, *arguments, **options):
    if when == "started":  # the program runs, and nobody waited for it
        chain.Chain._wait = lambda self, *arguments: os.kill(os.getpid(), signal.SIGKILL)
    if when == "entered":
        self.record.begin(step)
    else:
        done(self, *arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(chain.Chain, name, dying)
mount_volume(volume, directory, snapshot="monday", writable=True)
"""


@pytest.fixture
def place() -> Iterator[Bench]:
    """A folder with a volume that has an ext4 and a snapshot of it, in which nothing is left behind."""
    with bench() as made:
        Volume.create(made.folder / "disk.cow", 64 * MIB).close()
        made.format(made.folder / "disk.cow", "mkfs.ext4", "-q", "-F")
        with Volume.open(made.folder / "disk.cow") as volume:
            volume.snapshot("monday")
        made.directory("point")
        yield made


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("when", ["entered", "started", "done"])
def test_the_command_dies_in_a_step(place, step, when):
    words = [step, when, str(place.folder / "disk.cow"), str(place.folder / "point")]
    dying = subprocess.run([sys.executable, "-P", "-c", DYING, *words], capture_output=True, text=True)
    assert dying.returncode == -signal.SIGKILL, dying.stderr
    (record,) = mounted()
    assert record.steps
    assert [each.id for each in sweep()] == [record.id]
    assert leftovers(place.folder) == []
    assert os.listdir(place.folder / "mounts") == ["lock"]
    with Volume.open(place.folder / "disk.cow") as volume:
        assert volume.check().ok


@pytest.mark.parametrize("program", ["server", "overlay", "fuse"])
@pytest.mark.parametrize("way", ["umount", "mount"])
def test_a_program_dies(place, program, way):
    """Unmounted by hand, or by the sweep of the next mount."""
    volume, point = str(place.folder / "disk.cow"), str(place.folder / "point")
    record = mount_volume(volume, point, snapshot="monday", writable=True)
    Path(point, "file").write_bytes(b"x" * 100_000)
    dead = getattr(Chain(record), program)
    number = dead.number()
    os.kill(number, signal.SIGKILL)
    assert dead.wait(60)
    if way == "umount":
        unmount(point)
        assert leftovers(place.folder) == []
    record = mount_volume(volume, point, snapshot="monday", writable=True)
    assert os.listdir(point) == ["lost+found"]
    unmount(record.id)
    assert leftovers(place.folder) == []


@pytest.mark.parametrize("taken", ["mount", "loop", "fuse"])
def test_somebody_took_a_part_away_by_hand(place, taken):
    record = mount_volume(str(place.folder / "disk.cow"), str(place.folder / "point"))
    run("umount", record.directory)
    if taken in ("loop", "fuse"):
        run("losetup", "--detach", record.device)
    if taken == "fuse":
        run("fusermount3", "-u", record.block_file)
    unmount(record.id)
    assert leftovers(place.folder) == []


def test_by_force_while_a_program_hangs(place):
    record = mount_volume(str(place.folder / "disk.cow"), str(place.folder / "point"))
    number = Chain(record).fuse.number()
    assert number is not None
    os.kill(number, signal.SIGSTOP)
    unmount(str(place.folder / "point"), force=True)
    assert leftovers(place.folder) == []


@pytest.mark.parametrize("program", ["nbdkit", "nbdfuse", "losetup", "mount"])
def test_a_step_fails(place, program, tmp_path, monkeypatch):
    """What was there before it is taken back, and the error says what it said."""
    broken = tmp_path / program
    broken.write_text("#!/bin/sh\necho 'it is broken today' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(CowEngineError, match="it is broken today"):
        mount_volume(str(place.folder / "disk.cow"), str(place.folder / "point"), snapshot="monday", writable=True)
    monkeypatch.undo()
    assert leftovers(place.folder) == []
    assert not any(path.is_dir() for path in (place.folder / "mounts").iterdir())
