"""Escape by programs: the runtime's own executable, leaked descriptors, set-uid uploads, environment for helpers.

And from the host: what the services, the launcher, a monitor and a job's init are, have open, and have loaded.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from proto.joblet.v1 import job_pb2
from tests.e2e.node import Node
from tests.leaks import children_of, command_of
from tests.security.attack import PYTHON, in_job
from tests.security.probes.host import descriptors_of, files_of, parent_of, status_of, unchanged_host
from tests.security.probes.loading import HERE

CAPABILITY_SETS: Final = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
CAP_KILL: Final = 1 << 5
TRAP: Final = "/work/trap.so"
INJECTED: Final = {
    "LD_PRELOAD": TRAP,
    "LD_AUDIT": TRAP,
    "LD_LIBRARY_PATH": "/work",
    "GCONV_PATH": "/work",
    "LOCPATH": "/work",
    "OPENSSL_CONF": "/work/openssl.cnf",
    "PYTHONHOME": "/work",
    "PYTHONPATH": "/work",
    "PYTHONSTARTUP": "/work/start.py",
    "PYTHONINSPECT": "1",
    "BASH_ENV": "/work/env.sh",
    "ENV": "/work/env.sh",
    "NODE_OPTIONS": "--require /work/x.js",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": "/work/ca.pem",
    "PATH": "/work:/usr/bin:/bin",
}
PROBE: Final = (HERE / "interpreter.py").read_text(encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def host() -> Iterator[None]:
    """Interpreters, joblet's own files and the host are afterwards as before."""
    with unchanged_host():
        yield


@pytest.mark.threat("A01")
@pytest.mark.threat("A02")
@pytest.mark.parametrize("way", ["command", "path", "script"])
def test_the_runtimes_executable_is_not_executed(node: Node, tmp_path: Path, way: str) -> None:
    """CVE-2019-5736: a command, a PATH or a script's first line that names /proc/self/exe, which is the launcher's."""
    script = tmp_path / "script"
    script.write_text(f"#!/proc/self/exe\n{PROBE}")
    script.chmod(0o755)
    commands = {
        "command": ("/proc/self/exe", "-I", "-c", PROBE),
        "path": ("exe", "-I", "-c", PROBE),
        "script": ("./script",),
    }
    options = {"path": ("--env", "PATH=/proc/self"), "script": ("--upload", str(script))}.get(way, ())
    done = in_job(node, *commands[way], options=options)
    assert (done.code, done.stdout) == (1, b"")
    assert b"a link that is refused" in done.stderr


@pytest.mark.threat("A01")
@pytest.mark.threat("A02")
def test_a_jobs_executable_cannot_be_written(node: Node) -> None:
    """What it runs belongs to the host's root, who is nobody there; and it is given nothing else open."""
    done = in_job(node, PYTHON, "-I", "-c", PROBE)
    assert done.code == 0, done
    seen = done.seen
    assert set(seen["write"] + seen["truncate"]) <= {"EACCES", "EROFS", "ETXTBSY"}
    assert seen["descriptors"][:3] == [0, 1, 2]
    assert len(seen["descriptors"]) <= 3
    assert seen["cwd"] == "/work"
    executable = Path(seen["exe"])
    assert executable.stat().st_uid == 0
    assert executable.stat().st_mode & 0o022 == 0, "a job could write to it"


@pytest.mark.threat("A11")
def test_an_uploaded_set_uid_program_is_an_ordinary_one(node: Node, tmp_path: Path) -> None:
    """Its special bits are gone, and would mean nothing; on the host uploads and jobs are closed to everybody else."""
    copy = tmp_path / "s"
    copy.write_bytes(Path("/usr/bin/id").read_bytes())
    copy.chmod(0o6755)
    done = in_job(
        node, "sh", "-c", "stat -c %a s; ./s -u; chmod 6755 s; stat -c %a s; ./s -u", options=("--upload", str(copy))
    )
    assert done.stdout.split() == [b"755", b"1000", b"6755", b"1000"], done
    for name in ("uploads", "jobs", "state", "certs"):
        assert (node.base / name).stat().st_mode & 0o077 == 0, name


@pytest.mark.threat("A28")
def test_a_jobs_environment_reaches_the_job_alone(node: Node) -> None:
    """The loader complains of a library that it cannot preload: once, for the one program that had the environment."""
    options = tuple(word for name, value in INJECTED.items() for word in ("--env", f"{name}={value}"))
    done = in_job(node, "/usr/bin/true", options=options)
    assert done.code == 0, done
    assert done.stderr.count(b"from LD_PRELOAD cannot be preloaded") == 1, done


class Processes(NamedTuple):
    """A job's processes by the host's pids."""

    main: int
    init: int
    monitor: int
    launcher: int


@pytest.fixture(scope="module")
def running(node: Node) -> Iterator[Processes]:
    """Of a job that has the environment of the test above, but for the library."""
    options = tuple(
        word for name, value in INJECTED.items() if "LD_" not in name for word in ("--env", f"{name}={value}")
    )
    job = node.detached(*options, "--", "/usr/bin/sleep", "600")
    node.wait_for_state(job, "running")
    main = int(node.status(job)["pid"])
    init = parent_of(main)
    launchers = [pid for pid in children_of(node.service("executor")) if "joblet-launcher" in command_of(pid)]
    yield Processes(main, init, parent_of(init), launchers[0])
    node.ok("job", "stop", job, "--grace", "0s")
    node.wait_for_state(job, "stopped")


@pytest.mark.threat("A28")
@pytest.mark.threat("B02")
def test_the_runtime_has_no_environment_and_loads_its_own_only(running: Processes) -> None:
    """Launcher, monitor and init run with an empty environment; every file they have mapped is root's, of the host."""
    for pid in (running.init, running.monitor, running.launcher):
        assert Path(f"/proc/{pid}/environ").read_bytes() == b""
        mapped = files_of(pid)
        assert str(Path(sys.executable).resolve()) in mapped
        for path in mapped:
            found = Path(path).stat()
            assert found.st_uid == 0, path
            assert found.st_mode & 0o002 == 0, path
    environment = Path(f"/proc/{running.main}/environ").read_bytes()
    assert b"PYTHONPATH=/work\0" in environment
    assert not any(path.startswith("/work") for path in files_of(running.main))


@pytest.mark.threat("A02")
def test_open_descriptors(running: Processes) -> None:
    """PID 1 keeps its channel; the monitor its job's files, pipes and sockets; the job nothing but its outputs."""
    main, init, monitor = (descriptors_of(pid) for pid in (running.main, running.init, running.monitor))
    assert sorted(main) == [0, 1, 2]
    assert (main[0], main[1][:5], main[2][:5]) == ("/dev/null", "pipe:", "pipe:")
    assert [kind.split(":")[0] for kind in init.values()] == ["/dev/null"] * 3 + ["socket"]
    files = {Path(path).name for path in monitor.values() if path.startswith("/") and path != "/dev/null"}
    assert files == {"lock", "journal", "control"}
    others = {kind.split(":")[0] for kind in monitor.values() if not kind.startswith("/")}
    assert others <= {"socket", "pipe", "anon_inode"}


@pytest.mark.threat("A13")
@pytest.mark.threat("A14")
@pytest.mark.threat("A15")
@pytest.mark.threat("A32")
def test_privileges_from_outside(node: Node, running: Processes) -> None:
    """Who talks to clients has no privilege at all; whoever stays beside a job can gain none by any program."""
    for pid in (node.service("api"), node.service("persist"), running.main):
        status = status_of(pid)
        assert "0" not in status["Uid"].split() + status["Gid"].split(), status["Name"]
        assert {int(status[kind], 16) for kind in CAPABILITY_SETS} == {0}, status["Name"]
        assert status["NoNewPrivs"] == "1", status["Name"]
    assert status_of(running.main)["Seccomp"] == "2"
    assert status_of(running.main)["Groups"] == ""
    for pid in (running.init, running.monitor, running.launcher):
        status = status_of(pid)
        assert status["NoNewPrivs"] == "1", status["Name"]
        assert int(status["CapBnd"], 16) == 0, status["Name"]
    assert int(status_of(running.init)["CapPrm"], 16) == CAP_KILL


@pytest.mark.threat("A32")
def test_who_is_privileged(node: Node) -> None:
    """Executor and volumes, and what the launcher forks: nobody else below `joblet up` is root."""
    names = {status_of(pid).get("Name", "") for pid in node.processes() if is_root(pid)}
    allowed = ("joblet-executor", "joblet-volumes", "joblet-launcher", "joblet-monitor", "joblet-spare", "init")
    assert {name for name in names if not name.strip().startswith(allowed)} <= {""}  # it ended meanwhile


def is_root(pid: int) -> bool:
    """Whether the process is the host's root."""
    return status_of(pid).get("Uid", "1").split()[0] == "0"


@pytest.mark.threat("A30")
def test_nothing_of_the_host_can_be_asked_for(node: Node) -> None:
    """Devices, capabilities, namespaces and mounts of the host are in no request, and in no option."""
    fields = {field.name for field in job_pb2.JobSpec.DESCRIPTOR.fields}
    forbidden = ("device", "gpu", "cap", "privileg", "namespace", "security", "user", "mount", "bind", "seccomp")
    assert not [name for name in fields if any(word in name for word in forbidden)]
    for option in (("--device", "/dev/kvm"), ("--privileged",), ("--gpu", "1"), ("--cap-add", "SYS_ADMIN")):
        assert in_job(node, "true", options=option).code == 2
