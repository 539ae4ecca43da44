"""Jobs with a network, on a real node that runs on a host of its own: see tests/linux/network_bench.py."""

import os
from collections.abc import Callable

import pytest

from tests.e2e.node import Node, make_base
from tests.linux.network_bench import HOST, METADATA, WEB, Host, on_host
from tests.waiting import SLOWNESS, wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to run a node")

NODE_S = 110.0
"""A node starts in some seconds, on a busy machine in some more."""

VISIT = """
import socket, sys
patience_s = 60
for place in sys.argv[1:]:
    if place == "closed":
        patience_s = 3
        continue
    host, port = place.rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), timeout=patience_s if port == "80" else 0.5) as connection:
            print("open", connection.recv(100).decode() if port == "80" else "")
    except OSError as cause:
        print("closed")
"""
SERVE = """
import socket
with socket.create_server(("0.0.0.0", 80)) as server:
    print("serving", flush=True)
    while True:
        connection, peer = server.accept()
        with connection:
            connection.sendall(peer[0].encode())
"""


def with_node(body: Callable[[Host, Node], None]) -> None:
    """Run `body` with a node on a host of its own; nothing is left on that host when the node has stopped."""

    def run(host: Host) -> None:
        before = host.interfaces()
        node = Node(make_base("networked"))
        try:
            node.start()
            body(host, node)
            assert node.stop() == 0
            wait_for(lambda: host.interfaces() == before, what="the jobs' interfaces and bridges to go")
        finally:
            node.remove()

    on_host(run, timeout_s=NODE_S * SLOWNESS)


def visit(node: Node, network: str, *places: str, user: str = "default") -> list[str]:
    """How a job's connections to `host:port` end. Those behind the word "closed" are not waited for long."""
    command = ("job", "run", "--network", network, "--", "/usr/bin/python3", "-I", "-c", VISIT, *places)
    return node.ok(*command, node=user).decode().split("\n")[:-1]


@pytest.mark.requirement("T.5")
@pytest.mark.threat("B05")
@pytest.mark.threat("B06")
def test_bridge_leads_out_and_nowhere_else() -> None:
    """The internet sees the host's address; metadata, the host, the node and other jobs are closed."""

    def body(_: Host, node: Node) -> None:
        server = node.detached("--network", "bridge", "--", "/usr/bin/python3", "-I", "-c", SERVE)
        wait_for(lambda: node.entries(server), timeout_s=30, what="the server in a job")
        places = (
            f"{WEB}:80",
            "closed",
            f"{METADATA}:80",
            f"{HOST}:{node.port}",
            f"10.88.0.1:{node.port}",
            "10.88.0.2:80",
        )
        assert visit(node, "bridge", *places) == [f"open {HOST}", *["closed"] * 4]
        newest = node.jobs()[0]
        assert newest["usage"]["network_tx_bytes"] > 0
        assert newest["usage"]["network_rx_bytes"] > 0
        node.kill("executor")
        assert visit(node, "bridge", f"{WEB}:80", "closed", "10.88.0.2:80") == [f"open {HOST}", "closed"]
        assert node.status(server)["state"] == "running"
        node.ok("job", "stop", server, "--grace", "0s")
        node.rnx("job", "wait", server)

    with_node(body)


def test_isolated_is_for_jobs_of_one_owner() -> None:
    """They reach each other, nobody else reaches them, and there is no way out."""

    def body(_: Host, node: Node) -> None:
        server = node.detached("--network", "isolated", "--", "/usr/bin/python3", "-I", "-c", SERVE)
        wait_for(lambda: node.entries(server), timeout_s=30, what="the server in a job")
        own = visit(node, "isolated", "10.89.0.1:80", "10.89.0.2:80", "closed", f"{WEB}:80")
        assert sum(answer.startswith("open 10.89.") for answer in own[:2]) == 1
        assert own[2] == "closed"
        assert set(visit(node, "isolated", "closed", "10.89.0.1:80", "10.89.0.2:80", user="user")) == {"closed"}
        node.ok("job", "stop", server, "--grace", "0s")
        node.rnx("job", "wait", server)

    with_node(body)


def test_the_hosts_network_is_for_administrators() -> None:
    """Others are refused by name; an administrator's job sees the host's interfaces, and no metadata."""

    def body(_: Host, node: Node) -> None:
        refused = node.rnx("job", "run", "--network", "host", "--", "true", node="user")
        assert refused.returncode == 4
        assert b"host" in refused.stderr
        seen = node.ok("job", "run", "--network", "host", "--", "cat", "/proc/net/dev").decode()
        assert "eth0" in seen
        assert visit(node, "host", f"{WEB}:80", "closed", f"{METADATA}:80") == [f"open {HOST}", "closed"]

    with_node(body)


def test_name_servers_follow_the_network() -> None:
    """A job without a way out is told of no name server; one on the bridge of those that it can reach."""

    def body(_: Host, node: Node) -> None:
        for network in ("none", "isolated"):
            assert node.ok("job", "run", "--network", network, "cat", "/etc/resolv.conf") == b"", network
        told = node.ok("job", "run", "--network", "bridge", "cat", "/etc/resolv.conf")
        assert all(line.startswith((b"nameserver", b"search", b"options", b"#")) for line in told.splitlines())
        assert b"nameserver 127." not in told

    with_node(body)
