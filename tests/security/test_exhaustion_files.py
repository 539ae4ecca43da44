"""Files, directories, descriptors, terminals and output: floods of them end at the job's own bound. C07, C13, C17.

Everything a job can write lies in its own file systems, which go with it: so the host is only asked whether it is as
before. What the kernel counts by user is at the end: whom a flood of one owner's jobs can reach.
"""

import os
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.node import SERVICES, Node
from tests.security.attack import in_job
from tests.soak.holding import alive, holding, probe
from tests.soak.host import unharmed

MIB: Final = 2**20
SERVICE_GROWTH_BYTES_MAX: Final = 64 * MIB

FLOOD: Final = """
found = {}
for top in ("/work", "/tmp", "/dev/shm"):
    size, taken = os.statvfs(top), 0
    file = os.open(top + "/large", os.O_CREAT | os.O_WRONLY)
    try:
        while True:
            taken += os.write(file, bytes(1 << 20))
    except OSError as error:
        found[top] = [size.f_blocks * size.f_frsize, taken, errno.errorcode[error.errno]]
    os.close(file)
    os.unlink(top + "/large")
for top in ("/work", "/tmp"):
    make = lambda number: os.close(os.open("%s/%d" % (top, number), os.O_CREAT | os.O_WRONLY))
    kept, error = refusals(make, 10**6)
    found[top] += [os.statvfs(top).f_files, len(kept), error]
say(found=found)
"""


@pytest.mark.threat("C07")
def test_floods_of_bytes_and_of_files_end_at_the_size(node: Node) -> None:
    """Each file system of the job takes what it says and no more, in bytes and in files; then it is ENOSPC."""
    with unharmed(node):
        found = probe(node, FLOOD).seen["found"]
        assert found["/work"][:3] == [MIB, MIB, "ENOSPC"]
        assert found["/tmp"][:3] == found["/dev/shm"] == [64 * MIB, 64 * MIB, "ENOSPC"]
        for files, made, error in (found["/work"][3:], found["/tmp"][3:]):
            assert (made, error) == (files - 1, "ENOSPC"), "the directory itself is one"
        assert alive(node)


NOT_WRITABLE: Final = """
import stat
written = []
for directory, below, names in os.walk("/"):
    below[:] = [name for name in below if os.path.join(directory, name) not in ("/proc", "/usr", "/tmp", "/work")]
    for path in [directory, *(os.path.join(directory, name) for name in names)]:
        if os.access(path, os.W_OK) and stat.S_ISREG(os.stat(path).st_mode):
            written.append(path)
    try:
        os.mkdir(os.path.join(directory, "made"))
        written.append(directory)
    except OSError:
        pass
say(written=written)
"""


@pytest.mark.threat("C07")
def test_there_is_no_other_place_to_write(node: Node) -> None:
    """Besides /work and /tmp only /dev/shm takes files: so the bounds of these three are the bound of the job."""
    assert probe(node, NOT_WRITABLE).seen["written"] == ["/dev/shm"]


DEEP: Final = r"""
directory = os.open("/tmp", os.O_RDONLY)
depth = 0
for depth in range(10000):
    os.mkdir("d" * 200 if depth % 100 == 0 else "d", dir_fd=directory)
    below = os.open("d" * 200 if depth % 100 == 0 else "d", os.O_RDONLY, dir_fd=directory)
    os.close(directory)
    directory = below
for name in (b"-rf", b"a\nb", b"\xff\xfe", b" ", b"*", b"..x", b"x" * 255, b"\x1b[2J", b"$(id)", b"\xe2\x80\xae"):
    os.mkdir(b"/work/" + name, 0)
    os.mkfifo(b"/work/" + name[:200] + b"f", 0)
os.symlink("/", "/work/root")
os.symlink("loop", "/work/loop")
os.mknod("/work/socket", 0o140777)
os.chmod("/work", 0)
say(depth=depth + 1)
"""


@pytest.mark.threat("C07")
def test_directories_however_deep_and_names_however_odd_go_with_the_job(node: Node) -> None:
    """10,000 levels, names of every kind, closed directories, pipes and links: the end of the job removes them all."""
    with unharmed(node):
        assert probe(node, DEEP).seen["depth"] == 10_000


DESCRIPTORS: Final = """
import resource
kept, error = refusals(lambda number: os.open("/dev/null", os.O_RDONLY), 10**5)
soft = len(kept)
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
more, error = refusals(lambda number: os.open("/dev/null", os.O_RDONLY), 10**5)
try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (4097, 4097))
    raised = True
except ValueError:
    raised = False
for _ in range(5):
    if os.fork() == 0:
        refusals(lambda number: os.pipe(), 10**5)
        os.setsid()
        hold()  # orphans later, with all of it open
say(soft=soft + 3, hard=soft + len(more) + 3, error=error, raised=raised)
if HELD:
    hold()
"""


@pytest.mark.threat("C13")
def test_descriptors_end_at_their_limit(node: Node) -> None:
    """EMFILE at 1,024, after raising it at 4,096 and never beyond; six full processes disturb nobody."""
    with unharmed(node):
        with holding(node, "HELD = True" + DESCRIPTORS) as held:
            said = [held.said, *(held.next() for _ in range(5))]
            first = next(each for each in said if "soft" in each)
            assert (first["soft"], first["hard"], first["error"]) == (1024, 4096, "EMFILE")
            assert not first["raised"]
            assert alive(node)
            os.close(os.open("/dev/null", os.O_RDONLY))
        assert probe(node, "HELD = False" + DESCRIPTORS).code == 0, "and when the job ends by itself"


TERMINALS: Final = """
kept, error = refusals(lambda number: os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY), 10**4)
hold(terminals=len(kept), error=error)
"""


@pytest.mark.threat("C13")
def test_terminals_of_a_job_are_bounded_and_its_own(node: Node) -> None:
    """64 of them; meanwhile another job of the same owner, and the host, get theirs."""
    with holding(node, TERMINALS) as held:
        assert (held.said["terminals"], held.said["error"]) == (64, "ENOSPC")
        with holding(node, TERMINALS) as other:
            assert other.said["terminals"] == 64
            for descriptor in os.openpty():
                os.close(descriptor)


WATCHERS: Final = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def instance(number):
    descriptor = libc.inotify_init1(0)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "")
    return descriptor
kept, error = refusals(instance, 10**4)
say(instances=len(kept), error=error)
if HELD:
    hold()
"""


@pytest.mark.threat("C13")
def test_watches_of_one_owner_are_not_those_of_others(node: Node) -> None:
    """A job takes its owner's inotify instances; another owner has as many, and the host's root all."""
    most = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text())
    with holding(node, "HELD = True" + WATCHERS) as held:
        assert (held.said["instances"], held.said["error"]) == (most, "EMFILE")
        other = probe(node, "HELD = False" + WATCHERS, user="user").seen
        assert other["instances"] == most
        assert probe(node, "HELD = False" + WATCHERS).seen["instances"] == 0, "one owner's jobs share what he has"
        assert alive(node, "default"), "the executor still hears of output"
    assert probe(node, "HELD = False" + WATCHERS).seen["instances"] == most


def resident_bytes(node: Node) -> int:
    """RSS of all services together."""
    pages = sum(int(Path(f"/proc/{node.service(name)}/statm").read_text().split()[1]) for name in SERVICES)
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.threat("C17")
def test_a_flood_of_output_grows_no_service(node: Node) -> None:
    """100 MB as fast as they come: the services stay as small as they were, other jobs run, and the log is whole."""
    line = "x" * 3999
    before = resident_bytes(node)
    with unharmed(node):
        job = node.detached("--", "sh", "-c", f"yes {line} | head -c 100000000; echo; echo done >&2")
        sizes = []
        while node.status(job)["state"] in ("pending", "starting", "running"):
            sizes.append(resident_bytes(node))
            assert alive(node)
        assert node.rnx("job", "wait", job).returncode == 0
        assert max(sizes, default=0) - before < SERVICE_GROWTH_BYTES_MAX
        assert node.ok("job", "log", job, "--stream", "stderr") == b"done\n"
        assert in_job(node, "echo", "after").stdout == b"after\n"
        node.ok("job", "delete", job)
