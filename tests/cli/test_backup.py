"""The verbs of backup on a real store: there and back again, through a directory and through a pipe."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import time
import uuid

import pytest

from cowengine import Store

from .conftest import COMMAND

MiB = 1 << 20


@pytest.fixture
def store(store):
    for name in ("mail", "index"):
        write(store, name, random.Random(name).randbytes(100_000), 4096)
    return store


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "target"
    path.mkdir()
    return path


def write(store, name, data, offset):
    with Store.open(str(store)) as opened:
        opened.open_volume(name).pwrite(data, offset)


def digests(store):
    with Store.open(str(store), read_only=True) as opened:
        volumes = {name: opened.open_volume(name) for name in opened.volumes()}
        return {name: hashlib.sha256(volume.pread(volume.size, 0)).hexdigest() for name, volume in volumes.items()}


def back_up(run, store, target, *words):
    return run("backup", "create", store, "--target", target, *words, "--json").document


def test_a_chain_is_written_listed_shown_verified_and_restored(run, store, target, tmp_path):
    full = back_up(run, store, target)
    first = digests(store)
    write(store, "mail", b"new" * 1000, MiB)
    incremental = back_up(run, store, target, "--kind", "incremental")
    assert (full["kind"], full["base"]) == ("full", None)
    assert (incremental["kind"], incremental["base"]) == ("incremental", full["id"])
    assert incremental["bytes_written"] < full["bytes_written"]
    listed = run("backup", "list", target, "--json").document["backups"]
    assert [row["id"] for row in listed] == [full["id"], incremental["id"]]
    assert full["id"] in run("backup", "list", target).out
    assert run("backup", "show", target, full["id"], "--json").document["manifest"]["id"] == full["id"]
    report = run("backup", "verify", target, "--json").document
    assert report["ok"] is True
    assert report["counts"]["backups"] == 2
    for backup, expected in ((full, first), (incremental, digests(store))):
        restored = tmp_path / backup["kind"]
        run("store", "create", restored)
        run("backup", "restore", target, restored, "--backup", backup["id"])
        assert digests(restored) == expected


def test_restore_without_an_id_takes_the_newest_and_raw_files_need_no_store(run, store, target, tmp_path):
    back_up(run, store, target)
    write(store, "mail", b"new" * 1000, MiB)
    back_up(run, store, target, "--kind", "incremental")
    expected = digests(store)
    (tmp_path / "raw").mkdir()
    run("backup", "restore", target, tmp_path / "raw", "--raw", "--volume", "mail")
    files = [path for path in (tmp_path / "raw").iterdir() if path.is_file()]
    assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in files] == [expected["mail"]]


def test_a_stream_goes_through_a_pipe(run, run_process, store, tmp_path):
    done = run_process("backup", "create", store, "--target", "-", "--json")
    assert done.returncode == 0, done.stderr
    assert b'"kind": "full"' in done.stderr
    assert run_process("backup", "verify", "-", input=done.stdout).returncode == 0
    run("store", "create", tmp_path / "restored")
    restored = run_process("backup", "restore", "-", tmp_path / "restored", input=done.stdout)
    assert restored.returncode == 0, restored.stderr
    assert digests(tmp_path / "restored") == digests(store)
    damaged = bytearray(done.stdout)
    damaged[len(damaged) // 2] ^= 1
    assert run_process("backup", "verify", "-", input=bytes(damaged)).returncode == 4


def test_verify_of_a_damaged_backup_exits_with_4(run, store, target):
    back_up(run, store, target)
    largest = max((path for path in target.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.chmod(0o600)
    largest.write_bytes(data)
    report = run("backup", "verify", target, "--json", expect=4).document
    assert report["ok"] is False
    assert report["problems"]


def test_an_incremental_without_a_base_is_refused(run, store, target):
    outcome = run("backup", "create", store, "--target", target, "--kind", "incremental", expect=3)
    assert outcome.out == ""
    assert run("backup", "list", target, "--json").document["backups"] == []


def test_copy_makes_a_second_backup_that_verifies(run, store, target, tmp_path):
    full = back_up(run, store, target)
    (tmp_path / "second").mkdir()
    run("backup", "copy", target, full["id"], tmp_path / "second")
    assert run("backup", "verify", tmp_path / "second", "--json").document["counts"]["backups"] == 1


def test_delete_refuses_to_orphan_a_chain_and_has_a_dry_run(run, store, target):
    full = back_up(run, store, target)
    incremental = back_up(run, store, target, "--kind", "incremental")
    assert run("backup", "delete", target, full["id"], expect=5).err
    run("backup", "delete", target, full["id"], "--dry-run", expect=5)
    planned = run("backup", "delete", target, incremental["id"], "--dry-run", "--json").document
    assert planned["deleted"] is False
    assert len(run("backup", "list", target, "--json").document["backups"]) == 2
    assert run("backup", "delete", target, incremental["id"], "--json").document["deleted"] is True
    run("backup", "delete", target, full["id"])
    assert run("backup", "list", target, "--json").document["backups"] == []


def test_progress_is_json_lines_on_stderr(run, store, target):
    outcome = run("backup", "create", store, "--target", target, "--json")
    assert {line["event"] for line in outcome.log} == {"progress"}
    assert outcome.log[-1]["done_bytes"] == outcome.log[-1]["total_bytes"]


def test_an_unknown_backup_exits_with_1(run, store, target):
    back_up(run, store, target)
    run("backup", "show", target, uuid.uuid4(), expect=1)
    run("backup", "show", target, "none", expect=2)
    run("backup", "list", target / "none", expect=1)


def test_ctrl_c_during_a_backup_exits_with_130_and_leaves_no_backup(run, store, target):
    """One that was whole before the signal came stays, as on a machine with other work it may: then once more."""
    run("volume", "create", f"{store}:large", "256M")
    data = random.Random(0).randbytes(64 * MiB)
    write(store, "large", data, 0)
    write(store, "large", data, 128 * MiB)
    before, left = [], None
    for _ in range(5):
        interrupt_a_backup(store, target)
        left = run("backup", "list", target, "--json").document["backups"]
        if left == before:
            break
        assert run("backup", "verify", target, "--json").document["ok"] is True
        before = left
    assert left == before, "the signal never came in time"
    assert len(run("set", "list", store, "--json").document["sets"]) == len(left)
    assert run("store", "check", store, "--json").document["ok"] is True


def interrupt_a_backup(store, target):
    size = written(target)
    command = subprocess.Popen(
        [*COMMAND, "backup", "create", str(store), "--target", str(target)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while command.poll() is None and time.monotonic() < deadline and written(target) <= size + MiB:
        time.sleep(0.005)
    command.send_signal(signal.SIGINT)
    _, error = command.communicate(timeout=60)
    assert b"Traceback" not in error
    if command.returncode != 0:
        assert command.returncode == 130
        assert b"interrupted" in error


def written(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
