"""One job against another, of the same owner and of a different one, and against the services' sockets.

The victim (probes/victim.py) holds what can be stolen; the neighbour (probes/neighbour.py) is told all names and the
host's pids. The control runs both in the same namespaces.
"""

import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.e2e.node import SERVICES, Node
from tests.security.attack import PYTHON, in_job
from tests.security.probes.host import parent_of, processes_of, unchanged_host
from tests.security.probes.loading import numbers, probe_unprotected, program
from tests.waiting import wait_for

NAME = f"{os.getpid():x}"
"""Of the victim's key, queue, socket and files; as a number in base 16 of its memory segment."""


class Victim(NamedTuple):
    """A running job."""

    job: str
    made: dict[str, str]
    pids: list[int]


@pytest.fixture(scope="module")
def victim(node: Node) -> Iterator[Victim]:
    """Runs until all attacks are over, and has come to no harm."""
    with unchanged_host():
        job = node.detached("--", PYTHON, "-I", "-c", program("victim"), numbers(), NAME, "600")
        entry = wait_for(lambda: node.entries(job), timeout_s=30, what="the victim to be ready")[0]
        main = int(node.status(job)["pid"])
        yield Victim(job, json.loads(entry["content"]), [main, *sorted(processes_of(job)), parent_of(main)])
        assert node.status(job)["state"] == "running"
        assert main in processes_of(job)
        node.ok("job", "stop", job, "--grace", "0s")
        node.wait_for_state(job, "stopped")


def sockets(node: Node) -> list[str]:
    """All that the services listen on."""
    return sorted(str(path) for path in (node.base / "run").iterdir() if path.is_socket())


def attack(node: Node, victim: Victim, user: str) -> dict[str, Any]:
    """What a job of `user` sees."""
    monitor = parent_of(victim.pids[-1])
    pids = json.dumps([*victim.pids, monitor, node.up_pid, *sorted(node.processes())])
    arguments = (numbers(), NAME, pids, json.dumps(sockets(node)))
    attempt = in_job(node, PYTHON, "-I", "-c", program("neighbour"), *arguments, user=user)
    assert attempt.code == 0, attempt
    seen: dict[str, Any] = attempt.seen
    return seen


@pytest.mark.threat("A17")
@pytest.mark.threat("A19")
@pytest.mark.threat("B03")
@pytest.mark.threat("B04")
@pytest.mark.threat("C15")
@pytest.mark.parametrize("user", ["default", "user"], ids=["same owner", "another owner"])
def test_a_neighbour_reaches_nothing(node: Node, victim: Victim, user: str) -> None:
    """Not by number (there is no such process), /proc, keys, IPC objects, abstract sockets, files or service sockets.

    It sends SIGKILL to every number it may think of, the host's pids of the victim, its init and monitor and of the
    services among them; all live on.
    """
    assert victim.made.pop("key", "EPERM") == "EPERM"
    assert set(victim.made.values()) == {"ok"}, "the victim has what it could lose"
    assert len(sockets(node)) >= 5
    services = [node.service(name) for name in SERVICES]
    seen = attack(node, victim, user)
    expected = {"key": "EPERM", "trace": "EPERM", "abstract socket": "ECONNREFUSED"}
    wrong = {
        name: said
        for name, said in seen.items()
        if said != expected.get(name, "ESRCH" if name in BY_PID else "ENOENT") and name != "pidfd"
    }
    assert wrong == {}
    assert seen["pidfd"] in ("ESRCH", "EINVAL")
    assert [node.service(name) for name in SERVICES] == services


BY_PID = frozenset({"by number", "descriptor", "limits", "priority"})


def test_the_same_succeeds_without_protection(node: Node) -> None:
    """The control: in the same place the neighbour reads, traces, signals, finds and connects."""
    place = ("together", program("victim"))
    seen = probe_unprotected("neighbour", NAME, "[]", json.dumps(sockets(node)), *place)
    reached = {"ok", "EPROTOTYPE"}  # which says that it is a datagram socket
    assert {name: said for name, said in seen.items() if said not in reached} == {}
