"""Escape by processes: PID 1, tracing, namespaces by descriptor, and refusing to end.

Whoever asks to stop a job must find nothing of it alive afterwards, whatever it did before (STUBBORN).
"""

from collections.abc import Iterator

import pytest

from tests.e2e.node import Node
from tests.security.attack import PYTHON
from tests.security.probes.host import parent_of, processes_of, unchanged_host
from tests.security.probes.loading import numbers, probe_in_job, probe_unprotected, program
from tests.waiting import wait_for

ELSEWHERE = {"mounts of another namespace", "hidden mounts"}
"""listmount(2), which the filter does not know where libseccomp does not: then the call does not exist."""
BY_PATH = {"mount namespace of init", "user namespace of init"}
NO_CONTROL = {"neighbour mount namespaces": "EPERM", "hidden mounts": "EPERM"}
"""The first is refused to all but the host's first PID namespace; the second asserts that nothing is hidden."""


@pytest.fixture(scope="module", autouse=True)
def host() -> Iterator[None]:
    """The host is afterwards as before."""
    with unchanged_host():
        yield


def refusals(name: str) -> set[str]:
    """How the attack must fail inside: what goes by a path of /proc/1 meets its owner, the rest the filter."""
    if name in ELSEWHERE:
        return {"ENOSYS", "EPERM", "ENOENT"}
    return {"EACCES"} if name in BY_PATH or name.startswith("/proc/1/") else {"EPERM"}


@pytest.mark.threat("A01")
@pytest.mark.threat("A17")
@pytest.mark.threat("A26")
def test_init_and_children(node: Node) -> None:
    """PID 1 can be neither signalled nor traced nor looked into; children cannot be traced; namespaces lead nowhere."""
    inside, outside = probe_in_job(node, "processes"), probe_unprotected("processes")
    assert {name: said for name, said in inside.items() if said not in refusals(name)} == {}
    assert {name: said for name, said in outside.items() if said not in ("ok", NO_CONTROL.get(name))} == {}


@pytest.mark.threat("C27")
@pytest.mark.threat("C30")
@pytest.mark.threat("C26")
@pytest.mark.parametrize("grace", ["0s", "1s"])
def test_a_job_cannot_keep_itself_from_being_stopped(node: Node, grace: str) -> None:
    """Ignored signals, sessions, orphans, stopped groups, brothers of its own: after a stop no process is left."""
    job = node.detached("--pids", "300", "--", PYTHON, "-I", "-c", program("stubborn"), numbers())
    wait_for(lambda: node.entries(job), timeout_s=30, what="the job to have tried everything")
    assert node.entries(job)[0]["content"] == "entrenched"
    main = int(node.status(job)["pid"])
    monitor = parent_of(parent_of(main))
    assert len(processes_of(job)) > 10
    node.ok("job", "stop", job, "--grace", grace)
    record = node.wait_for_state(job, "stopped", timeout_s=30)
    assert record["signal"] == 9
    wait_for(lambda: not processes_of(job), what="its processes to be gone")
    wait_for(lambda: monitor not in processes_of("/"), what="its monitor to be gone")


@pytest.mark.threat("C26")
def test_children_of_init_end_with_the_job(node: Node) -> None:
    """CLONE_PARENT makes a brother of the main process, a child of init: it does not outlive the job."""
    text = program("stubborn") + "\nos._exit(7)\n"
    done = node.rnx("job", "run", "--pids", "300", "--", PYTHON, "-I", "-c", text, numbers(), "once")
    assert done.returncode == 7
    assert done.stdout == b"entrenched\n"
