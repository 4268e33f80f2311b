"""SQLite databases on the volumes of a store; needs apsw (`pip install cowengine[sqlite]`)."""

from __future__ import annotations

try:
    import apsw  # noqa: F401 - only to say so if it is missing
except ImportError as error:  # pragma: no cover
    raise ImportError("cowengine.sqlite needs apsw: pip install 'cowengine[sqlite]'") from error

from cowengine.sqlite.extract import extract
from cowengine.sqlite.snapshot import open_snapshot
from cowengine.sqlite.vfs import VFS
from cowengine.sqlite.writer import SQLiteWriter, writers_of_store

__all__ = ["VFS", "SQLiteWriter", "extract", "open_snapshot", "writers_of_store"]
