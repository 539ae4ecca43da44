"""How a service process begins and ends: real processes, run as root where the test says so."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.waiting import wait_for

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

SERVE = """
import asyncio, json, os, sys, time
from concurrent.futures import ThreadPoolExecutor
import structlog
from common.errors import precondition
from common.messages.topics import PERSIST_IPC, Service
from common.runtime import Startup, run_service

async def serve(startup: Startup) -> None:
    startup.transport.pull(PERSIST_IPC)
    if os.environ.get("FAIL") == "orphan":
        os.environ["JOBLET_SUPERVISOR_PID"] = "1"  # as after the supervisor's death: the parent is another
    startup.drop_privileges()
    if os.environ.get("FAIL") == "typed":
        raise precondition("this host lacks a thing", "install the thing")
    if os.environ.get("FAIL") == "bug":
        raise RuntimeError("a bug\\nwith two lines")
    report = {
        "uid": os.getuid(), "gid": os.getgid(), "comm": open("/proc/self/comm").read().strip(),
        "environment": sorted(os.environ), "umask": os.umask(0o077),
        "oom": open("/proc/self/oom_score_adj").read().strip(), "port": startup.settings.server.port,
    }
    if os.environ.get("FAIL") == "threads":
        pool = ThreadPoolExecutor(4)
        for _ in range(4):
            pool.submit(time.sleep, 0.1)
    print("report " + json.dumps(report), flush=True)
    startup.ready()
    await startup.stopped()

run_service(Service(sys.argv.pop(1)), serve)
"""


@pytest.fixture
def base() -> Iterator[Path]:
    """A base directory that the service users can reach, with a short path for sockets."""
    with tempfile.TemporaryDirectory(prefix="joblet-test-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def start(service: str, base: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A process that runs a service which does nothing."""
    return subprocess.Popen(
        [sys.executable, "-c", SERVE, service, "--base-dir", str(base), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )


def notify_socket(directory: Path) -> socket.socket:
    """What a service manager listens on."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(directory / "notify"))
    listener.settimeout(20)
    return listener


def may_lower_oom_score() -> bool:
    """Found by trying: it needs CAP_SYS_RESOURCE, which a container or this host may not give to root."""
    attempt = "import os; os.write(os.open('/proc/self/oom_score_adj', os.O_WRONLY), b'-500')"
    return subprocess.run([sys.executable, "-c", attempt], capture_output=True, check=False).returncode == 0


@needs_root
@pytest.mark.requirement("S0.61")
@pytest.mark.threat("A32")
def test_persist_serves_as_its_own_user_and_ends_at_sigterm(base: Path) -> None:
    """READY=1 after the drop, a name that ps shows, STOPPING=1 and exit code 0 at SIGTERM."""
    with notify_socket(base) as listener:
        process = start("persist", base, "--port", "7", NOTIFY_SOCKET=str(base / "notify"))
        assert listener.recv(100) == b"READY=1"
        process.send_signal(signal.SIGTERM)
        assert listener.recv(100) == b"STOPPING=1"
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 0, output
    report = json.loads(next(line for line in output.splitlines() if line.startswith("report"))[7:])
    assert report["uid"] not in {0, 65534}
    assert report["gid"] != 0
    assert report["comm"] == "joblet-persist"
    assert (report["umask"], report["port"]) == (0o077, 7)
    assert "NOTIFY_SOCKET" not in report["environment"]


@needs_root
def test_a_supervisor_that_dies_during_the_drop_is_noticed(base: Path) -> None:
    """Setting the user clears the signal at the parent's death: who died between the two calls is found missing."""
    process = start("persist", base, JOBLET_SUPERVISOR_PID=str(os.getpid()), FAIL="orphan")
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0, output
    assert "stopping" in output


@pytest.mark.threat("F38")
def test_a_service_that_is_asked_again_and_again_ends_by_itself(base: Path) -> None:
    """Until it is gone, also when one of its threads takes the signal while its loop closes."""
    process = start("executor", base, FAIL="threads")
    assert process.stdout is not None
    assert next(line for line in process.stdout if line.startswith("report"))
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.001)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0, output


@needs_root
@pytest.mark.threat("F22")
def test_the_executor_stays_root_and_is_killed_late_when_memory_runs_out(base: Path) -> None:
    """drop_privileges does nothing for it, and its out-of-memory score is far below a job's."""
    process = start("executor", base)
    assert process.stdout is not None
    report = json.loads(next(line for line in process.stdout if line.startswith("report"))[7:])
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert (report["uid"], report["comm"]) == (0, "joblet-executor")
    assert report["oom"] == ("-500" if may_lower_oom_score() else "0")


@pytest.mark.parametrize(
    ("failure", "words"), [("typed", ["this host lacks a thing", "install the thing"]), ("bug", ["RuntimeError"])]
)
def test_a_service_that_fails_says_why_and_exits_1(base: Path, failure: str, words: list[str]) -> None:
    """A typed error is one line; a bug has a traceback, and its text forges no line."""
    process = start("executor", base, FAIL=failure)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert all(word in output for word in words), output
    if failure == "typed":
        assert len(output.splitlines()) == 1
    assert not [line for line in output.splitlines() if line.startswith("with two lines")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "/none.yml"], "no configuration file"),
        (["--port", "99999"], "no port"),
        (["--prot", "1"], "unrecognized"),
    ],
)
def test_wrong_configuration_or_arguments_exit_2_with_one_reason(base: Path, arguments: list[str], words: str) -> None:
    """Before anything was made."""
    process = start("persist", base, *arguments)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 2
    assert words in output
    assert list(base.iterdir()) == []


def test_a_second_process_of_a_service_is_refused(base: Path) -> None:
    """It would take the first one's traffic."""
    first = start("persist", base)
    assert first.stdout is not None
    next(line for line in first.stdout if line.startswith("report"))
    second = start("persist", base)
    output, _ = second.communicate(timeout=20)
    first.terminate()
    first.communicate(timeout=20)
    assert second.returncode == 1
    assert "another process serves" in output


def test_a_service_ends_when_its_supervisor_is_killed(base: Path) -> None:
    """So that the next `joblet up` finds the sockets free."""
    command = [sys.executable, "-c", SERVE, "persist", "--base-dir", str(base)]
    parent = (
        "import os, subprocess, sys, time\n"
        "os.environ['JOBLET_SUPERVISOR_PID'] = str(os.getpid())\n"
        f"child = subprocess.Popen({command!r}, stdout=subprocess.PIPE, text=True)\n"
        "next(line for line in child.stdout if line.startswith('report'))\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert supervisor.stdout is not None
    child = int(supervisor.stdout.readline())
    supervisor.kill()
    supervisor.communicate(timeout=20)
    wait_for(lambda: not Path(f"/proc/{child}/fd").exists() or gone(child), timeout_s=20, what="the service to end")


def gone(pid: int) -> bool:
    """Whether the process has ended; one that nobody reaps counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@needs_root
@pytest.mark.threat("E01")
def test_the_sockets_of_a_dropped_service_are_root_owned(base: Path) -> None:
    """They were bound before the drop: nobody but root (and who may connect) can write to them."""
    process = start("persist", base)
    assert process.stdout is not None
    next(line for line in process.stdout if line.startswith("report"))
    status = (base / "run" / "persist-ipc.sock").stat()
    process.terminate()
    process.communicate(timeout=20)
    assert status.st_uid == 0
    assert status.st_mode & 0o007 == 0
