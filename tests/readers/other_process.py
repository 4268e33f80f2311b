"""A second process that does what a test tells it: owner or reader of a volume, to be asked, closed or killed.

Run as a script it answers one line of JSON, [verb, arguments...], with another: [what was raised or "", result].
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cowengine import CorruptionError, NotFoundError, Snapshot, Volume
from cowengine.core.iotable import IOTable
from cowengine.errors import BusyError

SIZE = 1 << 20
BLOCK = 4096
LOG = 16 << 10


class Failed(Exception):
    """The other process raised; the text is the name of the class."""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


class OtherProcess:
    """The end of the test: `call` waits for the answer, `send` and `answer` do not."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def send(self, verb: str, *arguments: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([verb, *arguments]) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise Failed("died")
        raised, result = json.loads(line)
        if raised:
            raise Failed(raised)
        return result

    def call(self, verb: str, *arguments: Any) -> Any:
        self.send(verb, *arguments)
        return self.answer()

    def has_answer(self) -> bool:
        """Whether `answer` would not wait."""
        return bool(select.select([self.process.stdout], [], [], 0)[0])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Nursery:
    """A process that has loaded all that an OtherProcess needs, and forks: to start one anew takes far longer."""

    def __init__(self) -> None:
        self.end, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], env=environment()
            )

    def fork(self) -> ForkedProcess:
        (of_child, to_child), (from_child, by_child) = os.pipe(), os.pipe()
        socket.send_fds(self.end, [b"fork"], [of_child, by_child])
        os.close(of_child)
        os.close(by_child)
        return ForkedProcess(int(self.end.recv(20)), to_child, from_child)

    def close(self) -> None:
        """Those that it forked go on."""
        self.end.close()
        self.process.wait()


class ForkedProcess(OtherProcess):
    """One that a nursery has forked."""

    def __init__(self, number: int, to_child: int, from_child: int) -> None:
        self.process = Forked(number, to_child, from_child)  # type: ignore[assignment]


class Forked:
    """Of a Popen what OtherProcess uses, for a process that is no child of this one."""

    def __init__(self, number: int, to_child: int, from_child: int) -> None:
        self.descriptor = os.pidfd_open(number)
        self.stdin = os.fdopen(to_child, "w")
        self.stdout = os.fdopen(from_child)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.descriptor, signal.SIGKILL)

    def wait(self) -> None:
        """Until it is gone, with all that it had open."""
        if self.descriptor >= 0:
            select.select([self.descriptor], [], [])
            os.close(self.descriptor)
            self.descriptor = -1


def nurse(number: int) -> None:
    """The end of the nursery: forks for each pair of pipes that it is sent."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them here
    with socket.socket(fileno=number) as end:
        while True:
            data, descriptors, _, _ = socket.recv_fds(end, 16, 2)
            if not data:
                return
            child = os.fork()
            if child == 0:
                end.close()
                sys.stdin, sys.stdout = os.fdopen(descriptors[0]), os.fdopen(descriptors[1], "w")
                serve()
                os._exit(0)
            for each in descriptors:
                os.close(each)
            end.send(str(child).encode())


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def write_some(volume: Volume, rng: random.Random, live: bytearray) -> None:
    """A few writes and discards, also in a model of the live volume."""
    for _ in range(rng.randrange(1, 6)):
        offset = rng.randrange(SIZE - 3 * BLOCK)
        if rng.random() < 0.2:
            first, count = offset // BLOCK, rng.randrange(1, 4)
            volume.discard(first * BLOCK, count * BLOCK)
            live[first * BLOCK : (first + count) * BLOCK] = bytes(count * BLOCK)
        else:
            data = rng.randbytes(rng.randrange(1, 3 * BLOCK))
            volume.pwrite(data, offset)
            live[offset : offset + len(data)] = data


def snapshot_with_digest(volume: Volume, name: str, live: bytearray) -> Snapshot:
    """A snapshot that says in its metadata what its bytes are."""
    return volume.snapshot(name, metadata={"digest": digest(bytes(live))})


def whole(snapshot: Snapshot) -> bytes:
    return snapshot.pread(snapshot.size, 0)


def is_exact(snapshot: Snapshot) -> bool:
    return digest(whole(snapshot)) == snapshot.metadata["digest"]


class KilledInBarrier(IOTable):
    """Kills its process in the next barrier once `armed`, when what the barrier is for has been written."""

    armed = False

    def fdatasync(self, fd: int) -> None:
        if self.armed:
            os.kill(os.getpid(), signal.SIGKILL)
        super().fdatasync(fd)


class Server:
    """The end of the other process."""

    def __init__(self) -> None:
        self.volumes: list[Volume] = []
        self.held: dict[str, Snapshot] = {}
        self.io = KilledInBarrier()

    @property
    def volume(self) -> Volume:
        return self.volumes[-1]

    def open(self, path: str, read_only: bool) -> None:
        self.volumes.append(Volume.open(path, read_only=read_only, io=self.io, background=False))

    def close(self) -> None:
        self.held.clear()
        while self.volumes:
            self.volumes.pop().close()

    def names(self) -> list[str]:
        return [snapshot.name for snapshot in self.volume.snapshots()]

    def hold(self, name: str) -> None:
        self.held[name] = self.volume.get_snapshot(name)

    def drop(self, name: str) -> None:
        del self.held[name]
        gc.collect()

    def exact(self, name: str) -> bool:
        return is_exact(self.held[name])

    def listed(self) -> list[tuple[Any, ...]]:
        return [(s.id, s.name, s.epoch, s.change_id, s.size, s.is_anchor) for s in self.volume.snapshots()]

    def digest(self, name: str) -> str:
        return digest(whole(self.held[name]))

    def allocated(self, name: str) -> list[list[int]]:
        return self.held[name].allocated_extents().tolist()

    def changed(self, name: str, base: str) -> list[list[int]]:
        return self.held[name].changed_extents(base).tolist()

    def write(self, data: str, offset: int) -> None:
        self.volume.pwrite(bytes.fromhex(data), offset)

    def flush(self) -> None:
        self.volume.flush()

    def take(self, name: str) -> None:
        self.volume.snapshot(name)

    def delete(self, name: str) -> None:
        self.volume.get_snapshot(name).delete()

    def churn(self, stride: int, rounds: int) -> None:
        """Seals a block in each `stride` bytes and ends that again; checkpoints use the slots of older nodes again."""
        for number in range(rounds):
            for offset in range(0, self.volume.size, stride):
                self.volume.pwrite(b"x" * BLOCK, offset)
            snapshot = self.volume.snapshot(f"churn {number}")
            self.volume.seal()
            for offset in range(0, self.volume.size, stride):
                self.volume.discard(offset, BLOCK)
            snapshot.delete()
            self.volume.engine.checkpoint()

    def die_in_barrier_of(self, verb: str, name: str) -> None:
        self.io.armed = True
        self.delete(name) if verb == "delete" else self.volume.snapshot(name)

    def work(self, seed: int) -> None:
        """Writes, snapshots and deletes until it is killed."""
        rng, live = random.Random(seed), bytearray(self.volume.pread(SIZE, 0))
        for number in itertools.count():
            write_some(self.volume, rng, live)
            snapshot_with_digest(self.volume, f"{seed}-{number}", live)
            for snapshot in self.volume.snapshots()[:-4]:
                with suppress(BusyError):
                    snapshot.delete()

    def read(self, path: str, seed: int, rounds: int) -> dict[str, int]:
        """Opens the file, takes snapshots at random, reads all of each twice; until `rounds` of them were exact."""
        rng = random.Random(seed)
        counts = {"exact": 0, "gone": 0}
        with Volume.open(path, read_only=True) as volume:
            while counts["exact"] < rounds:
                # What a rollback kept was taken without a digest.
                listed = [each for each in volume.snapshots() if not each.name.startswith("before-rollback")]
                try:
                    snapshot = volume.get_snapshot(rng.choice(listed).name)
                except (NotFoundError, BusyError, IndexError):
                    counts["gone"] += 1
                    continue
                for _ in range(2):
                    if not is_exact(snapshot):
                        raise CorruptionError("wrong bytes")
                counts["exact"] += 1
        return counts


def serve() -> None:
    server = Server()
    for line in sys.stdin:
        verb, *arguments = json.loads(line)
        raised, result = "", None
        try:
            result = getattr(server, verb)(*arguments)
        except Exception as error:
            raised = type(error).__name__
        print(json.dumps([raised, result]), flush=True)
    server.close()


def made(path: Path, *, count: int = 3, log_size: int = LOG) -> dict[str, bytes]:
    """A closed volume with some snapshots s0, s1, ...; returns what each holds."""
    rng, live, states = random.Random(7), bytearray(SIZE), {}
    with Volume.create(path, SIZE, log_size=log_size, background=False) as volume:
        for number in range(count):
            write_some(volume, rng, live)
            snapshot_with_digest(volume, f"s{number}", live)
            states[f"s{number}"] = bytes(live)
    return states


if __name__ == "__main__":
    nurse(int(sys.argv[1])) if len(sys.argv) > 1 else serve()
