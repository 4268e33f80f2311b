"""A stream through a pipe is the same stream: verified and restored in one forward pass, alone or as a chain."""

from __future__ import annotations

import dataclasses
import io
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from cowengine.backup import restore, restore_stream, verify_backup, verify_stream, write_backup
from cowengine.errors import BackupError, ExistsError, FormatError, FullBackupRequired, NotFoundError, OutOfRangeError
from cowengine.store import Store

from .conftest import complete_looking


@pytest.fixture
def streams(origin: Any) -> list[bytes]:
    """A full and two incrementals, each as a stream of its own."""
    made: list[bytes] = []
    base = None
    for index, kind in enumerate(["full", "incremental", "incremental"]):
        origin.scribble(6)
        pipe = io.BytesIO()
        base = write_backup(pipe, {"main": origin.snapshot(f"s{index}")}, kind=kind, base=base)
        assert base.bytes_written == len(pipe.getvalue())
        made.append(pipe.getvalue())
    return made


class Dribble:
    """A raw pipe on a bad day: a few bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)
        self._random = random.Random(1)

    def read(self, length: int) -> bytes:
        return self._file.read(min(length, self._random.randint(1, 3000)))


def test_streams_in_order_restore_the_last_point(origin: Any, streams: list[bytes], tmp_path: Path) -> None:
    for count in (1, 2, 3):
        pipe = b"".join(streams[:count])
        report = verify_stream(io.BytesIO(pipe))
        assert report.ok
        assert report.counts["backups"] == count
        assert report.counts["stream_bytes"] == len(pipe)
        for source in (io.BytesIO(pipe), Dribble(pipe)):
            out = tmp_path / f"out-{count}-{type(source).__name__}"
            restored = restore_stream(source, out)
            assert Path(restored["main"]).read_bytes() == origin.expected[f"s{count - 1}"]


def test_a_stream_restores_into_a_store(origin: Any, streams: list[bytes], tmp_path: Path) -> None:
    with Store.create(str(tmp_path / "store")) as store:
        assert restore(io.BytesIO(b"".join(streams)), None, store) == {"main": "main"}
        with store.open_volume("main") as volume:
            assert volume.pread(volume.size, 0) == origin.expected["s2"]


def test_a_stream_and_a_file_in_a_target_are_the_same_bytes(origin: Any, tmp_path: Path) -> None:
    origin.scribble()
    snapshot = origin.snapshot("a")
    backup = write_backup(tmp_path / "t", {"main": snapshot}, kind="full")
    stream = (tmp_path / "t" / "chains" / "default" / backup.id / "stream").read_bytes()
    assert verify_stream(io.BytesIO(stream)).ok
    pipe = io.BytesIO()
    piped = write_backup(pipe, {"main": snapshot}, kind="full")
    assert len(pipe.getvalue()) == len(stream)
    assert dataclasses.replace(piped.totals, root="") == dataclasses.replace(backup.totals, root="")


def test_a_backup_goes_through_a_real_pipe_while_it_is_written(make_origin: Any, tmp_path: Path) -> None:
    origin = make_origin(8 << 20)
    origin.scribble(60)
    snapshot = origin.snapshot("a")
    reading, writing = os.pipe()

    def send() -> None:
        with os.fdopen(writing, "wb") as pipe:
            write_backup(pipe, {"main": snapshot}, kind="full")

    thread = threading.Thread(target=send)
    thread.start()
    with os.fdopen(reading, "rb") as pipe:
        restored = restore(pipe, None, tmp_path / "out")
    thread.join()
    assert Path(restored["main"]).read_bytes() == origin.expected["a"]


def test_a_backup_goes_through_another_process(origin: Any, tmp_path: Path) -> None:
    origin.scribble(20)
    snapshot = origin.snapshot("a")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:
        assert cat.stdin is not None
        stdin = cat.stdin

        def send() -> None:
            with stdin:
                write_backup(stdin, {"main": snapshot}, kind="full")

        thread = threading.Thread(target=send)
        thread.start()
        restored = restore(cat.stdout, None, tmp_path / "out")
        thread.join()
    assert Path(restored["main"]).read_bytes() == origin.expected["a"]


def test_dash_is_standard_input_and_output(streams: list[bytes], origin: Any, tmp_path: Path) -> None:
    code = "import sys; from cowengine.backup import restore; restore('-', None, sys.argv[1])"
    pipe = b"".join(streams)
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], input=pipe, check=True, timeout=60)
    assert (tmp_path / "out" / "main.raw").read_bytes() == origin.expected["s2"]
    code = "from cowengine.backup import verify_backup; r = verify_backup('-'); print(r.ok, r.counts['backups'])"
    done = subprocess.run([sys.executable, "-c", code], input=pipe, check=True, timeout=60, capture_output=True)
    assert done.stdout.split() == [b"True", b"3"]


@pytest.mark.parametrize("order", [(1,), (1, 2), (0, 2), (1, 0), (0, 2, 1), (0, 0), (0, 1, 1), (0, 1, 0)])
def test_streams_in_any_other_order_are_refused(streams: list[bytes], tmp_path: Path, order: tuple[int, ...]) -> None:
    pipe = b"".join(streams[index] for index in order)
    assert not verify_backup(io.BytesIO(pipe)).ok
    with pytest.raises(BackupError):
        restore_stream(io.BytesIO(pipe), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damage_in_any_stream_of_a_chain_leaves_nothing(streams: list[bytes], tmp_path: Path) -> None:
    pipe = b"".join(streams)
    chance = random.Random(6)
    for _ in range(60):
        damaged = bytearray(pipe)
        damaged[chance.randrange(len(pipe))] ^= 1 << chance.randrange(8)
        assert not verify_stream(io.BytesIO(bytes(damaged))).ok
        with pytest.raises(BackupError):
            restore_stream(io.BytesIO(bytes(damaged)), tmp_path / "out")
        assert not (tmp_path / "out").exists()
    for cut in (len(pipe) - 1, len(pipe) - 80, len(streams[0]) + 80, len(streams[0]) // 2):
        with pytest.raises(BackupError):
            restore_stream(io.BytesIO(pipe[:cut]), tmp_path / "out")
    with pytest.raises(FormatError):
        restore_stream(io.BytesIO(pipe + b"more"), tmp_path / "out")
    assert complete_looking(tmp_path / "out") == []


def test_a_damaged_stream_leaves_no_volume_in_the_store(streams: list[bytes], tmp_path: Path) -> None:
    damaged = bytearray(b"".join(streams))
    damaged[-200] ^= 1
    with Store.create(str(tmp_path / "store")) as store:
        with pytest.raises(BackupError):
            restore_stream(io.BytesIO(bytes(damaged)), store)
        assert store.volumes() == []


def test_a_named_backup_must_be_the_last_stream(streams: list[bytes], tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        restore(io.BytesIO(streams[0]), "00000000-0000-4000-8000-000000000000", tmp_path / "out")
    with pytest.raises(NotFoundError):
        restore(io.BytesIO(streams[0]), None, tmp_path / "out", volumes=["other"])
    assert complete_looking(tmp_path / "out") == []


def test_a_stream_does_not_replace_a_file(streams: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "main.raw").write_bytes(b"mine")
    with pytest.raises(ExistsError):
        restore_stream(io.BytesIO(streams[0]), tmp_path)
    assert (tmp_path / "main.raw").read_bytes() == b"mine"


def test_a_reader_that_goes_away_fails_the_backup(make_origin: Any) -> None:
    origin = make_origin(4 << 20)
    origin.write(0, origin.random.randbytes(4 << 20))
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb", buffering=0) as pipe, pytest.raises(BackupError, match="pipe"):
        write_backup(pipe, {"main": origin.snapshot("a")}, kind="full")


def test_an_incremental_to_a_pipe_needs_its_base_as_an_object(origin: Any) -> None:
    snapshot = origin.snapshot("a")
    full = write_backup(io.BytesIO(), {"main": snapshot}, kind="full")
    with pytest.raises(FullBackupRequired):
        write_backup(io.BytesIO(), {"main": snapshot}, kind="incremental")
    with pytest.raises(OutOfRangeError):
        write_backup(io.BytesIO(), {"main": snapshot}, kind="incremental", base=full.id)


def test_a_text_file_is_no_pipe(streams: list[bytes], origin: Any, tmp_path: Path) -> None:
    with pytest.raises(BackupError):
        write_backup(io.StringIO(), {"main": origin.snapshot("a")}, kind="full")
    with pytest.raises(OutOfRangeError):
        restore_stream(io.StringIO("text"), tmp_path / "out")
