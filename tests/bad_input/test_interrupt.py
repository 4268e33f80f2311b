"""Ctrl-C at any moment: the process ends at once, and nothing that was acknowledged is lost."""

from __future__ import annotations

import itertools
import os
import random
import select
import signal
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from cowengine import Volume
from cowengine.errors import PoisonedError

SIZE = 64 * 4096
ROUNDS = 50
DONE, POISONED, WRONG = 0, 1, 2


@dataclass
class State:
    """What the volume must hold; `since` are live contents that a crash may fall back to or go on to."""

    live: bytearray
    since: list[bytes] = field(default_factory=list)
    snapshots: dict[str, bytes] = field(default_factory=dict)


def step(state: State, number: int, seed: int, volume: Volume | None) -> None:
    """Operation `number` of a round: on the volume, if there is one, and on the state."""
    rng = random.Random(f"{seed} {number}")
    kind = rng.choice(["write"] * 4 + ["snapshot"] * 3 + ["discard", "flush", "rollback", "delete", "delete"])
    offset, length = rng.randrange(SIZE - 20_000), rng.randrange(1, 20_000)
    if kind == "write":
        data = rng.randbytes(length)
        if volume is not None:
            volume.pwrite(data, offset)
        state.live[offset : offset + length] = data
    elif kind == "discard":
        offset -= offset % 4096
        if volume is not None:
            volume.discard(offset, 4 * 4096)
        state.live[offset : offset + 4 * 4096] = bytes(4 * 4096)
    elif kind == "flush":
        if volume is not None:
            volume.flush()
        state.since.clear()
    elif kind == "snapshot":
        if volume is not None:
            volume.snapshot(f"{seed}-{number}")
        state.snapshots[f"{seed}-{number}"] = bytes(state.live)
        state.since.clear()
    elif kind == "delete" and len(state.snapshots) > 3:
        name = rng.choice(sorted(state.snapshots))
        if volume is not None:
            volume.get_snapshot(name).delete()
        del state.snapshots[name]
    elif kind == "rollback" and state.snapshots:
        name = rng.choice(sorted(state.snapshots))
        kept = f"{seed}-{number} kept"
        if volume is not None:
            volume.snapshot(kept)
            volume.get_snapshot(volume.rollback(name).name).delete()
        state.snapshots[kept] = bytes(state.live)
        state.live[:] = state.snapshots[name]
        state.since.clear()
    state.since.append(bytes(state.live))


def child(path: Path, seed: int, state: State, acknowledge: int) -> int:
    """Works on the volume until Ctrl-C."""
    try:
        with Volume.open(path) as volume:
            for number in itertools.count():
                step(state, number, seed, volume)
                os.write(acknowledge, b"%d\n" % number)
    except KeyboardInterrupt:
        return DONE
    except PoisonedError:
        return POISONED
    return WRONG


def interrupted(path: Path, seed: int, state: State, rng: random.Random) -> tuple[int, int]:
    """Runs a child and interrupts it: how it ended, and how many operations it acknowledged."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other tests may have left threads
        pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = WRONG
        try:
            code = child(path, seed, state, writer)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    first = os.read(reader, 2)  # it has begun
    time.sleep(rng.uniform(0, 0.05))
    for _ in range(rng.choice([1, 1, 2])):
        os.kill(pid, signal.SIGINT)
        time.sleep(rng.uniform(0, 0.003))
    acknowledged = len((first + until_it_ends(reader, pid)).splitlines())
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), acknowledged


def until_it_ends(reader: int, pid: int) -> bytes:
    """What it acknowledges until it ends.

    Python loses a Ctrl-C that it happens to raise inside a callback of a weak reference; then comes another, as from a
    user who sees nothing happen.
    """
    parts: list[bytes] = []
    asked = time.monotonic()
    while True:
        if select.select([reader], [], [], 1.0)[0]:
            parts.append(os.read(reader, 65536))
            if not parts[-1]:
                return b"".join(parts)
        if time.monotonic() - asked > 1.0:
            os.kill(pid, signal.SIGINT)
            asked = time.monotonic()


def verify(volume: Volume, before: State, seed: int, acknowledged: int) -> None:
    """The volume holds what was acknowledged, and at most the operation in flight beyond it."""
    sure = State(bytearray(before.live), list(before.since), dict(before.snapshots))
    for number in range(acknowledged):
        step(sure, number, seed, None)
    maybe = State(bytearray(sure.live), [*sure.since, bytes(sure.live)], dict(sure.snapshots))
    live_states = {*maybe.since, *sure.since}
    step(maybe, acknowledged, seed, None)
    live_states.update(maybe.since)
    found = {
        snapshot.name: snapshot.pread(SIZE, 0)
        for snapshot in volume.snapshots()
        if not snapshot.name.startswith("before-rollback-")
    }
    for name in sure.snapshots.keys() & maybe.snapshots.keys():
        assert found.get(name) == sure.snapshots[name], f"snapshot {name} is lost or wrong"
    for name in found:
        assert found[name] in (sure.snapshots.get(name), maybe.snapshots.get(name)), f"snapshot {name} from nowhere"
    live = volume.pread(SIZE, 0)
    for at in range(0, SIZE, 512):
        sector = live[at : at + 512]
        assert any(sector == each[at : at + 512] for each in live_states), f"byte {at} is neither old nor new"
    report = volume.check()
    assert report.ok, report.problems


def test_nothing_acknowledged_is_lost_when_a_process_is_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "v"
    rng = random.Random(8)
    Volume.create(path, SIZE, log_size=16384).close()
    state = State(bytearray(SIZE), [bytes(SIZE)])
    total = 0
    for seed in range(ROUNDS):
        started = State(bytearray(state.live), list(state.since), dict(state.snapshots))
        code, acknowledged = interrupted(path, seed, state, rng)
        assert code in (DONE, POISONED), "Ctrl-C ended in an error that is not typed"
        total += acknowledged
        with Volume.open(path) as volume:
            verify(volume, started, seed, acknowledged)
            for snapshot in volume.snapshots():
                if snapshot.name.startswith("before-rollback-"):
                    snapshot.delete()
            live = volume.pread(SIZE, 0)
            state = State(bytearray(live), [live])
            state.snapshots = {snapshot.name: snapshot.pread(SIZE, 0) for snapshot in volume.snapshots()}
    assert total > ROUNDS
