"""A host with a network of its own for tests: the real network of the machine is not touched, whatever happens.

    host: eth0 192.0.2.2 ─── internet: 192.0.2.1, and on its loopback 198.51.100.7 and 169.254.169.254
      :50051 listens           :80 answers with the address that it sees, UDP :53 remembers what it got

`on_host` runs a test's body in a forked process in new network and mount namespaces; the internet is a process of its
own. Both end with the test: the kernel then removes what they made.
"""

import asyncio
import contextlib
import ctypes
import os
import select
import signal
import socket
import traceback
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from pyroute2 import IPRoute

from common.config.settings import Joblet, Settings
from common.config.settings import Networks as NetworkSettings
from common.identifiers import JobId, new_job_id
from common.linux import mounts
from common.linux.libc import declare
from common.messages.jobs import Network
from services.executor.linux import namespaces
from services.executor.network import nftables, rules
from services.executor.network.kernel import KernelNetworks
from services.executor.network.names import Names, names_of
from services.executor.network.netlink import NETFILTER, Netlink
from services.executor.network.networks import Grant
from tests.waiting import SLOWNESS, wait_for

T = TypeVar("T")

HOST: Final = "192.0.2.2"
ROUTER: Final = "192.0.2.1"
WEB: Final = "198.51.100.7"
METADATA: Final = "169.254.169.254"
EVERYWHERE: Final = "0.0.0.0"  # noqa: S104  # of a network that is the test's own
SERVICE_PORT: Final = 50051
BASE_DIR: Final = "/nonexistent/joblet"
BODY_S: Final = 120.0 * SLOWNESS
ACTION_S: Final = 30.0 * SLOWNESS
SUCCESS_S: Final = 10.0 * SLOWNESS
FAILURE_S: Final = 0.5
"""How long a connection waits that should succeed (it takes a millisecond), and one that should fail."""

"".encode("idna")  # loaded at its first use, which a process that has given up its rights cannot do any more

_setns = declare("setns", ctypes.c_int, ctypes.c_int)


class Job(NamedTuple):
    """A connected job without processes; `descriptor` keeps its namespace."""

    id: JobId
    grant: Grant
    descriptor: int


class Host:
    """What the body of a test works with. `stack` is unwound when the body has ended."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.internet = _make_internet(stack)  # process id
        self.names: Names = names_of(BASE_DIR)
        self._stack = stack
        listener = stack.enter_context(socket.create_server((EVERYWHERE, SERVICE_PORT)))
        listener.listen(64)

    def networks(self, **settings: Any) -> KernelNetworks:
        """The networks of the one node of this host, with these settings."""
        return KernelNetworks.open(settings_of(BASE_DIR, **settings))

    def start(self, networks: KernelNetworks, mode: Network, *, owner: str = "alice") -> Job:
        """Reserve and connect a network for a new job."""
        job = new_job_id()
        grant = networks.reserve(job, owner, mode)
        descriptor = run(networks.connect(job, owner, grant))
        assert descriptor is not None
        return Job(job, grant, descriptor)

    def interfaces(self) -> set[str]:
        """Names of all interfaces of the host."""
        return {each.name for each in Path("/sys/class/net").iterdir()}

    def serve(self, job: Job) -> None:
        """A web server in a job, to the end of the test."""
        self._stack.enter_context(process(lambda: serve_in(job.descriptor)))
        wait_for(lambda: reaches(job, job.grant.address).startswith("open"), what="the server in the job")

    def connect_lan(self, address: str, machine: str) -> None:
        """Another network of the host, in which it has an address and another machine a web server."""
        _connect(self._stack, _Neighbour("lan0", address, machine))

    def remove_tables(self, *families: str) -> None:
        """What an attacker cannot do, for positive controls; and what a reload of the host's firewall does."""
        tables = tuple(rules.Table(family, self.names.table, (), ()) for family in families)
        with Netlink(NETFILTER) as socket_:
            socket_.apply(nftables.remove(tables))


def settings_of(base_dir: str, **settings: Any) -> Settings:
    """Settings of a node."""
    return Settings(joblet=Joblet(base_dir=base_dir, networks=NetworkSettings(**settings)))


def enter(namespace: int) -> None:
    """Move this process into the network namespace of a descriptor."""
    _setns(namespace, 0)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Wait for a coroutine."""
    return asyncio.run(work)


def on_host(body: Callable[[Host], None], *, timeout_s: float = BODY_S) -> None:
    """Run `body` on a host of its own. AssertionError with its traceback when it fails, or does not end in time."""

    def prepare_and_run() -> str:
        namespaces.unshare(namespaces.CLONE_NEWNS | namespaces.CLONE_NEWNET)
        mounts.mount("none", "/", None, mounts.MS_REC | mounts.MS_PRIVATE)
        groups = mounts.open_tree("/sys/fs/cgroup", recursive=True)
        mounts.mount("sysfs", "/sys", "sysfs", 0)  # the mounted one shows the interfaces of its own namespace
        mounts.move_mount(groups, os.open("/sys/fs/cgroup", os.O_PATH))
        with contextlib.ExitStack() as stack:
            body(Host(stack))
        return ""

    failure = in_child(prepare_and_run, timeout_s=timeout_s)
    assert not failure, failure


def inside(job: Job, action: Callable[[], str]) -> str:
    """What `action` answers in a process in the job's network, with all rights over it."""

    def enter_and_act() -> str:
        enter(job.descriptor)
        return action()

    return in_child(enter_and_act, timeout_s=ACTION_S)


def descriptors() -> int:
    """How many this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def has_tables(names: Names) -> bool:
    """Whether this host has the tables of a node."""
    with Netlink(NETFILTER) as asked:
        try:
            asked.dump(nftables.list_keys(nftables.Place(rules.INET, names.table, rules.UPLINKS)))
        except FileNotFoundError:
            return False
    return True


def in_child(action: Callable[[], str], *, timeout_s: float = ACTION_S) -> str:
    """What `action` answers in a forked process, or the traceback of its failure."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = action()
        except BaseException:  # noqa: BLE001  # the child's entry: the parent tells
            answer = traceback.format_exc()
        os.write(writer, answer.encode()[-4000:])
        os._exit(0)
    os.close(writer)
    try:
        if not select.select([reader], [], [], timeout_s)[0]:
            os.kill(pid, signal.SIGKILL)
            return f"not finished after {timeout_s} s"
        return os.read(reader, 4096).decode()
    finally:
        os.close(reader)
        os.waitpid(pid, 0)


@contextlib.contextmanager
def process(action: Callable[[], object]) -> Iterator[int]:
    """A forked process beside the test; ends with it, also when the test is killed."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            declare("prctl", ctypes.c_int, ctypes.c_ulong)(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            action()
        os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def visit(address: str, port: int = 80, *, within_s: float = SUCCESS_S) -> str:
    """What the server there says, or the name of the error. Run in a job by `inside`."""
    try:
        with socket.create_connection((address, port), timeout=within_s) as connection:
            return "open" if port != 80 else f"open {connection.recv(100).decode()}"
    except TimeoutError:
        return "timeout"
    except OSError as cause:
        return f"refused {cause.errno}"


def reaches(job: Job, address: str, port: int = 80) -> str:
    """How a connection from a job to an address goes that should succeed."""
    return inside(job, lambda: visit(address, port))


def misses(job: Job, address: str, port: int = 80) -> str:
    """How one goes that should fail; "" when it does not."""
    answer = inside(job, lambda: visit(address, port, within_s=FAILURE_S))
    return "" if answer.startswith("open") else answer


def tell(payload: bytes) -> str:
    """Send a datagram to the internet."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(payload, (WEB, 53))
    return ""


def heard() -> str:
    """All datagrams that the internet has received, in order. Run on the host."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.settimeout(SUCCESS_S)
        sender.sendto(b"?", (WEB, 53))
        return sender.recv(4096).decode()


def web_server(ready_to_serve: Callable[[], object] = lambda: None) -> None:
    """Answer every connection at port 80 with the address that it comes from, and remember datagrams at 53."""
    datagrams: list[bytes] = []
    with socket.create_server((EVERYWHERE, 80)) as web, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bin_:
        bin_.bind((EVERYWHERE, 53))
        ready_to_serve()
        while True:
            for ready in select.select([web, bin_], [], [])[0]:
                if ready is web:
                    connection, peer = web.accept()
                    with connection:
                        connection.sendall(peer[0].encode())
                else:
                    payload, sender = bin_.recvfrom(2048)
                    if payload == b"?":
                        bin_.sendto(b" ".join(datagrams), sender)
                    else:
                        datagrams.append(payload)


def serve_in(namespace: int) -> None:
    """A web server in a network namespace."""
    enter(namespace)
    web_server()


class _Neighbour(NamedTuple):
    """Another machine, and how it is connected."""

    interface: str  # of the host
    host: str  # the host's address there
    address: str  # of the machine
    others: tuple[str, ...] = ()  # more of its addresses
    routes: tuple[str, ...] = ("default",)  # what it sends by way of the host


def _connect(stack: contextlib.ExitStack, machine: _Neighbour) -> int:
    """A process whose network is another machine's, with a web server; its id."""
    reader, writer = os.pipe()

    def live() -> None:
        namespaces.unshare(namespaces.CLONE_NEWNET)
        os.write(writer, b"n")
        wait_for(lambda: "eth0" in Path("/proc/self/net/dev").read_text(), what="the cable")
        with IPRoute() as ip:
            ip.link("set", index=1, state="up")
            eth0 = ip.link_lookup(ifname="eth0")[0]
            ip.link("set", index=eth0, state="up")
            ip.addr("add", index=eth0, address=machine.address, prefixlen=24)
            for address in machine.others:
                ip.addr("add", index=1, address=address, prefixlen=32)
            for route in machine.routes:
                ip.route("add", dst=route, gateway=machine.host)
        web_server(lambda: os.write(writer, b"r"))

    pid = stack.enter_context(process(live))
    assert os.read(reader, 1) == b"n"
    with IPRoute() as ip, Path(f"/proc/{pid}/ns/net").open() as there:
        ip.link("add", ifname=machine.interface, kind="veth", peer={"ifname": "eth0", "net_ns_fd": there.fileno()})
        index = ip.link_lookup(ifname=machine.interface)[0]
        ip.link("set", index=index, state="up")
        ip.addr("add", index=index, address=machine.host, prefixlen=24)
    assert os.read(reader, 1) == b"r"
    os.close(reader)
    os.close(writer)
    return int(pid)


def _make_internet(stack: contextlib.ExitStack) -> int:
    """The machine behind everything; its process's id."""
    with IPRoute() as ip:
        ip.link("set", index=1, state="up")
        # The routes are there so that what the host passes on as it is, is answered, too.
        pid = _connect(stack, _Neighbour("eth0", HOST, ROUTER, (WEB, METADATA), ("10.88.0.0/16", "203.0.113.0/24")))
        ip.route("add", dst="default", gateway=ROUTER)
    return pid
