"""All planted bugs, by name."""

from __future__ import annotations

import planted_commit_bugs  # noqa: F401
import planted_fault_bugs  # noqa: F401
import planted_other_bugs  # noqa: F401
import planted_space_bugs  # noqa: F401
from planting import BUGS, Bug, Hunt, Played, Trace

__all__ = ["BUGS", "Bug", "Hunt", "Played", "Trace"]
