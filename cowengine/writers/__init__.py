"""Writers for what lives on a mounted volume. The public names; no logic. docs/writers.md is their guide."""

from __future__ import annotations

from cowengine.writers.filesystem import FileSystemWriter
from cowengine.writers.hook import HookWriter

__all__ = ["FileSystemWriter", "HookWriter"]
