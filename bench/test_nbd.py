"""A volume and its snapshots over NBD, beside other servers of a raw file: with nbdcopy, with fio, and below ext4.

The figures of fio are its own: requests a second between its first and its last, so its start is not in them. nbdcopy
has none; it is timed as a process, its start with it, on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from subjects.daemon import lacking, run
from subjects.loop_mount import keep_mounts_private, lacking_for_mounts
from subjects.nbd_servers import MOUNTING, PEERS, by_fio, copied, serving, uri_of, why_missing
from workload import BLOCK, MiB

from cowengine.mount.chain import Chain
from cowengine.mount.state import new_record

ROUNDS = 60


@pytest.fixture
def place(directory, request):
    """A folder for what a test makes."""
    made = directory / request.node.name.replace("[", "-").rstrip("]")
    made.mkdir()
    return made


def filled(race, workload, size, step):
    """A volume and a raw file with the same bytes; the paths of both."""
    disk, raw = race.disk(race.subject("cowengine"), size), race.raw(size)
    for each in (disk, raw):
        workload.fill(each.pwrite, size, step)
        each.flush()
    return disk, raw.path


def served(race, kind, source, place):
    """The socket of a server that ends after the race."""
    return race.disks.enter_context(serving(kind, source, place / f"{kind.replace(' ', '-')}.log"))


def test_nbdcopy_from_a_snapshot(race, workload, scale, place):
    """All of a snapshot, to nowhere; raw: all of the file."""
    if why_missing():
        race.missing("NBD servers", why_missing())
        return race.benchmark.pedantic(lambda: None)
    size = scale(1024, 8, quick=128) * MiB
    disk, raw = filled(race, workload, size, MiB)
    disk.snapshot("read")
    disk.volume.close()
    own = copied(served(race, "cowengine", f"{disk.volume.path}@read", place), size)
    for peer in PEERS:
        race.against(copied(served(race, peer, raw, place), size))
        race.enter_lane(own, f"beside {peer}", goal=1.0)
    race.run("", "NBD: nbdcopy from a snapshot, per MiB", rounds=ROUNDS, rate=True)
    return None


def test_fio(race, workload, scale, place):
    """Random 4 KiB requests to the live volume, 32 at once on one connection; writes are in place."""
    if why_missing():
        race.missing("NBD servers", why_missing())
        return race.benchmark.pedantic(lambda: None)
    size = scale(256, 8, quick=32) * MiB
    disk, raw = filled(race, workload, size, BLOCK)
    disk.volume.close()

    def where(kind, source):
        return ["--ioengine=nbd", f"--uri={uri_of(served(race, kind, source, place))}", f"--size={size}"]

    enter_fio(race, scale, where("cowengine", disk.volume.path), {peer: where(peer, raw) for peer in PEERS}, 1.0)
    race.run("", "NBD: random 4 KiB by fio, 32 at once", rounds=ROUNDS, rate=True)
    return None


def test_fio_on_ext4(race, workload, scale, place):
    """The same in a file of an ext4, past its page cache; the ext4 lies on nbdfuse and a loop device on either side."""
    missing = ", ".join(filter(None, [why_missing(), lacking_for_mounts({}), *lacking(MOUNTING)]))
    if missing:
        race.missing("ext4 on NBD servers", missing)
        return race.benchmark.pedantic(lambda: None)
    keep_mounts_private()
    size = scale(512, 32, quick=64) * MiB
    disk, raw = filled(race, workload, size, BLOCK)
    disk.volume.close()

    def where(kind, source):
        socket = served(race, kind, source, place)
        mount = race.disks.enter_context(ext4(socket, place / kind.replace(" ", "-")))
        words = ["--ioengine=libaio", "--direct=1", f"--filename={mount / 'file'}", f"--size={size // 2}"]
        run("fio", "--name=fill", "--rw=write", "--bs=1M", "--end_fsync=1", *words)
        return words

    enter_fio(race, scale, where("cowengine", disk.volume.path), {peer: where(peer, raw) for peer in PEERS}, 0.9)
    race.run("", "NBD: ext4 on it, random 4 KiB by fio, 32 at once", rounds=ROUNDS, rate=True)
    return None


def enter_fio(race, scale, own, peers, goal):
    """Reads and writes, beside every peer: the words of fio that say where."""
    seconds = scale(1.0, 0.05, quick=0.2)
    for pattern, what in (("randread", "reads"), ("randwrite", "writes")):
        lane = by_fio(pattern, seconds, *own)
        for peer, words in peers.items():
            race.against(by_fio(pattern, seconds, *words))
            race.enter_lane(lane, f"{what} beside {peer}", goal=goal)


@contextmanager
def ext4(socket: Path, folder: Path) -> Iterator[Path]:
    """The mount point of a new ext4 on a server's export, by the chain that `cowengine mount` builds."""
    folder.mkdir()
    record = new_record(str(folder), str(socket))
    record.socket = str(socket)
    point = folder / "mount"
    point.mkdir()
    chain = Chain(record)
    try:
        chain.start_fuse(read_only=False)
        run("mkfs.ext4", "-q", "-F", "-E", "nodiscard", chain.attach_loop(read_only=False))
        chain.mount(str(point), "ext4", ["noatime"])
        yield point
    finally:
        chain.down()
