"""What may be called what: chains, volumes and backup ids that come from a caller, a directory or a stream.

A name that passes is safe as one component of a path. Threads: pure functions.
"""

from __future__ import annotations

import unicodedata
import uuid

from cowengine.backup.layout import NAME_BYTES_MAX
from cowengine.errors import OutOfRangeError


def checked_name(name: object, what: str) -> str:
    """`name` itself if it is 1 to 255 bytes of UTF-8 without `/` and control characters, and not `.` or `..`.

    `what` (such as "volume") is for the message. Raises OutOfRangeError otherwise.
    """
    if not isinstance(name, str) or not 1 <= len(name) <= NAME_BYTES_MAX:
        raise OutOfRangeError(f"a {what}'s name is a text of 1 to {NAME_BYTES_MAX} bytes, not {_shown(name)}")
    try:
        length = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        raise OutOfRangeError(f"the {what}'s name {_shown(name)} is no valid text") from None
    if length > NAME_BYTES_MAX:
        raise OutOfRangeError(f"the {what}'s name {_shown(name)} has {length} bytes; at most {NAME_BYTES_MAX} fit")
    if name in (".", "..") or "/" in name or any(unicodedata.category(letter) == "Cc" for letter in name):
        raise OutOfRangeError(f"the {what}'s name {_shown(name)} is a dot, or holds '/' or a control character")
    return name


def checked_chain(chain: object) -> str:
    """A chain's name: as `checked_name`, and it does not begin with a dot."""
    name = checked_name(chain, "chain")
    if name.startswith("."):
        raise OutOfRangeError(f"the chain's name {_shown(name)} begins with a dot; choose another")
    return name


def checked_backup_id(backup_id: object) -> str:
    """The canonical text of a backup id. Raises OutOfRangeError if it is none."""
    try:
        canonical = str(uuid.UUID(backup_id)) if isinstance(backup_id, str) else ""
    except ValueError:
        canonical = ""
    if not canonical or canonical != backup_id:
        raise OutOfRangeError(f"a backup id looks like 'xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx', not {_shown(backup_id)}")
    return canonical


def _shown(value: object) -> str:
    text = ascii(value) if isinstance(value, str) else type(value).__name__
    return text if len(text) <= 80 else text[:77] + "..."
