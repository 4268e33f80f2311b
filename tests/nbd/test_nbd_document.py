"""docs/nbd.md and the code say the same, row by row: a difference is a bug in one of them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cowengine.nbd import protocol

DOCUMENT = (Path(__file__).parents[2] / "docs" / "nbd.md").read_text()


def rows(heading: str) -> dict[str, int]:
    """Name and number of the rows of the table with this heading."""
    start = DOCUMENT.index(f"\n| {heading} |")
    table = DOCUMENT[start + 1 :].split("\n\n")[0]
    return {name: int(number) for name, number in re.findall(r"^\| (\w+) \| (\d+) \|", table, re.MULTILINE)}


@pytest.mark.parametrize(
    ("heading", "numbers"),
    [
        ("option", protocol.Option),
        ("reply", protocol.Reply),
        ("command", protocol.Command),
        ("chunk", protocol.Chunk),
        ("error", protocol.Errno),
    ],
)
def test_a_table_of_the_document_is_that_of_the_code(heading, numbers):
    assert rows(heading) == {each.name: int(each) for each in numbers}


@pytest.mark.parametrize(
    ("heading", "flags"), [("transmission flag", protocol.TransmissionFlag), ("command flag", protocol.CommandFlag)]
)
def test_the_bits_of_the_document_are_those_of_the_code(heading, flags):
    assert {name: 1 << bit for name, bit in rows(heading).items()} == {each.name: int(each) for each in flags}


def test_the_limits_of_the_document_are_those_of_the_code():
    limits = {name: value for name, value in vars(protocol).items() if name.endswith("_MAX")}
    assert rows("limit") == limits


def test_the_contexts_of_the_document_are_those_of_the_code():
    names = re.findall(r"^\| `((?:base|qemu):[\w:-]+)`", DOCUMENT, re.MULTILINE)
    assert names == [protocol.ALLOCATION, f"{protocol.DIRTY_BITMAP}SNAPSHOT", protocol.DEPTH]


def test_the_numbers_are_those_of_the_protocol():
    """What proto.md says, said once more: a wrong constant would agree with itself."""
    assert protocol.GREETING.pack(protocol.MAGIC, protocol.OPTION_MAGIC, 3) == b"NBDMAGICIHAVEOPT\0\3"
    assert protocol.OPTION_REPLY_MAGIC == 0x3E889045565A9
    assert (protocol.REQUEST_MAGIC, protocol.EXTENDED_REQUEST_MAGIC) == (0x25609513, 0x21E41C71)
    assert (protocol.SIMPLE_REPLY_MAGIC, protocol.STRUCTURED_REPLY_MAGIC) == (0x67446698, 0x668E33EF)
    assert protocol.EXTENDED_REPLY_MAGIC == 0x6E8A278C
    assert (protocol.REQUEST.size, protocol.EXTENDED_REQUEST.size) == (28, 32)
    assert (protocol.STRUCTURED_REPLY.size, protocol.EXTENDED_REPLY.size) == (20, 32)


def test_the_example_of_the_document_runs(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-P", "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{b'hello'} {{'base:allocation': [(4096, 3), (4096, 0), ({(1 << 20) - 8192}, 3)]}}\n"
