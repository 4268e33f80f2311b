"""The clients that people have: libnbd's tools, QEMU's and fio, against volumes and snapshots."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from cowengine import Store, Volume

from .conftest import COMMAND, MIB, cowengine_nbd, run

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def states_by_nbdinfo(uri, context):
    """[(offset, length, type)] as nbdinfo has it."""
    rows = json.loads(run("nbdinfo", f"--map={context}", "--json", uri))
    return [(row["offset"], row["length"], row["type"]) for row in rows]


def states_of(rows, size, inside, outside):
    """The same of rows (offset, length) of cowengine."""
    found, at = [], 0
    for offset, length in rows.tolist():
        if offset > at:
            found.append((at, offset - at, outside))
        found.append((offset, length, inside))
        at = offset + length
    return [*found, (at, size - at, outside)] if at < size else found


@pytest.fixture
def store(tmp_path):
    """A store with a volume that has snapshots, and writes between them that a seed decides."""
    with Store.create(tmp_path / "store") as made:
        chance = random.Random(11)
        volume = made.create_volume("disk", 64 * MIB)
        for name in ("one", "two", "three", None):
            for _ in range(40):
                length = chance.choice([512, 4096, 10_000, 300_000])
                volume.pwrite(chance.randbytes(length), chance.randrange(64 * MIB - length))
            volume.discard(chance.randrange(60) * MIB, MIB)
            if name is not None:
                volume.snapshot(name)
        yield made


@pytest.mark.needs("nbdinfo")
def test_nbdinfo_lists_a_store(store, serve, uri):
    serve(store)
    found = json.loads(run("nbdinfo", "--list", "--json", uri()))
    assert found["protocol"] == "newstyle-fixed"
    exports = {each["export-name"]: each for each in found["exports"]}
    assert set(exports) == {"disk", "disk@one", "disk@two", "disk@three"}
    live, old = exports["disk"], exports["disk@one"]
    assert (live["is_read_only"], old["is_read_only"]) == (False, True)
    assert live["can_multi_conn"] is old["can_multi_conn"] is True
    assert live["can_fast_zero"] is live["can_fua"] is live["can_trim"] is live["can_cache"] is True
    assert (live["block_size_minimum"], live["block_size_maximum"]) == (1, 32 * MIB)
    assert live["export-size"] == 64 * MIB
    assert "snapshot of" in old["description"]
    bitmaps = {f"qemu:dirty-bitmap:{name}" for name in ("one", "two", "three")}
    assert set(live["contexts"]) == {"base:allocation", "qemu:allocation-depth", *bitmaps}
    assert set(old["contexts"]) == {"base:allocation", "qemu:allocation-depth", *(bitmaps - {"qemu:dirty-bitmap:one"})}


@pytest.mark.needs("nbdinfo")
def test_the_maps_of_nbdinfo_are_the_extents_of_cowengine(store, serve, uri):
    serve(store)
    volume = store.open_volume("disk", hand_out=False)
    for view, name in ((volume, "disk"), *((volume.get_snapshot(each), f"disk@{each}") for each in ("one", "three"))):
        allocated = states_of(view.allocated_extents(), view.size, 0, 3)
        assert states_by_nbdinfo(uri(name), "base:allocation") == allocated
        for base in ("one", "two", "three"):
            if name != f"disk@{base}":
                changed = states_of(view.changed_extents(base), view.size, 1, 0)
                assert states_by_nbdinfo(uri(name), f"qemu:dirty-bitmap:{base}") == changed, (name, base)


def depths(view, ancestors):
    """The depth of each block, by its definition: since how many snapshots it has not changed."""
    blocks = [0] * (view.size // 4096)
    for offset, length in view.allocated_extents().tolist():
        for block in range(offset // 4096, (offset + length) // 4096):
            blocks[block] = len(ancestors) + 1
    for number, base in enumerate(reversed(ancestors)):
        for offset, length in view.changed_extents(base).tolist():
            for block in range(offset // 4096, (offset + length) // 4096):
                if blocks[block]:
                    blocks[block] = min(blocks[block], number + 1)
    return blocks


@pytest.mark.needs("nbdinfo")
def test_the_depth_is_how_many_snapshots_a_block_has_outlived(store, serve, uri):
    serve(store)
    volume = store.open_volume("disk", hand_out=False)
    older = []
    for name in ("one", "two", "three", None):
        view, export = (volume, "disk") if name is None else (volume.get_snapshot(name), f"disk@{name}")
        told = states_by_nbdinfo(uri(export), "qemu:allocation-depth")
        assert all(one[2] != other[2] for one, other in itertools.pairwise(told))
        blocks = [depth for _, length, depth in told for _ in range(length // 4096)]
        assert blocks == depths(view, older)
        older.append(name)
    volume.get_snapshot("two").delete()  # what it brought in came with the next one, as far as anybody can tell
    told = states_by_nbdinfo(uri("disk"), "qemu:allocation-depth")
    assert [depth for _, length, depth in told for _ in range(length // 4096)] == depths(volume, ["one", "three"])


@pytest.mark.needs("nbdinfo")
def test_the_depth_follows_a_rollback(store, serve, uri):
    volume = store.open_volume("disk", hand_out=False)
    volume.rollback("one")
    volume.pwrite(b"new" * 5000, 4096)
    serve(store)
    told = states_by_nbdinfo(uri("disk"), "qemu:allocation-depth")
    assert [depth for _, length, depth in told for _ in range(length // 4096)] == depths(volume, ["one"])
    changed = states_of(volume.changed_extents("three"), volume.size, 1, 0)
    assert states_by_nbdinfo(uri("disk"), "qemu:dirty-bitmap:three") == changed


@pytest.mark.needs("nbdcopy")
def test_nbdcopy_reads_a_snapshot_and_writes_a_volume_over_several_connections(store, serve, uri, tmp_path):
    server = serve(store)
    volume = store.open_volume("disk", hand_out=False)
    image = tmp_path / "two.img"
    run("nbdcopy", "--connections=4", "--requests=16", uri("disk@two"), image)
    assert image.read_bytes() == volume.get_snapshot("two").pread(volume.size, 0)
    assert image.stat().st_blocks * 512 < volume.size
    store.create_volume("copy", volume.size)
    run("nbdcopy", "--connections=4", "--flush", image, uri("copy"))
    assert store.open_volume("copy", hand_out=False).pread(volume.size, 0) == image.read_bytes()
    run("nbdcopy", uri("disk@three"), uri("copy"))
    assert store.open_volume("copy", hand_out=False).pread(volume.size, 0) == volume.get_snapshot("three").pread(
        volume.size, 0
    )
    assert server.connections == 0


@pytest.mark.needs("nbdcopy", "nbdinfo")
def test_a_client_starts_the_server_itself(volume, tmp_path):
    """Socket activation: LISTEN_FDS, and the end of the server with its client."""
    expected = volume.get_snapshot("monday").pread(volume.size, 0)
    live = volume.pread(volume.size, 0)
    volume.close()
    image = tmp_path / "monday.img"
    words = [*COMMAND, "nbd", f"{volume.path}@monday"]
    run("nbdcopy", "--", "[", *words, "]", image, env=ENVIRONMENT)
    assert image.read_bytes() == expected
    found = json.loads(run("nbdinfo", "--json", "--", "[", *COMMAND, "nbd", volume.path, "]", env=ENVIRONMENT))
    assert found["exports"][0]["export-size"] == volume.size
    run("nbdcopy", "--", "[", *COMMAND, "nbd", volume.path, "]", image, env=ENVIRONMENT)
    assert image.read_bytes() == live
    run("nbdcopy", "--", image, "[", *COMMAND, "nbd", volume.path, "]", env=ENVIRONMENT)
    with Volume.open(volume.path) as again:
        assert again.pread(again.size, 0) == live


@pytest.mark.needs("qemu-img")
def test_qemu_img_converts_and_compares(store, serve, uri, tmp_path):
    serve(store)
    volume = store.open_volume("disk", hand_out=False)
    copy = tmp_path / "two.qcow2"
    run("qemu-img", "convert", "-f", "raw", uri("disk@two"), "-O", "qcow2", copy)
    assert "identical" in run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", copy, uri("disk@two"))
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", copy, uri("disk@three"), code=1)
    store.create_volume("back", volume.size)
    run("qemu-img", "convert", "-n", "-f", "qcow2", copy, "-O", "raw", uri("back"))
    assert store.open_volume("back", hand_out=False).pread(volume.size, 0) == volume.get_snapshot("two").pread(
        volume.size, 0
    )


def qemu_map(options):
    """What `qemu-img map` says of an export with a bitmap: its dirty rows, which QEMU shows as holes."""
    rows = json.loads(run("qemu-img", "map", "--output=json", "--image-opts", options))
    return [(row["start"], row["length"]) for row in rows if not row["data"]]


@pytest.mark.needs("qemu-img")
@pytest.mark.parametrize("target", ["two", "three", ""])
def test_an_incremental_copy_by_qemu_onto_the_full_one_is_the_snapshot(store, serve, sock, uri, tmp_path, target):
    serve(store)
    volume = store.open_volume("disk", hand_out=False)
    view = volume.get_snapshot(target) if target else volume
    export = f"disk@{target}" if target else "disk"
    image = tmp_path / "full.img"
    run("qemu-img", "convert", "-f", "raw", uri("disk@one"), "-O", "raw", image)
    options = f"driver=nbd,server.type=unix,server.path={sock},export={export},x-dirty-bitmap=qemu:dirty-bitmap:one"
    dirty = qemu_map(options)
    assert dirty == [tuple(row) for row in view.changed_extents("one").tolist()]
    with image.open("r+b") as file:
        for offset, length in dirty:
            part = tmp_path / "part"
            words = ["dd", f"if={uri(export)}", f"of={part}", "bs=512", f"skip={offset // 512}"]
            run("qemu-img", *words, f"count={(offset + length) // 512}", "-f", "raw", "-O", "raw")
            file.seek(offset)
            file.write(part.read_bytes())
    assert image.read_bytes() == view.pread(view.size, 0)


@pytest.mark.needs("qemu-io")
def test_qemu_io_writes_zeroes_and_discards(store, serve, uri):
    serve(store)
    volume = store.open_volume("disk", hand_out=False)
    commands = [
        "write -P 0x11 0 1M", "write -f -P 0x22 1M 64k", "write -z 64k 64k", "write -z -u 128k 64k",
        "discard 256k 64k", "write -P 0x33 513 100", "flush", "read -P 0x22 1M 64k", "read -P 0 64k 128k",
        "read -P 0x33 513 100", "read -P 0x11 1024 1024", "length",
    ]  # fmt: skip
    words = [word for command in commands for word in ("-c", command)]
    said = run("qemu-io", "-f", "raw", *words, uri("disk"))
    assert "failed" not in said
    assert volume.pread(MIB, 0) == (
        bytes([0x11]) * 513 + bytes([0x33]) * 100 + bytes([0x11]) * (65536 - 613) + bytes(131072)
        + bytes([0x11]) * 65536 + bytes(65536) + bytes([0x11]) * (MIB - 327680)
    )  # fmt: skip
    holes = states_of(volume.allocated_extents(0, MIB), MIB, 0, 3)
    # Zeros that need not have their space are holes.
    assert (256 << 10, 64 << 10, 3) in holes


@pytest.mark.needs("fio")
def test_fio_verifies_what_it_wrote_at_depth_32_over_4_connections(tmp_path, serve, uri):
    with Volume.create(tmp_path / "disk.cow", 64 * MIB) as volume:
        server = serve(volume)
        with subprocess.Popen(
            ["fio", "--name=verify", "--ioengine=nbd", f"--uri={uri('disk')}", "--rw=randwrite", "--bsrange=512-64k",
             "--iodepth=32", "--numjobs=4", "--size=16M", "--offset_increment=16M", "--verify=crc32c", "--do_verify=1",
             "--verify_fatal=1", "--randseed=5", "--fsync=64", "--output-format=json", "--thread"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
        ) as done:  # fmt: skip
            taken, most = 0, 0
            while done.poll() is None:
                volume.snapshot(f"s{taken}")
                taken += 1
                most = max(most, server.connections)
                try:
                    done.wait(0.05)
                except subprocess.TimeoutExpired:
                    pass
            said = done.stdout.read()
        assert done.returncode == 0, said
        jobs = json.loads(said[said.index("{") :])["jobs"]
        assert sum(job["write"]["total_ios"] for job in jobs) > 1000
        assert all(job["error"] == 0 for job in jobs)
        assert most >= 4
        assert taken > 3
        assert volume.check().ok


@pytest.mark.needs("nbdinfo")
def test_a_process_serves_one_snapshot_and_ends_when_told(volume, tmp_path, sock):
    volume.close()
    with cowengine_nbd(f"{volume.path}@tuesday", "--socket", sock) as (_, uris):
        assert uris == [f"nbd+unix:///disk%40tuesday?socket={sock}"]
        found = json.loads(run("nbdinfo", "--json", uris[0]))
        assert found["exports"][0]["is_read_only"] is True
        assert (sock.stat().st_mode & 0o777, sock.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert not sock.exists()
    with cowengine_nbd(volume.path, "--bitmap", "monday") as (_, uris):  # a socket in a folder of its own
        made = Path(uris[0].partition("socket=")[2])
        assert made.parent.stat().st_mode & 0o777 == 0o700
        bitmaps = [
            each for each in json.loads(run("nbdinfo", "--json", uris[0]))["exports"][0]["contexts"] if "dirty" in each
        ]
        assert bitmaps == ["qemu:dirty-bitmap:monday"]
    assert not made.parent.exists()


@pytest.mark.needs("nbdinfo")
def test_a_volume_of_a_store_is_served_by_its_name(store, tmp_path):
    store.close()
    with cowengine_nbd(f"{store.path}:disk@one") as (_, uris):
        assert "/disk%40one?" in uris[0]
        assert json.loads(run("nbdinfo", "--json", uris[0]))["exports"][0]["export-name"] == "disk@one"


REFUSED = """
import errno, sys, nbd
handle = nbd.NBD()
handle.set_strict_mode(0)  # what is wrong is sent nevertheless
try:
    handle.connect_uri(sys.argv[1] % "none")
except nbd.Error as error:
    print("unknown:", "has no export named 'none'" in error.string)
def refused(handle, call, *arguments):
    try:
        getattr(handle, call)(*arguments)
        print(call, "was done")
    except nbd.Error as error:
        print(call, error.errno)
for name in ("disk", "disk%40one"):
    handle = nbd.NBD()
    handle.set_strict_mode(0)
    handle.connect_uri(sys.argv[1] % name)
    size = handle.get_size()
    refused(handle, "pwrite", b"x" * 512, size - 511 if name == "disk" else 0)
    refused(handle, "trim", 1024, size - 512)
    refused(handle, "zero", 1024, size - 512)
    refused(handle, "pread", 1024, size - 512)
    print(len(handle.pread(511, 1)))  # misaligned, and as good as any
    handle.shutdown()
"""


@pytest.mark.needs("/usr/bin/python3", "nbdsh")
def test_libnbd_is_told_what_may_not_be(store, serve, uri):
    serve(store)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    said = run("/usr/bin/python3", "-c", REFUSED, uri("%s"), env=environment)
    assert said.splitlines() == [
        "unknown: True",
        "pwrite ENOSPC", "trim EINVAL", "zero ENOSPC", "pread EINVAL", "511",
        "pwrite EPERM", "trim EPERM", "zero EPERM", "pread EINVAL", "511",
    ]  # fmt: skip


@pytest.mark.needs("/usr/bin/python3", "nbdsh")  # which comes with the binding
def test_the_python_binding_of_libnbd(volume, serve, uri):
    serve(volume)
    script = Path(__file__).with_name("libnbd_child.py")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    assert run("/usr/bin/python3", script, uri("disk"), volume.size, env=environment) == "all of it\n"
    allocated = states_of(volume.allocated_extents(0, 3 * MIB), 3 * MIB, 0, 3)
    assert allocated == [(0, MIB, 0), (MIB, 2 * MIB, 3)]  # NO_HOLE, FAST_ZERO, trim
