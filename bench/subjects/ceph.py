"""A Ceph cluster of one node, on the loopback interface: a monitor, an object store in a file, and librados in process.

It is set up as one would for speed on one node: no authentication between its parts, one copy of each object.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import cffi
from subjects.daemon import daemon, lacking, run
from subjects.loop_mount import write_zeros

PROGRAMS = {
    "ceph-mon": "ceph-mon",
    "ceph-osd": "ceph-osd",
    "monmaptool": "ceph-base",
    "setpriv": "util-linux",
}
RADOS, RBD = "librados.so.2", "librbd.so.1"
PLACEMENT_GROUPS = 8
PROPOSE_INTERVAL = 0.01  # seconds that the monitor collects changes before it decides; every snapshot waits for it

CONFIGURATION = """
[global]
fsid = {fsid}
mon_initial_members = a
mon_host = [v2:127.0.0.1:{port}]
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_ipv6 = false
ms_bind_msgr1 = false
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
run_dir = {folder}
pid_file =
admin_socket =
log_file = {folder}/$name.log
mon_cluster_log_file =
crash_dir = {folder}
heartbeat_file =
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_allow_pool_delete = true
mon_warn_on_pool_no_redundancy = false
[client]
log_file =
log_to_stderr = false
rados_osd_op_timeout = 60
rados_mon_op_timeout = 60
client_mount_timeout = 30
[mon]
mon_data = {folder}/mon
mon_data_avail_crit = 0
mon_data_avail_warn = 0
paxos_propose_interval = {propose}
paxos_min_wait = 0.001
[osd]
osd_data = {folder}/osd
osd_objectstore = bluestore
osd_scrub_begin_hour = 0
osd_max_scrubs = 0
osd_op_num_shards = 2
osd_op_num_threads_per_shard = 1
bluestore_block_size = {room}
bluestore_fsck_on_mount = false
bluestore_cache_autotune = false
bluestore_cache_size = 268435456
"""

ffi = cffi.FFI()
ffi.cdef(
    """
typedef void *rados_t;
typedef void *rados_ioctx_t;
typedef void *rbd_image_t;
typedef int (*rbd_extent_t)(uint64_t offset, size_t length, int exists, void *data);
int rados_create(rados_t *cluster, const char *id);
int rados_conf_read_file(rados_t cluster, const char *path);
int rados_connect(rados_t cluster);
void rados_shutdown(rados_t cluster);
int rados_mon_command(rados_t cluster, const char **command, size_t commands, const char *input, size_t input_length,
    char **output, size_t *output_length, char **status, size_t *status_length);
int rados_ioctx_create(rados_t cluster, const char *pool, rados_ioctx_t *pool_handle);
void rados_ioctx_destroy(rados_ioctx_t pool);
void rados_version(int *major, int *minor, int *extra);
"""
)
ffi.cdef(
    """
int rbd_pool_init(rados_ioctx_t pool, bool force);
int rbd_create2(rados_ioctx_t pool, const char *name, uint64_t size, uint64_t features, int *order);
int rbd_open(rados_ioctx_t pool, const char *name, rbd_image_t *image, const char *snapshot);
int rbd_open_read_only(rados_ioctx_t pool, const char *name, rbd_image_t *image, const char *snapshot);
int rbd_close(rbd_image_t image);
ssize_t rbd_read(rbd_image_t image, uint64_t offset, size_t length, char *buffer);
ssize_t rbd_write(rbd_image_t image, uint64_t offset, size_t length, const char *data);
int rbd_flush(rbd_image_t image);
int rbd_get_size(rbd_image_t image, uint64_t *size);
int rbd_snap_create(rbd_image_t image, const char *name);
int rbd_snap_remove(rbd_image_t image, const char *name);
int rbd_diff_iterate2(rbd_image_t image, const char *from, uint64_t offset, uint64_t length, uint8_t with_parent,
    uint8_t whole_object, rbd_extent_t extent, void *data);
"""
)


@cache
def libraries() -> tuple[Any, Any]:
    """librados and librbd; OSError where they are not installed."""
    return ffi.dlopen(RADOS), ffi.dlopen(RBD)


def lacking_for_cluster() -> str:
    """What is missing, and how to get it; empty if nothing is."""
    missing = lacking(PROGRAMS)
    try:
        libraries()
    except OSError:
        missing.append(f"{RADOS} and {RBD} (apt install librbd1)")
    return ", ".join(missing)


def check(result: int, what: str) -> int:
    """Raises OSError for what the libraries return as a failure."""
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")
    return result


def command(cluster: Any, prefix: str, **arguments: object) -> None:
    """Has the monitor execute a command."""
    text = ffi.new("char[]", json.dumps({"prefix": prefix, **arguments}).encode())
    nothing = [ffi.NULL] * 4
    check(libraries()[0].rados_mon_command(cluster, ffi.new("char *[]", [text]), 1, b"", 0, *nothing), prefix)


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def connected(configuration: Path) -> Iterator[Any]:
    """A librados client of the cluster."""
    rados, _ = libraries()
    handle = ffi.new("rados_t *")
    check(rados.rados_create(handle, b"admin"), "rados_create")
    try:
        check(rados.rados_conf_read_file(handle[0], str(configuration).encode()), "rados_conf_read_file")
        check(rados.rados_connect(handle[0]), "rados_connect")
        yield handle[0]
    finally:
        rados.rados_shutdown(handle[0])


@contextmanager
def running_cluster(folder: Path, room: int) -> Iterator[Any]:
    """A cluster that keeps up to `room` bytes in `folder`, all of them written before; a client of it."""
    configuration, log, monmap = folder / "ceph.conf", folder / "log", folder / "monmap"
    fsid, osd, port = uuid.uuid4(), uuid.uuid4(), free_port()
    configuration.write_text(
        CONFIGURATION.format(fsid=fsid, port=port, folder=folder, propose=PROPOSE_INTERVAL, room=room)
    )
    for name in ("mon", "osd"):
        (folder / name).mkdir()
    write_zeros(folder / "osd" / "block", room)
    configured, foreground = f"--conf={configuration}", "--foreground"
    run("monmaptool", "--create", f"--fsid={fsid}", "--addv", "a", f"[v2:127.0.0.1:{port}]", monmap)
    run("ceph-mon", configured, "--mkfs", "--id=a", f"--monmap={monmap}")
    with ExitStack() as stack:
        stack.enter_context(daemon(["ceph-mon", configured, foreground, "--id=a"], log, lambda: answers(port)))
        cluster = stack.enter_context(connected(configuration))
        command(cluster, "osd new", uuid=str(osd), id=0)
        run("ceph-osd", configured, "--mkfs", "--id=0", f"--osd-uuid={osd}")
        stack.enter_context(daemon(["ceph-osd", configured, foreground, "--id=0"], log, lambda: True))
        with pool(cluster, "first"):  # as soon as it can be written to, the object store is there
            yield cluster


@contextmanager
def pool(cluster: Any, name: str) -> Iterator[Any]:
    """A new pool for images, which goes away with all that is in it: that does not cost a decision of the monitor for
    each snapshot.
    """
    rados, rbd = libraries()
    command(cluster, "osd pool create", pool=name, pg_num=PLACEMENT_GROUPS, pgp_num=PLACEMENT_GROUPS)
    handle = ffi.new("rados_ioctx_t *")
    check(rados.rados_ioctx_create(cluster, name.encode(), handle), "rados_ioctx_create")
    try:
        check(rbd.rbd_pool_init(handle[0], False), "rbd_pool_init")
        yield handle[0]
    finally:
        rados.rados_ioctx_destroy(handle[0])
        command(cluster, "osd pool delete", pool=name, pool2=name, yes_i_really_really_mean_it=True)
