"""kill -9 of a store's owner at random moments: what it acknowledged is there, and nothing is there in part."""

from __future__ import annotations

import random
import subprocess
import sys
import time

from cowengine import Store

KILLS = 15
OWNER = """
import random, sys, threading
from cowengine import Store
path, seed = sys.argv[1], int(sys.argv[2])
chance = random.Random(seed)
store = Store.open(path)
print("open", flush=True)
names = store.volumes()
number = 0
while True:
    number += 1
    for name in names:
        if chance.random() < 0.7:
            mark = seed.to_bytes(8, "little") + number.to_bytes(8, "little")
            store.open_volume(name).pwrite(mark, 4096 * (number % 64))
            store.open_volume(name).pwrite(mark, 0)
    state = [store.open_volume(name).pread(16, 0).hex() for name in names]
    print("taking", f"{seed}-{number}", *state, flush=True)
    store.snapshot(names, f"{seed}-{number}")
    print("taken", f"{seed}-{number}", *state, flush=True)
    kind = chance.random()
    if kind < 0.2 and number > 3:
        print("deleting", f"{seed}-{number - 3}", flush=True)
        store.get_snapshot_set(f"{seed}-{number - 3}").delete()
        print("deleted", f"{seed}-{number - 3}", flush=True)
    elif kind < 0.4:
        store.open_volume(chance.choice(names)).flush()
    elif kind < 0.5:
        store.open_volume(chance.choice(names)).close()
"""


def test_a_killed_owner_leaves_every_acknowledged_set_whole(store_path: str) -> None:
    chance = random.Random(5)
    with Store.create(store_path, log_size=16384) as store:
        for name in ("a", "b", "c"):
            store.create_volume(name, 1024 * 1024, log_size=65536)
    known: dict[str, list[str]] = {}
    for seed in range(1, KILLS + 1):
        lines = run_and_kill(store_path, seed, chance.randrange(4), chance.uniform(0.0, 0.1))
        taken = {line[1]: line[2:] for line in lines if line[0] == "taken"}
        taking = {line[1]: line[2:] for line in lines if line[0] == "taking"}
        gone = {line[1] for line in lines if line[0] == "deleted"}
        going = {line[1] for line in lines if line[0] == "deleting"} - gone
        known = {name: state for name, state in (known | taken).items() if name not in gone}
        with Store.open(store_path) as store:
            found = {
                set_.name: [s.pread(16, 0).hex() for s in set_.snapshots.values()] for set_ in store.snapshot_sets()
            }
            missing = known.keys() - found.keys() - going
            assert not missing, f"kill {seed}"
            for name, state in found.items():
                assert name not in gone
                assert state == (known | taking)[name], name
            assert store.problems == []
            assert store.check().problems == []
        known = found
    assert len(known) > KILLS


def run_and_kill(path: str, seed: int, sets: int, seconds: float) -> list[list[str]]:
    """What the owner said before it was killed, some time after it took so many sets."""
    command = [sys.executable, "-P", "-c", OWNER, path, str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "open\n"
        lines: list[str] = []
        while sum(line.startswith("taken") for line in lines) < sets:
            lines.append(owner.stdout.readline())
            assert lines[-1], "the owner failed"
        time.sleep(seconds)
        owner.kill()
        lines += owner.stdout.read().splitlines(keepends=True)
    return [line.split() for line in lines if line.endswith("\n")]
