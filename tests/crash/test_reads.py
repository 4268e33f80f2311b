"""Images are the same to a process exactly if they differ only in what it does not ask for."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from crash_explorer import Plan
from crash_reads import Known, Node, WatchedDisk, root_of
from explorer import random_tasks, run_task
from memory_disk import DIRECTORY, Durable

PATH = "/disk/file"
Process = Callable[[WatchedDisk, int], Any]


def image_of(content: bytes) -> Durable:
    return Durable({1: bytearray(content)}, {"/": DIRECTORY, "/disk": DIRECTORY, PATH: 1})


def run(known: Known, content: bytes, process: Process) -> Node:
    image = image_of(content)
    root, disk = root_of(image), WatchedDisk(image)
    return known.add(root, disk.asked, process(disk, disk.open(PATH, os.O_RDWR)), 1)


def first_leads_on(disk: WatchedDisk, fd: int) -> bytes:
    """Its first byte says where to read the second one."""
    return disk.pread(fd, 1, disk.pread(fd, 1, 0)[0])


def test_what_is_not_asked_for_does_not_matter() -> None:
    known = Known()
    leaf = run(known, b"\x02abcd", first_leads_on)
    assert leaf.shown == b"b"
    assert known.find(image_of(b"\x02xbyz")) is leaf
    assert known.find(image_of(b"\x02axcd")) is None  # what it read
    assert known.find(image_of(b"\x03abcd")) is None  # what led it there
    assert known.find(image_of(b"\x02abcde")) is None  # the size
    assert run(known, b"\x03abcd", first_leads_on).shown == b"c"
    assert known.find(image_of(b"\x03...c.")) is None


def test_what_a_process_wrote_itself_is_no_answer_of_the_image() -> None:
    def writes_first(disk: WatchedDisk, fd: int) -> bytes:
        disk.pwrite(fd, b"new", 1)
        return disk.pread(fd, 5, 0)

    known = Known()
    leaf = run(known, b"abcde", writes_first)
    assert leaf.shown == b"anewe"
    assert known.find(image_of(b"axyze")) is leaf
    assert known.find(image_of(b"xbcde")) is None
    assert known.find(image_of(b"abcdx")) is None


def test_a_process_that_does_not_follow_from_what_it_read_is_noticed() -> None:
    known = Known()
    run(known, b"abcde", lambda disk, fd: disk.pread(fd, 2, 0))
    with pytest.raises(AssertionError, match="another question"):
        run(known, b"abcde", lambda disk, fd: disk.pread(fd, 3, 0))


def test_old_leaves_give_up_what_they_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crash_reads.SHOWN_BYTES", 2)
    known = Known()
    leaves = [run(known, bytes([byte]), lambda disk, fd: disk.pread(fd, 1, 0)) for byte in range(3)]
    assert [leaf.shown for leaf in leaves] == [None, b"\x01", b"\x02"]


def test_the_explorer_would_notice_a_question_that_is_not_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else images would pass for ones that were opened, and are not the same."""
    monkeypatch.setattr(WatchedDisk, "_ask", lambda *_: None)
    name = next(random_tasks(1))
    assert run_task(name, Plan(enough=1)).violations
