"""The command as a process: fast to start, quiet about broken pipes, and Ctrl-C ends it with 130."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from cowengine import Volume, __version__

from .conftest import COMMAND


def test_version_answers_without_loading_anything_heavy(run_process):
    assert run_process("--version").stdout.decode().split() == ["cowengine", __version__]
    code = (
        "import sys; from cowengine.cli.main import main; main(['--version']); "
        "print(sorted({'numpy', 'cffi', 'zstandard', 'apsw', 'sqlite3', 'importlib.metadata'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_error_is_one_line_unless_debug_asks_for_more(run_process, tmp_path):
    quiet = run_process("volume", "info", tmp_path / "none")
    assert quiet.returncode == 1
    assert len(quiet.stderr.decode().splitlines()) == 1
    loud = run_process("volume", "info", tmp_path / "none", "--debug")
    assert loud.returncode == 1
    assert b"Traceback" in loud.stderr


def test_a_reader_that_goes_away_ends_the_command_without_noise(tmp_path):
    path = tmp_path / "disk.cow"
    with Volume.create(str(path), 64 << 20) as volume:
        for number in range(3000):
            volume.pwrite(b"x" * 4096, number * 8192)
    command = subprocess.Popen([*COMMAND, "volume", "map", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    command.stdout.close()
    _, error = command.communicate(timeout=30)
    assert error == b""
    assert command.returncode == 1


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_ctrl_c_exits_with_130_and_leaves_no_part_of_a_file(tmp_path, options):
    path, output = tmp_path / "disk.cow", tmp_path / "raw"
    with Volume.create(str(path), 1 << 40) as volume:  # copying a terabyte of holes takes long enough
        volume.snapshot("monday")
    words = ["snapshot", "cat", f"{path}@monday", "--output", str(output), *options]
    command = subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while command.poll() is None and not (output.exists() and output.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    command.send_signal(signal.SIGINT)
    _, error = command.communicate(timeout=30)
    assert command.returncode == 130
    assert b"interrupted" in error
    assert b"Traceback" not in error
    assert not output.exists()


def test_a_name_that_the_terminal_cannot_show_is_escaped(run_process, tmp_path):
    path = tmp_path / "disk.cow"
    with Volume.create(str(path), 1 << 20) as volume:
        volume.snapshot("größe")
    done = run_process("snapshot", "list", path, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert done.stdout.split()[-1] == rb"gr\xf6\xdfe"
