"""What a verb prints: one result on stdout, progress and log on stderr.

With --json the result is one JSON document (byte counts are integers) and stderr carries JSON lines; without it, text
for a person. Rows are streamed, so a list of any length needs no memory. A verb that writes data to stdout takes
`data()`; its result then goes to stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TextIO

from cowengine.cli.progress import Progress

if TYPE_CHECKING:
    from datetime import datetime

Document = dict[str, Any]


class Rows(NamedTuple):
    """A streamed list: its key in the document, its items, the text heading and the text line of one item."""

    name: str
    items: Iterable[Document]
    line: Callable[[Document], str]
    heading: str = ""


class Output:
    """Where the result, the log and the progress of one command go."""

    def __init__(self, *, as_json: bool, progress: str = "auto") -> None:
        self.as_json = as_json
        self._progress = "json" if as_json and progress == "auto" else progress
        self._stream: TextIO = sys.stdout
        self.carries_data = False

    def emit(self, document: Document, text: str = "", rows: Rows | None = None) -> None:
        """Print the result: `document` (with the rows in it) as JSON, or `text` and the rows as lines."""
        if self.as_json:
            self._emit_json(document, rows)
            return
        if text:
            self._stream.write(text + "\n")
        if rows is not None:
            if rows.heading:
                self._stream.write(rows.heading + "\n")
            for item in rows.items:
                self._stream.write(rows.line(item) + "\n")

    def _emit_json(self, document: Document, rows: Rows | None) -> None:
        encoded = _encoded(document)
        if rows is None:
            self._stream.write(encoded + "\n")
            return
        opening = encoded[:-1] + (", " if document else "")
        self._stream.write(f"{opening}{_encoded(rows.name)}: [")
        separator = "\n"
        for item in rows.items:
            self._stream.write(separator + _encoded(item))
            separator = ",\n"
        self._stream.write("]}\n")

    def log(self, level: str, message: str, **fields: Any) -> None:
        """One line on stderr."""
        if self.as_json:
            line = {"event": "log", "level": level, "message": message, **fields}
            sys.stderr.write(_encoded(line) + "\n")
        else:
            sys.stderr.write(f"cowengine: {shown(message)}\n")
        sys.stderr.flush()

    def progress(self, label: str) -> Progress:
        """The progress of one long operation, as a context manager."""
        return Progress(sys.stderr, self._progress, label)

    def data(self) -> BinaryIO:
        """Stdout for bytes; from here on the result goes to stderr."""
        self._stream = sys.stderr
        self.carries_data = True
        return sys.stdout.buffer


def _encoded(value: Any) -> str:
    import json

    return json.dumps(value, default=_encode)


def _encode(value: Any) -> Any:
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if hasattr(value, "item"):  # a NumPy scalar
        return value.item()
    return str(value)


def shown(text: str) -> str:
    """`text` without anything that could drive a terminal: names come from files that others may have made."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def shown_time(created: datetime) -> str:
    """A point in time, which is in UTC, for a person."""
    return f"{created:%Y-%m-%d %H:%M:%S}"


def table(pairs: Iterable[tuple[str, Any]]) -> str:
    """Two columns of text: a name and its value."""
    rows = [(name, shown(str(value))) for name, value in pairs]
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
