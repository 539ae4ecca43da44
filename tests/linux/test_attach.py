"""Volumes of running jobs: what appears, what leaves, and what a hostile job makes of it."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from common.errors import JobletError, Reason
from common.identifiers import JobId
from common.linux import mounts
from common.messages.volumes import PreparedVolume
from common.records import Stream
from services.executor.attachments import KernelAttachments
from services.executor.control import send_stop
from services.executor.launcher.attach import ATTACH, Change
from services.executor.launcher.task import LENGTH_BYTES
from services.executor.monitors import open_inside
from tests.e2e.test_rootless import as_user
from tests.leaks import children_of
from tests.linux.sandboxes import IDENTITY, Launched, Sandboxes, alive, fields, host_mounts, prepared
from tests.waiting import SLOWNESS, wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

CYCLES: Final = 100
SWAPS: Final = 150
IDLE_DESCRIPTORS: Final = 4  # of a launcher that has no request: three standard ones and the requests
IDLE: Final = "echo up; while [ ! -e /work/end ]; do sleep 0.02; done"
BUSY: Final = """
until [ -e /work/go ]; do sleep 0.02; done
{enter}; echo in
until [ -e /work/leave ]; do sleep 0.02; done
{leave}; echo out
until [ -e /work/end ]; do sleep 0.02; done
"""


MS_SHARED: Final = 0x10_0000
WITHOUT_ROOT: Final = """
import asyncio, pathlib, sys, tempfile
from services.executor.attachments import KernelAttachments
from services.executor.rootless import own_identity
from tests.linux.sandboxes import Sandboxes, prepared
from tests.linux.test_attach import mounts_of
with tempfile.TemporaryDirectory() as base:
    source = pathlib.Path(base, "source")
    source.mkdir()
    (source / "here").write_text("content")
    volume = prepared(source, "/volumes/data", read_only=True)
    identity = own_identity("")
    with Sandboxes(pathlib.Path(base), identity) as opened:
        job = opened.start("sh", "-c", sys.argv[1])
        job.wait_for_output(b"begun")
        before = mounts_of(job)
        port = KernelAttachments(opened.launcher, opened.layout)
        asyncio.run(port.attach(job.directory.name, job.main_pid(), volume, identity))
        job.wait_for_output(b"content")
        (attached,) = set(mounts_of(job)) - set(before)
        asyncio.run(port.detach(job.directory.name, job.main_pid(), volume, force=False))
        job.wait_for_output(b"gone")
        print(attached.split()[2:4], mounts_of(job) == before)
"""


class Attaching:
    """A volume, and the real port by which jobs get it."""

    def __init__(self, sandboxes: Sandboxes, source: Path) -> None:
        self.port = KernelAttachments(sandboxes.launcher, sandboxes.layout)
        self.source = source

    def prepared(self, path: str, *, read_only: bool = False) -> PreparedVolume:
        """What the volumes service would answer."""
        return prepared(self.source, path, read_only=read_only, name="data")

    def on_host(self) -> list[str]:
        """Where the host sees the volume's file system; others mount what they like meanwhile."""
        found = self.source.stat()
        device = f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}"
        lines = host_mounts()
        return [line for line in lines if line.split()[2] == device]

    def attach(self, job: Launched, path: str = "/volumes/data", *, read_only: bool = False, pid: int = 0) -> None:
        """Let it appear. Raises JobletError."""
        pid = pid or job.main_pid()
        asyncio.run(self.port.attach(job_id(job), pid, self.prepared(path, read_only=read_only), IDENTITY))

    def tried(self, job: Launched, path: str) -> JobletError | None:
        """What an attach is refused with; None: it is there."""
        try:
            self.attach(job, path)
        except JobletError as error:
            return error
        return None

    def detach(self, job: Launched, path: str = "/volumes/data", *, force: bool = False) -> None:
        """Let it leave. Raises JobletError."""
        asyncio.run(self.port.detach(job_id(job), job.main_pid(), self.prepared(path), force=force))


def job_id(job: Launched) -> JobId:
    """The job's id is its directory's name."""
    return JobId(job.directory.name)


def inside(job: Launched, path: str) -> Path:
    """A path of the job's as the host's root sees it."""
    return Path(f"/proc/{job.main_pid()}/root{path}")


def mounts_of(job: Launched) -> list[str]:
    """The job's mounts, without their numbers: place, what is shown there, and flags."""
    lines = Path(f"/proc/{job.main_pid()}/mountinfo").read_text().splitlines()
    return [" ".join(line.split()[2:]) for line in lines]


def refusal(act: Callable[[], None]) -> JobletError:
    """What `act` is refused with."""
    with pytest.raises(JobletError) as raised:
        act()
    assert raised.value.detail or raised.value.reason is Reason.NOT_FOUND
    return raised.value


@pytest.fixture
def sandboxes(tmp_path: Path) -> Iterator[Sandboxes]:
    """A launcher with a base directory of its own."""
    with Sandboxes(tmp_path) as opened:
        yield opened


@pytest.fixture
def volume(sandboxes: Sandboxes, tmp_path: Path) -> Iterator[Attaching]:
    """A tmpfs with a directory in it that belongs to the job."""
    mounted = tmp_path / "volume"
    mounted.mkdir()
    mounts.mount("tmpfs", str(mounted), "tmpfs", 0, "size=1m,mode=0700")
    mounts.mount("none", str(mounted), None, MS_SHARED)  # as systemd has every mount
    source = mounted / "data"
    source.mkdir()
    os.chown(source, IDENTITY.uid, IDENTITY.gid)
    (source / "here").write_text("content\n")
    try:
        yield Attaching(sandboxes, source)
    finally:
        mounts.umount2(str(mounted), mounts.MNT_DETACH)


def start(sandboxes: Sandboxes, script: str = IDLE) -> Launched:
    """A job that has begun to run."""
    job = sandboxes.start("sh", "-c", f"echo begun; {script}")
    job.wait_for_output(b"begun")
    job.main_pid()
    return job


@pytest.mark.requirement("S1.18")
def test_a_volume_appears_in_a_running_job_and_leaves_it(sandboxes: Sandboxes, volume: Attaching) -> None:
    """The job finds it by itself, reads, writes as its owner; then it is gone, and every mount is as before."""
    script = """
    until [ -e /volumes/data/here ]; do sleep 0.02; done
    cat /volumes/data/here; echo mine >/volumes/data/written; echo done
    while [ -e /volumes/data ]; do sleep 0.02; done
    echo gone; until [ -e /work/end ]; do sleep 0.02; done
    """
    job = start(sandboxes, script)
    before, host_before = mounts_of(job), volume.on_host()
    volume.attach(job)
    assert volume.on_host() == host_before
    job.wait_for_output(b"content\ndone\n")
    (mounted,) = set(mounts_of(job)) - set(before)
    assert mounted.split()[2:4] == ["/volumes/data", "rw,nosuid,nodev,relatime"]
    assert "shared" not in mounted, "what is mounted there on the host would appear in the job"
    volume.detach(job)
    job.wait_for_output(b"gone")
    assert mounts_of(job) == before
    assert volume.on_host() == host_before
    written = volume.source / "written"
    assert (written.read_text(), written.stat().st_uid) == ("mine\n", IDENTITY.uid)


def test_a_read_only_volume_cannot_be_written(sandboxes: Sandboxes, volume: Attaching) -> None:
    """Not even by its owner; the same volume is writable for others."""
    job = start(sandboxes, "until [ -e /volumes/data/here ]; do sleep 0.02; done; touch /volumes/data/x; echo $?")
    volume.attach(job, read_only=True)
    assert b"Read-only file system" in job.result().stderr
    (volume.source / "x").write_text("by the host")


@pytest.mark.parametrize(
    ("enter", "leave"),
    [
        ("cd /volumes/data", "cd /"),
        ("exec 7</volumes/data/here", "exec 7<&-"),
        ("exec 7>/volumes/data/new", "exec 7>&-"),
    ],
)
def test_a_volume_in_use_stays_until_it_is_left(
    sandboxes: Sandboxes, volume: Attaching, enter: str, leave: str
) -> None:
    """A working directory or an open file keeps it, and the refusal tells what to do."""
    job = start(sandboxes, BUSY.format(enter=enter, leave=leave))
    before = mounts_of(job)
    volume.attach(job)
    attached = mounts_of(job)
    inside(job, "/work/go").touch()
    job.wait_for_output(b"in\n")
    busy = refusal(lambda: volume.detach(job))
    assert busy.reason is Reason.PRECONDITION
    assert str(busy) == (
        f"a process of job {job_id(job)} has something open in volume data: stop it or close it, or use --force"
    )
    assert mounts_of(job) == attached
    inside(job, "/work/leave").touch()
    job.wait_for_output(b"out\n")
    volume.detach(job)
    assert mounts_of(job) == before


def test_force_takes_a_volume_that_is_in_use(sandboxes: Sandboxes, volume: Attaching) -> None:
    """What is open stays open; by its path nothing is found any more."""
    leave = "echo more >&7; ls /volumes"
    job = start(sandboxes, BUSY.format(enter="exec 7>/volumes/data/log", leave=leave))
    before = mounts_of(job)
    volume.attach(job)
    inside(job, "/work/go").touch()
    job.wait_for_output(b"in\n")
    volume.detach(job, force=True)
    assert mounts_of(job) == before
    inside(job, "/work/leave").touch()
    assert job.wait_for_output(b"out\n").endswith(b"in\nout\n")
    assert (volume.source / "log").read_text() == "more\n"


def test_many_cycles_leave_everything_as_it_was(sandboxes: Sandboxes, volume: Attaching) -> None:
    """Mounts of host and job, what the launcher has open, and the directory /volumes."""
    job = start(sandboxes)
    host_before, before = volume.on_host(), mounts_of(job)
    for _ in range(CYCLES):
        volume.attach(job)
        assert len(mounts_of(job)) == len(before) + 1
        volume.detach(job)
    assert (volume.on_host(), mounts_of(job)) == (host_before, before)
    assert not list(inside(job, "/volumes").iterdir())
    # Those of the last request it closes when it comes to it: the answer is another process's.
    descriptors = Path(f"/proc/{sandboxes.launcher.pid}/fd")
    wait_for(lambda: len(list(descriptors.iterdir())) == IDLE_DESCRIPTORS, what="the launcher to close what it got")
    wait_for(lambda: not children_of(sandboxes.launcher.pid) - {job.monitor}, what="the processes to end")


def test_the_same_again_is_nothing(sandboxes: Sandboxes, volume: Attaching) -> None:
    """As after an executor that did not live to tell: attached is attached. Elsewhere or otherwise it is refused."""
    job = start(sandboxes)
    volume.attach(job)
    attached = mounts_of(job)
    volume.attach(job)
    for path, read_only in (("/volumes/other", False), ("/volumes/data", True)):
        again = refusal(lambda path=path, read_only=read_only: volume.attach(job, path, read_only=read_only))  # type: ignore[misc]
        assert (again.reason, "mounted in the job already" in again.message) == (Reason.PRECONDITION, True)
    assert mounts_of(job) == attached
    volume.detach(job)
    assert refusal(lambda: volume.detach(job)).reason is Reason.NOT_FOUND


@pytest.mark.parametrize(
    ("path", "reason", "words"),
    [
        ("/data", Reason.INVALID, "no such directory"),
        ("/volumes/a/b", Reason.INVALID, "no such directory"),
        ("/work/link", Reason.INVALID, "symbolic link"),
        ("/work/link/x", Reason.INVALID, "symbolic link"),
        ("/work/up/x", Reason.INVALID, "symbolic link"),
        ("/work/file", Reason.INVALID, "no directory"),
        ("/work/file/x", Reason.INVALID, "no directory"),
        ("/work", Reason.PRECONDITION, "something is mounted"),
        ("/tmp", Reason.PRECONDITION, "something is mounted"),
        ("/volumes", Reason.PRECONDITION, "something is mounted"),
    ],
)
def test_where_nothing_can_be_attached(
    sandboxes: Sandboxes, volume: Attaching, path: str, reason: Reason, words: str
) -> None:
    """The refusal says why, and what to use; nothing is mounted, and no directory is left."""
    job = start(sandboxes, f"ln -s /proc /work/link; ln -s .. /work/up; touch /work/file; {IDLE}")
    job.wait_for_output(b"up")
    before = mounts_of(job)
    refused = refusal(lambda: volume.attach(job, path))
    assert (refused.reason, words in refused.message) == (reason, True), refused
    if reason is Reason.INVALID:
        assert refused.detail == "use /volumes/NAME or a directory below /work"
    assert mounts_of(job) == before
    assert not list(inside(job, "/volumes").iterdir())


def test_new_directories_below_work_are_the_jobs(sandboxes: Sandboxes, volume: Attaching) -> None:
    """And stay when the volume goes; the one below /volumes is root's."""
    job = start(sandboxes)
    volume.attach(job, "/work/a/b/data")
    volume.detach(job)
    for path in ("/work/a", "/work/a/b", "/work/a/b/data"):
        found = inside(job, path).stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (IDENTITY.uid, IDENTITY.gid, 0o755)
    volume.attach(job, "/tmp/data")
    volume.detach(job)
    volume.attach(job)
    assert inside(job, "/volumes").stat().st_uid == IDENTITY.range_first


@pytest.mark.threat("A03")
def test_the_job_changes_nothing_in_the_directory_of_its_volumes(sandboxes: Sandboxes, volume: Attaching) -> None:
    """It makes, renames and removes nothing there, with a volume in it and without."""
    tries = "for try in 'touch x' 'mkdir x' 'mv data x' 'rmdir data' 'ln -s / x' 'chmod 777 .'; do"
    tries += " (cd /volumes; $try 2>/dev/null && echo done: $try); done"
    job = start(sandboxes, f"{tries}; until [ -e /volumes/data/here ]; do sleep 0.02; done; {tries}; {IDLE}")
    volume.attach(job)
    assert job.wait_for_output(b"up\n") == b"begun\nup\n"


def test_a_full_work_has_no_room_for_a_directory(sandboxes: Sandboxes, volume: Attaching) -> None:
    """It is told, and nothing is mounted."""
    job = start(sandboxes, "mkdir $(seq -f /work/%g 5000) 2>/dev/null || echo full; sleep 60")
    job.wait_for_output(b"full")
    before = mounts_of(job)
    assert refusal(lambda: volume.attach(job, "/work/data")).reason is Reason.EXHAUSTED
    assert mounts_of(job) == before


@pytest.mark.threat("A03")
def test_another_directory_in_the_volumes_place_is_not_mounted(sandboxes: Sandboxes, volume: Attaching) -> None:
    """What stands at the source is verified on the descriptor: another directory, a link to one, nothing."""
    job = start(sandboxes)
    before = mounts_of(job)
    wanted = volume.prepared("/volumes/data")
    moved = volume.source.with_name("moved")
    volume.source.rename(moved)

    def attach() -> None:
        asyncio.run(volume.port.attach(job_id(job), job.main_pid(), wanted, IDENTITY))

    replacements: tuple[Callable[[], None], ...] = (
        lambda: None,
        volume.source.mkdir,
        lambda: _replace_by_link(volume.source, moved),
    )
    for replace in replacements:
        replace()
        refused = refusal(attach)
        assert refused.reason is Reason.INTERNAL
        assert str(volume.source) not in str(refused), "places of the node are not told"
        assert mounts_of(job) == before


def _replace_by_link(path: Path, target: Path) -> None:
    path.rmdir()
    path.symlink_to(target)


@pytest.mark.threat("A03")
@pytest.mark.parametrize("target", ["/proc", "/", "/volumes", "/dev"])
def test_a_job_that_swaps_directories_for_links_moves_no_mount(
    sandboxes: Sandboxes, volume: Attaching, target: str
) -> None:
    """While it exchanges what is above the mount point for a link, volumes come and go: below /work, or not at all.

    After it every mount of the job, the masks of /proc among them, is as it was, and so are the host's.
    """
    script = f"""
    mkdir -p /work/a/data /work/z; ln -s {target} /work/l
    while [ ! -e /work/end ]; do
      mv -T /work/a /work/b; mv -T /work/l /work/a; mv -T /work/a /work/l; mv -T /work/b /work/a
    done; echo over; sleep 60
    """
    job = start(sandboxes, f"echo up; {script}")
    job.wait_for_output(b"up")
    host_before, before = volume.on_host(), mounts_of(job)
    tries = done = 0

    def try_once() -> bool:
        nonlocal tries, done
        refused = volume.tried(job, "/work/a/data")
        assert refused is None or refused.reason in (Reason.INVALID, Reason.PRECONDITION), refused
        places = [line.split()[2] for line in set(mounts_of(job)) - set(before)]
        assert all(place.startswith("/work/") for place in places), places
        assert len(places) <= 1
        tries, done = tries + 1, done + len(places)
        if places:
            volume.detach(job, "/work/a/data")
        assert mounts_of(job) == before
        return tries >= SWAPS and done > SWAPS // 20

    wait_for(try_once, timeout_s=60, what="attaches enough: else nothing was attacked")
    assert volume.on_host() == host_before
    inside(job, "/work/end").touch()
    job.wait_for_output(b"over")


@pytest.mark.threat("A03")
@pytest.mark.parametrize("name", ["b", "b\rb", "b\nb", "b\v\f b\\"], ids=repr)
def test_what_the_job_renames_is_found(sandboxes: Sandboxes, volume: Attaching, name: str) -> None:
    """A volume whose path has become another by a rename above it leaves from where it is, whatever that is called."""
    move = f"mv /work/a '/work/{name}'; mkdir -p /work/a/data"
    job = start(sandboxes, f"until [ -e /work/a/data/here ]; do sleep 0.02; done; {move}; {IDLE}")
    before = mounts_of(job)
    volume.attach(job, "/work/a/data")
    job.wait_for_output(b"up")
    assert inside(job, f"/work/{name}/data/here").exists()
    assert refusal(lambda: volume.attach(job, "/work/a/data")).reason is Reason.PRECONDITION
    volume.detach(job, "/work/a/data")
    assert mounts_of(job) == before


@pytest.mark.threat("A03")
def test_only_the_volume_is_unmounted(sandboxes: Sandboxes, volume: Attaching, tmp_path: Path) -> None:
    """Another mount at its path is left alone, also by force."""
    job = start(sandboxes)
    other = Attaching(sandboxes, tmp_path / "other")
    other.source.mkdir()
    other.attach(job)
    attached = mounts_of(job)
    for path in ("/volumes/data", "/proc", "/work", "/"):
        assert refusal(lambda path=path: volume.detach(job, path, force=True)).reason is Reason.NOT_FOUND  # type: ignore[misc]
        assert mounts_of(job) == attached
    other.detach(job)


def test_a_job_that_has_ended_gets_nothing(sandboxes: Sandboxes, volume: Attaching) -> None:
    """Neither by its own pid nor by that of another job or of the host."""
    ended, other = start(sandboxes, "true"), start(sandboxes)
    ended.result()
    others, host = mounts_of(other), volume.on_host()
    for pid in (ended.main_pid(), other.main_pid(), 1, os.getpid()):
        refused = refusal(lambda pid=pid: volume.attach(ended, pid=pid))  # type: ignore[misc]
        assert (refused.reason, "has ended" in refused.message) == (Reason.PRECONDITION, True)
    for pid in (1, os.getpid(), other.monitor):
        assert open_inside(other.directory, pid) is None
    assert (mounts_of(other), volume.on_host()) == (others, host)


def test_a_job_killed_in_between_ends_all_the_same(sandboxes: Sandboxes, volume: Attaching) -> None:
    """Killed while volumes come and go: each request has an answer, no process stays, the volume can be unmounted."""
    host_before = volume.on_host()
    for delay in range(8):
        job = start(sandboxes, "sleep 60")

        async def race(job: Launched = job, delay: int = delay) -> None:
            wanted = volume.prepared("/volumes/data")
            change = asyncio.create_task(volume.port.attach(job_id(job), job.main_pid(), wanted, IDENTITY))
            await asyncio.sleep(delay / 2000)
            send_stop(job.directory, signal=signal.SIGKILL, grace_ms=0)
            (outcome,) = await asyncio.gather(change, return_exceptions=True)
            assert outcome is None or (isinstance(outcome, JobletError) and outcome.reason is Reason.PRECONDITION)

        asyncio.run(race())
        assert job.result().exit["signal"] == signal.SIGKILL
    wait_for(lambda: not children_of(sandboxes.launcher.pid), what="the processes to end")
    assert volume.on_host() == host_before


@pytest.mark.threat("A28")
def test_the_process_in_between_is_out_of_the_jobs_reach(sandboxes: Sandboxes) -> None:
    """In the host's PID namespace, not dumpable, without new privileges, with its own descriptors only."""
    job = start(sandboxes)
    caller, theirs = socket.socketpair()
    init = open_inside(job.directory, job.main_pid())
    assert init is not None
    with caller:
        with theirs:
            assert sandboxes.launcher._requests is not None  # the request is made here, and not sent to its end
            socket.send_fds(sandboxes.launcher._requests, [ATTACH], [theirs.fileno(), init])
        os.close(init)
        (process,) = wait_for(lambda: children_of(sandboxes.launcher.pid) - {job.monitor}, what="the process")
        wait_for(lambda: Path(f"/proc/{process}/comm").read_text() == "joblet-attach\n", what="its title")
        status = fields(Path(f"/proc/{process}/status").read_bytes())
        assert (len(status["NSpid"].split()), status["NoNewPrivs"]) == (1, "1")
        assert Path(f"/proc/{process}/ns/pid").readlink() == Path("/proc/self/ns/pid").readlink()
        assert len(list(Path(f"/proc/{process}/fd").iterdir())) == 5, "three standard ones, the caller, the pidfd"
        assert os.getsid(process) == process
    wait_for(lambda: not alive(process), what="its end: nobody asks any more")


def test_nothing_is_mounted_for_who_has_given_up(sandboxes: Sandboxes, volume: Attaching) -> None:
    """A launcher that comes to a request too late finds the caller gone, and leaves it."""
    job = start(sandboxes)
    before = mounts_of(job)
    wanted = volume.prepared("/volumes/data")
    change = Change(root=wanted.root, path=wanted.mount.path, source=wanted.source).encode()
    init = open_inside(job.directory, job.main_pid())
    assert init is not None
    assert sandboxes.launcher._requests is not None  # the request is made here, without waiting for the answer
    os.kill(sandboxes.launcher.pid, signal.SIGSTOP)
    caller, theirs = socket.socketpair()
    with caller, theirs:
        socket.send_fds(sandboxes.launcher._requests, [ATTACH], [theirs.fileno(), init])
        caller.sendall(len(change).to_bytes(LENGTH_BYTES, "little") + change)
    os.close(init)
    os.kill(sandboxes.launcher.pid, signal.SIGCONT)
    volume.attach(job, "/volumes/other")  # answered after the one before it was begun
    wait_for(lambda: not children_of(sandboxes.launcher.pid) - {job.monitor}, what="the processes to end")
    volume.detach(job)
    assert mounts_of(job) == before
    assert not list(inside(job, "/volumes").iterdir())


def test_a_launcher_that_died_is_started_again(sandboxes: Sandboxes, volume: Attaching) -> None:
    """An attach finds a new one, as a launch does; the job's mounts are what they were."""
    job = start(sandboxes)
    volume.attach(job)
    old = sandboxes.launcher.pid
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: not alive(old), what="the launcher to die")
    volume.detach(job)
    assert sandboxes.launcher.pid != old
    assert job.output(Stream.STDERR) == b""


def test_it_works_without_root() -> None:
    """A node of an ordinary user carries a volume through the job's own user namespace."""
    script = "echo begun; until [ -e /volumes/data/here ]; do sleep 0.02; done; cat /volumes/data/here"
    script += "; while [ -e /volumes/data/here ]; do sleep 0.02; done; echo gone; sleep 60"
    command = as_user(sys.executable, "-c", WITHOUT_ROOT, script)
    root = Path(__file__).parents[2]
    shown = subprocess.run(command, cwd=root, capture_output=True, check=False, timeout=60 * SLOWNESS)
    assert shown.stdout.decode().strip() == "['/volumes/data', 'ro,nosuid,nodev,relatime'] True", shown.stderr.decode()
