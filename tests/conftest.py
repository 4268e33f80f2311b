"""What holds for every test: Hypothesis without deadlines, and what happens to a test whose needs are not met.

`@pytest.mark.privileged("losetup", "mkfs.xfs")` marks a test that needs root and these programs. Without them it is
skipped, and the run's last lines count such tests; with CI=true it fails, because there the machine must have them.
"""

from __future__ import annotations

import os
import shutil

import hypothesis
import pytest

# A machine shared with other work makes any one example slow without a fault in the code.
hypothesis.settings.register_profile("cowengine", deadline=None, print_blob=True)
hypothesis.settings.load_profile("cowengine")

UNMET = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[UNMET] = []


def pytest_runtest_setup(item: pytest.Item) -> None:
    marker = item.get_closest_marker("privileged")
    if marker is None:
        return
    lacking = [tool for tool in marker.args if shutil.which(tool) is None]
    if os.geteuid() != 0:
        lacking.insert(0, "root")
    if not lacking:
        return
    reason = f"PRIVILEGED TEST NOT RUN, it needs {', '.join(lacking)}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    item.config.stash[UNMET].append(item.nodeid)
    pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    terminalreporter.write_line(f"privileged tests not run: {len(config.stash[UNMET])}")
