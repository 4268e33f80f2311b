"""Sizes, text that is safe to show, and progress."""

from __future__ import annotations

import argparse
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowengine.cli import progress as progress_module
from cowengine.cli.output import shown
from cowengine.cli.progress import Progress
from cowengine.cli.sizes import shown_duration, shown_size, size


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("4K", 4096),
        ("4k", 4096),
        ("4KiB", 4096),
        ("4 KB", 4096),
        ("1M", 1 << 20),
        ("10G", 10 << 30),
        ("1T", 1 << 40),
        ("16P", 16 << 50),
        ("8E", 8 << 60),
    ],
)
def test_a_size_takes_suffixes_of_1024(text, count):
    assert size(text) == count


@pytest.mark.parametrize("text", ["", "K", "-1", "1.5G", "1e9", "0x10", "1KK", "1 0", "٤K", "1" * 30, "1\x00"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        size(text)


@given(st.integers(0, 1 << 63))
def test_a_shown_size_is_near_the_count(count):
    number, unit = shown_size(count).split()
    factor = 1 if unit == "B" else 1024 ** ("KMGTPE".index(unit[0]) + 1)
    assert float(number) * factor == pytest.approx(count, rel=0.06)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.00031, "0.31 ms"), (4.2, "4.2 s"), (187, "3:07"), (7387, "2:03:07"), (60, "1:00")]
)
def test_a_shown_duration(seconds, text):
    assert shown_duration(seconds) == text


@given(st.text())
def test_shown_text_drives_no_terminal(text):
    assert shown(text).isprintable()


def test_shown_text_keeps_what_is_harmless():
    assert shown("größe 日本.db") == "größe 日本.db"
    assert shown("a\x1b[2Jb\n") == "a\\x1b[2Jb\\n"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def steps(monkeypatch):
    """A clock that a test sets."""
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_progress_as_json_says_rate_and_time_left(steps):
    stream = io.StringIO()
    with Progress(stream, "json", "backup") as progress:
        steps[0] += 2
        progress.update(1000, 4000)
        steps[0] += 0.1
        progress.update(1500, 4000)  # too soon to print
        steps[0] += 7.9
        progress.update(4000, 4000, "verify")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["done_bytes"] for line in lines] == [1000, 4000, 4000]
    assert lines[0] == {
        "event": "progress",
        "label": "backup",
        "done_bytes": 1000,
        "total_bytes": 4000,
        "bytes_per_second": 500,
        "seconds_left": 6.0,
    }
    assert lines[-1]["label"] == "verify"


def test_progress_on_a_terminal_is_one_line_that_ends(steps):
    stream = Terminal()
    with Progress(stream, "auto", "backup") as progress:
        steps[0] += 1
        progress.update(1 << 20, 4 << 20)
        steps[0] += 1
        progress.update(2 << 20, None)
    shown_text = stream.getvalue()
    assert "25%" in shown_text
    assert "1.0 MiB/s" in shown_text
    assert "3.0 s left" in shown_text
    assert shown_text.count("\n") == 1
    assert shown_text.endswith("\n")


def test_progress_is_json_lines_where_there_is_no_terminal():
    stream = io.StringIO()
    with Progress(stream, "auto", "backup") as progress:
        progress.update(1, 2)
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["progress", "progress"]


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_progress_is_silent_where_nobody_wants_it(stream):
    with Progress(stream, "none", "backup") as progress:
        progress.update(1, 2)
    assert stream.getvalue() == ""
