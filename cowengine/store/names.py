"""What volumes, snapshot sets and documents of a store may be called, and where their files lie.

Pure string work: does no I/O.
"""

from __future__ import annotations

import os
import re
import unicodedata
from typing import Final

from cowengine.errors import OutOfRangeError
from cowengine.names import check_name

LOG_NAME: Final = "store.log"
CATALOGUE_NAME: Final = "catalogue.sqlite"
VOLUMES_NAME: Final = "volumes"
DOCUMENTS_NAME: Final = "documents"
DETACHED_NAME: Final = "detached"
VOLUME_SUFFIX: Final = ".cow"
UNFINISHED_SUFFIX: Final = ".new"
VOLUME_NAME_BYTES_MAX: Final = 200

_KIND: Final = re.compile(r"[a-z]{1,32}", re.ASCII)
_DOCUMENT_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)


def check_volume_name(name: object) -> str:
    """The name, or OutOfRangeError saying what is wrong with it."""
    text = check_name(name, "volume")
    length = len(text.encode())
    if length > VOLUME_NAME_BYTES_MAX:
        raise OutOfRangeError(f"a volume name has 1 to {VOLUME_NAME_BYTES_MAX} bytes of UTF-8, this one {length}")
    if any(unicodedata.category(letter) == "Cc" for letter in text):
        raise OutOfRangeError(f"a volume name may not hold control characters: {text!a}")
    if text in (".", ".."):
        raise OutOfRangeError(f"a volume cannot be named {text!r}")
    return text


def document_file(kind: str, document_id: str) -> str:
    """The file name of a document, or OutOfRangeError."""
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        raise OutOfRangeError("the kind of a document is 1 to 32 letters a-z")
    if not isinstance(document_id, str) or not _DOCUMENT_ID.fullmatch(document_id):
        raise OutOfRangeError("the id of a document is 1 to 128 characters of A-Z a-z 0-9 . _ -")
    return f"{kind}.{document_id}.json"


def parse_document_file(file_name: str) -> tuple[str, str] | None:
    """(kind, id) of a document's file name, or None if it is not one."""
    kind, dot, rest = file_name.partition(".")
    document_id = rest.removesuffix(".json")
    if not dot or document_id == rest or not _KIND.fullmatch(kind) or not _DOCUMENT_ID.fullmatch(document_id):
        return None
    return kind, document_id


def volume_file(store_path: str, name: str) -> str:
    """Where the file of a volume lies."""
    return os.path.join(store_path, VOLUMES_NAME, name + VOLUME_SUFFIX)
