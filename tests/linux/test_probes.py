"""The probes on a real kernel: they find what is there, do not find what is taken away, and leave nothing."""

import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from common.config.settings import Joblet, Settings
from services.executor.cgroups.select import select_driver
from services.executor.host import NAMESPACES, probe_host
from services.executor.probes.attempts import Failure
from services.executor.probes.outcomes import Outcomes, try_all
from services.executor.probes.repairs import namespace_repair, read_surroundings
from services.executor.probes.trials import Request
from services.executor.seccomp.compile import compile_filter
from tests.leaks import CGROUP_ROOT, OWN_MARK
from tests.linux.sandboxes import host_mounts

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

ROOT: Final = Path(__file__).resolve().parents[2]
REQUEST: Final = Request(directory=tempfile.gettempdir(), range_first=100_000, clone_into="")
ALLOW_ALL: Final = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF_0000)  # BPF_RET | BPF_K, SECCOMP_RET_ALLOW

IN_A_NAMESPACE: Final = """
import os, sys
sys.path.insert(0, sys.argv[1])
from common.linux import mounts
from services.executor.linux import namespaces
uid = os.geteuid()
namespaces.unshare(namespaces.CLONE_NEWUSER | namespaces.CLONE_NEWNS)
namespaces.map_self(1000, uid=uid, gid=uid)
exec(sys.argv[2])
sys.argv = ["", sys.argv[3]]
from services.executor.probes.program import main
main()
"""
"""A process without privileges on the host, whom something is taken away, runs the probing program."""


@pytest.fixture
def group() -> Iterator[str]:
    """A group of the v2 hierarchy."""
    trees = [each for each in (CGROUP_ROOT, CGROUP_ROOT / "unified") if (each / "cgroup.procs").exists()]
    found = [each for each in trees if not (each / "tasks").exists()]
    if not found:
        pytest.skip("needs cgroups v2")
    directory = found[0] / f"{OWN_MARK}-probe"
    directory.mkdir()
    yield str(directory)
    directory.rmdir()


def without(taken: str) -> dict[str, Failure | None]:
    """What the program finds out after the statement `taken`, as nobody in particular."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", IN_A_NAMESPACE, str(ROOT), taken, json.dumps(REQUEST)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=True,
    )
    answers: dict[str, Any] = json.loads(done.stdout)
    return {name: None if answer is None else Failure(*answer) for name, answer in answers.items()}


def failing(found: dict[str, Failure | None]) -> set[str]:
    """Names of what cannot be."""
    return {name for name, failure in found.items() if failure is not None}


def test_everything_works_here_and_nothing_is_left(group: str) -> None:
    """Every trial on a host that has all of it, with the filter of jobs; the processes of before are those of after."""
    mounted = host_mounts()
    outcomes = try_all(REQUEST._replace(clone_into=group), compile_filter())
    assert outcomes.broken == ""
    assert failing(dict(outcomes.tried)) == set()
    assert {f"namespace.{word}" for word in NAMESPACES} <= outcomes.tried.keys()
    assert {"seccomp", "mount.idmap", "cgroup.clone_into", "cgroup.kill", "limit.file_size"} <= outcomes.tried.keys()
    assert Path(group, "cgroup.procs").read_text() == ""
    assert host_mounts() == mounted
    assert os.uname().nodename != "probe"


def test_without_privileges_the_same_works_in_user_namespaces() -> None:
    """Who is not root gets every namespace together with one of users."""
    assert failing(without("pass")) == set()


@pytest.mark.parametrize(
    ("kind", "word"),
    [("mnt", "mount"), ("pid", "pid"), ("ipc", "ipc"), ("uts", "uts"), ("cgroup", "cgroup"), ("net", "net")],
)
def test_a_namespace_that_is_taken_away_is_missed_with_the_repair(kind: str, word: str) -> None:
    """The kernel's own switch, in a user namespace, where it holds for what is below."""
    name = f"user/max_{kind}_namespaces"
    found = without(f"open('/proc/sys/{name}', 'w').write('0')")
    missed = {"mount", "pid"} if word == "mount" else {word}
    assert {name for name in failing(found) if name.startswith("namespace.")} == {
        f"namespace.{each}" for each in missed
    }
    failure = found[f"namespace.{word}"]
    assert failure is not None
    around = read_surroundings(root=False, namespaces=frozenset(NAMESPACES))
    repair = namespace_repair(word, failure, around._replace(sysctls={**around.sysctls, name: "0"}))
    assert repair.startswith(f"sysctl -w user.max_{kind}_namespaces=")


def test_without_user_namespaces_an_ordinary_user_has_none_at_all() -> None:
    """Each of the others needs one."""
    found = without("open('/proc/sys/user/max_user_namespaces', 'w').write('0')")
    assert failing(found) == {*(f"namespace.{word}" for word in NAMESPACES), "mount.own_inodes"}


def test_a_proc_that_is_masked_by_a_container_is_found() -> None:
    """The kernel gives no new /proc to whom parts of the present one are hidden."""
    found = without("mounts.mount('tmpfs', '/proc/sys/fs', 'tmpfs', 0)")
    assert failing(found) == {"namespace.pid"}
    failure = found["namespace.pid"]
    assert failure is not None
    around = read_surroundings(root=False, namespaces=frozenset(NAMESPACES))
    assert "systempaths=unconfined" in namespace_repair("pid", failure, around._replace(filtered=False))


def test_a_filter_that_refuses_nothing_is_found() -> None:
    """That it can be loaded is not enough."""
    failure = try_all(REQUEST, ALLOW_ALL).of("seccomp")
    assert failure == Failure(0, "a system call that the filter refuses is granted")
    assert try_all(REQUEST, b"").of("seccomp") == Failure(0, "it was not tried")


def test_a_group_that_is_not_there_is_found() -> None:
    """As on a host whose tree is somebody else's."""
    outcomes = try_all(REQUEST._replace(clone_into="/nonexistent"), b"")
    assert failing(dict(outcomes.tried)) == {"cgroup.clone_into", "cgroup.kill"}


def test_a_program_that_cannot_work_is_told() -> None:
    """Nothing counts as tried then."""
    outcomes = try_all(REQUEST, b"no filter")
    assert outcomes.tried == {}
    failure = outcomes.of("namespace.net")
    assert failure is not None
    assert failure.text.startswith("the probing program ended with 1: ")


def test_the_executor_prints_its_facts_and_makes_nothing(tmp_path: Path) -> None:
    """`joblet-executor --probe`: one line of JSON, the groups of this host used and removed."""
    base = tmp_path / "node"
    settings = Settings(joblet=Joblet(base_dir=str(base), cgroup_parent=OWN_MARK))
    config = tmp_path / "config.yml"
    config.write_text(json.dumps({"version": "3.0", "joblet": {"cgroup_parent": OWN_MARK, "base_dir": str(base)}}))
    done = subprocess.run(
        [sys.executable, "-m", "services.executor", "--probe", "--config", str(config)],
        capture_output=True,
        timeout=60,
        check=True,
        cwd=ROOT,
    )
    found = json.loads(done.stdout)
    levels = {each["name"]: each["level"] for each in found["capabilities"]}
    assert levels["namespace.user"] == levels["seccomp"] == "enforced"
    assert not base.exists()
    driver = select_driver(probe_host(settings), settings)
    try:
        assert driver.present() == frozenset()
        assert found["cgroup_version"] == driver.version
    finally:
        driver.release()


def test_outcomes_of_nothing() -> None:
    """What nobody tried does not work."""
    assert Outcomes({}, "").of("x") == Failure(0, "it was not tried")
