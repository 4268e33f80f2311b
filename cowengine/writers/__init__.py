"""Writers for what lives on a mounted volume. The public names; no logic. docs/writers.md is their guide."""

from __future__ import annotations

from cowengine.writers.filesystem import FileSystemWriter
from cowengine.writers.hook import HookWriter
from cowengine.writers.labels import write_labels
from cowengine.writers.postgresql import PostgreSQLWriter

__all__ = ["FileSystemWriter", "HookWriter", "PostgreSQLWriter", "write_labels"]
