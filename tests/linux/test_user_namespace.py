"""The job's user namespace: who it is inside, who it is on the host, and what that must not give it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.linux.sandboxes import IDENTITY, Launched, Sandboxes, fields
from tests.waiting import wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

INOTIFY = (
    "import ctypes, time; libc = ctypes.CDLL(None);"
    "print(sum(libc.inotify_init1(0) >= 0 for _ in range(4000)), flush=True); time.sleep(600)"
)


@pytest.fixture
def sandboxes(tmp_path: Path) -> Iterator[Sandboxes]:
    """A launcher of this test's own."""
    with Sandboxes(tmp_path) as opened:
        yield opened


def running(sandboxes: Sandboxes) -> Launched:
    """A job that goes on."""
    return sandboxes.start("sh", "-c", "touch /work/mine; echo up; exec sleep 600")


@pytest.mark.threat("A07")
def test_its_ids_are_the_owners_range(sandboxes: Sandboxes) -> None:
    """All 65,536 ids are mapped to the range, none of the host's own is; the job is 1000 of them."""
    result = sandboxes.run("cat", "/proc/self/uid_map", "/proc/self/gid_map")
    line = [b"0", str(IDENTITY.range_first).encode(), b"65536"]
    assert result.stdout.split() == line * 2
    job = running(sandboxes)
    job.wait_for_output(b"up")
    status = fields(Path(f"/proc/{job.main_pid()}/status").read_bytes())
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(IDENTITY.uid)}
    assert status["Groups"] == ""


def test_it_has_a_user_namespace_and_the_sandbox_is_not_of_it(sandboxes: Sandboxes) -> None:
    """Namespaces that the job sees are owned by the host: capabilities in its own could not change them.

    The owner is asked for with NS_GET_USERNS, ioctl_ns(2).
    """
    job = running(sandboxes)
    job.wait_for_output(b"up")
    pid = job.main_pid()
    host_user = Path("/proc/self/ns/user").stat().st_ino
    assert Path(f"/proc/{pid}/ns/user").stat().st_ino != host_user
    for kind in ("mnt", "pid", "net", "ipc", "uts", "cgroup"):
        assert Path(f"/proc/{pid}/ns/{kind}").stat().st_ino != Path(f"/proc/self/ns/{kind}").stat().st_ino, kind
        assert owner_of(f"/proc/{pid}/ns/{kind}") == host_user, kind


def owner_of(namespace: str) -> int:
    """Inode of the user namespace that owns `namespace`."""
    import fcntl

    ns_get_userns = 0xB701
    descriptor = os.open(namespace, os.O_RDONLY)
    try:
        user = fcntl.ioctl(descriptor, ns_get_userns)
        try:
            return os.fstat(user).st_ino
        finally:
            os.close(user)
    finally:
        os.close(descriptor)


def test_root_in_the_job_looks_as_root_should(sandboxes: Sandboxes) -> None:
    """What joblet makes for every job belongs to root there, and /work to the job."""
    paths = "/ /etc /etc/passwd /etc/resolv.conf /dev /dev/shm /tmp /dev/fd /volumes /work"
    out = sandboxes.run("stat", "-c", "%n %u %g", *paths.split()).stdout.decode()
    owners = {name: (uid, gid) for name, uid, gid in (line.split() for line in out.splitlines())}
    assert owners.pop("/work") == ("1000", "1000")
    assert set(owners.values()) == {("0", "0")}, owners


def test_passwd_names_the_ids_it_has(sandboxes: Sandboxes) -> None:
    """`id` and the shell know the job by its name."""
    assert sandboxes.run("id").stdout == b"uid=1000(job) gid=1000(job) groups=1000(job)\n"


@pytest.mark.threat("C13")
def test_inotify_is_not_taken_from_the_host(sandboxes: Sandboxes) -> None:
    """A job that makes all the inotify instances it can leaves the host's root his: the range's owner is charged."""
    job = sandboxes.start("python3", "-c", INOTIFY)
    made = int(job.wait_for_output(b"\n"))
    limit = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text())
    assert 0 < made <= limit
    ours = [inotify() for _ in range(8)]
    try:
        assert all(descriptor >= 0 for descriptor in ours)
    finally:
        for descriptor in ours:
            os.close(descriptor)


def inotify() -> int:
    """A new inotify instance of this process; -1: none left."""
    import ctypes

    descriptor: int = ctypes.CDLL(None).inotify_init1(os.O_CLOEXEC)
    return descriptor


def test_a_job_that_dies_before_it_is_mapped_is_told(sandboxes: Sandboxes) -> None:
    """A range that the kernel refuses is a failure of that step, and nothing is left."""
    launch = sandboxes.plan("true")
    job = sandboxes.start_launch(launch._replace(task=launch.task._replace(range_first=2**32 - 2)))
    failure = job.result().exit["failure"]
    assert failure["step"] == "user namespace"
    wait_for(lambda: not (job.directory / "root" / "etc").exists(), what="the sandbox to go")
