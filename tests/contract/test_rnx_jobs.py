"""The other commands of rnx: what they print, for people and for programs, and their exit codes."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.rnx.monitor import row, shown_columns
from proto.joblet.v1 import job_pb2, persist_pb2
from tests.contract.rnx_fake_node import FakeNode, fake_node
from tests.contract.rnx_fake_services import STARTED_NS

ID = "00000001-0000-4000-8000-000000000000"
KEYS = {
    *(
        "id",
        "name",
        "owner",
        "node_id",
        "state",
        "command",
        "args",
        "pid",
        "exit_code",
        "signal",
        "oom_killed",
        "reason",
    ),
    *("limits", "volumes", "network", "labels", "created_at", "started_at", "ended_at", "usage"),
    *("on_full", "lost_entries", "lost_bytes", "priority", "start_at", "queue_position"),
}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeNode]:
    """A node of this test alone."""
    with fake_node(tmp_path) as served:
        yield served


def full_job(node: FakeNode) -> job_pb2.Job:
    """A job with something in every field."""
    spec = job_pb2.JobSpec(
        command="sh",
        args=["-c", "exit 7"],
        labels={"app": "web"},
        limits=job_pb2.Limits(memory_bytes=64 * 2**20, timeout_ms=90_000, cpu_percent=0),
        volumes=[job_pb2.VolumeMount(name="data", path="/data", read_only=True)],
        network=job_pb2.NONE,
        on_full=job_pb2.DROP,
    )
    usage = job_pb2.Usage(cpu_time_us=1500, io_write_bytes=4096, io_write_ops=2, network_tx_bytes=1024)
    job = node.jobs.add(1, name="n", spec=spec, state=job_pb2.FAILED, exit_code=7, pid=123, usage=usage)
    job.lost_entries, job.lost_bytes = 1, 1024
    job.created_at.FromNanoseconds(STARTED_NS)
    job.ended_at.FromNanoseconds(STARTED_NS + 10**9)
    return job


def test_status_as_json_has_exactly_the_keys_of_the_contract(node: FakeNode) -> None:
    """Keys, state words, times as RFC 3339 or null; a limit that is not set is null and zero is zero."""
    full_job(node)
    outcome = node.rnx("--json", "job", "status", ID[:8].upper())
    assert set(json.loads(outcome.out)) == KEYS
    assert json.loads(outcome.out) == {
        "id": ID,
        "name": "n",
        "owner": "alice",
        "node_id": "node-1",
        "state": "failed",
        "command": "sh",
        "args": ["-c", "exit 7"],
        "pid": 123,
        "exit_code": 7,
        "signal": None,
        "oom_killed": False,
        "reason": "",
        "limits": {
            "cpu_percent": 0,
            "cpu_weight": None,
            "cpu_cores": None,
            "memory_bytes": 64 * 2**20,
            "pids": None,
            "io_weight": None,
            "read_bytes_per_s": None,
            "write_bytes_per_s": None,
            "read_ops_per_s": None,
            "write_ops_per_s": None,
            "open_files": None,
            "file_bytes": None,
            "timeout_ms": 90_000,
        },
        "volumes": [{"name": "data", "path": "/data", "read_only": True}],
        "network": "none",
        "labels": {"app": "web"},
        "created_at": "2023-11-14T22:13:20.25Z",
        "started_at": None,
        "ended_at": "2023-11-14T22:13:21.25Z",
        "usage": {
            "cpu_time_us": 1500,
            "memory_peak_bytes": 0,
            "oom_kills": 0,
            "io_read_bytes": 0,
            "io_write_bytes": 4096,
            "io_read_ops": 0,
            "io_write_ops": 2,
            "network_rx_bytes": 0,
            "network_tx_bytes": 1024,
        },
        "on_full": "drop",
        "lost_entries": 1,
        "lost_bytes": 1024,
        "priority": 0,
        "start_at": None,
        "queue_position": None,
    }


def test_status_for_people(node: FakeNode) -> None:
    """One field a line; what is not known is left out."""
    full_job(node)
    lines = node.rnx("job", "status", ID).out.decode().splitlines()
    fields = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert fields["command"] == "sh -c 'exit 7'"
    assert fields["limits"] == "cpu 0 %, memory 64.0 MiB, timeout 1m30s"
    assert fields["exit code"] == "7"
    assert "signal" not in fields
    assert fields["disk"] == "4.0 KiB written in 2 operations"
    assert fields["traffic"] == "0 B received, 1.0 KiB sent"
    assert "oom kills" not in fields
    assert (fields["on full"], fields["lost"]) == ("drop", "1 entry, 1.0 KiB")
    node.jobs.add(2, spec=job_pb2.JobSpec(command="x"))
    shown = node.rnx("job", "status", ID.replace("1", "2", 1)).out.decode()
    assert "lost" not in shown
    assert "on full" not in shown


def test_list_follows_pages(node: FakeNode) -> None:
    """However small the node's pages are, --limit and --all mean what they say; --json is one array."""
    for number in range(1, 8):
        node.jobs.add(number, state=job_pb2.RUNNING)
    everything = json.loads(node.rnx("job", "list", "--all", "--json").out)
    assert [job["id"] for job in everything] == list(node.jobs.jobs)
    assert len(json.loads(node.rnx("job", "list", "--limit", "5", "--json").out)) == 5
    assert json.loads(node.rnx("job", "list", "--state", "lost", "--json").out) == []


def test_what_waits_is_shown_with_its_place_priority_and_time(node: FakeNode) -> None:
    """A column that is there when somebody waits, fields of status, keys for programs."""
    node.jobs.add(1, spec=job_pb2.JobSpec(command="x"), state=job_pb2.RUNNING)
    assert "QUEUE" not in node.rnx("job", "list").out.decode()
    node.jobs.add(2, spec=job_pb2.JobSpec(command="x", priority=-5), state=job_pb2.PENDING, queue_position=3)
    spec = job_pb2.JobSpec(command="x")
    spec.start_at.FromNanoseconds(STARTED_NS)
    node.jobs.add(3, spec=spec, state=job_pb2.SCHEDULED)
    heading, running, pending, scheduled = node.rnx("job", "list").out.decode().splitlines()
    place = heading.index("QUEUE")
    assert running[place] == " "
    assert pending[place:].startswith("3 (priority -5)  ")
    assert scheduled[place:].startswith("2023-11-14T22:13:20.25Z")
    assert "QUEUE" in node.rnx("monitor").out.decode()
    shown = node.rnx("job", "status", ID.replace("1", "2", 1)).out.decode().splitlines()
    fields = {name: value.strip() for name, _, value in (line.partition(":") for line in shown)}
    assert (fields["queue position"], fields["priority"]) == ("3", "-5")
    job = json.loads(node.rnx("--json", "job", "status", ID.replace("1", "3", 1)).out)
    assert (job["start_at"], job["priority"], job["queue_position"]) == ("2023-11-14T22:13:20.25Z", 0, None)


@pytest.mark.threat("C20")
def test_list_as_a_table_is_harmless(node: FakeNode) -> None:
    """One line a job, no colour when stdout is no terminal, control characters and markup of a job shown as text."""
    node.jobs.add(1, name="a\x1b[31m\nb", spec=job_pb2.JobSpec(command="[red]x"), state=job_pb2.RUNNING)
    heading, row = node.rnx("job", "list").out.decode().splitlines()
    assert heading.split() == ["ID", "NAME", "OWNER", "STATE", "EXIT", "CREATED", "COMMAND"]
    assert row.split() == [ID, "a\\x1b[31m", "b", "alice", "running", "1970-01-01T00:00:00Z", "'[red]x'"]


def test_list_sends_its_filter(node: FakeNode) -> None:
    """States, owner and labels are the node's to match."""
    node.rnx("job", "list", "--state", "running", "--state", "FAILED", "--owner", "bob", "--label", "a=b")
    (request,) = node.jobs.of(job_pb2.ListJobsRequest)
    assert request.filter == job_pb2.JobFilter(states=[job_pb2.RUNNING, job_pb2.FAILED], owner="bob", labels={"a": "b"})


def test_wait_exits_as_the_job_did(node: FakeNode) -> None:
    """Wait prints nothing, goes on after a broken connection, and gives the job's code."""
    node.jobs.add(1)
    node.jobs.end = job_pb2.Job(state=job_pb2.FAILED, signal=9)
    node.jobs.stream_breaks = [0]
    assert node.rnx("job", "wait", ID) == (137, b"", "")
    assert len(node.jobs.of(job_pb2.WaitJobRequest)) == 2


def test_stop(node: FakeNode) -> None:
    """Signals have names and numbers; grace is a duration; nothing said is nothing sent."""
    node.jobs.add(1, state=job_pb2.RUNNING)
    assert node.rnx("job", "stop", ID, "--signal", "2", "--grace", "1m").out == f"{ID} stopping\n".encode()
    assert node.rnx("job", "stop", ID).code == 0
    asked, plain = node.jobs.of(job_pb2.StopJobRequest)
    assert asked == job_pb2.StopJobRequest(job_id=ID, signal="SIGINT", grace_ms=60_000)
    assert plain == job_pb2.StopJobRequest(job_id=ID)


def test_delete_and_delete_all(node: FakeNode) -> None:
    """delete-all takes ended jobs only, wants --yes where nobody can be asked, and tells what it could not delete."""
    for number, state in enumerate((job_pb2.COMPLETED, job_pb2.RUNNING, job_pb2.FAILED, job_pb2.LOST), start=1):
        node.jobs.add(number, state=state)
    assert node.rnx("job", "delete", ID).out == f"{ID}\n".encode()
    assert node.rnx("job", "delete-all").code == 2
    node.jobs.jobs["00000004-0000-4000-8000-000000000000"].owner = "bob"
    outcome = node.rnx("job", "delete-all", "--yes")
    assert (outcome.code, outcome.out) == (4, b"deleted 1 of 2 ended jobs\n")
    assert "not yours: ask its owner" in outcome.err
    assert [job[7] for job in node.jobs.jobs] == ["2", "4"]


def test_delete_all_asks_on_a_terminal(node: FakeNode) -> None:
    """Anything but yes deletes nothing."""
    node.jobs.add(1, state=job_pb2.COMPLETED)
    leader, follower = os.openpty()
    process = node.start("job", "delete-all", stdin=follower, stderr=follower)
    os.close(follower)
    os.write(leader, b"n\n")
    process.communicate(timeout=20)
    os.close(leader)
    assert process.returncode == 130
    assert list(node.jobs.jobs) == [ID]


@pytest.mark.requirement("S0.51", "S0.52", "S0.53")
def test_metrics(node: FakeNode) -> None:
    """Lines, JSON lines, a plot and an aggregate."""
    node.jobs.add(1)
    node.jobs.samples = [
        persist_pb2.Metric(timestamp=STARTED_NS + n, cpu_percent=50.0 * n, memory_bytes=n * 2**20, pids=n)
        for n in range(3)
    ]
    assert len(node.rnx("job", "metrics", ID).out.splitlines()) == 4
    objects = [json.loads(line) for line in node.rnx("job", "metrics", ID, "--json").out.splitlines()]
    assert objects[2]["cpu_percent"] == 100.0
    assert list(objects[2]) == [
        *("timestamp", "cpu_percent", "memory_bytes", "io_read_bytes", "io_write_bytes", "io_read_ops"),
        *("io_write_ops", "pids", "network_rx_bytes", "network_tx_bytes"),
        *("cpu_pressure", "memory_pressure", "io_pressure"),
    ]
    assert "▁▅█ highest 100.0 %" in node.rnx("job", "metrics", ID, "--plot", "--no-follow").out.decode()
    node.rnx("job", "metrics", ID, "--aggregate=avg", "--since=1h", "--until=now")
    request = node.jobs.of(job_pb2.StreamMetricsRequest)[-1]
    assert (request.aggregation, request.follow) == ("avg", False)
    assert request.end_time - request.start_time == pytest.approx(3600 * 10**9, abs=60 * 10**9)


def test_metrics_of_some_jobs_only(node: FakeNode) -> None:
    """Traffic and pressure stand behind a line where they are not zero, and nowhere else."""
    node.jobs.add(1)
    node.jobs.samples = [
        persist_pb2.Metric(timestamp=STARTED_NS, pids=1),
        persist_pb2.Metric(timestamp=STARTED_NS, pids=1, network_rx_bytes=2048, io_pressure=12.5, cpu_pressure=1),
    ]
    _, quiet, busy = node.rnx("job", "metrics", ID).out.decode().splitlines()
    assert quiet.endswith("  1")
    assert busy.endswith("  1  2.0 KiB received, 0 B sent  waited for cpu 1.0 %, io 12.5 %")


def test_monitor_shows_columns_that_somebody_needs() -> None:
    """Disk, traffic and waiting take room only while a job has any."""
    job = job_pb2.Job(id=ID, state=job_pb2.RUNNING)
    idle = row(job, persist_pb2.Metric(), now_ns=STARTED_NS)
    busy = row(job, persist_pb2.Metric(io_read_bytes=1024, io_pressure=5), now_ns=STARTED_NS)
    assert not {"DISK", "TRAFFIC", "WAITED"} & set(shown_columns([idle])[0])
    headings, rows = shown_columns([idle, busy])
    shown = dict(zip(headings, rows[1], strict=True))
    assert (shown["DISK"], shown["WAITED"], "TRAFFIC" in shown) == ("1.0 KiB", "io 5.0 %", False)
    assert dict(zip(headings, rows[0], strict=True))["DISK"] == ""


def test_node_info_nodes_and_monitor(node: FakeNode) -> None:
    """What the node is, which contexts there are, and one view of the monitor where there is no terminal."""
    node.jobs.add(1, state=job_pb2.RUNNING, spec=job_pb2.JobSpec(command="top"))
    assert json.loads(node.rnx("node", "info", "--json").out)["capabilities"][0]["level"] == "enforced"
    assert b"6.18.0" in node.rnx("node", "info").out
    assert json.loads(node.rnx("nodes", "--json").out) == [
        {"name": "default", "address": f"127.0.0.1:{node.port}", "node_id": "node-1"}
    ]
    assert b"running" in node.rnx("monitor").out


def test_monitor_on_a_terminal(node: FakeNode) -> None:
    """It shows the jobs full-screen until Ctrl-C, which gives the screen back and exits with 130."""
    node.jobs.add(1, state=job_pb2.RUNNING, name="watched", spec=job_pb2.JobSpec(command="top"))
    leader, follower = os.openpty()
    process = node.start("monitor", stdout=follower, stderr=subprocess.PIPE)
    os.close(follower)
    shown = b""
    while b"watched" not in shown:
        shown += os.read(leader, 65536)
    process.send_signal(signal.SIGINT)
    while b"\x1b[?1049l" not in shown:
        shown += os.read(leader, 65536)
    _, err = process.communicate(timeout=20)
    os.close(leader)
    assert (process.returncode, err) == (130, b"")


def test_node_info_shows_when_certificates_end(node: FakeNode) -> None:
    """For those whom the node tells; a table and stable keys."""
    assert json.loads(node.rnx("--json", "node", "info").out)["certificates"] == []
    assert b"CERTIFICATE" not in node.rnx("node", "info").out
    node.nodes.info.certificates.add(
        name="server", subject="CN=joblet", not_after={"seconds": 1_800_000_000}, soon=True
    )
    end = "2027-01-15T08:00:00Z"
    (told,) = json.loads(node.rnx("--json", "node", "info").out)["certificates"]
    assert told["not_after"].startswith(end[:-1])
    assert (told["name"], told["subject"], told["soon"]) == ("server", "CN=joblet", True)
    row = next(line for line in node.rnx("node", "info").out.decode().splitlines() if line.startswith("server"))
    assert row.split()[2:] == ["yes", "CN=joblet"]


def test_node_info_shows_counters(node: FakeNode) -> None:
    """Where the node tells them; in JSON the key is always there."""
    assert json.loads(node.rnx("--json", "node", "info").out)["counters"] == {}
    assert b"COUNTER" not in node.rnx("node", "info").out
    node.nodes.info.counters.update({"persist.entries_repeated": 2**40, "api.followers": 3})
    assert json.loads(node.rnx("--json", "node", "info").out)["counters"] == {
        "api.followers": 3,
        "persist.entries_repeated": 2**40,
    }
    table = [line.split() for line in node.rnx("node", "info").out.decode().splitlines()[-3:]]
    assert table == [["COUNTER", "VALUE"], ["api.followers", "3"], ["persist.entries_repeated", str(2**40)]]
