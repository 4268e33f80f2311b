"""How a program in the background is begun."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cowengine.mount.programs import Program
from cowengine.mount.state import Record

# As setsid, which on a busy machine may be a long time in ending behind the program that it began.
SLOW = """#!/bin/sh
exec 3<&0
shift
/usr/bin/setsid "$@" <&3 &
exec 3<&-
sleep 0.5
"""


@pytest.mark.needs("setpriv")
def test_the_end_of_whoever_began_it_ends_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nbdkit asks for SIGTERM at the death of its parent; here setpriv does."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "setsid").write_text(SLOW)
    (tools / "setsid").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    folder = tmp_path / "record"
    folder.mkdir()
    program = Program(Record(str(folder), "v"), "sleeper")
    program.start(["setpriv", "--pdeathsig", "TERM", "sh", "-c", "sleep 60; :", str(folder)])
    try:
        until = time.monotonic() + 60
        while program.number() is None:
            assert not program.has_ended(), program.said()
            assert time.monotonic() < until
            time.sleep(0.01)
        assert not program.wait(1.0)
    finally:
        program.end()
    assert program.has_ended()
