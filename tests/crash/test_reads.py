"""Images are the same to a process exactly if they differ only in what it does not ask for."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest
from crash_explorer import Plan
from crash_images import Choice, Cut, arrival, build, fingerprint
from crash_memo import remembered
from crash_oracle import SECTOR, Violation
from crash_reads import Known, Node, WatchedDisk
from crash_workload import GEOMETRIES, PRELUDE_OF_CLONES, Runner, determinism
from crash_workload import PATH as VOLUME
from explorer import random_tasks, run_task
from memory_disk import DIRECTORY, Durable, Instant, MemoryDisk, Resize, Write

from cowengine.engine import check

PATH = "/disk/file"
Process = Callable[[WatchedDisk, int], Any]


def image_of(content: bytes) -> Durable:
    return Durable({1: bytearray(content)}, {"/": DIRECTORY, "/disk": DIRECTORY, PATH: 1})


def cut_of(content: bytes, *pending: Write | Resize) -> Cut:
    return Cut(Instant(0, image_of(content), list(pending), [], None))


def run(known: Known, content: bytes, process: Process) -> Node:
    cut = cut_of(content)
    disk = WatchedDisk(cut.image.copy())
    shown = process(disk, disk.open(PATH, os.O_RDWR))
    return known.add(cut.root, disk, shown)


def first_leads_on(disk: WatchedDisk, fd: int) -> bytes:
    """Its first byte says where to read the second one."""
    return disk.pread(fd, 1, disk.pread(fd, 1, 0)[0])


def test_what_is_not_asked_for_does_not_matter() -> None:
    known = Known()
    leaf = run(known, b"\x02abcd", first_leads_on)
    assert leaf.shown == b"b"
    assert known.find(cut_of(b"\x02xbyz")) is leaf
    assert known.find(cut_of(b"\x02axcd")) is None  # what it read
    assert known.find(cut_of(b"\x03abcd")) is None  # what led it there
    assert known.find(cut_of(b"\x02abcde")) is None  # the size
    assert run(known, b"\x03abcd", first_leads_on).shown == b"c"
    assert known.find(cut_of(b"\x03...c.")) is None


def test_images_of_one_instant_lead_where_their_own_answers_lead() -> None:
    known = Known()

    def process(disk, fd):
        return (disk.pread(fd, 512, 0), disk.pread(fd, 512, 4096))

    old, new, later = bytes(12288), b"n" * 512, b"l" * 512
    leaves = {
        (first, second): run(known, (first + bytes(3584) + second).ljust(12288, b"\0"), process)
        for first in (bytes(512), new)
        for second in (bytes(512), later)
    }
    cut = cut_of(old, Write(1, 0, new), Write(1, 4096, later), Write(1, 8192, b"x" * 512))
    choices: list[Choice] = [(0, 0, 0), (None, 0, None), (0, None, 0), (None, None, None), (0, 0, None)]
    for choice in choices:
        cut.arrange(choice)
        expected = leaves[new if choice[0] is None else bytes(512), later if choice[1] is None else bytes(512)]
        assert known.find(cut) is expected
        assert cut.free_at(expected) == [2]


def test_what_a_process_wrote_itself_is_no_answer_of_the_image() -> None:
    def writes_first(disk: WatchedDisk, fd: int) -> bytes:
        disk.pwrite(fd, b"new", 1)
        return disk.pread(fd, 5, 0)

    known = Known()
    leaf = run(known, b"abcde", writes_first)
    assert leaf.shown == b"anewe"
    assert known.find(cut_of(b"axyze")) is leaf
    assert known.find(cut_of(b"xbcde")) is None
    assert known.find(cut_of(b"abcdx")) is None


def test_contents_are_no_question_but_shown() -> None:
    def shows_the_rest(disk: WatchedDisk, fd: int) -> bytearray:
        disk.pread(fd, 1, 0)
        memory = disk.buffer(4, 2)
        disk.pread_into(fd, memoryview(memory)[1:], 1)
        return memory

    known = Known()
    leaf = run(known, b"abcd", shows_the_rest)
    other = cut_of(b"axyz")
    assert known.find(other) is leaf
    assert leaf.show_again(other) == b"\0xyz"
    assert [(number, at, part) for number, at, part in leaf.pieces] == [(0, 1, (1, 1, 2)), (0, 2, (1, 2, 4))]
    assert known.find(cut_of(b"xbcd")) is None


def test_what_is_read_elsewhere_too_is_a_question() -> None:
    def verifies(disk: WatchedDisk, fd: int) -> bytearray:
        memory = disk.buffer(4, 4)
        disk.pread_into(fd, memory, 0)
        disk.pread_into(fd, bytearray(4), 0)
        return memory

    known = Known()
    leaf = run(known, b"abcd", verifies)
    assert leaf.pieces == []
    assert known.find(cut_of(b"abcx")) is None


def test_a_process_that_does_not_follow_from_what_it_read_is_noticed() -> None:
    known = Known()
    run(known, b"abcde", lambda disk, fd: disk.pread(fd, 2, 0))
    with pytest.raises(AssertionError, match="another question"):
        run(known, b"abcde", lambda disk, fd: disk.pread(fd, 3, 0))


def test_old_leaves_give_up_what_they_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crash_reads.SHOWN_BYTES", 2)
    monkeypatch.setattr("crash_reads.LEAF_BYTES", 1)
    known = Known()
    leaves = [run(known, bytes([byte]), lambda disk, fd: disk.pread(fd, 1, 0)) for byte in range(3)]
    assert [leaf.shown for leaf in leaves] == [None, b"\x01", b"\x02"]


@pytest.mark.parametrize("size", [0, 3000, 8192, 20000])
def test_a_cut_makes_the_images_of_its_choices(size: int) -> None:
    """Writes over one another, behind the end, and beyond it; in any order, and also beside a change of size."""
    rng = random.Random(size)
    for kind in range(40):
        pending: list[Write | Resize] = []
        for _ in range(rng.randrange(1, 6)):
            data = rng.choice((bytes(4096), rng.randbytes(512), rng.randbytes(4096)))
            pending.append(Write(1, rng.randrange(48) * SECTOR, data))
        if kind % 8 == 0:
            pending.append(Resize(1, rng.randrange(30000)))
        cut = cut_of(rng.randbytes(size), *pending)
        for _ in range(12):
            choice = tuple(arrival(change, rng) for change in pending)
            image = build(cut.instant, choice)
            assert cut.arrange(choice) == fingerprint(image)
            assert cut.image.files == image.files


def test_choices_with_the_same_image_are_told() -> None:
    cut = cut_of(bytes(4096), Write(1, 0, bytes(512) + b"x" * 512 + bytes(3072)))
    assert [cut.is_new((choice,)) for choice in (0, 1, 2, None, 4)] == [True, False, True, False, False]


def test_each_part_of_the_contents_is_judged() -> None:
    """By the same rules as the whole."""
    with determinism(1):
        runner = Runner(MemoryDisk(), GEOMETRIES[0])
        runner.create()
        runner.run(PRELUDE_OF_CLONES)
        runner.run((("reopen",),))
        shown, expected = runner.show(), runner.expectation()
        faults = runner.judges(shown, expected, runner.compare(shown, expected))
        contents = [shown.live, *shown.clones.values()]
        assert len(faults) == len(contents) == 2
        for fault, content in zip(faults, contents, strict=True):
            for begin in range(0, len(content), 4096):
                before = bytes(content[begin : begin + 512])
                assert fault(begin, begin + 4096) is None
                content[begin : begin + 512] = b"?" * 512
                assert fault(begin, begin + 4096) is not None
                with pytest.raises(Violation):
                    runner.compare(shown, expected)
                content[begin : begin + 512] = before
        runner.close()


def test_a_check_that_is_remembered_asks_the_same() -> None:
    with determinism(1):
        runner = Runner(MemoryDisk(), GEOMETRIES[0])
        runner.create()
        runner.run(PRELUDE_OF_CLONES)
        runner.close()
    with remembered():
        seen = []
        for damaged in (False, False, True):
            disk = WatchedDisk(runner.disk.cache.copy())
            if damaged:
                disk.cache.files[disk.cache.entries[VOLUME]][4096 * 40 :] = b""
            fd = disk.open(VOLUME, os.O_RDWR)
            seen.append((check.check_open(disk, fd, VOLUME), dict(disk.asked)))
        assert seen[0][0] is seen[1][0]
        assert seen[0][1] == seen[1][1]
        assert seen[2][0] is not seen[0][0]


def test_the_explorer_would_notice_a_question_that_is_not_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else images would pass for ones that were opened, and are not the same."""
    monkeypatch.setattr(WatchedDisk, "_ask", lambda *_: None)
    name = next(random_tasks(1))
    assert run_task(name, Plan(enough=1)).violations


def test_the_explorer_would_notice_contents_that_decide_something(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what is verified would pass for what is only shown."""
    monkeypatch.setattr(WatchedDisk, "_shows", lambda disk, fd, into, offset: True)
    assert any(run_task(name, Plan(enough=1)).violations for name, _ in zip(random_tasks(1), range(20), strict=False))
