"""Nodes to measure on, and the file of lines that jobs and peers are given. Not here: measuring."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.client import Client, connected
from benchmarks.lines import write_lines
from tests.e2e.node import Node, make_base


@contextmanager
def measured_node(settings: dict[str, Any] | None = None) -> Iterator[tuple[Node, Client]]:
    """A node that runs a job already, and a connected client; removed afterwards."""
    node = Node(make_base("bench", settings))
    node.start()
    try:
        with connected(node.config) as client:
            client.wait(client.run("true"))
            yield node, client
    finally:
        node.remove()


def lines_file(node: Node, count: int) -> Path:
    """`count` lines, in a directory of their own on the node's disk that everybody may read; made once."""
    file = node.base / "bench" / f"lines-{count}"
    if not file.exists():
        file.parent.mkdir(mode=0o755, exist_ok=True)
        write_lines(file, count)
        file.chmod(0o644)
    return file
