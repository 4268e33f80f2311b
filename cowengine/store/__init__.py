"""Stores: a directory of volumes with one owner, and atomic snapshot sets over them. The public names; no logic."""

from __future__ import annotations

from cowengine.store.sets import PendingSet, SnapshotSet
from cowengine.store.store import Store

__all__ = ["PendingSet", "SnapshotSet", "Store"]
