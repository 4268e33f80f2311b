"""What holds for every test: Hypothesis without deadlines, and what happens to a test whose needs are not met.

`@pytest.mark.privileged("losetup", "mkfs.xfs")` marks a test that needs root and these programs,
`@pytest.mark.needs("sqlite3")` one that needs only programs, or with `modules=["atheris"]` modules, or with
`libraries=["nbd"]` shared libraries. Without them it is skipped, and the run's last lines count such tests; with
CI=true it fails, because there the machine must have them.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
from ctypes.util import find_library

import hypothesis
import pytest

# A machine shared with other work makes any one example slow without a fault in the code.
hypothesis.settings.register_profile("cowengine", deadline=None, print_blob=True)
hypothesis.settings.load_profile("cowengine")

UNMET = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    # A shell that starts the tests in the background has SIGINT ignored, and what the tests start inherits that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[UNMET] = []


def pytest_runtest_setup(item: pytest.Item) -> None:
    privileged = list(item.iter_markers("privileged"))
    lacking = ["root"] if privileged and os.geteuid() != 0 else []
    tools = [tool for marker in [*privileged, *item.iter_markers("needs")] for tool in marker.args]
    lacking += [tool for tool in tools if shutil.which(tool) is None]
    modules = [module for marker in item.iter_markers("needs") for module in marker.kwargs.get("modules", ())]
    lacking += [module for module in modules if importlib.util.find_spec(module) is None]
    libraries = [library for marker in item.iter_markers("needs") for library in marker.kwargs.get("libraries", ())]
    lacking += [f"lib{library}" for library in libraries if find_library(library) is None]
    if not lacking:
        return
    reason = f"TEST NOT RUN, it needs {', '.join(lacking)}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    item.config.stash[UNMET].append(item.nodeid)
    pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    terminalreporter.write_line(f"tests not run for want of root or a program: {len(config.stash[UNMET])}")
