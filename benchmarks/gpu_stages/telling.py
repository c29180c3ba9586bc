"""A plugin for pytest: what fails is told at once, because a run that is ended for its time says nothing at its end."""

from __future__ import annotations

import pytest

LINES = 60
"""Of what is said of a failure, the last ones."""


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Telling(config))


class Telling:
    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")  # pytest-xdist's workers have none
        if report.failed and terminal is not None:
            said = report.longreprtext.splitlines()[-LINES:]
            terminal.write_line("\n".join(["", f"failed: {report.nodeid} ({report.when})", *said]))
