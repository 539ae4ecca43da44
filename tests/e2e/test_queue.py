"""Jobs that wait: who starts next, on a node with two slots, and that kill -9 makes none of them run twice or never."""

import gzip
import json
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import pytest
import yaml

from cli.client.contexts import load_context
from cli.client.jobs import list_jobs, run_job
from cli.client.session import Session
from cli.client.views import state_word
from common.errors import JobletError
from proto.joblet.v1 import job_pb2
from tests.e2e.identities import authority_of, client_certificate
from tests.e2e.node import Node, end, make_base, read_all
from tests.waiting import wait_for

SETTINGS: Final[dict[str, Any]] = {
    "joblet": {
        "jobs": {"running_max": 2, "queued_max": 60},
        "quotas": {"roles": {"user": {"running_jobs": 1, "queued_jobs": 3}}},
    }
}
ROLES: Final = {"ann": "writer", "cat": "writer", "bob": "user"}
ENDED: Final = ("completed", "failed", "stopped", "canceled", "lost")
WAITING: Final = 20


@pytest.fixture(scope="module")
def narrow() -> Iterator[Node]:
    """The node with two slots, and a context for each owner in its client configuration."""
    made = Node(make_base("narrow", SETTINGS))
    made.start()
    introduce(made)
    yield made
    made.remove()


def introduce(node: Node) -> None:
    """Give every owner of ROLES a certificate and a context of his name."""
    config = yaml.safe_load(node.config.read_text())
    for name, role in ROLES.items():
        certificate, key = client_certificate(authority_of(node.base / "certs"), names=(name,), organizations=(role,))
        config["nodes"][name] = {
            **config["nodes"]["default"],
            "cert": certificate.decode(),
            "key": key.decode(),
        }
    node.config.write_text(yaml.safe_dump(config))


@pytest.fixture
def held(narrow: Node) -> Iterator[list[str]]:
    """Two jobs in the slots; stopping one frees its slot. Afterwards nothing runs or waits."""
    holders = [narrow.detached("--", "sleep", "1000") for _ in range(2)]
    for holder in holders:
        narrow.wait_for_state(holder, "running")
    yield holders
    for job in unended(narrow):
        narrow.rnx("job", "stop", job, "--signal", "KILL")
    wait_for(lambda: not unended(narrow), what="the end of all jobs")


def unended(node: Node) -> list[str]:
    """Jobs that have not ended, the newest first: those that wait are stopped before there is a slot for them."""
    return [job["id"] for job in node.jobs("--all") if job["state"] not in ENDED]


def free_one(node: Node, holder: str) -> None:
    """End a holder."""
    node.ok("job", "stop", holder, "--signal", "KILL")


def by_start(node: Node, jobs: list[str]) -> list[str]:
    """The jobs in the order in which they started, when all have ended."""
    records = [node.wait_for_state(job, "completed", timeout_s=60) for job in jobs]
    return [str(record["id"]) for record in sorted(records, key=lambda one: str(one["started_at"]).ljust(40, "0"))]


def positions(node: Node, jobs: list[str]) -> list[int | None]:
    """Where the jobs are in the queue."""
    found = {job["id"]: job["queue_position"] for job in node.jobs("--all")}
    return [found[job] for job in jobs]


def test_first_in_first_out_and_priority_within_an_owner(narrow: Node, held: list[str]) -> None:
    """Positions say what then happens; people see it, too."""
    plain = [narrow.detached("--", "true", node="ann") for _ in range(3)]
    urgent = narrow.detached("--priority", "50", "--", "true", node="ann")
    low = narrow.detached("--priority", "-50", "--", "true", node="ann")
    expected = [urgent, *plain, low]
    assert positions(narrow, expected) == [1, 2, 3, 4, 5]
    assert narrow.status(low)["state"] == "pending"
    assert f"{plain[0]}" in narrow.ok("job", "list", "--state", "pending").decode()
    shown = narrow.ok("job", "status", urgent, node="ann").decode()
    assert "queue position: 1" in shown
    assert "50" in shown.split("priority:")[1].splitlines()[0]
    info = narrow.ok("node", "info").decode()
    assert "2 of at most 2" in info
    assert "waiting jobs: " in info
    free_one(narrow, held[0])
    assert by_start(narrow, expected) == expected


def test_owners_take_turns(narrow: Node, held: list[str]) -> None:
    """Ten jobs of one owner before two of another: the other does not wait for the ten."""
    many = [narrow.detached("--", "true", node="ann") for _ in range(6)]
    few = [narrow.detached("--", "true", node="cat") for _ in range(2)]
    expected = [many[0], few[0], many[1], few[1], *many[2:]]
    assert positions(narrow, expected) == list(range(1, 9))
    free_one(narrow, held[0])
    assert by_start(narrow, expected) == expected


@pytest.mark.requirement("S2.13")
@pytest.mark.threat("C25")
def test_an_owners_bounds(narrow: Node) -> None:
    """One at once and three waiting, whatever is free on the node; the refusal says so, and others go on."""
    running = narrow.detached("--", "sleep", "1000", node="bob")
    waiting = [narrow.detached("--", "true", node="bob") for _ in range(3)]
    refused = narrow.rnx("job", "run", "--detach", "--", "true", node="bob")
    assert refused.returncode == 4
    assert b"Max capacity reached" in refused.stderr
    assert narrow.status(waiting[0], node="bob")["state"] == "pending"
    assert narrow.ok("job", "run", "--", "echo", "free", node="ann") == b"free\n"
    narrow.ok("job", "stop", running, "--signal", "KILL", node="bob")
    assert by_start(narrow, waiting) == waiting


def test_what_waits_can_be_canceled_and_waited_for(narrow: Node, held: list[str]) -> None:
    """CANCELED, exit code 1 and a line for who waits for it; it never ran; a running job cannot be canceled."""
    pending = narrow.detached("--", "echo", "never", node="ann")
    scheduled = narrow.detached("--schedule", "1h", "--", "echo", "never", node="ann")
    assert narrow.status(scheduled)["state"] == "scheduled"
    for job in (pending, scheduled):
        waiter = narrow.background("job", "wait", job, node="ann")
        try:
            narrow.ok("job", "cancel", job, node="ann")
            _, told = waiter.communicate(timeout=60)
            assert (waiter.returncode, b"was canceled before it started" in told) == (1, True)
        finally:
            end(waiter)
        record = narrow.status(job)
        assert (record["state"], record["started_at"], record["queue_position"]) == ("canceled", None, None)
        assert narrow.ok("job", "log", job) == b""
        assert narrow.rnx("job", "cancel", job).returncode == 4
    assert narrow.rnx("job", "cancel", held[0]).returncode == 4
    free_one(narrow, held[0])
    assert narrow.ok("job", "run", "--", "echo", "next", node="ann") == b"next\n"


def test_an_attached_run_waits_for_its_turn(narrow: Node, held: list[str]) -> None:
    """Its output comes when it has run; one that is interrupted while it waits is withdrawn."""
    process = narrow.background("job", "run", "--", "sh", "-c", "echo ran; exit 3", node="ann")
    impatient = narrow.background("job", "run", "--", "echo", "never", node="cat")
    heard, unheard = read_all(process.stdout), read_all(impatient.stdout)
    try:
        wait_for(lambda: len(narrow.jobs("--state", "pending")) == 2, what="both to wait")
        (job,) = narrow.jobs("--state", "pending", "--owner", "cat")
        impatient.send_signal(signal.SIGINT)
        assert impatient.wait(timeout=60) == 130
        assert narrow.status(job["id"])["state"] == "canceled"
        free_one(narrow, held[0])
        assert process.wait(timeout=60) == 3
        assert (heard.finished(), unheard.finished()) == (b"ran\n", b"")
    finally:
        end(process)
        end(impatient)


def test_a_schedule_is_kept_over_kill_9(narrow: Node) -> None:
    """Not before its time, and once; also when the executor is dead at that time. A time that is over means now."""
    begun = datetime.now(UTC)
    soon = narrow.detached("--schedule", "6s", "--", "echo", "soon", node="ann")
    later = narrow.detached("--schedule", "1h", "--", "echo", "later", node="ann")
    over = narrow.detached("--schedule", "2020-01-01T00:00:00Z", "--", "echo", "over", node="ann")
    assert narrow.status(soon)["start_at"] is not None
    assert narrow.status(later)["state"] == "scheduled"
    narrow.kill("executor")
    narrow.wait_for_state(over, "completed")
    record = narrow.wait_for_state(soon, "completed", timeout_s=60)
    started = datetime.fromisoformat(str(record["started_at"])[:19] + "+00:00")
    assert started >= begun + timedelta(seconds=5)
    assert narrow.ok("job", "log", soon) == b"soon\n"
    assert narrow.status(later)["state"] == "scheduled"
    narrow.ok("job", "cancel", later, node="ann")
    assert narrow.rnx("job", "run", "--schedule", "400d", "--", "true").returncode == 2


@pytest.mark.threat("F01")
@pytest.mark.threat("F05")
@pytest.mark.timeout(300)
def test_twenty_waiting_jobs_run_once_each_over_kill_9(narrow: Node, held: list[str]) -> None:
    """Killed while all wait, and again and again while they start: each prints its number once."""
    with Session(load_context(narrow.config, "ann")) as session:
        jobs = [narrow.detached("--upload", __file__, "--", "sh", "-c", "sleep 1; echo 0", node="ann")]
        for number in range(1, WAITING):
            spec = job_pb2.JobSpec(command="sh", args=["-c", f"sleep 1; echo {number}"])
            jobs.append(run_job(session, spec, idempotency_key=f"twenty-{number}").id)
        assert states(session, jobs) == ["pending"] * WAITING
        narrow.kill("executor")
        wait_for(lambda: states(session, jobs) == ["pending"] * WAITING, timeout_s=30, what="all to wait again")
        assert positions(narrow, jobs) == list(range(1, WAITING + 1))
        for holder in held:
            free_one(narrow, holder)
        for number in (1, 5, 9, 13):
            wait_for(partial(any_begun, session, jobs[number:]), timeout_s=60, what="the next starts")
            narrow.kill("executor")
        wait_for(lambda: states(session, jobs) == ["completed"] * WAITING, timeout_s=120, what="the end of all")
    for number, job in enumerate(jobs):
        wait_for(partial(delivered, narrow, job), what=f"{job} to be delivered")
        stored = gzip.decompress((narrow.base / "logs" / job / "stdout.log.gz").read_bytes())
        assert [json.loads(line)["content"] for line in stored.splitlines()] == [str(number)]
    assert list((narrow.base / "uploads").iterdir()) == []


def any_begun(session: Session, jobs: list[str]) -> bool:
    """Whether one of the jobs has started."""
    return not {"running", "completed"}.isdisjoint(states(session, jobs))


def delivered(node: Node, job: str) -> bool:
    """Whether all output of an ended job is stored."""
    return not (node.base / "jobs" / job).exists()


def states(session: Session, jobs: list[str]) -> list[str]:
    """The states of the jobs; nothing while nobody answers."""
    try:
        found = {job.id: state_word(job.state) for job in list_jobs(session, owner="ann")}
    except JobletError as error:
        if not error.retryable:
            raise
        return []
    return [found[job] for job in jobs]


def test_the_services_can_be_stopped_while_jobs_wait(own_node: Callable[..., Node]) -> None:
    """They wait on; the next start goes on with them."""
    node = own_node({"joblet": {"jobs": {"running_max": 1}}})
    running = node.detached("--", "sleep", "1000")
    waiting = node.detached("--", "echo", "after all")
    assert node.stop() == 0
    node.start()
    assert node.status(waiting)["state"] == "pending"
    node.ok("job", "stop", running, "--signal", "KILL")
    assert node.rnx("job", "wait", waiting).returncode == 0
    assert node.ok("job", "log", waiting) == b"after all\n"
