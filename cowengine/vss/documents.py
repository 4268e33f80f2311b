"""The two documents of a backup: what a writer owns, and what one backup holds of it.

`WriterMetadata` is made by a writer's `identify` and read-only from then on. `BackupComponents` belongs to the
requestor: it names the set, the writers that took part and what they wrote down. Both are JSON with a schema and a
version (`schemas/`), are carried inside the backup, and are checked whenever they are loaded. They hold no data and
no file path of the machine they were made on.

Threads: immutable values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from cowengine.vss import schema

ComponentKind = Literal["database", "files"]
RestoreMethod = Literal["replace", "if-absent", "alternate", "custom"]


@dataclass(frozen=True)
class Component:
    """A part of a writer that can be restored alone.

    `volumes` names the volumes it lies on (none: it lies on no volume of the store). `path` orders components into a
    tree, "/"-separated. `properties` is any JSON the writer wants back at restore.
    """

    name: str
    volumes: Sequence[str] = ()
    kind: ComponentKind = "database"
    path: str = ""
    caption: str = ""
    properties: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "name": self.name,
            "volumes": list(self.volumes),
            "kind": self.kind,
            "path": self.path,
            "caption": self.caption,
            "properties": dict(self.properties),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """From the JSON types of a document that was checked."""
        return cls(
            name=value["name"],
            volumes=tuple(value["volumes"]),
            kind=value["kind"],
            path=value["path"],
            caption=value["caption"],
            properties=value["properties"],
        )


@dataclass(frozen=True)
class WriterMetadata:
    """What a writer owns and how it wants to be restored.

    `writer` is the writer's name. A writer all of whose components name no volume takes part in every set; one that
    names volumes takes part in the sets that hold them.
    """

    writer: str
    components: Sequence[Component] = ()
    version: str = "1"
    restore_method: RestoreMethod = "replace"
    properties: Mapping[str, Any] = field(default_factory=dict)

    @property
    def volumes(self) -> tuple[str, ...]:
        """Every volume that a component names, once, in order of first mention."""
        return tuple(dict.fromkeys(volume for component in self.components for volume in component.volumes))

    def to_dict(self) -> dict[str, Any]:
        """As the JSON types of schema "writer-metadata"."""
        return {
            "schema": "cowengine/writer-metadata",
            "version": 1,
            "writer": self.writer,
            "writer_version": self.version,
            "restore_method": self.restore_method,
            "components": [component.to_dict() for component in self.components],
            "properties": dict(self.properties),
        }

    @classmethod
    def from_dict(cls, value: Any) -> Self:
        """From a document of schema "writer-metadata". Raises FormatError or UnsupportedVersionError."""
        schema.check(value, "writer-metadata")
        return cls(
            writer=value["writer"],
            components=tuple(Component.from_dict(component) for component in value["components"]),
            version=value["writer_version"],
            restore_method=value["restore_method"],
            properties=value["properties"],
        )

    def to_json(self) -> str:
        """As JSON text. Raises FormatError if a field breaks the schema."""
        return schema.encode(self.to_dict(), "writer-metadata")

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The opposite of to_json. Raises FormatError or UnsupportedVersionError."""
        return cls.from_dict(schema.parse(text, "writer-metadata"))


@dataclass(frozen=True)
class WriterRecord:
    """One writer in a backup: which components, how it went, and what its events returned (`metadata`)."""

    writer: str
    required: bool = True
    outcome: str = "ok"
    components: Sequence[str] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "writer": self.writer,
            "required": self.required,
            "outcome": self.outcome,
            "components": list(self.components),
            "metadata": dict(self.metadata),
        }


@dataclass(frozen=True)
class BackupComponents:
    """What one backup holds: the job, the set it was read from, and its writers.

    `snapshot_set` has at least "id" and "name".
    """

    job: str
    kind: str
    volumes: Sequence[str]
    snapshot_set: Mapping[str, Any]
    writers: Sequence[WriterRecord] = ()

    def to_dict(self) -> dict[str, Any]:
        """As the JSON types of schema "backup-components"."""
        return {
            "schema": "cowengine/backup-components",
            "version": 1,
            "job": self.job,
            "kind": self.kind,
            "volumes": list(self.volumes),
            "snapshot_set": dict(self.snapshot_set),
            "writers": [writer.to_dict() for writer in self.writers],
        }

    @classmethod
    def from_dict(cls, value: Any) -> Self:
        """From a document of schema "backup-components". Raises FormatError or UnsupportedVersionError."""
        schema.check(value, "backup-components")
        records = tuple(
            WriterRecord(
                writer=record["writer"],
                required=record["required"],
                outcome=record["outcome"],
                components=tuple(record["components"]),
                metadata=record["metadata"],
            )
            for record in value["writers"]
        )
        return cls(value["job"], value["kind"], tuple(value["volumes"]), value["snapshot_set"], records)

    def to_json(self) -> str:
        """As JSON text. Raises FormatError if a field breaks the schema."""
        return schema.encode(self.to_dict(), "backup-components")

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The opposite of to_json. Raises FormatError or UnsupportedVersionError."""
        return cls.from_dict(schema.parse(text, "backup-components"))
