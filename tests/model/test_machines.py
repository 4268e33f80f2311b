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
