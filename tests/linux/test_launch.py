"""Launching: from a plan to a process and its true end, and what survives whom."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import JobletError
from common.records import RecordType
from services.executor.control import send_space_freed, send_stop
from services.executor.launcher.devices import BindDevice
from services.executor.launcher.task import (
    LENGTH_BYTES,
    Places,
    Watch,
    decode_places,
    decode_preparation,
    decode_task,
    decode_watch,
    encode_beginning,
    encode_rest,
)
from services.executor.launching import LauncherProcess
from services.executor.monitors import monitor_pid, open_monitor
from tests.linux.sandboxes import IDENTITY, Launched, Sandboxes, alive, fields, host_mounts, with_task
from tests.waiting import wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def sandboxes(tmp_path: Path) -> Iterator[Sandboxes]:
    """A launcher with a base directory of its own."""
    with Sandboxes(tmp_path) as opened:
        yield opened


@pytest.mark.parametrize("code", [0, 1, 7, 127, 255])
def test_the_exit_code_is_the_jobs(sandboxes: Sandboxes, code: int) -> None:
    """A job that exits is recorded with exactly its code, between START and EXIT."""
    result = sandboxes.shell(f"exit {code}")
    assert result.exit["outcome"] == "exited"
    assert result.exit["exit_code"] == code
    assert result.exit["signal"] is None
    assert result.exit["ended_by"] == ""
    assert result.exit["failure"] is None
    assert [record.type for record in result.records] == [RecordType.START, RecordType.EXIT]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGPIPE])
def test_the_signal_that_ended_it_is_told(sandboxes: Sandboxes, number: signal.Signals) -> None:
    """A job killed by a signal has that signal and no exit code; none is ignored or handled at its start."""
    result = sandboxes.shell(f"kill -{int(number)} $$; exit 3")
    assert (result.exit["outcome"], result.exit["signal"], result.exit["exit_code"]) == ("signaled", number, None)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("no-such-program", "command 'no-such-program' not found in PATH"),
        ("/usr/bin/no-such-program", "command '/usr/bin/no-such-program' not found"),
        ("/etc/passwd", "command '/etc/passwd' is not executable"),
        ("/usr", "command '/usr' is not executable"),
        ("/etc/passwd/x", "command '/etc/passwd/x' not found"),
        ("\N{GRINNING FACE}" * 1500, "command '\N{GRINNING FACE}"),
    ],
)
def test_a_command_that_cannot_run_is_named(sandboxes: Sandboxes, command: str, message: str) -> None:
    """A command that does not exist or is not executable never starts, and the reason names it."""
    result = sandboxes.run(command)
    assert result.exit["outcome"] == "not_started"
    assert result.exit["failure"]["step"] == "exec"
    assert result.exit["failure"]["message"].startswith(message)
    assert not result.of(RecordType.START)


@pytest.mark.requirement("T.7")
def test_no_shell_reads_the_arguments(sandboxes: Sandboxes) -> None:
    """Arguments reach the program as they are."""
    argv = ("$HOME", "a b", "`id`", "*", ";exit 3", "")
    result = sandboxes.run("printf", "%s\\n", *argv)
    assert result.stdout.decode().split("\n")[:-1] == list(argv)


def test_a_missing_workdir_is_named(sandboxes: Sandboxes) -> None:
    """A directory that is not there is a failure of that step, with its path."""
    result = sandboxes.run("true", workdir="/work/nowhere")
    assert result.exit["failure"]["step"] == "workdir"
    assert result.exit["failure"]["path"] == "/work/nowhere"
    assert "No such file" in result.exit["failure"]["message"]


@pytest.mark.requirement("S1.9")
def test_a_failing_step_is_told_with_its_path(sandboxes: Sandboxes) -> None:
    """A step of the plan that the kernel refuses reaches the journal with step, path and errno."""
    launch = sandboxes.plan("true")
    broken = tuple(
        operation._replace(path="/dev/nothing-here") if getattr(operation, "path", "") == "/dev/null" else operation  # type: ignore[attr-defined]
        for operation in launch.task.preparation
    )
    result = sandboxes.start_launch(with_task(launch, preparation=broken)).result()
    assert result.exit["outcome"] == "not_started"
    assert "/dev/nothing-here" in result.exit["failure"]["step"]
    assert (result.exit["failure"]["path"], result.exit["failure"]["errno"]) == ("/dev/nothing-here", 2)


def test_a_launch_that_nobody_waits_for_does_not_run(sandboxes: Sandboxes) -> None:
    """The executor has given up before the answer: the sandbox is taken down, the journal says why, nothing has run."""
    launch = sandboxes.plan("sh", "-c", "echo ran")
    directory = Path(launch.task.job_dir)
    caller, theirs = socket.socketpair()
    assert sandboxes.launcher._requests is not None  # the request is made here, without waiting for the answer
    socket.send_fds(sandboxes.launcher._requests, [b"launch"], [theirs.fileno()])
    theirs.close()
    caller.shutdown(socket.SHUT_RD)  # before it could be answered, however quick that is
    caller.sendall(encode_beginning(launch.task) + encode_rest(launch.task))
    caller.close()
    journal = directory / "journal"
    wait_for(lambda: journal.exists() and journal.stat().st_size > 0, timeout_s=10, what="the end in the journal")
    job = Launched(directory, 0)
    sandboxes.jobs.append(job)
    result = job.result()
    assert (result.exit["outcome"], result.stdout) == ("not_started", b"")
    assert "did not wait" in result.exit["failure"]["message"]


def test_a_failure_before_go_is_told(sandboxes: Sandboxes) -> None:
    """The main process may fail before or after the monitor sends GO: what it reported arrives either way."""
    false = BindDevice("/dev/null", 1, 5)
    launches = [with_task(sandboxes.plan("true"), preparation=(false,)) for _ in range(24)]
    for job in [sandboxes.start_launch(launch) for launch in launches]:
        assert job.result().exit["failure"]["step"] == false.describe()


@pytest.mark.threat("A04")
def test_a_false_device_is_refused(sandboxes: Sandboxes) -> None:
    """What lies at a device's path must be that device, by its number."""
    launch = sandboxes.plan("true")
    false = tuple(
        operation._replace(minor=5) if getattr(operation, "path", "") == "/dev/null" else operation  # type: ignore[attr-defined]
        for operation in launch.task.preparation
    )
    result = sandboxes.start_launch(with_task(launch, preparation=false)).result()
    assert "not the character device 1:5" in result.exit["failure"]["message"]


@pytest.mark.requirement("S2.32", "S3.19", "X6")
def test_a_group_that_is_not_there_fails_the_launch(sandboxes: Sandboxes) -> None:
    """A job that cannot be placed in its group does not run, and the step is named."""
    launch = sandboxes.plan("true")
    groups = launch.task.groups._replace(join=("/sys/fs/cgroup/no-such-group/cgroup.procs",))
    result = sandboxes.start_launch(with_task(launch, groups=groups)).result()
    assert result.exit["failure"]["step"] == "cgroup"
    assert (result.exit["failure"]["errno"], result.exit["failure"]["path"]) == (2, "")  # clients read it


@pytest.mark.threat("B02")
def test_the_environment_is_exactly_the_plans(sandboxes: Sandboxes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the executor's environment reaches a job; the job's own wins over the defaults."""
    monkeypatch.setenv("JOBLET_CANARY", "leaked")
    launch = sandboxes.plan("env", environment={"HOME": "/tmp", "X": "1"})
    job = sandboxes.start_launch(launch)
    found = dict(line.split("=", 1) for line in job.result().stdout.decode().splitlines())
    assert found == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/tmp",
        "USER": "job",
        "LOGNAME": "job",
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",
        "JOBLET_JOB_ID": launch.task.job_id,
        "X": "1",
    }


def test_the_task_survives_the_wire(sandboxes: Sandboxes) -> None:
    """What the launcher reads is what was planned, every operation of it."""
    task = sandboxes.plan("true", environment={"A": "é\n"}).task
    places, prepared, watched, whole = _parts(encode_beginning(task) + encode_rest(task))
    decoded = decode_task(whole)._replace(preparation=decode_preparation(prepared))
    assert decoded == task
    for theirs, ours in ((decoded.preparation, task.preparation), (decoded.operations, task.operations)):
        assert [type(step) for step in theirs] == [type(step) for step in ours]
    assert decode_watch(watched) == Watch(*(getattr(task, name) for name in Watch._fields))
    assert decode_places(places) == Places(task.groups.join, task.groups.clone_into, "new", "", task.job_dir, "")
    with pytest.raises(ValueError, match="version 99"):
        decode_watch(watched.replace(b"[4,", b"[99,", 1))


def test_places_survive_the_wire(sandboxes: Sandboxes) -> None:
    """Paths of groups arrive as they are: none, several, and one with bytes that are no UTF-8."""
    task = sandboxes.plan("true").task
    for join, clone_into in (((), ""), (("/v1/a/tasks", "/v1/b c/tasks"), ""), ((), "/v2/\udcff\n")):
        groups = task.groups._replace(join=join, clone_into=clone_into)
        places = decode_places(_parts(encode_beginning(task._replace(groups=groups)))[0])
        assert (places.join, places.clone_into) == (join, clone_into)
    rootless = task._replace(range_first=None, network="host", uploads=("/base/uploads/u.tar",))
    places = decode_places(_parts(encode_beginning(rootless))[0])
    assert places == Places((), "", "host", "1000", task.job_dir, "uploads")


def _parts(wire: bytes) -> list[bytes]:
    parts = []
    while wire:
        end = LENGTH_BYTES + int.from_bytes(wire[:LENGTH_BYTES], "little")
        parts.append(wire[LENGTH_BYTES:end])
        wire = wire[end:]
    return parts


def test_the_lock_names_the_monitor(sandboxes: Sandboxes) -> None:
    """While the monitor lives its pid is found by its lock, the pid of START is the main process; then neither."""
    job = sandboxes.start("sleep", "60")
    assert monitor_pid(job.directory) == job.monitor
    start = json.loads(bytes(job.records()[0].payload)) if job.main_pid() else {}
    assert start["monitor_pid"] == job.monitor
    status = fields(Path(f"/proc/{start['pid']}/status").read_bytes())
    assert (status["Name"], status["NSpid"].split()[-1]) == ("sleep", "2")
    assert send_stop(job.directory, signal=9, grace_ms=0)
    job.result()
    assert monitor_pid(job.directory) is None
    assert open_monitor(job.directory) is None
    assert not send_stop(job.directory, signal=15, grace_ms=0)
    assert not send_space_freed(job.directory)


def test_a_job_is_launched_once(sandboxes: Sandboxes) -> None:
    """A second launch of the same job is refused, and the first is not disturbed."""
    launch = sandboxes.plan("sleep", "60")
    job = sandboxes.start_launch(launch)
    with pytest.raises(JobletError, match="job directory"):
        asyncio.run(sandboxes.launch(launch))
    assert monitor_pid(job.directory) == job.monitor
    assert alive(job.main_pid())


@pytest.mark.threat("F01")
def test_a_job_survives_the_launcher(sandboxes: Sandboxes) -> None:
    """Killing the launcher with signal 9 ends no job; the next launch starts a new launcher."""
    first = sandboxes.start("sh", "-c", "echo one; read -r line </dev/null; sleep 0.5; echo two")
    first.wait_for_output(b"one")
    old = sandboxes.launcher.pid
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: not alive(old), what="the launcher to die")
    second = sandboxes.run("echo", "three")
    assert second.stdout == b"three\n"
    assert sandboxes.launcher.pid != old
    assert first.result().stdout == b"one\ntwo\n"


def test_a_launcher_that_cannot_run_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter that is not there gives a typed error, not a hang."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(JobletError, match="cannot start the launcher"):
        asyncio.run(LauncherProcess(b"").start())


def test_many_launches_at_once(sandboxes: Sandboxes) -> None:
    """Concurrent launches do not get each other's answers."""
    launches = [sandboxes.plan("sh", "-c", f"echo {number}; exit {number}") for number in range(16)]

    async def launch_all() -> list[int]:
        return await asyncio.gather(*(sandboxes.launch(launch) for launch in launches))

    monitors = asyncio.run(launch_all())
    sandboxes.jobs += [Launched(Path(each.task.job_dir), pid) for each, pid in zip(launches, monitors, strict=True)]
    assert [job.result().exit["exit_code"] for job in sandboxes.jobs] == list(range(16))
    assert [job.output() for job in sandboxes.jobs] == [b"%d\n" % number for number in range(16)]


@pytest.mark.threat("A28")
def test_the_launcher_loads_the_standard_library_only() -> None:
    """Started as it is in service, the launcher has every module in memory and none from site-packages."""
    root = Path(__file__).resolve().parents[2]
    program = (
        f"import sys; sys.path.insert(0, {str(root)!r}); import services.executor.launcher.main, json;"
        "print(json.dumps({name: getattr(module, '__file__', None) or '' for name, module in sys.modules.items()}))"
    )
    shown = subprocess.run([sys.executable, "-I", "-S", "-c", program], env={}, capture_output=True, check=True)
    modules: dict[str, str] = json.loads(shown.stdout)
    assert not [name for name, file in modules.items() if "site-packages" in file]
    ours = {name for name, file in modules.items() if file.startswith(f"{root}/")}
    allowed = ("services.executor.launcher", "services.executor.linux", "common.linux")
    packages = {"services", "services.executor", "common", "common.records"}
    assert {name for name in ours if not name.startswith(allowed)} == packages


@pytest.mark.threat("A27")
def test_the_hosts_mounts_do_not_change(sandboxes: Sandboxes) -> None:
    """During and after jobs the host has exactly the mounts that it had before."""
    before = host_mounts()
    job = sandboxes.start("sh", "-c", "echo up; sleep 60")
    job.wait_for_output(b"up")
    assert host_mounts() == before
    assert list((job.directory / "root").iterdir()) == []
    send_stop(job.directory, signal=9, grace_ms=0)
    job.result()
    for _ in range(5):
        sandboxes.run("true")
    assert host_mounts() == before


def test_the_job_directory_is_roots_alone(sandboxes: Sandboxes) -> None:
    """Nobody but root looks into a job's directory; its files are not even readable for the job's own uid."""
    job = sandboxes.start("true")
    job.result()
    assert job.directory.stat().st_mode & 0o7777 == 0o700
    for name in ("journal", "lock", "control"):
        found = (job.directory / name).stat()
        assert (found.st_uid, found.st_mode & 0o077) == (0, 0)
    assert IDENTITY.uid != 0
