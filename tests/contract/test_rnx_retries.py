"""What rnx asks again when the connection breaks, and what it does not: command by command."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.client.patience import DROPS_MAX
from proto.joblet.v1 import job_pb2, persist_pb2
from tests.contract.rnx_fake_node import FakeNode, fake_node
from tests.contract.rnx_fake_services import chunk

ID = "00000001-0000-4000-8000-000000000000"
BROKEN = 2


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeNode]:
    """One job whose output is a line."""
    with fake_node(tmp_path) as served:
        served.jobs.add(1, state=job_pb2.COMPLETED)
        served.volumes.add("data")
        served.jobs.chunks = [chunk(1, b"1\n")]
        served.jobs.samples = [persist_pb2.Metric(job_id=ID, timestamp=1_700_000_000 * 10**9 + n) for n in range(1, 6)]
        yield served


@pytest.mark.requirement("S2.15")
@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("RunJob", ("run", "-d", "true")),
        ("PlanJob", ("run", "--dry-run", "true")),
        ("GetJob", ("job", "status", ID)),
        ("ListJobs", ("job", "list")),
        ("StopJob", ("job", "stop", ID)),
        ("GetJob", ("job", "wait", ID)),
        ("WaitJob", ("job", "wait", ID)),
        ("GetJob", ("job", "log", ID)),
        ("StreamLogs", ("job", "log", ID)),
        ("GetJob", ("job", "metrics", ID)),
        ("StreamMetrics", ("job", "metrics", ID)),
        ("GetInfo", ("node", "info")),
        ("GetVolume", ("volume", "inspect", "data")),
        ("ListVolumes", ("volume", "list")),
        ("ListSnapshots", ("volume", "snapshot", "list", "data")),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value[:2]),
)
def test_what_may_be_asked_again_is(node: FakeNode, method: str, arguments: tuple[str, ...]) -> None:
    """Broken twice, also before the first answer of anything: the command succeeds as if nothing had been."""
    node.breaks.left[method] = BROKEN
    outcome = node.rnx(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out or method == "WaitJob" or arguments[1] == "wait"
    assert node.breaks.seen[method] == BROKEN + 1


@pytest.mark.requirement("S2.15")
@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("CancelJob", ("job", "cancel", ID)),
        ("DeleteJob", ("job", "delete", ID)),
        ("CreateVolume", ("volume", "create", "data", "--size", "1GB")),
        ("DeleteVolume", ("volume", "remove", "data")),
        ("AttachVolume", ("volume", "attach", "data", ID)),
        ("DetachVolume", ("volume", "detach", "data", ID)),
        ("ResizeVolume", ("volume", "resize", "data", "--size", "2GB")),
        ("CreateSnapshot", ("volume", "snapshot", "create", "data")),
        ("DeleteSnapshot", ("volume", "snapshot", "remove", "data", "old")),
        ("RestoreSnapshot", ("volume", "snapshot", "restore", "data", "old")),
        ("CloneVolume", ("volume", "clone", "data", "new")),
        ("ExportVolume", ("volume", "export", "data")),
        ("ImportVolume", ("volume", "import", "data")),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value[:2]),
)
def test_what_may_be_asked_once_only_is(node: FakeNode, method: str, arguments: tuple[str, ...]) -> None:
    """It may have been done although no answer came: the user is told, and nothing is asked a second time."""
    node.breaks.left[method] = BROKEN
    outcome = node.rnx(*arguments)
    assert outcome.code == 5
    assert "closed the connection" in outcome.err
    assert node.breaks.seen[method] == 1


def test_who_is_refused_again_and_again_is_told_soon(node: FakeNode) -> None:
    """A node that closes every connection is no restart: a few attempts, then one line."""
    node.breaks.left["GetJob"] = 100
    outcome = node.rnx("job", "status", ID)
    assert (outcome.code, outcome.err.count("\n")) == (5, 1)
    assert node.breaks.seen["GetJob"] == DROPS_MAX


@pytest.mark.requirement("S2.15")
def test_the_time_of_the_user_bounds_all_attempts(node: FakeNode) -> None:
    """--timeout counts from the start: what is not there by then is given up."""
    node.stop()
    outcome = node.rnx("--timeout", "1s", "job", "log", ID)
    node.serve()
    assert outcome.code == 5
    assert outcome.err.count("\n") == 1


@pytest.mark.requirement("S2.15")
def test_a_broken_stream_of_metrics_goes_on(node: FakeNode) -> None:
    """Each sample once, in order, however often it breaks; the next call begins behind the last one."""
    node.jobs.stream_breaks = [2, 0, 1]
    outcome = node.rnx("--json", "job", "metrics", ID)
    assert (outcome.code, outcome.out.count(b"\n")) == (0, 5)
    began = [request.start_time for request in node.jobs.of(job_pb2.StreamMetricsRequest)]
    first = 1_700_000_000 * 10**9
    assert began == [0, first + 3, first + 3, first + 4]
    lines = outcome.out.splitlines()
    assert len(set(lines)) == 5
