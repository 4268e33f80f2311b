"""Histories of each machine, against the model after each step. `play.py` plays more of them."""

from __future__ import annotations

import os

from clones_machine import ClonesMachine
from faults_machine import FaultsMachine, FaultsOnFileMachine
from hypothesis import HealthCheck, settings
from shared_machine import OTHERS, SharedFileMachine
from volume_machine import FileMachine, VolumeMachine

EXAMPLES = int(os.environ.get("COWENGINE_EXAMPLES", "60"))
LIMITS = settings(
    max_examples=EXAMPLES,
    stateful_step_count=40,
    deadline=None,
    derandomize=EXAMPLES <= 60,
    suppress_health_check=list(HealthCheck),
)
TestVolumeInMemory = VolumeMachine.TestCase
TestVolumeInMemory.settings = LIMITS
TestVolumeOnFile = FileMachine.TestCase
TestVolumeOnFile.settings = settings(LIMITS, max_examples=EXAMPLES // 3)
TestVolumeWithOthers = SharedFileMachine.TestCase
TestVolumeWithOthers.settings = settings(LIMITS, max_examples=EXAMPLES // 3)


def teardown_module() -> None:
    OTHERS.end()


TestClones = ClonesMachine.TestCase
TestClones.settings = LIMITS
TestFaults = FaultsMachine.TestCase
TestFaults.settings = settings(LIMITS, max_examples=EXAMPLES // 2)
TestFaultsOnFile = FaultsOnFileMachine.TestCase
TestFaultsOnFile.settings = settings(LIMITS, max_examples=EXAMPLES // 6)


def test_a_lost_discard_is_seen_behind_the_end_of_a_smaller_snapshot() -> None:
    """The list of changes since that snapshot always has the block in which it ends, and cannot tell."""
    machine = FaultsMachine()
    machine.create(shift=12, blocks=1, less=1, adopted=False)
    machine.snapshot(metadata={})
    machine.resize(blocks=1, less=0)
    machine.clone(number=0)
    machine.switch(number=0)
    machine.arm_write(lasts=0, nth=1, way=0)
    machine.discard(length=4096, where=0.0)
    machine.reopen()
    machine.snapshot(metadata={})
    machine.arm_barrier(lasts=0, nth=1, way=0)
    machine.snapshot(metadata={})  # which fails, and so the clone, too, is compared with all there is
    machine.teardown()
