"""What the catalogue must hold, gathered from the volumes and the documents: for when there is none that can be
trusted.
"""

from __future__ import annotations

from typing import Final

from cowengine.errors import CowEngineError
from cowengine.store.catalogue import CatalogueMember, CatalogueSet, Statement, set_statements
from cowengine.store.documents import Documents
from cowengine.store.volumes import VolumeTable

SNAPSHOTS_AT_ONCE: Final = 1000


def catalogue_statements(volumes: VolumeTable, documents: Documents, problems: list[str]) -> list[Statement]:
    """Everything but the records of the store log, which come after. A volume that cannot be opened is a problem by
    name.
    """
    statements: list[Statement] = []
    for volume_uuid, name in volumes.uuids().items():
        statements.append(("INSERT OR REPLACE INTO volumes VALUES (?, ?)", (volume_uuid, name)))
        try:
            statements += _set_rows(volumes, volume_uuid, name)
        except (CowEngineError, OSError) as error:
            problems.append(f"volume {name!r}: its snapshot sets are unknown: {error}")
    for kind, document_id in documents:
        statements.append(("INSERT OR IGNORE INTO documents VALUES (?, ?)", (kind, document_id)))
    return statements


def _set_rows(volumes: VolumeTable, volume_uuid: bytes, name: str) -> list[Statement]:
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
