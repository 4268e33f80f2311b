"""Where cowengine and the raw file run on XFS: the file system that the XFS peer has mounted."""

from __future__ import annotations

from pathlib import Path

from race import Race
from workload import MiB

NAME = "XFS reflink"


def xfs_folder(race: Race) -> tuple[Path | None, str]:
    """A folder on it, or None and why there is none."""
    if NAME in race.field.folders:
        return race.disk(race.subject(NAME), MiB).path.parent, ""
    return None, race.field.missing.get(NAME, "there is no XFS")
