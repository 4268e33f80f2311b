"""The command line on a store that is served does, prints and returns what it does on a store at rest."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cowengine import Store, connect
from cowengine.cli.main import main
from cowengine.control.sockets import nbd_path
from cowengine.nbd.client import Client

COMMAND = [sys.executable, "-P", "-m", "cowengine"]

# S is the store, D a folder. What is run changes the store step by step.
STEPS = """
volume create S:mail 2M
volume create S:index 2M --block-size 64K
volume create S:mail 2M
volume list S
volume info S:mail
volume resize S:index 4M
volume import D/none.qcow2 S:none --format qcow2
volume adopt D/raw.img S:raw
snapshot create S:raw@monday --metadata ticket=4711
snapshot create S:raw@monday
snapshot create S:mail@tuesday
snapshot list S:raw
snapshot show S:raw@monday
snapshot show S:raw@#1
snapshot show S:raw@nothing
snapshot hold S:raw@monday --reason audit
snapshot delete S:raw@monday
snapshot release S:raw@monday
snapshot retain S:mail@tuesday --until 2200-01-01
snapshot delete S:mail@tuesday
snapshot cat S:raw@monday --start 0 --length 16
snapshot cat S:raw@monday --output D/out.img
snapshot cat S:raw@monday --start 3M
snapshot clone S:raw@monday trial
volume heads S:raw
volume delete-head S:raw trial --dry-run
volume delete-head S:raw trial
volume delete-head S:raw trial
snapshot rollback S:raw@monday --dry-run
snapshot rollback S:raw@monday
volume seal S:raw --progress none
volume verify S:raw --progress none
snapshot verify S:raw@monday --progress none
volume compact S:raw
volume check S:raw
volume check S:raw --repair
volume map S:raw
volume map S:raw@monday
volume changes S:raw --since monday
volume changes S:raw --since monday --exit-code
volume changes S:raw --since monday --until before-rollback-2
volume changes S:raw --since nothing
volume policy S:raw
volume policy S:raw --keep-newest 3
volume policy S:raw --when-full give-up --json
volume given-up S:raw
volume accept-clock S:raw
volume du S:raw
volume flatten S:raw D/flat.img
volume flatten S:raw@monday D/monday.img
volume flatten S:raw D/flat.img
volume flatten S:raw --in-place
volume export S:raw D/salvaged.img --salvage
volume export S:raw@monday D/salvaged-monday.img --salvage
snapshot anchor S:raw@monday --dry-run
snapshot anchor S:raw@monday
snapshot cat S:raw@monday
volume changes S:raw --since monday
snapshot delete S:raw@monday --dry-run
snapshot delete S:raw@monday
store info S
store du S
store check S
set create S first mail raw
set create S first
set create S second --writer none
set list S
set list S --json
set show S first
set show S nothing
backup create S --target D/backups --set first --progress none
backup create S --target D/backups --kind incremental --progress none
backup verify D/backups --progress none
backup restore D/backups S --volume mail --progress none
volume delete S:mail --with-snapshots
set delete S first --dry-run
set delete S first
set delete S first
writer status S
writer rehearse S raw
volume delete S:raw --dry-run
volume delete S:index --with-snapshots
volume delete S:index
store detach S raw
store attach S D/alone.cow --name alone
volume info S:alone
store check S --json
store info S --json
"""

# What differs between any two runs.
VARYING = [
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "UUID"),
    (re.compile(r"UUID/(\d+)/[0-9a-f]{16}"), r"UUID/\1/TAG"),
    (re.compile(r"\d{8}T\d{6}Z-[0-9a-f]+"), "NAME"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?"), "TIME"),
    (re.compile(r" +\d+(\.\d+)? (ms|s)\b"), " DURATION"),
    (re.compile(r'"(started|wall|[a-z_]*seconds?\w*)": [0-9.e+-]+'), r'"\1": 0'),
    # A live volume that is open is flattened by way of a snapshot, which takes an id.
    (re.compile(r"@#\d+"), "@#ID"),
    # A head or snapshot that is salvaged from an open volume is known by its id.
    (re.compile(r"(head|snapshot) ('\w+'|\d+) as of"), r"\1 NAME as of"),
    # Compressed, with names and ids that differ.
    (re.compile(r"(stream_bytes) +\d+"), r"\1"),
    (re.compile(r"[\d.]+ [KM]?i?B written"), "SIZE written"),
]
# What is counted for each opening of a volume, and so differs where it stays open: its statistics, epochs, log.
COUNTED = re.compile(
    r"(nodes_\w+|log_\w+|memory_bytes|\w*written\w*|read_bytes|file_bytes|blocks_\w+|barriers|commits|checkpoints|"
    r"recover\w+|taken_bytes|epochs?|skipped\w*|records?\w*|generation|free\w*|slots\w*|tail\w*|runway\w*|deltas?\w*|metadata\w*)"
    r'"?[ :]+ *[\d.]+( [KMG]iB)?'
)


def shown(text: str, folder: Path) -> str:
    text = re.sub(r'^\{"event": "progress".*\n', "", text.replace(str(folder), "D"), flags=re.MULTILINE)
    for pattern, name in VARYING:
        text = pattern.sub(name, text)
    return COUNTED.sub(r"\1", text)


def run(words: list[str], folder: Path) -> str:
    done = subprocess.run([*COMMAND, *words], capture_output=True, timeout=120, check=False, cwd=folder)
    out = done.stdout.decode(errors="backslashreplace")
    return shown(f"exit code {done.returncode}\n{out}\n{done.stderr.decode()}", folder)


def played(folder: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[tuple[str, str]]:
    """What each step says; each is run in this process, which is faster."""
    with contextlib.chdir(folder):
        for line in STEPS.strip().splitlines():
            words = [re.sub("^S", "store", word).replace("D/", "", 1) for word in line.split()]
            capsys.readouterr()
            code = main(words)
            said = capsys.readouterr()
            yield line, shown(f"exit code {code}\n{said.out}\n{said.err}", folder)


@pytest.fixture
def serve() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.terminate()
        process.communicate()


def start(words: list[object], started: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    process = subprocess.Popen([*COMMAND, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started.append(process)
    return process


def prepared(folder: Path) -> Path:
    folder.mkdir()
    (folder / "raw.img").write_bytes(bytes(range(256)) * 4096 + bytes(1 << 20))
    assert run(["store", "create", "store"], folder).startswith("exit code 0")
    assert run(["volume", "create", "alone.cow", "1M"], folder).startswith("exit code 0")
    return folder


def test_every_verb_on_a_served_store_as_on_one_at_rest(
    tmp_path: Path, serve: list[subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    resting, served = prepared(tmp_path / "resting"), prepared(tmp_path / "served")
    server = start(["serve", served / "store", "--json"], serve)
    assert server.stdout is not None
    assert json.loads(server.stdout.readline())["control"] == str(served / "store/run/control.sock")
    expected = dict(played(resting, capsys))
    found = dict(played(served, capsys))
    assert {line: found[line] for line, text in expected.items() if found[line] != text} == {
        line: text for line, text in expected.items() if found[line] != text
    }
    assert {line.split()[0] for line, text in found.items() if text.startswith("exit code 0")} >= {
        "volume", "snapshot", "store", "set", "backup", "writer"
    }  # fmt: skip
    server.send_signal(signal.SIGTERM)
    assert server.communicate() == ("", "")
    assert server.returncode == 0
    assert run(["store", "check", "store"], served) == run(["store", "check", "store"], resting)
    for name in ("out.img", "flat.img", "monday.img", "salvaged.img", "salvaged-monday.img"):
        assert (served / name).read_bytes() == (resting / name).read_bytes(), name


def test_a_store_that_is_served_already(tmp_path: Path, serve: list[subprocess.Popen[str]]) -> None:
    folder = prepared(tmp_path / "one")
    server = start(["serve", folder / "store"], serve)
    assert server.stdout is not None
    assert server.stdout.readline() == f"serving {folder}/store at {folder}/store/run/control.sock\n"
    again = run(["serve", "store"], folder)
    assert again.startswith("exit code 5")
    assert "served already" in again
    assert "D/store/run/control.sock" in again
    server.kill()
    server.wait()
    third = start(["serve", folder / "store"], serve)  # the socket of the dead one is in nobody's way
    assert third.stdout is not None
    assert third.stdout.readline()
    assert run(["volume", "create", "store:a", "1M"], folder).startswith("exit code 0")


def test_a_volume_of_a_served_store_is_not_exported_twice(tmp_path: Path, serve: list[subprocess.Popen[str]]) -> None:
    folder = prepared(tmp_path / "one")
    assert run(["volume", "create", "store:a", "1M"], folder).startswith("exit code 0")
    server = start(["serve", folder / "store"], serve)
    assert server.stdout is not None
    assert server.stdout.readline()
    refused = run(["nbd", "store:a"], folder)
    assert refused.startswith("exit code 5")
    assert "export 'a' of the NBD socket [D/store/run/nbd.sock]" in refused


@pytest.mark.needs("prlimit")
def test_a_store_of_more_volumes_than_a_process_has_files_open_by_default(
    tmp_path: Path, serve: list[subprocess.Popen[str]]
) -> None:
    with Store.create(tmp_path / "store") as store:
        for number in range(60):
            store.create_volume(f"v{number}", 1 << 20).close()
    command = ["prlimit", "--nofile=40:4096", *COMMAND, "serve", str(tmp_path / "store")]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    serve.append(server)
    assert server.stdout is not None
    assert server.stdout.readline()
    with connect(tmp_path / "store") as remote:
        assert len(remote.du()) == 60
    with Client(nbd_path(str(tmp_path / "store")), "v59", timeout=60) as client:
        client.pwrite(b"there", 0)
    server.terminate()
    assert server.communicate(timeout=60)[1] == ""


def test_tcp_needs_tls(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "one")
    assert run(["serve", "store", "--tcp", "127.0.0.1:0"], folder).startswith("exit code 2")


def test_a_supervisor_is_told(
    tmp_path: Path, serve: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    folder = prepared(tmp_path / "one")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        server = start(["serve", folder / "store"], serve)
        assert supervisor.recv(100) == b"READY=1"
        server.terminate()
        assert supervisor.recv(100) == b"STOPPING=1"
        assert server.wait() == 0


def test_what_is_no_store(tmp_path: Path) -> None:
    assert run(["serve", "nothing"], tmp_path).startswith("exit code 1")
