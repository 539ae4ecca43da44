"""Rules of the fault suite: root, and what a node's services said last stands with the failure."""

from collections.abc import Generator
from pathlib import Path

import pytest

from tests.e2e.node import Node

HERE = Path(__file__).parent
LOG_CHARACTERS_SHOWN = 6000


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show with a failure what the services of the test's nodes said last."""
    report = yield
    if report.failed and item.path.is_relative_to(HERE):
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Node):
                report.sections.append(("services", value.log_text()[-LOG_CHARACTERS_SHOWN:]))
    return report
