"""The machine of volume_machine.py with clones: every rule works on the head that was chosen last, the live one or not.

What is compared is always everything: all heads and all snapshots, and the changes between all of them.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule
from model_volume import ModelSnapshot
from volume_machine import SNAPSHOTS_MAX, VolumeMachine

from cowengine import Volume
from cowengine.errors import AnchorError, BusyError, ClosedError, ExistsError, NotFoundError

CLONES_MAX = 3


class ClonesMachine(VolumeMachine):
    """`volume` and `model` are of the chosen head; `handles` has the open Volume of each, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.handles: dict[str, Any] = {}

    def teardown(self) -> None:
        if self.handles:
            self.handles["live"].close()

    @initialize(
        shift=st.sampled_from([12, 14, 16]), blocks=st.integers(1, 20), less=st.integers(0, 7), adopted=st.booleans()
    )
    def create(self, shift: int, blocks: int, less: int, adopted: bool) -> None:
        super().create(shift, blocks, less, adopted)
        self.handles = {"live": self.volume}

    def choose(self, name: str) -> None:
        self.volume = self.handles[name]
        self.model = next(head for head in self.model.shared.heads if head.name == name)

    @precondition(lambda self: self.handles)
    @rule(number=st.integers(0, CLONES_MAX))
    def switch(self, number: int) -> None:
        names = list(self.handles)
        self.choose(names[number % len(names)])
        assert self.volume.head == self.model.name

    @precondition(lambda self: self.model.snapshots and 0 < len(self.handles) <= CLONES_MAX)
    @rule(number=st.integers(0, SNAPSHOTS_MAX))
    def clone(self, number: int) -> None:
        origin = self.model.snapshots[number % len(self.model.snapshots)]
        snapshot = self.volume.get_snapshot(origin.name)
        if origin.anchor:
            with pytest.raises(AnchorError):
                snapshot.clone("of an anchor")
            return
        self.serial += 1
        name = f"clone {self.serial}"
        self.handles[name] = self.both(lambda: snapshot.clone(name), lambda _: self.model.clone(name, origin.name))
        with pytest.raises(ExistsError):
            snapshot.clone(name)
        with pytest.raises(BusyError):
            self.volume.open_head(name)
        self.choose(name)

    @precondition(lambda self: len(self.handles) > 1)
    @rule(number=st.integers(0, CLONES_MAX))
    def delete_head(self, number: int) -> None:
        names = list(self.handles)[1:]
        name = names[number % len(names)]
        self.choose("live")
        with pytest.raises(BusyError):
            self.volume.delete_head(name)
        handle = self.handles.pop(name)
        self.both(handle.close)
        with pytest.raises(ClosedError):
            handle.pread(1, 0)
        self.both(lambda: self.volume.delete_head(name), lambda _: self.model.delete_head(name))
        with pytest.raises(NotFoundError):
            self.volume.open_head(name)

    def why_kept(self, chosen: ModelSnapshot) -> str | None:
        on_it = "|".join(clone.name for clone in self.model.clones if clone.origin == chosen.name)
        return super().why_kept(chosen) or (on_it and f"clone '({on_it})' stands on it") or None

    @rule()
    def reopen(self) -> None:
        name = self.model.name
        self.choose("live")
        super().reopen()
        self.handles = {"live": self.volume, **{head.name: None for head in self.model.clones}}
        assert self.volume.heads() == list(self.handles)
        for clone in self.model.clones:
            self.handles[clone.name] = self.volume.open_head(clone.name)
        self.choose(name)

    @rule()
    def crash(self) -> None:
        """The process is gone; all that it wrote before a flush is there."""
        self.both(self.volume.flush)
        if not isinstance(self.volume.engine.io, type(self.disk)):
            return
        name, engine = self.model.name, self.handles["live"].engine
        engine.poison(RuntimeError("killed"))
        self.handles["live"].close()
        self.handles["live"] = Volume.open(self.path, **self.options)
        for clone in self.model.clones:
            self.handles[clone.name] = self.handles["live"].open_head(clone.name)
        self.choose(name)

    def versions(self) -> list[tuple[Any, ModelSnapshot]]:
        heads = ((self.handles[head.name], head.live()) for head in self.model.shared.heads)
        return [*self.snapshots(), *heads]
