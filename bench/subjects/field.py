"""The field: every subject that the suite knows, in the order of the table."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from subjects.btrfs import Btrfs
from subjects.cowengine_volume import CowengineVolume
from subjects.nbdkit_cow import NbdkitCow
from subjects.qcow2 import qcow2_subjects
from subjects.raw_file import RawFile
from subjects.rbd import Rbd
from subjects.reflink import XfsReflink
from subjects.subject import Subject

LEAST_ROOM = 320 << 20  # bytes that every peer can start with; XFS takes no less than 300 MiB


def all_subjects(room: int = LEAST_ROOM) -> list[Subject]:
    """The raw file first: it is what the others are compared with. Peers that keep a store get `room` bytes for it."""
    return [RawFile(), CowengineVolume(), *qcow2_subjects(), XfsReflink(room), Btrfs(room), Rbd(room), NbdkitCow()]


@dataclass
class Field:
    """Who takes part, with the folder of each, and who does not."""

    folders: dict[str, Path] = field(default_factory=dict)
    running: list[Subject] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)  # by name: what it lacks and how to get it


@contextmanager
def started(subjects: list[Subject], folder: Path, *, at_once: bool) -> Iterator[Field]:
    """Starts each subject that is there; with `at_once` only those that need no more than a second for it."""
    result = Field()
    with ExitStack() as stack:
        for subject in subjects:
            why = subject.why_missing()
            if not why and at_once and not subject.starts_at_once:
                why = "it takes long to start: it runs in make bench only"
            own = folder / subject.name.replace(" ", "-")
            if not why:
                own.mkdir()
                try:
                    stack.enter_context(subject.running(own))
                except Exception as error:
                    if os.environ.get("CI") == "true":
                        raise
                    why = f"it did not start: {error}"
            if why:
                result.missing[subject.name] = why
            else:
                result.folders[subject.name] = own
                result.running.append(subject)
        yield result
