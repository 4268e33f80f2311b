"""An XFS on a served volume whose files change all the time; each tenth of its snapshots is mounted and checked.

COWENGINE_XFS_SECONDS says how long (150).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from file_stress import Stress, differences, unchanged
from served import MIB, Bench, bench, cowengine, run, served_store

from cowengine.control import connect
from cowengine.mount import mount_volume, unmount

SECONDS = float(os.environ.get("COWENGINE_XFS_SECONDS", "150"))
EVERY = 1.0  # seconds
CHECKED = 10  # each such snapshot
KEPT = 15
SEED = 20240229


@pytest.mark.privileged("nbdfuse", "fusermount3", "losetup", "mkfs.xfs", "xfs_repair", "nbdkit", "setpriv")
@pytest.mark.timeout(SECONDS * 4 + 300)
def test_snapshots_of_a_busy_xfs():
    with bench() as place:
        store = place.store("store", disk=1024 * MIB)
        live, copy = place.directory("live"), place.directory("copy")
        with served_store(store):
            place.format("disk", "mkfs.xfs", "-q", "-f", store=store)
            mount_volume("disk", str(live), store=str(store))
            counts = observed(store, live, copy)
            unmount(str(live))
            check_xfs(place, f"{store}:disk")
        assert cowengine("store", "check", store)["ok"]
        print(f"XFS on a volume: {counts}")


def observed(store: Path, live: Path, copy: Path) -> dict[str, int]:
    """Snapshots while files change; how much there was of everything."""
    counts = {"snapshots": 0, "mounted": 0, "files compared": 0, "changes": 0}
    stress = Stress(live, 2, SEED)
    with connect(store) as served, served.open_volume("disk") as volume, stress.running():
        began = time.monotonic()
        while time.monotonic() < began + SECONDS or not counts["mounted"]:
            due = began + EVERY * counts["snapshots"]
            time.sleep(max(due - time.monotonic(), 0.0))
            name = f"s{counts['snapshots']}"
            before = stress.known()
            volume.snapshot(name)
            expected = unchanged(before, stress.known())
            counts["snapshots"] += 1
            if counts["snapshots"] % CHECKED == 0:
                compared = check_snapshot(store, name, copy, expected)
                counts["mounted"] += 1
                counts["files compared"] += compared
            if counts["snapshots"] > KEPT:
                volume.get_snapshot(f"s{counts['snapshots'] - KEPT - 1}").delete()
            assert stress.failure is None
    counts["changes"] = stress.changes
    assert counts["changes"] > counts["snapshots"]
    assert counts["files compared"]
    return counts


def check_snapshot(store: Path, name: str, copy: Path, expected: dict[str, str | None]) -> int:
    """Its log is replayed on an overlay, its files are compared, and then it is checked; how many files there were."""
    record = mount_volume("disk", store=str(store), snapshot=name, writable=True, loop=True)
    run("mount", "-o", "nouuid", record.device, copy)
    wrong = differences(copy, expected)
    run("umount", copy)
    run("xfs_repair", "-n", record.device)
    unmount(record.id)
    assert not wrong, f"snapshot {name}: {wrong}"
    return len(expected)


def check_xfs(place: Bench, address: str) -> None:
    """The live volume, unmounted."""
    mount = cowengine("mount", address, "--loop")
    run("xfs_repair", "-n", mount["device"])
    cowengine("umount", mount["id"])
