"""Memory in all its forms: pages, tmpfs, pipes, sockets, shared memory. Issue 3, C02, C03, C04, C06, C16.

Each form is taken until the kernel ends it; the end says out of memory, other jobs live, and the host has it back.
"""

from pathlib import Path
from typing import Final

import pytest

from tests.e2e.node import Node
from tests.leaks import own_groups
from tests.security.attack import Attempt
from tests.soak.holding import alive, holding, probe
from tests.soak.host import unharmed, until

LIMIT: Final = ("--max-memory", "32")
MIB: Final = 2**20
KILLED: Final = 137
SHARED_NOISE_BYTES: Final = 24 * MIB
"""By so much the host's shared memory may differ for reasons that are not the job's."""

PAGES: Final = """
taken = []
while True:
    taken.append(bytearray(1 << 20))
"""


def ended_for_memory(node: Node, attempt: Attempt) -> bool:
    """Whether the last job was killed for want of memory, and both caller and record say so."""
    record = node.jobs("--limit", "1")[0]
    told = b"out of memory" in attempt.stderr or b"ran out of memory" in attempt.stderr
    killed = (record["state"], record["signal"], record["oom_killed"]) == ("failed", 9, True)
    return attempt.code == KILLED and told and killed and record["usage"]["oom_kills"] >= 1


@pytest.mark.threat("C02")
def test_a_memory_bomb_ends_itself_only(node: Node) -> None:
    """The job is killed and its record says out of memory; another owner's job lives on, and new ones start."""
    with unharmed(node), holding(node, "hold()", user="user") as neighbour:
        assert ended_for_memory(node, probe(node, PAGES, options=LIMIT))
        assert node.status(neighbour.job)["state"] == "running"
        assert alive(node)


CHILD: Final = """
if os.fork() == 0:
    taken = []
    while True:
        taken.append(bytearray(1 << 20))
os.wait()
time.sleep(60)
os._exit(0)
"""


@pytest.mark.threat("C03")
def test_a_child_that_takes_the_memory_ends_the_whole_job(node: Node) -> None:
    """Only a child was too large, and its parent would exit 0: the job is killed as a whole, and says why."""
    with unharmed(node):
        assert ended_for_memory(node, probe(node, CHILD, options=LIMIT))


@pytest.mark.threat("C04")
def test_there_is_no_swap_to_escape_to(node: Node) -> None:
    """Memory and swap together are the limit."""
    with holding(node, "hold()", options=LIMIT) as held:
        groups = [Path(group) for group in own_groups() if Path(group).name == held.job]
        together = [each / "memory.memsw.limit_in_bytes" for each in groups]
        swap = [each / "memory.swap.max" for each in groups]
        values = [int(each.read_text()) for each in together + swap if each.exists()]
        assert values in ([32 * MIB], [0])


TMPFS: Final = """
with open("/tmp/large", "wb") as file:
    for _ in range(60):
        file.write(bytes(1 << 20))
say()
"""


@pytest.mark.threat("C02")
def test_files_in_memory_count(node: Node) -> None:
    """/tmp is memory: a job that writes more into it than its limit is killed, though the file system has room."""
    assert probe(node, TMPFS).code == 0
    with unharmed(node):
        assert ended_for_memory(node, probe(node, TMPFS, options=LIMIT))


REMAINS: Final = """
import ctypes, mmap
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
size = 16 << 20
unlinked = os.open("/dev/shm/gone", os.O_CREAT | os.O_RDWR)
os.ftruncate(unlinked, size)
os.unlink("/dev/shm/gone")
mapped = mmap.mmap(unlinked, size)
mapped[:] = bytes(size)
segment = libc.shmget(0, size, 0o1600)
ctypes.memset(libc.shmat(segment, None, 0), 1, size)
secret = os.memfd_create("remains")
os.write(secret, bytes(size))
with open("/tmp/stays", "wb") as file:
    file.write(bytes(size))
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(1000)  # keeps all of it when the job's main process has ended
    os._exit(0)
os.wait()
say()
"""


def shared_bytes() -> int:
    """Shmem of /proc/meminfo: tmpfs, shared memory and memfds of the whole host."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Shmem:"))


@pytest.mark.threat("C06")
@pytest.mark.threat("C15")
def test_memory_files_do_not_outlive_the_job(node: Node) -> None:
    """64 MiB in a tmpfs, an unlinked mapping, a memfd and a segment, held by an orphan, are given back."""
    before = shared_bytes()
    with unharmed(node):
        assert probe(node, REMAINS).code == 0
    until(lambda: shared_bytes() < before + SHARED_NOISE_BYTES, lambda: f"{shared_bytes() - before} bytes of memory")


TAKE_IN_KERNEL: Final = """
import resource, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
def fill(write):
    taken = 0
    try:
        while True:
            taken += write(bytes(65536))
    except BlockingIOError:
        return taken
kept, taken = [], 0
def pipe(number):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    kept.append((reading, writing))
    return fill(lambda data: os.write(writing, data))
def pair(number):
    first, second = socket.socketpair()
    first.setblocking(False)
    kept.append((first, second))
    return fill(first.send)
"""


@pytest.mark.threat("C16")
@pytest.mark.parametrize("kind", ["pipe", "pair"])
def test_memory_of_the_kernel_counts(node: Node, kind: str) -> None:
    """Full pipes and unix sockets are charged to the job: it is killed long before it has opened all it may."""
    program = TAKE_IN_KERNEL + f"say(taken=sum(refusals({kind}, 2000)[0]))"
    control = probe(node, program).seen["taken"]
    assert control > 2 * 32 * MIB, "without a limit it holds more than the limit"
    with unharmed(node):
        assert ended_for_memory(node, probe(node, program, options=LIMIT))


DATAGRAMS: Final = """
import resource, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receivers, held = [], 0
for _ in range(600):
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    receivers.append(receiver)
    for _ in range(3):
        sender.sendto(bytes(60000), receiver.getsockname())
for receiver in receivers:
    receiver.setblocking(False)
    try:
        while True:
            held += len(receiver.recv(65536))
    except BlockingIOError:
        pass
say(held=held)
"""


@pytest.mark.threat("C16")
def test_memory_of_the_network_counts(node: Node) -> None:
    """What waits in sockets of the job's own loopback is bounded by its limit, too."""
    assert probe(node, DATAGRAMS).seen["held"] > 90 * MIB
    limited = probe(node, DATAGRAMS, options=LIMIT)
    assert limited.code == KILLED or limited.seen["held"] <= 32 * MIB
