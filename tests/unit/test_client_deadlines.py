"""Every call of the clients has a deadline: found by reading their source, so that a new one cannot do without."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health_pb2

from proto.joblet.v1 import job_pb2, node_pb2, persist_pb2, volume_pb2, worker_pb2

REPOSITORY: Final = Path(__file__).parents[2]
CLIENTS: Final = ("cli",)
FILES: Final[tuple[FileDescriptor, ...]] = (
    job_pb2.DESCRIPTOR,
    node_pb2.DESCRIPTOR,
    persist_pb2.DESCRIPTOR,
    volume_pb2.DESCRIPTOR,
    worker_pb2.DESCRIPTOR,
    health_pb2.DESCRIPTOR,
)
METHODS: Final = {
    method.name for file in FILES for service in file.services_by_name.values() for method in service.methods
}
STUBS: Final = {"jobs", "nodes", "volumes", "persist", "worker", "stub"}
"""What a stub is called in the clients: `session.jobs.GetJob`, `stub.Check`."""


class Site(NamedTuple):
    """Where a method is called, and whether with a deadline."""

    file: str
    line: int
    method: str
    timeout: bool


def sites(source: str, file: str) -> Iterator[Site]:
    """The calls of stubs' methods in a module. A method that is only named is handed to Session.ask, which has one."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        called = node.func.value if node.func.attr == "future" else node.func
        if isinstance(called, ast.Attribute) and called.attr in METHODS and _is_stub(called.value):
            given = [keyword.value for keyword in node.keywords if keyword.arg == "timeout"]
            timeout = any(not (isinstance(one, ast.Constant) and one.value is None) for one in given)
            yield Site(file, node.lineno, called.attr, timeout)


def _is_stub(node: ast.expr) -> bool:
    return (isinstance(node, ast.Attribute) and node.attr in STUBS) or (isinstance(node, ast.Name) and node.id in STUBS)


@pytest.mark.requirement("S2.15")
def test_no_call_of_a_client_goes_without_a_deadline() -> None:
    """Each passes `timeout`: unary calls what is left of --timeout or 30 s, streams and waits what is left of it."""
    found = [
        site
        for folder in CLIENTS
        for file in sorted((REPOSITORY / folder).rglob("*.py"))
        for site in sites(file.read_text(), str(file.relative_to(REPOSITORY)))
    ]
    assert {site.method for site in found} >= {"StreamLogs", "WaitJob", "UploadFiles", "WatchJobs", "Check"}
    assert [site for site in found if not site.timeout] == []


def test_the_search_finds_what_has_none() -> None:
    """Positive control: calls without, with None, and as a future."""
    source = """
session.jobs.GetJob(request)
session.jobs.UploadFiles.future(requests)
stub.Check(request, timeout=None)
session.jobs.StopJob(request, timeout=5)
session.ask(session.jobs.ListJobs, request)
"""
    found = [(site.method, site.timeout) for site in sites(source, "x")]
    assert sorted(found) == [("Check", False), ("GetJob", False), ("StopJob", True), ("UploadFiles", False)]
