"""What a job reaches in each network mode, and what is closed to it. Against a real kernel.

Each attack has its positive control: the same probe succeeds when the rule that it meets is taken away.
"""

import errno
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from common.identifiers import new_job_id
from common.messages.jobs import Network
from services.executor.network import names, routing
from tests.linux import network_bench as bench
from tests.linux.network_bench import HOST, METADATA, SERVICE_PORT, WEB, Host, inside, on_host, run, visit
from tests.waiting import wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

GATEWAY = "10.88.0.1"


@pytest.mark.requirement("T.5")
def test_bridge_leads_out_under_the_address_of_the_host() -> None:
    """A job of mode bridge reaches the internet, which sees the host; the job has IPv4 only."""

    def body(host: Host) -> None:
        networks = host.networks()
        job = host.start(networks, Network.BRIDGE)
        assert bench.reaches(job, WEB) == f"open {HOST}"
        assert inside(job, lambda: Path("/proc/net/if_inet6").read_text().split()[-1]) == "lo"
        assert inside(job, lambda: visit("127.0.0.1")) == f"refused {errno.ECONNREFUSED}"

    on_host(body)


@pytest.mark.threat("B05")
def test_metadata_is_closed_to_jobs() -> None:
    """Neither mode bridge nor mode host reaches the cloud's metadata service; without the tables both would."""

    def body(host: Host) -> None:
        networks = host.networks()
        job = host.start(networks, Network.BRIDGE)
        guest = new_job_id()
        assert run(networks.connect(guest, "root", networks.reserve(guest, "root", Network.HOST))) is None

        def as_job(address: str, within_s: float = bench.SUCCESS_S) -> str:
            def action() -> str:
                os.setuid(100_001)
                return visit(address, within_s=within_s)

            return bench.in_child(action)

        assert bench.misses(job, METADATA) == "timeout"
        assert as_job(METADATA, bench.FAILURE_S) == "timeout"
        assert as_job(WEB) == f"open {HOST}"
        assert visit(METADATA) == f"open {HOST}"  # the host itself is not kept from it
        host.remove_tables("inet")
        assert bench.reaches(job, METADATA) == f"open {job.grant.address}"
        assert as_job(METADATA) == f"open {HOST}"

    on_host(body)


@pytest.mark.threat("B06")
def test_the_host_is_closed_to_jobs() -> None:
    """No address of the host answers a job of mode bridge; without the table each would."""

    def body(host: Host) -> None:
        networks = host.networks()
        job = host.start(networks, Network.BRIDGE)
        for address in (GATEWAY, HOST):
            assert bench.misses(job, address, SERVICE_PORT) == "timeout"
        host.remove_tables("inet")
        for address in (GATEWAY, HOST):
            assert bench.reaches(job, address, SERVICE_PORT) == "open"

    on_host(body)


@pytest.mark.threat("B06")
def test_jobs_of_mode_bridge_do_not_reach_each_other() -> None:
    """Not at the bridge and not through the host; with isolation and tables taken away they would."""

    def body(host: Host) -> None:
        networks = host.networks()
        one, other = (host.start(networks, Network.BRIDGE) for _ in range(2))
        host.serve(other)
        assert bench.misses(one, other.grant.address)
        host.remove_tables("inet", "bridge")
        assert bench.misses(one, other.grant.address)  # the bridge alone keeps them apart
        port = Path("/sys/class/net", one.grant.interface, "brport/isolated")
        port.write_text("0")
        wait_for(  # the address is asked for once a second
            lambda: bench.reaches(one, other.grant.address) == f"open {one.grant.address}",
            what="a way between the jobs",
        )

    on_host(body)


def test_isolated_jobs_reach_those_of_their_owner_only() -> None:
    """Jobs of one owner meet; another owner's, jobs of mode bridge, the host and the internet are out of reach."""

    def body(host: Host) -> None:
        networks = host.networks()
        one, two = (host.start(networks, Network.ISOLATED, owner="alice") for _ in range(2))
        other = host.start(networks, Network.ISOLATED, owner="bob")
        outside = host.start(networks, Network.BRIDGE, owner="alice")
        for each in (two, other, outside):
            host.serve(each)
        assert bench.reaches(one, two.grant.address) == f"open {one.grant.address}"
        assert bench.misses(one, other.grant.address)
        for address in (WEB, HOST, METADATA, outside.grant.address):
            assert bench.misses(one, address) == f"refused {errno.ENETUNREACH}"

    on_host(body)


def test_frames_that_the_host_filters_as_packets_pass_as_well() -> None:
    """With net.bridge.bridge-nf-call-iptables, frames at a bridge meet the rules for packets: the same holds."""

    def body(host: Host) -> None:
        routing.put("bridge/bridge-nf-call-iptables", "1")
        networks = host.networks()
        one, two = (host.start(networks, Network.ISOLATED) for _ in range(2))
        outside = host.start(networks, Network.BRIDGE)
        host.serve(two)
        assert bench.reaches(one, two.grant.address) == f"open {one.grant.address}"
        assert bench.reaches(outside, WEB) == f"open {HOST}"
        assert bench.misses(outside, HOST, SERVICE_PORT) == "timeout"

    on_host(body)


@pytest.mark.threat("B03")
def test_sockets_without_a_path_are_out_of_reach() -> None:
    """An abstract socket of the host does not exist in a job's network; on the host it answers."""

    def body(host: Host) -> None:
        job = host.start(host.networks(), Network.BRIDGE)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("\0joblet-test")
            listener.listen()

            def attack() -> str:
                with socket.socket(socket.AF_UNIX) as attacker:
                    return errno.errorcode.get(attacker.connect_ex("\0joblet-test"), "connected")

            assert inside(job, attack) == "ECONNREFUSED"
            assert attack() == "connected"

    on_host(body)


@pytest.mark.threat("B06")
def test_an_isolated_job_with_all_rights_over_its_network_gets_no_further() -> None:
    """With an address of another owner's, and a route by the bridge itself, nothing of the host answers."""

    def body(host: Host) -> None:
        networks = host.networks()
        job = host.start(networks, Network.ISOLATED)
        bridge = Path("/sys/class/net", job.grant.interface, "master").readlink().name
        link_address = Path("/sys/class/net", bridge, "address").read_text().strip()

        def attack() -> str:
            with IPRoute() as ip:
                ip.neigh("add", dst="10.89.200.1", lladdr=link_address, ifindex=2, state="permanent")
                ip.route("add", dst="default", gateway="10.89.200.1")
            return " ".join((visit(HOST, SERVICE_PORT, within_s=bench.FAILURE_S), visit(WEB, within_s=bench.FAILURE_S)))

        assert inside(job, attack) == "timeout timeout"

        def seen() -> int:
            return int(Path("/sys/class/net", bridge, "statistics/rx_packets").read_text())

        before = seen()
        assert inside(job, lambda: visit(HOST, SERVICE_PORT, within_s=bench.FAILURE_S)) == "timeout"
        assert seen() > before  # control: the host did receive what it does not answer

    on_host(body)


def datagram(source: str, payload: bytes) -> bytes:
    """An IPv4 packet from `source` to the internet's port 53."""
    udp = struct.pack(">HHHH", 1234, 53, 8 + len(payload), 0) + payload
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, socket.IPPROTO_UDP, 0)
    packet = bytearray(head + socket.inet_aton(source) + socket.inet_aton(WEB))
    total = sum(struct.unpack(">10H", packet))
    packet[10:12] = struct.pack(">H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF)
    return bytes(packet) + udp


@pytest.mark.threat("B06")
def test_a_forged_sender_is_dropped() -> None:
    """Frames with another's address, IPv4 or link-layer, fall; without the table of the bridge they pass."""

    def body(host: Host) -> None:
        networks = host.networks()
        job = host.start(networks, Network.BRIDGE)
        gateway = bytes.fromhex(
            Path("/sys/class/net", host.names.bridge, "address").read_text().strip().replace(":", "")
        )
        own = names.link_address(job.grant.address)

        def send(label: str) -> Callable[[], str]:
            def action() -> str:
                bench.tell(f"{label}-plain".encode())
                with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
                    raw.bind((("eth0"), 0))
                    for name, link_address, address in (
                        ("true", own, job.grant.address),
                        ("address", own, "10.88.0.77"),
                        ("link", own[:5] + b"\x99", job.grant.address),
                        ("last", own, job.grant.address),
                    ):
                        frame = gateway + link_address + b"\x08\x00" + datagram(address, f"{label}-{name}".encode())
                        raw.send(frame)
                return ""

            return action

        def arrived(label: str) -> set[str]:
            """All that was sent with the label, as soon as the first and the last of it are there."""
            ends = {f"{label}-plain", f"{label}-last"}
            heard = wait_for(lambda: ends <= (all_ := set(bench.heard().split())) and all_, what=f"{ends} to arrive")
            return {each.removeprefix(f"{label}-") for each in heard if each.startswith(f"{label}-")}

        assert inside(job, send("with")) == ""
        assert arrived("with") == {"plain", "true", "last"}
        host.remove_tables("bridge")
        assert inside(job, send("without")) == ""
        assert arrived("without") == {"plain", "true", "address", "link", "last"}

    on_host(body)


def test_only_what_jobs_need_is_forwarded() -> None:
    """The uplink forwards because jobs need it, but nothing from outside to anywhere but as an answer to a job."""

    def body(host: Host) -> None:
        networks = host.networks()
        job = host.start(networks, Network.BRIDGE)
        host.serve(job)
        host.connect_lan("203.0.113.1", "203.0.113.9")  # what the host never passed anything on to
        routing.set_forwarding("lan0", on=True)
        for address in (job.grant.address, "203.0.113.9"):
            assert from_internet(host, address, bench.FAILURE_S) == "timeout"
        assert bench.reaches(job, "203.0.113.9") == "open 203.0.113.1"
        host.remove_tables("inet")
        for address in (job.grant.address, "203.0.113.9"):
            assert from_internet(host, address).startswith("open")

    on_host(body)


def test_a_host_that_forwards_anyway_is_not_held_back() -> None:
    """Where the administrator forwards, jobs get out, and what is none of theirs passes as before."""

    def body(host: Host) -> None:
        networks = host.networks()
        host.start(networks, Network.BRIDGE)
        host.connect_lan("203.0.113.1", "203.0.113.9")
        assert from_internet(host, "203.0.113.9", bench.FAILURE_S) == "timeout"
        routing.put("ipv4/ip_forward", "1")
        job = host.start(networks, Network.BRIDGE)
        assert from_internet(host, "203.0.113.9").startswith("open")
        assert from_internet(host, job.grant.address, bench.FAILURE_S) == "timeout"
        assert bench.reaches(job, WEB) == f"open {HOST}"

    on_host(body)


def from_internet(host: Host, address: str, within_s: float = bench.SUCCESS_S) -> str:
    """How a connection from the internet by way of the host goes."""

    def action() -> str:
        with Path(f"/proc/{host.internet}/ns/net").open() as there:
            bench.enter(there.fileno())
        return visit(address, within_s=within_s)

    return bench.in_child(action)
