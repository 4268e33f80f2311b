"""docs/control.md and the code say the same."""

from __future__ import annotations

import re
from pathlib import Path

from cowengine.control import protocol, server, session, store_methods, volume_methods
from cowengine.control.encoding import ERRORS
from cowengine.control.methods import KINDS, METHODS

TEXT = (Path(__file__).parents[2] / "docs" / "control.md").read_text()
ROW = re.compile(r"\| `([\w.]+)` \| ([^|]*) \| ([^|]*) \| (yes)? ?\| [^|]+ \|")


def test_the_table_of_methods_is_that_of_the_code() -> None:
    written = {
        name: (dict(re.findall(r"`(\w+)` ([\w?]+)", params)), result, changes == "yes")
        for name, params, result, changes in ROW.findall(TEXT)
    }
    declared = {
        name: (method.params, method.result, method.changes)
        for name, method in {"hello": server.HELLO, **METHODS}.items()
    }
    assert written == declared


def test_every_kind_of_value_is_described() -> None:
    rows = re.findall(r"^\| ([\w, ]+) \| ", TEXT[TEXT.index("## Values") : TEXT.index("## Errors")], re.MULTILINE)
    described = {kind for row in rows for kind in row.split(", ")}
    assert set(KINDS) - described == set()
    results = {method.result.removeprefix("array of ") for method in METHODS.values()} - {"null"}
    assert results - described == set()


def test_the_limits_are_those_of_the_code() -> None:
    assert f"version {max(protocol.PROTOCOL_VERSIONS)}\n" in TEXT.splitlines(keepends=True)[0]
    for number in (
        f"at most {protocol.LINE_BYTES_MAX} bytes",
        f"{server.CLIENTS_MAX} connections",
        f"{server.LINE_SECONDS:.0f} seconds for a line",
        f"{server.SEND_SECONDS:.0f} seconds for a client",
        f"within {server.HELLO_SECONDS:.0f} seconds",
        f"longer than {server.DRAIN_SECONDS:.0f} seconds",
        f"{session.PENDING_MAX} prepared sets and {session.HEADS_MAX} clones",
        f"{protocol.PIECE_BYTES >> 20} MiB of a volume's bytes",
        f"{server.LONG_LINES_MAX} requests longer than {protocol.LONG_BYTES >> 20} MiB at once",
        f"at most {store_methods.ROWS_MAX} of them",
        f"at most {volume_methods.SNAPSHOTS_MAX} from",
        f"at most {volume_methods.EXTENTS_MAX} rows",
        f"1 to {max(kind.code for kind in ERRORS.values())} |",
    ):
        assert number in TEXT, number
    for code in (
        protocol.PARSE_ERROR,
        protocol.INVALID_REQUEST,
        protocol.METHOD_NOT_FOUND,
        protocol.INVALID_PARAMS,
        protocol.INTERNAL_ERROR,
        protocol.SYSTEM_ERROR,
    ):
        assert str(code) in TEXT
