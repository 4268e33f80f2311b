"""Planted bugs: the list is what it says, and some that show at once are caught; the rest is `planted.py --row`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from barriers import KINDS
from planted import Caught, hunt, planted, smaller
from planted_bugs import BUGS

PLANTED = Path(__file__).parent / "planted.py"
QUICK = (
    "one-barrier-for-data-and-record", "failed-barrier-does-not-poison", "superblock-in-one-slot",
    "stale-superblock-chosen", "record-skipped-in-replay", "frozen-block-written-in-place",
    "delete-frees-what-a-child-shares", "changed-extents-skip-tombstones", "clone-does-not-hold-its-origin",
    "shrink-leaves-blocks", "dirty-record-evicted", "store-log-without-barrier",
    "write-in-flight-missed-by-the-fence", "pin-of-a-reader-ignored", "failed-write-of-nodes-ignored",
    "full-disk-taken-for-room", "retention-ignored", "error-of-a-data-write-swallowed", "poisoned-handle-goes-on",
    "batch-lost-when-the-disk-is-full",
)  # fmt: skip


def test_there_are_enough_and_each_says_what_it_is() -> None:
    assert len(BUGS) >= 60
    assert len({one.what for one in BUGS.values()}) == len(BUGS)
    assert all(one.name == name and one.rule and one.what for name, one in BUGS.items())
    assert {one.barrier for one in BUGS.values() if one.barrier} == set(KINDS)
    assert len({one.hunt.harness for one in BUGS.values()}) >= 9


@pytest.mark.parametrize("name", QUICK)
def test_a_bug_is_caught_and_gone_again(name: str) -> None:
    """`hunt` plays the history that shows the bug without it as well, behind it."""
    found = hunt(BUGS[name], seed=1)
    assert isinstance(found, Caught), found


def test_fewer_steps_show_the_same() -> None:
    found = hunt(BUGS["record-replayed-twice"], seed=3)
    assert isinstance(found, Caught), found
    least = smaller(found)
    assert len(least.trace) < len(found.trace)
    assert least.played.violation
    for place in range(len(least.trace)):
        shorter = least.trace[:place] + least.trace[place + 1 :]
        assert planted(BUGS[least.name], least.history, shorter).violation is None, "a step could go"


def test_the_command_line_shows_one() -> None:
    command = [sys.executable, "-P", str(PLANTED), "--bug", "no-barrier-record", "--seed", "5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "caught by the crash explorer, seed 5" in done.stdout
    assert "steps are enough" in done.stdout
