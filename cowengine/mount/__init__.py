"""Volumes and snapshots as mounted file systems, or as plain block files: nbdfuse, a loop device, mount(8).

Decides and cleans up; the bytes go from the kernel's file system through nbdfuse to an NBD server.
"""

from cowengine.mount.mount import describe, mount_volume, mounted, sweep, unmount, unmount_all
from cowengine.mount.state import Record

__all__ = ["Record", "describe", "mount_volume", "mounted", "sweep", "unmount", "unmount_all"]
