"""What the catalogue must hold, gathered from the volumes and the documents: for when there is none that can be
trusted, or when one is to be compared with the folders.

What only a catalogue can know is who was a member of a set and is no more: its volume is gone, or its snapshot was
deleted alone; and what a volume was called when the set was taken. All else comes back.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Final

from cowengine.engine.report import Report
from cowengine.errors import CowEngineError
from cowengine.store.catalogue import Catalogue, CatalogueMember, CatalogueSet, Statement, set_statements
from cowengine.store.documents import Documents
from cowengine.store.volumes import VolumeTable

SNAPSHOTS_AT_ONCE: Final = 1000

_PUT_VOLUME: Final = "INSERT OR REPLACE INTO volumes VALUES (?, ?)"
_PUT_DOCUMENT: Final = "INSERT OR IGNORE INTO documents VALUES (?, ?)"


@dataclass(slots=True)
class RebuildReport(Report):
    """What came of rebuilding a catalogue: `reason` says why; `problems` name volumes that could not be read, and
    `unknown` what can't be known any more.
    """

    reason: str = ""
    unknown: list[str] = field(default_factory=list)


def catalogue_statements(volumes: VolumeTable, documents: Documents, problems: list[str]) -> list[Statement]:
    """Everything but the records of the store log, which come after. A volume that cannot be opened is a problem by
    name.
    """
    statements = _new_volumes(volumes, {}, problems)
    statements += [(_PUT_DOCUMENT, document) for document in documents]
    return statements


def folder_statements(
    volumes: VolumeTable, documents: Documents, catalogue: Catalogue, problems: list[str]
) -> list[Statement]:
    """What a catalogue lacks of what lies in the folders: they change without a record in the store log."""
    statements = _new_volumes(volumes, catalogue.volume_names(), problems)
    found, listed = set(documents), catalogue.all_documents()
    statements += [(_PUT_DOCUMENT, document) for document in sorted(found - listed)]
    gone = "DELETE FROM documents WHERE kind = ? AND id = ?"
    statements += [(gone, document) for document in sorted(listed - found)]
    return statements


def _new_volumes(volumes: VolumeTable, known: dict[bytes, str], problems: list[str]) -> list[Statement]:
    """The volumes that are not `known` by their names, and the sets of those that are not known at all."""
    statements: list[Statement] = []
    for volume_uuid, name in volumes.uuids().items():
        if known.get(volume_uuid) == name:
            continue
        statements.append((_PUT_VOLUME, (volume_uuid, name)))
        if volume_uuid not in known:
            try:
                statements += set_rows(volumes, volume_uuid, name)
            except (CowEngineError, OSError) as error:
                problems.append(f"volume {name!r}: its snapshot sets are unknown: {error}")
    return statements


def set_rows(volumes: VolumeTable, volume_uuid: bytes, name: str) -> list[Statement]:
    """The sets that a volume's snapshots belong to, with this volume as member."""
    volume = volumes.get(name)
    rows: list[Statement] = []
    start = 0
    while found := volume.snapshots(start, SNAPSHOTS_AT_ONCE):
        start += len(found)
        for snapshot in found:
            if snapshot.set_id is not None:
                record = volume.engine.live_snapshot(snapshot.id)
                member = CatalogueMember(volume_uuid, name, record.id)
                rows += set_statements(CatalogueSet(record.set_id, record.name, record.created_ns, (member,)))
    return rows


def rebuild_report(catalogue: Catalogue, volume_count: int, problems: list[str]) -> RebuildReport:
    """What came of it; `catalogue` is the new one."""
    sets = catalogue.sets()
    members = {(found.id, member.volume_uuid) for found in sets for member in found.members}
    unknown = sorted(
        f"set {old.name!r} ({uuid.UUID(bytes=old.id)}): its member in volume {member.volume_name!r}, which is not there"
        for old in catalogue.remembered or ()
        for member in old.members
        if (old.id, member.volume_uuid) not in members
    )
    if catalogue.remembered is None:
        unknown.append("members of snapshot sets whose volume or snapshot is not there, if there were any")
    counts = {"volumes": volume_count, "sets": len(sets), "members": len(members)}
    counts["documents"] = len(catalogue.all_documents())
    problems = problems if catalogue.problem is None else [*problems, catalogue.problem]
    return RebuildReport(problems, counts, catalogue.reason, unknown)
