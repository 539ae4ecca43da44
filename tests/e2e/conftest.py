"""Fixtures of the end-to-end tests: nodes that really run."""

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.node import Node, make_base

HERE = Path(__file__).parent
LOG_CHARACTERS_SHOWN = 4000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without root there is no node to test."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.skip(reason="needs root to run a node"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show with a failure what the services of the test's nodes said last."""
    report = yield
    if report.failed and item.path.is_relative_to(HERE):
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Node):
                report.sections.append(("services", value.log_text()[-LOG_CHARACTERS_SHOWN:]))
    return report


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    """The node that all tests share which kill nothing."""
    shared = Node(make_base("shared"))
    shared.start()
    yield shared
    shared.remove()


@pytest.fixture
def own_node() -> Iterator[Callable[..., Node]]:
    """Makes a node for one test: `own_node(settings)` gives it started."""
    made: list[Node] = []

    def make(settings: dict[str, Any] | None = None) -> Node:
        fresh = Node(make_base("own", settings))
        made.append(fresh)
        fresh.start()
        return fresh

    yield make
    for each in made:
        each.remove()
