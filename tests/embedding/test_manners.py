"""What a program that embeds cowengine may rely on: descriptors, threads at exit, interpreters, logging, counters."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from cowengine import CowEngineError, Store, Volume

BLOCK = 4096


def run(program: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_no_call_leaks_a_descriptor(tmp_path: Path) -> None:
    def everything(number: int) -> None:
        path = tmp_path / f"v{number}"
        with Volume.create(path, 64 * BLOCK) as volume:
            volume.pwrite(b"x", 0)
            snapshot = volume.snapshot("s")
            with snapshot.open() as file:
                file.read(10)
            with suppress(CowEngineError):
                Volume.open(path)  # owned
            volume.check()
        with suppress(CowEngineError):
            Volume.create(path, 64 * BLOCK)  # in the way
        with Volume.open(path, read_only=True) as volume:
            volume.get_snapshot("s").pread(10, 0)
        path.write_bytes(b"no volume")
        with suppress(CowEngineError):
            Volume.open(path)
        with Store.create(tmp_path / f"store{number}") as store:
            store.create_volume("v", 64 * BLOCK)
            store.snapshot(["v"], "s")
        with suppress(CowEngineError):
            Store.open(tmp_path / "nothing")

    everything(0)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(1, 6):
        everything(number)
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_interpreter_that_ends_with_open_volumes_ends_in_silence_and_loses_nothing(tmp_path: Path) -> None:
    """Threads of the engine, a timer of a set, a thread that writes: none holds the exit up, nothing is printed."""
    ended = run(
        """
import sys, threading, warnings
from cowengine import Store
warnings.simplefilter("ignore", ResourceWarning)
store = Store.create(sys.argv[1])
volume = store.create_volume("v", 1 << 20)
other = store.create_volume("w", 1 << 20)
volume.pwrite(b"flushed", 0)
volume.flush()
store.snapshot(["v", "w"], "set")
def write():
    while True:
        volume.pwrite(b"x" * 4096, 8192)
threading.Thread(target=write, daemon=True).start()
""",
        tmp_path / "store",
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    with Store.open(tmp_path / "store") as store:
        assert store.open_volume("v").pread(7, 0) == b"flushed"
        assert [made.name for made in store.snapshot_sets()] == ["set"]
        assert store.open_volume("v").check().problems == []


def test_a_sub_interpreter_is_refused_and_the_main_one_goes_on(tmp_path: Path) -> None:
    ended = run(
        """
import sys
try:
    import _xxsubinterpreters as interpreters
except ImportError:
    import _interpreters as interpreters
other = interpreters.create()
interpreters.run_string(other, \"\"\"
try:
    import cowengine
    cowengine.Volume
except ImportError as error:
    print(error, flush=True)
\"\"\")
from cowengine import Volume
Volume.create(sys.argv[1], 4096).close()
print("made")
""",
        tmp_path / "v",
    )
    assert ended.stderr == ""
    refused, made = ended.stdout.splitlines()
    assert "sub-interpreter" in refused
    assert made == "made"


def test_log_records_come_from_loggers_below_cowengine_and_nothing_else_is_printed(tmp_path: Path) -> None:
    program = """
import logging, sys
from cowengine import Volume
if len(sys.argv) > 2:
    logging.basicConfig(stream=sys.stdout, format="%(name)s: %(message)s", level=logging.DEBUG)
Volume.open(sys.argv[1]).close()
"""
    path = tmp_path / "v"

    def damage() -> None:
        with open(path, "r+b") as file:
            file.seek(4096)
            file.write(bytes(4096))  # the second superblock

    Volume.create(path, 64 * BLOCK).close()
    damage()
    silent = run(program, path)
    assert (silent.returncode, silent.stdout, silent.stderr) == (0, "", "")
    damage()
    logged = run(program, path, path)
    assert (logged.returncode, logged.stderr) == (0, "")
    assert "superblock" in logged.stdout
    assert all(line.startswith("cowengine.") for line in logged.stdout.splitlines())


def test_counters_count_every_call_of_every_thread(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "v", 64 * BLOCK) as volume:
        before = volume.stats()

        def work(number: int) -> None:
            for step in range(25):
                volume.pwrite(b"x" * BLOCK, (number * 8 + step % 8) * BLOCK)
                volume.flush()
                volume.snapshot(f"{number} {step}").delete()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        after = volume.stats()
        latency = after["latency"]
        assert after["written_bytes"] - before["written_bytes"] == 100 * BLOCK
        assert [latency[name]["count"] for name in ("flush", "snapshot", "delete")] == [100, 100, 100]
        assert latency["barrier"]["count"] == after["barriers"]
        for histogram in latency.values():
            assert sum(calls for _, calls in histogram["buckets"]) == histogram["count"]
            assert 0 < histogram["p50_us"] <= histogram["p99_us"]
            assert histogram["max_us"] <= histogram["buckets"][-1][0]
