"""One owner at a time, whatever the way to the file; locks end with their process; copies of an open file."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from other_process import LOG, SIZE, Failed, OtherProcess, is_exact, made, snapshot_with_digest, whole, write_some

from cowengine import CorruptionError, FormatError, Volume
from cowengine.core.iotable import KERNEL
from cowengine.errors import BusyError


def refused_everywhere(path: Path, other: OtherProcess) -> None:
    """Nobody may own the file under this name, here or elsewhere; reading its snapshots goes."""
    with pytest.raises(BusyError):
        Volume.open(path)
    with pytest.raises(Failed, match="BusyError"):
        other.call("open", str(path), False)
    with Volume.open(path, read_only=True) as reader:
        assert is_exact(reader.get_snapshot("s1"))


def test_a_second_owner_is_refused_under_every_name_of_the_file(tmp_path: Path) -> None:
    path, link = tmp_path / "v", tmp_path / "hard link"
    made(path)
    os.link(path, link)
    (tmp_path / "symbolic").symlink_to(path)
    with Volume.open(path), OtherProcess() as other:
        refused_everywhere(path, other)
        refused_everywhere(link, other)
        for read_only in (False, True):
            with pytest.raises(FormatError):
                Volume.open(tmp_path / "symbolic", read_only=read_only)
            with pytest.raises(Failed, match="FormatError"):
                other.call("open", str(tmp_path / "symbolic"), read_only)


@pytest.mark.privileged("mount", "umount")
def test_a_second_owner_is_refused_through_a_bind_mount(tmp_path: Path) -> None:
    made(tmp_path / "v")
    place = tmp_path / "elsewhere"
    place.mkdir()
    subprocess.run(["mount", "--bind", str(tmp_path), str(place)], check=True)
    try:
        with Volume.open(tmp_path / "v") as owner, OtherProcess() as other:
            refused_everywhere(place / "v", other)
            other.call("open", str(place / "v"), True)
            other.call("hold", "s1")
            with pytest.raises(BusyError):
                owner.get_snapshot("s1").delete()
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_an_owner_that_is_killed_leaves_nothing_locked(tmp_path: Path) -> None:
    path = tmp_path / "v"
    made(path)
    with OtherProcess() as first, OtherProcess() as second:
        first.call("open", str(path), False)
        with pytest.raises(Failed, match="BusyError"):
            second.call("open", str(path), False)
        first.kill()
        second.call("open", str(path), False)
        second.call("delete", "s0")


def test_a_child_of_a_fork_takes_no_lock_along_when_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "v"
    made(path)
    with Volume.open(path) as owner, Volume.open(path, read_only=True) as reader, OtherProcess() as other:
        held = reader.get_snapshot("s1")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            status = 1
            try:
                del held
                reader.close()
                owner.close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        refused_everywhere(path, other)
        with pytest.raises(BusyError):
            owner.get_snapshot("s1").delete()
        assert is_exact(held)


def test_an_owner_goes_on_with_its_file_when_that_is_renamed_and_another_takes_its_name(tmp_path: Path) -> None:
    path, moved = tmp_path / "v", tmp_path / "moved"
    states = made(path)
    with Volume.open(path) as owner, Volume.open(path, read_only=True) as reader:
        held = reader.get_snapshot("s1")
        os.rename(path, moved)
        with Volume.create(path, SIZE) as newcomer:
            newcomer.pwrite(b"another volume", 0)
            newcomer.snapshot("its own")
            with Volume.open(path, read_only=True) as newcomer_reader:
                assert [snapshot.name for snapshot in newcomer_reader.snapshots()] == ["its own"]
        with pytest.raises(BusyError):
            Volume.open(moved)
        owner.snapshot("after the rename")
        assert reader.snapshots()[-1].name == "after the rename" and whole(held) == states["s1"]
    with Volume.open(moved) as volume:
        assert [snapshot.name for snapshot in volume.snapshots()] == [*states, "after the rename"]


def test_a_file_that_was_copied_while_it_was_written_opens_with_right_snapshots_or_says_it_is_damaged(
    tmp_path: Path,
) -> None:
    """Of snapshots that nobody deleted meanwhile; docs/reliability.md says what such a copy is worth otherwise."""
    path, copy = tmp_path / "v", tmp_path / "copy"
    opened = damaged = 0
    rng, live = random.Random(5), bytearray(SIZE)
    with Volume.create(path, SIZE, log_size=LOG, background=False) as owner:
        for number in range(12):
            with subprocess.Popen(["cp", "--reflink=never", str(path), str(copy)]) as copying:
                written = 0
                while copying.poll() is None or not written:
                    write_some(owner, rng, live)
                    snapshot_with_digest(owner, f"{number}-{written}", live)
                    written += 1
            try:
                with Volume.open(copy, background=False) as volume:
                    for snapshot in volume.snapshots()[-40:]:
                        assert is_exact(snapshot), snapshot.name
                opened += 1
            except (CorruptionError, FormatError):
                damaged += 1
    assert opened + damaged == 12
    shutil.copyfile(path, copy)  # at rest, and closed
    with Volume.open(copy) as volume:
        assert all(is_exact(snapshot) for snapshot in volume.snapshots()[-40:]) and volume.check().ok


RANGES = st.tuples(st.integers(0, 12), st.integers(0, 4))
STEPS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["lock", "unlock", "locked"]), st.booleans(), RANGES), max_size=30
)


@settings(max_examples=60)
@given(steps=STEPS)
def test_locks_of_ranges_are_a_set_of_bytes_for_each_descriptor(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, str, bool, tuple[int, int]]]
) -> None:
    path = tmp_path_factory.mktemp("locks") / "file"
    path.touch()
    files = [os.open(path, os.O_RDWR) for _ in range(3)]
    held: list[dict[int, bool]] = [{} for _ in files]  # byte -> exclusive
    try:
        for who, verb, exclusive, (start, length) in steps:
            wanted = range(start, start + length if length else 32)
            others = [(byte, mode) for n, locks in enumerate(held) if n != who for byte, mode in locks.items()]
            conflicts = {byte for byte, mode in others if byte in wanted and (mode or exclusive)}
            if verb == "unlock":
                KERNEL.unlock(files[who], start, length)
                held[who] = {byte: mode for byte, mode in held[who].items() if byte not in wanted}
            elif verb == "locked":
                found = KERNEL.locked(files[who], exclusive, start, length)
                assert (found is None) == (not conflicts)
                if found is not None:
                    end = found[0] + found[1] if found[1] else 32
                    assert conflicts & set(range(found[0], min(end, 32)))
            elif conflicts:
                with pytest.raises(BlockingIOError):
                    KERNEL.lock(files[who], exclusive, start, length)
            else:
                KERNEL.lock(files[who], exclusive, start, length)
                held[who] |= dict.fromkeys(wanted, exclusive)
    finally:
        for fd in files:
            os.close(fd)
