"""Every command of docs/fleecing.md, in its order, on a served store whose volume is being written to."""

from __future__ import annotations

import os
import random
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from served import COMMAND, MIB, bench, cowengine, served_store

from cowengine.nbd.client import Client

GUIDE = Path(__file__).parents[2] / "docs" / "fleecing.md"
SIZE = 64 * MIB
SERVE = "cowengine serve /srv/store"


def blocks() -> list[str]:
    """The commands of the guide, block by block."""
    return re.findall(r"^```\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE)


@contextmanager
def writing(socket: Path) -> Iterator[list[int]]:
    """Somebody writes to the volume all the while; how often, so far."""
    chance, end, count = random.Random(1), threading.Event(), [0]

    def write() -> None:
        with closing(Client(str(socket), "mail")) as client:
            while not end.wait(0.02):
                client.pwrite(chance.randbytes(8192), chance.randrange(SIZE // 4096 - 1) * 4096)
                count[0] += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield count
    finally:
        end.set()
        writer.join()


@pytest.mark.needs("nbdcopy", "nbdinfo", "qemu-img", "setpriv", "bash")
def test_every_command_of_the_guide():
    commands = blocks()
    assert commands[0].strip() == SERVE
    assert len(commands) > 10
    with bench() as place:
        store = place.store("store", mail=SIZE)
        for name in ("backup", "programs"):
            place.directory(name)
        cowengine("volume", "create", place.folder / "disk.cow", SIZE)
        program = place.folder / "programs" / "cowengine"
        program.write_text(f'#!/bin/sh\nexec {" ".join(COMMAND)} "$@"\n')
        program.chmod(0o755)
        environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}

        def carry_out(block: str) -> str:
            script = block.replace("/srv/", f"{place.folder}/").replace("/backup", f"{place.folder}/backup")
            done = subprocess.run(
                ["bash", "-eu", "-o", "pipefail", "-c", script], env=environment, stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
            return done.stdout

        with served_store(store) as server, writing(server.socket) as count:
            said = {}
            for block in commands[1:]:
                before = count[0]
                said[block] = carry_out(block)
                while count[0] < before + 5:  # so that there is something to back up
                    time.sleep(0.01)
            assert count[0] >= 5 * len(said)
        told = "".join(said.values())
        assert told.count("Images are identical.") == 3
        assert "dirty" in told
        backup = place.folder / "backup"
        full, incremental = (backup / name for name in ("monday.raw", "tuesday.qcow2"))
        assert full.stat().st_size == SIZE
        assert 0 < incremental.stat().st_blocks * 512 < SIZE
        assert cowengine("store", "check", store)["ok"]
