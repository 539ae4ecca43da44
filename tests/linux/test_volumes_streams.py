"""The process of a tar stream: what it is left with, what it does with a volume, and how it ends."""

import asyncio
import contextlib
import io
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from common.errors import JobletError, Reason
from common.messages.volumes import Direction
from services.volumes.ports import Ids
from services.volumes.streams import ProcessStreams
from tests.unit.volume_tars import archive, entry, member
from tests.waiting import SLOWNESS, await_for, wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

IDS = Ids(101_000, 101_001)
ROOT = Path(__file__).parents[2]
MIB = 2**20
NAME = "volume-stream-0123456789abcdef0123456789abcdef.sock"


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A directory of a job's owner, on the way to which nobody but root comes, with a secret beside it."""
    shut = tmp_path / "volumes"
    shut.mkdir(0o700)
    (shut / "secret").write_text("secret")
    (shut / "secret").chmod(0o644)
    root = shut / "volume"
    root.mkdir()
    give(root)
    return root


def give(*paths: Path) -> None:
    """To the owner of the volume."""
    for path in paths:
        os.chown(path, *IDS, follow_symlinks=False)


class Api:
    """What api is to a stream: it listens, and does something with who connects, in a thread."""

    def __init__(self, talk: Callable[[socket.socket], None]) -> None:
        self._talk = talk
        self._directory = tempfile.TemporaryDirectory(prefix="v")
        self.path = str(Path(self._directory.name) / NAME)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.settimeout(20 * SLOWNESS)
        self._thread = threading.Thread(target=self._run)
        self.received = bytearray()

    def __enter__(self) -> "Api":
        self._listener.bind(self.path)
        self._listener.listen(1)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self._directory.cleanup()

    def _run(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        with connection:
            connection.settimeout(20 * SLOWNESS)
            self._talk(connection)


def waited(done: threading.Event) -> None:
    """What an api does that has gone to sleep with the connection."""
    assert done.wait(60 * SLOWNESS)


def exported(volume: Path, **options: Any) -> tuple[tuple[int, int], bytes]:
    """Numbers and archive. What is thrown carries what arrived as a note."""
    received = bytearray()
    with Api(lambda connection: drain(connection, received)) as api:
        numbers = asyncio.run(ProcessStreams(**options).run(str(volume), Direction.EXPORT, api.path, IDS))
    return numbers, bytes(received)


def imported(volume: Path, content: bytes, **options: Any) -> tuple[int, int]:
    """Numbers."""

    def send(connection: socket.socket) -> None:
        try:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)
        except (BrokenPipeError, ConnectionResetError):
            return

    with Api(send) as api:
        return asyncio.run(ProcessStreams(**options).run(str(volume), Direction.IMPORT, api.path, IDS))


def drain(connection: socket.socket, received: bytearray) -> None:
    """Read to the end."""
    while piece := connection.recv(MIB):
        received += piece


@pytest.mark.requirement("S1.45")
def test_a_volume_goes_out_and_comes_in(volume: Path, tmp_path: Path) -> None:
    """Owners are the job's own and nobody's outside; inside everything is the owner's, without set-id bits."""
    (volume / "d").mkdir(0o700)
    (volume / "d" / "file").write_bytes(os.urandom(3 * MIB))
    (volume / "d" / "mine").write_text("mine")
    (volume / "d" / "mine").chmod(0o4700)
    (volume / "link").symlink_to("/etc/passwd")
    give(volume / "d", volume / "d" / "mine", volume / "link")
    numbers, sent = exported(volume)
    assert numbers == (4, 3 * MIB + 4)
    with tarfile.open(fileobj=io.BytesIO(sent)) as opened:
        owners = {info.name: (info.uid, info.gid) for info in opened}
    nobody = (65_534, 65_534)
    assert owners == {"d": (1000, 1000), "d/file": nobody, "d/mine": (1000, 1000), "link": (1000, 1000)}
    again = tmp_path / "again"
    again.mkdir()
    give(again)
    assert imported(again, sent) == numbers
    assert (again / "d" / "file").read_bytes() == (volume / "d" / "file").read_bytes()
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in again.rglob("*")} == {IDS}
    assert stat.S_IMODE((again / "d" / "mine").stat().st_mode) == 0o700
    assert stat.S_IMODE((again / "d").stat().st_mode) == 0o700


@pytest.fixture
def in_a_group() -> Iterator[None]:
    """The service has a supplementary group."""
    before = os.getgroups()
    os.setgroups([54_321])
    yield
    os.setgroups(before)


def children() -> list[int]:
    """Processes that this one has begun. asyncio has a thread for each, which may end meanwhile."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += [int(pid) for pid in (task / "children").read_text().split()]
    return found


def stream_processes() -> list[int]:
    """Those that have become a stream, and are not what they were at first."""
    return [
        pid
        for pid in children()
        if Path(f"/proc/{pid}/comm").read_text() == "joblet-stream\n"
        and f"Uid:\t{IDS.uid}\t" in Path(f"/proc/{pid}/status").read_text()
    ]


POLL = {"x86_64": "7", "aarch64": "73"}[os.uname().machine]
"""Of asm/unistd_64.h; where there is no poll, ppoll."""


def waits(pid: int) -> bool:
    """Whether it is past all preparations: it waits for the other end."""
    return Path(f"/proc/{pid}/syscall").read_text().split()[0] == POLL


def while_it_waits(volume: Path, direction: Direction, look: Callable[[int], Coroutine[Any, Any, None]]) -> None:
    """Do something with the process of a stream whose other end neither reads nor writes; then cancel it."""
    done = threading.Event()

    async def run(path: str) -> None:
        running = asyncio.create_task(ProcessStreams().run(str(volume), direction, path, IDS))
        try:
            await await_for(lambda: running.done() or stream_processes(), what="the process to have its rights")
            assert not running.done(), running.result()
            await look(stream_processes()[0])
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            done.set()
        assert not stream_processes()

    with Api(lambda _: waited(done)) as api:
        asyncio.run(run(api.path))


@pytest.mark.threat("A11")
@pytest.mark.threat("A28")
@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.usefixtures("in_a_group")
def test_the_process_has_the_volume_and_no_right(volume: Path, direction: Direction) -> None:
    """Its user is the owner, it has no capability and gets none, its only mount is the volume, and little memory."""
    (volume / "large").write_bytes(os.urandom(8 * MIB))
    known = [path.stat() for path in (volume, volume / "large", Path("/dev/null"))]

    async def look(pid: int) -> None:
        proc = Path(f"/proc/{pid}")

        def fields() -> dict[str, str]:
            lines = (proc / "status").read_text().splitlines()
            return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

        await await_for(lambda: waits(pid), what="it to wait for the other end")
        status = fields()
        assert status["Uid"].split() == [str(IDS.uid)] * 4
        assert status["Gid"].split() == [str(IDS.gid)] * 4
        assert status["Groups"] == ""
        assert status["NoNewPrivs"] == "1"
        assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert int(status["VmHWM"].split()[0]) < 64 * 1024
        mounts = [line.split() for line in (proc / "mountinfo").read_text().splitlines()]
        assert [mount[4] for mount in mounts] == ["/"]
        options = set(mounts[0][5].split(","))
        assert {"nosuid", "nodev", "noexec"} <= options
        assert ("ro" in options) == (direction is Direction.EXPORT)
        assert sorted(path.name for path in (proc / "root").iterdir()) == ["large"]
        assert (proc / "environ").read_bytes() == b""
        for descriptor in (proc / "fd").iterdir():
            opened = descriptor.stat()
            assert stat.S_ISSOCK(opened.st_mode) or any(os.path.samestat(opened, one) for one in known)

    while_it_waits(volume, direction, look)


def test_nothing_of_the_host_is_kept_busy(volume: Path, tmp_path: Path) -> None:
    """What is mounted besides can be let go during an export: no copy of its mount is with the process."""
    other = tmp_path / "other"
    other.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(other)], check=True)
    device = f"{os.major(other.stat().st_dev)}:{os.minor(other.stat().st_dev)}"
    (volume / "large").write_bytes(bytes(4 * MIB))

    async def look(pid: int) -> None:
        seen = await asyncio.to_thread(Path(f"/proc/{pid}/mountinfo").read_text)
        assert device not in seen
        assert len(seen.splitlines()) == 1

    try:
        while_it_waits(volume, Direction.EXPORT, look)
    finally:
        subprocess.run(["umount", str(other)], check=True)


def test_it_ends_with_the_service(volume: Path) -> None:
    """Also when the service is killed."""
    program = (
        "import asyncio, sys; sys.path.insert(0, sys.argv[1])\n"
        "from common.messages.volumes import Direction\n"
        "from services.volumes.ports import Ids\n"
        "from services.volumes.streams import ProcessStreams\n"
        "asyncio.run(ProcessStreams().run(sys.argv[2], Direction.IMPORT, sys.argv[3], Ids(101000, 101001)))\n"
    )
    done = threading.Event()
    with Api(lambda _: waited(done)) as api:
        service = subprocess.Popen([sys.executable, "-c", program, str(ROOT), str(volume), api.path])
        theirs = Path(f"/proc/{service.pid}/task/{service.pid}/children")

        def waiting() -> list[int]:
            # die_with comes last: it waits for the other end only when it will die with the service.
            return [
                int(pid)
                for pid in theirs.read_text().split()
                if Path(f"/proc/{pid}/comm").read_text() == "joblet-stream\n" and waits(int(pid))
            ]

        try:
            (pid,) = wait_for(waiting, what="the process to wait for the other end")
        finally:
            service.kill()
            service.wait()
        wait_for(lambda: not Path(f"/proc/{pid}").exists(), what="the process to end, too")
        done.set()


@pytest.mark.parametrize("direction", list(Direction))
def test_one_that_stands_still_is_ended(volume: Path, direction: Direction) -> None:
    """DEADLINE, with words, and no process is left."""
    (volume / "large").write_bytes(os.urandom(8 * MIB))
    done, before = threading.Event(), children()  # such as the node of another file's tests
    with Api(lambda _: waited(done)) as api:
        with pytest.raises(JobletError) as stalled:
            asyncio.run(ProcessStreams(stall_s=0.2).run(str(volume), direction, api.path, IDS))
        done.set()
    assert stalled.value.reason is Reason.DEADLINE
    assert "stood still" in stalled.value.message
    assert set(children()) <= set(before)


@pytest.mark.parametrize(("direction", "reason"), [("export", Reason.UNAVAILABLE), ("import", Reason.INVALID)])
def test_one_that_goes_away_is_told(volume: Path, direction: str, reason: Reason) -> None:
    """An export has no receiver any more; an import is cut off, and what was whole stays."""
    (volume / "large").write_bytes(os.urandom(8 * MIB))

    def go(connection: socket.socket) -> None:
        if direction == "import":
            connection.sendall(archive(member("whole", b"x"))[:-1024] + entry(*member("half", b"x" * 5000))[:3000])
        else:
            connection.recv(1000)

    with Api(go) as api, pytest.raises(JobletError) as gone:
        asyncio.run(ProcessStreams().run(str(volume), Direction(direction), api.path, IDS))
    assert gone.value.reason is reason
    assert sorted(path.name for path in volume.iterdir()) == (
        ["large", "whole"] if direction == "import" else ["large"]
    )


def test_one_that_is_killed_is_told(volume: Path) -> None:
    """An end without a word is an error, that may be tried again."""
    done = threading.Event()

    async def run(path: str) -> None:
        running = asyncio.create_task(ProcessStreams().run(str(volume), Direction.IMPORT, path, IDS))
        await await_for(stream_processes, what="the process")
        os.kill(stream_processes()[0], signal.SIGKILL)
        try:
            await running
        finally:
            done.set()

    with Api(lambda _: waited(done)) as api, pytest.raises(JobletError) as killed:
        asyncio.run(run(api.path))
    assert (killed.value.reason, killed.value.retryable) == (Reason.INTERNAL, True)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A volume of 1 MiB and 30 inodes."""
    root = tmp_path / "small"
    root.mkdir()
    options = f"size=1m,nr_inodes=30,uid={IDS.uid},gid={IDS.gid},mode=755"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(root)], check=False)
    if done.returncode:
        pytest.skip("this host does not let us mount")
    yield root
    subprocess.run(["umount", str(root)], check=True)


@pytest.mark.threat("C07")
@pytest.mark.requirement("S1.45")
@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_a_full_volume_is_told_with_the_entry(small: Path, what: str) -> None:
    """EXHAUSTED names it; what came before stays, the half of a file does not."""
    many = [member(f"file-{number:02}", b"x") for number in range(40)]
    large = [member("before", b"x"), member("d/large", os.urandom(2 * MIB)), member("after", b"x")]
    with pytest.raises(JobletError) as refused:
        imported(small, archive(*(many if what == "inodes" else large)))
    assert refused.value.reason is Reason.EXHAUSTED
    assert ("'d/large'" if what == "bytes" else "'file-") in refused.value.message
    assert "stays" in refused.value.detail
    if what == "bytes":
        assert sorted(str(path.relative_to(small)) for path in small.rglob("*")) == ["before", "d"]
    else:
        assert (small / "file-00").read_text() == "x"


def test_what_the_owner_cannot_read_is_told_and_the_rest_is_sent(volume: Path) -> None:
    """PRECONDITION with name and repair, and yet a whole archive of everything else."""
    for name in ("one", "two"):
        (volume / name).write_text("x")
        (volume / name).chmod(0o600)  # root's
    (volume / "shut").mkdir(0o000)
    (volume / "open").write_text("content")
    give(volume / "shut", volume / "open")
    received = bytearray()
    with Api(lambda connection: drain(connection, received)) as api, pytest.raises(JobletError) as refused:
        asyncio.run(ProcessStreams().run(str(volume), Direction.EXPORT, api.path, IDS))
    assert refused.value.reason is Reason.PRECONDITION
    assert "(and 2 more) could not be read: Permission denied" in refused.value.message
    with tarfile.open(fileobj=io.BytesIO(bytes(received))) as opened:
        assert opened.getnames() == ["open"]


@pytest.mark.threat("A03")
def test_links_in_the_volume_lead_nowhere(volume: Path) -> None:
    """Neither out of it for an import, nor into the host for an export."""
    (volume / "up").symlink_to("..")
    (volume / "secret").symlink_to("../secret")
    give(volume / "up", volume / "secret")
    with pytest.raises(JobletError) as refused:
        imported(volume, archive(member("up/new", b"x")))
    assert refused.value.reason is Reason.INVALID
    assert sorted(path.name for path in volume.parent.iterdir()) == ["secret", "volume"]
    _, sent = exported(volume)
    with tarfile.open(fileobj=io.BytesIO(sent)) as opened:
        assert sorted((info.name, info.linkname) for info in opened) == [("secret", "../secret"), ("up", "..")]


def test_root_is_nobodys_owner(volume: Path) -> None:
    """Files of jobs are never root's: such ids are refused before anything begins."""
    for ids in (Ids(0, 101_000), Ids(101_000, 0)):
        with pytest.raises(JobletError) as refused:
            asyncio.run(ProcessStreams().run(str(volume), Direction.EXPORT, f"/nonexistent/{NAME}", ids))
        assert refused.value.reason is Reason.INTERNAL


def test_a_source_that_is_a_link_is_refused(volume: Path) -> None:
    """It is the volume's own directory, or nothing."""
    link = volume.parent / "link"
    link.symlink_to(volume)
    with pytest.raises(NotADirectoryError):
        asyncio.run(ProcessStreams().run(str(link), Direction.EXPORT, f"/nonexistent/{NAME}", IDS))


@pytest.mark.parametrize("known", [False, True])
def test_only_apis_socket_is_trusted(volume: Path, known: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """Whoever else listens there is DENIED, and sees nothing."""
    program = (
        "import os, socket, sys; os.setresuid(12345, 12345, 12345)\n"
        "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(1); print(flush=True)\n"
        "c, _ = s.accept()\n"
        "while b := c.recv(100000): os.write(1, b)\n"
    )
    directory = tempfile.mkdtemp(prefix="v")
    os.chown(directory, 12_345, -1)
    path = f"{directory}/{NAME}"
    stranger = subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE)
    try:
        assert stranger.stdout is not None
        stranger.stdout.readline()
        streams = ProcessStreams(peers=frozenset({12_345}) if known else frozenset())
        running = streams.run(str(volume), Direction.EXPORT, path, IDS)
        if known:
            assert asyncio.run(running) == (0, 0)
        else:
            with pytest.raises(JobletError) as refused:
                asyncio.run(running)
            assert refused.value.reason is Reason.DENIED
        assert stranger.stdout.read() == (bytes(1024) if known else b"")
    finally:
        stranger.kill()
        stranger.communicate()
        shutil.rmtree(directory)


def test_without_root_it_works_as_who_it_is() -> None:
    """There is no mount and no drop; the walk alone keeps it in the directory. Owners are the job's to who looks."""
    home = Path(tempfile.mkdtemp(prefix="v"))
    program = (
        "import asyncio, os, socket, sys, threading; sys.path.insert(0, sys.argv[1])\n"
        "from common.messages.volumes import Direction\n"
        "from services.volumes.ports import Ids\n"
        "from services.volumes.streams import ProcessStreams\n"
        "assert os.geteuid() == 1234\n"
        "os.chdir(sys.argv[2]); os.mkdir('volume'); open('volume/file', 'w').write('content')\n"
        "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[3]); s.listen(1); got = []\n"
        "def talk():\n"
        "  c, _ = s.accept()\n"
        "  while b := c.recv(100000): got.append(b)\n"
        "t = threading.Thread(target=talk); t.start()\n"
        "print(asyncio.run(ProcessStreams().run('volume', Direction.EXPORT, sys.argv[3], Ids(0, 0))))\n"
        "t.join(); open('out.tar', 'wb').write(b''.join(got))\n"
    )
    # Root, who calls himself somebody else in a user namespace of his own: no right is left, the files are his.
    command = ["unshare", "--user", "--map-user=1234", "--map-group=1234", sys.executable, "-c", program]
    try:
        path = f"{home}/{NAME}"
        ran = subprocess.run([*command, str(ROOT), str(home), path], capture_output=True, text=True, check=False)
        assert ran.stdout == "(1, 7)\n", ran.stderr
        with tarfile.open(home / "out.tar") as opened:
            assert [(info.name, info.uid, info.gid) for info in opened] == [("file", 1000, 1000)]
    finally:
        shutil.rmtree(home)
