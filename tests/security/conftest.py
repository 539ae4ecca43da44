"""Fixtures of the attacks: one node that all jobs of this folder attack."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.node import Node, make_base

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without root there is no node to attack."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.path.is_relative_to(HERE) and "node" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason="needs root to run a node"))


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    """The node under attack."""
    attacked = Node(make_base("attacked"))
    attacked.start()
    yield attacked
    attacked.remove()
