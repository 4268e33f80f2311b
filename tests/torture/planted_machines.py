"""Hunts with the state machines of tests/model/: Hypothesis picks the operations, the model says what comes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import hypothesis
import pytest
from clones_machine import ClonesMachine
from crash_explorer import Keeps
from faults_machine import FaultsMachine
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RULE_MARKER, run_state_machine_as_test
from planting import Played, Trace
from volume_machine import VolumeMachine

MACHINES: dict[str, type[VolumeMachine]] = {"volume": VolumeMachine, "clones": ClonesMachine, "faults": FaultsMachine}
STEPS = 15


@dataclass(frozen=True)
class Machine:
    """Histories of one machine, which follow from the number. Hypothesis drops steps itself, so there is no trace."""

    rules: tuple[str, ...]  # the only ones
    machine: str = "volume"
    histories: int = 40
    shrinks: bool = False  # Hypothesis then looks for the shortest history, which takes a while
    harness: str = "model machines"

    def trace(self, number: int) -> Trace:
        return ()

    def play(self, number: int, trace: Trace, keeps: Keeps | None, effort: int = 0) -> Played:
        played = 0

        machine = MACHINES[self.machine]

        class Counted(machine):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                nonlocal played
                super().__init__()
                played += 1

        for name in set(dir(machine)) - set(self.rules):
            if hasattr(getattr(machine, name), RULE_MARKER):
                setattr(Counted, name, None)
        limits = settings(
            max_examples=effort or self.histories,
            stateful_step_count=STEPS,
            database=None,
            deadline=None,
            print_blob=False,
            phases=[Phase.generate, Phase.shrink] if self.shrinks else [Phase.generate],
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        )
        chosen: Any = hypothesis.seed(number)(Counted)
        try:
            run_state_machine_as_test(chosen, settings=limits)
        except (Exception, pytest.fail.Exception) as error:
            steps = [line for note in getattr(error, "__notes__", []) for line in note.splitlines()]
            told = [line for line in steps if not line.endswith(".contents_agree()")]  # which is behind each step
            return Played("\n  ".join([f"{type(error).__name__}: {error}", *told]), played)
        return Played(None, played)
