"""The sandbox, attacked from inside: what a job sees, what it may do, and what it must not."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.executor.identity import JOB_UID
from services.executor.sandbox import MASKED
from tests.linux.sandboxes import Sandboxes, fields

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def sandboxes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandboxes]:
    """One launcher for this file; each job has a directory of its own."""
    with Sandboxes(tmp_path_factory.mktemp("base")) as opened:
        yield opened


@pytest.fixture(autouse=True)
def jobs_removed(sandboxes: Sandboxes) -> Iterator[None]:
    """No job directory outlives its test."""
    yield
    while sandboxes.jobs:
        sandboxes.jobs.pop().close()


def mounts_of(mountinfo: bytes) -> dict[str, list[str]]:
    """Mount point → fields of its line."""
    lines = [line.split() for line in mountinfo.decode().splitlines()]
    return {line[4]: line for line in lines}


@pytest.mark.threat("A13")
@pytest.mark.threat("A14")
@pytest.mark.threat("A15")
def test_the_job_has_no_privilege(sandboxes: Sandboxes) -> None:
    """Own uid and gid, no group, no capability in any set, no new privileges, no signal blocked or ignored."""
    status = fields(sandboxes.run("cat", "/proc/self/status").stdout)
    assert set(status["Uid"].split()) == {str(JOB_UID)}
    assert set(status["Gid"].split()) == {str(JOB_UID)}
    assert status["Groups"] == ""
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "SigBlk", "SigIgn"):
        assert int(status[kind], 16) == 0, kind
    assert status["NoNewPrivs"] == "1"
    assert status["Umask"] == "0022"


def test_the_job_is_pid_2_below_our_init(sandboxes: Sandboxes) -> None:
    """It sees its init and itself, and no process of the host; it leads a session and a group of its own."""
    out = sandboxes.shell("set -- /proc/[0-9]*; echo $$ $PPID $#; cut -d' ' -f5,6 /proc/$$/stat").stdout
    assert out.split() == [b"2", b"1", b"2", b"2", b"2"]  # the shell itself looks: init and sh


@pytest.mark.threat("A02")
def test_no_descriptor_is_inherited(sandboxes: Sandboxes) -> None:
    """Standard input is /dev/null, the outputs are pipes, and there is nothing else; the directory is /work."""
    out = sandboxes.run("find", "/proc/self/fd", "-type", "l", "-printf", "%f %l\\n").stdout.decode()
    lines = [line.split(":")[0] for line in out.splitlines()]
    # find itself opens directories: what it lists and where it began.
    assert lines[:3] == ["0 /dev/null", "1 pipe", "2 pipe"]
    assert {line.split()[1].split("/")[1] for line in lines[3:]} <= {"work", "proc"}
    assert sandboxes.run("pwd").stdout == b"/work\n"


@pytest.mark.threat("A01")
@pytest.mark.threat("A17")
def test_init_is_out_of_reach(sandboxes: Sandboxes) -> None:
    """PID 1 cannot be signalled, traced or looked into, and its arguments tell nothing of the host."""
    script = (
        "kill -9 1; kill -TERM 1; readlink /proc/1/exe; readlink /proc/1/cwd; ls /proc/1/fd; cat /proc/1/environ;"
        " cat /proc/1/maps; tr '\\0' ' ' </proc/1/cmdline; echo; echo still here"
    )
    result = sandboxes.shell(script)
    assert result.stdout.split() == [b"init", b"still", b"here"]
    assert result.stderr.count(b"ermission denied") + result.stderr.count(b"not permitted") >= 5


@pytest.mark.threat("A26")
@pytest.mark.threat("B01")
@pytest.mark.requirement("S1.11")
def test_the_root_holds_what_it_should_and_nothing_else(sandboxes: Sandboxes, tmp_path: Path) -> None:
    """The root has the planned directories; nothing of the host is below it but its system directories."""
    secret = tmp_path / "secret"
    secret.write_text("x")
    out = sandboxes.shell(f"ls -A /; ls -A /etc; ls {secret} /root /home /var /sys {sandboxes.layout.base}").stdout
    names = set(out.decode().split())
    assert {"dev", "etc", "proc", "tmp", "usr", "volumes", "work", "passwd", "hosts"} <= names
    allowed = {
        *("bin", "sbin", "lib", "lib32", "lib64", "dev", "etc", "proc", "tmp", "usr", "volumes", "work"),
        *("alternatives", "group", "hostname", "hosts", "ld.so.cache", "nsswitch.conf", "passwd", "resolv.conf", "ssl"),
    }
    assert names <= allowed


@pytest.mark.threat("A09")
@pytest.mark.threat("A24")
@pytest.mark.threat("A27")
def test_mounts_are_private_and_have_their_flags(sandboxes: Sandboxes) -> None:
    """Every mount is nosuid, and nodev but for devices and terminals; the host's are read-only; none is shared."""
    found = mounts_of(sandboxes.run("cat", "/proc/self/mountinfo").stdout)
    writable = {"/tmp", "/work", "/volumes", "/dev/shm", "/dev/pts"}  # /volumes by root only: test_attach.py
    for point, line in found.items():
        options = set(line[5].split(","))
        assert "nosuid" in options, line
        assert ("rw" in options) == (point in writable), line
        assert point.startswith("/dev/") or "nodev" in options, line
        assert line[6] == "-", f"propagates: {line}"  # no shared:, master: or propagate_from: tag
    assert "/" in found
    assert not [line for line in found.values() if str(sandboxes.layout.base) in " ".join(line)]


@pytest.mark.threat("A24")
@pytest.mark.threat("A06")
def test_nothing_but_its_own_places_can_be_written(sandboxes: Sandboxes) -> None:
    """/work, /tmp and /dev/shm take files; root, system directories, /etc, /proc and kernel settings do not."""
    places = "/ /usr /usr/bin /etc /dev /proc /volumes"
    settings = "/proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/self/oom_score_adj /proc/sys/kernel/hostname"
    script = (
        "for d in /work /tmp /dev/shm; do echo x >$d/f && echo yes; done;"
        f" for d in {places}; do echo x >$d/f && echo NO; done; for f in {settings}; do echo 0 >$f && echo NO; done;"
        " mount -t tmpfs none /work && echo NO; mount -o remount,rw / && echo NO; umount /proc/keys && echo NO;"
        " unshare -U true && unshare -Urm mount -o remount,rw / && echo NO; chroot / true && echo NO; true"
    )
    assert sandboxes.shell(script).stdout.split() == [b"yes"] * 3


@pytest.mark.threat("A08")
@pytest.mark.requirement("S1.13")
def test_masked_paths_are_covered(sandboxes: Sandboxes) -> None:
    """Each masked path that exists is a mount, reads as empty and cannot be written."""
    existing = [path for path in MASKED if Path(path).exists()]
    assert "/proc/kcore" in existing or "/proc/keys" in existing
    script = (
        "cat /proc/self/mountinfo; echo ---; for f in $PATHS; do if [ -d $f ]; then ls -A $f; else cat $f; fi;"
        " echo x 2>/dev/null >$f && echo WRITTEN; done; true"
    )
    mountinfo, read = sandboxes.shell(script, environment={"PATHS": " ".join(existing)}).stdout.split(b"---\n")
    points = mounts_of(mountinfo)
    assert [path for path in existing if path not in points] == []
    assert read == b""


def test_devices_work_and_are_the_only_ones(sandboxes: Sandboxes) -> None:
    """The usual devices behave; a device node cannot be made."""
    script = (
        "head -c 3 /dev/zero | od -An -c; head -c 8 /dev/urandom | wc -c; echo x >/dev/null; echo x >/dev/full;"
        " mknod /work/d c 1 3 && echo NO; for f in /dev/* /dev/pts/*; do"
        " [ ! -L $f ] && { [ -c $f ] || [ -b $f ]; } && echo $f; done"
    )
    lines = sandboxes.shell(script).stdout.decode().split("\n")
    assert lines[0].split() == ["\\0"] * 3
    assert lines[1].strip() == "8"
    nodes = [line for line in lines[2:] if line]
    assert nodes == [f"/dev/{name}" for name in ("full", "null", "random", "tty", "urandom", "zero", "pts/ptmx")]


@pytest.mark.threat("B07")
def test_it_has_its_own_names_and_network(sandboxes: Sandboxes) -> None:
    """The host name is the job's, the only interface is a loopback that works, IPC is empty."""
    launch = sandboxes.plan(
        "sh", "-c", "hostname; cat /etc/hostname; tail -n +3 /proc/net/dev; cat /proc/sysvipc/shm | wc -l"
    )
    out = sandboxes.start_launch(launch).result().stdout.decode().splitlines()
    assert out[:2] == [launch.task.job_id[:12]] * 2
    assert len(out) == 4
    assert out[2].split()[0] == "lo:"
    assert out[3] == "1"


@pytest.mark.threat("B03")
@pytest.mark.skipif(shutil.which("perl") is None, reason="needs perl")
def test_abstract_sockets_of_the_host_are_not_reachable(sandboxes: Sandboxes) -> None:
    """A listener of the host on an abstract name and on loopback cannot be reached."""
    with socket.socket(socket.AF_UNIX) as unix, socket.create_server(("127.0.0.1", 0)) as tcp:
        unix.bind(f"\0joblet-test-{os.getpid()}")
        unix.listen()
        address = f'pack("Sx", 1) . "joblet-test-{os.getpid()}"'
        program = (
            f'use Socket; socket(S, PF_UNIX, SOCK_STREAM, 0); print connect(S, {address}) ? "U" : "u";'
            f" socket(T, PF_INET, SOCK_STREAM, 6); my $host = pack_sockaddr_in({tcp.getsockname()[1]},"
            ' inet_aton("127.0.0.1")); print connect(T, $host) ? "T" : "t";'
        )
        control = subprocess.run(["perl", "-e", program], capture_output=True, check=True)
        result = sandboxes.run("perl", "-e", program)
    assert control.stdout == b"UT", "the probe must connect where it is not hindered"
    assert result.stdout == b"ut"


@pytest.mark.threat("A11")
def test_set_uid_programs_give_nothing(sandboxes: Sandboxes) -> None:
    """A set-uid bit, the host's or the job's own, changes no uid."""
    out = sandboxes.shell("cp /usr/bin/id /work/id; chmod 6755 /work/id; /work/id -u; id -G", work_bytes=2**20).stdout
    assert out.split() == [b"1000", b"1000"]


@pytest.mark.requirement("S1.14")
@pytest.mark.threat("C07")
def test_work_has_its_size(sandboxes: Sandboxes) -> None:
    """/work holds one MiB unless more is asked for, and then not more than that."""
    script = "head -c 3000000 /dev/zero >/work/f; wc -c </work/f"
    assert int(sandboxes.shell(script).stdout) == 2**20
    assert int(sandboxes.shell(script, work_bytes=2 * 2**20).stdout) == 2 * 2**20


@pytest.mark.threat("C13")
def test_limits_do_not_depend_on_the_executor(sandboxes: Sandboxes) -> None:
    """No core dump, a bounded number of descriptors."""
    out = sandboxes.run("cat", "/proc/self/limits").stdout.decode()
    rows = {line[:26].strip(): line[26:].split() for line in out.splitlines()[1:]}
    assert rows["Max core file size"][:2] == ["1", "1"]
    assert rows["Max open files"][:2] == ["1024", "4096"]
    assert rows["Max realtime priority"][:2] == ["0", "0"]


@pytest.mark.threat("B08")
def test_cgroup_paths_tell_nothing(sandboxes: Sandboxes) -> None:
    """In its cgroup namespace every group is the root, and no cgroup file system is there to be written."""
    out = sandboxes.shell("cut -d: -f3 /proc/self/cgroup | sort -u; ls /sys/fs/cgroup").stdout
    assert out == b"/\n"


@pytest.mark.threat("A02")
def test_a_workdir_cannot_be_a_magic_link(sandboxes: Sandboxes) -> None:
    """A directory reached through /proc's magic links is refused when it is entered, too."""
    launch = sandboxes.plan("pwd")
    task = launch.task._replace(workdir="/proc/self/cwd")
    result = sandboxes.start_launch(launch._replace(task=task)).result()
    assert result.exit["failure"]["step"] == "workdir"
