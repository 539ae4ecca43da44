"""A job's network from its making to its end: nothing is left of it, whoever dies when. Against a real kernel."""

import asyncio
import contextlib
import os
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from common.errors import JobletError, Reason
from common.identifiers import new_job_id
from common.messages.jobs import Network
from services.executor.network import presence
from services.executor.network.kernel import KernelNetworks
from tests.linux import network_bench as bench
from tests.linux.network_bench import HOST, SERVICE_PORT, WEB, Host, inside, on_host, run
from tests.waiting import wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

GATEWAY = "10.88.0.1"


def test_counters_count_what_the_job_moves() -> None:
    """Sent bytes are the job's, received ones, too; a job without an interface has no counters."""

    def body(host: Host) -> None:
        networks = host.networks()
        job = host.start(networks, Network.BRIDGE)
        before = networks.counters(job.id)
        assert inside(job, lambda: bench.tell(bytes(1000))) == ""
        assert before is not None

        def sent() -> tuple[int, int] | None:
            """It waits in the job until the link-layer address of the gateway is known."""
            now = networks.counters(job.id)
            return now if now is not None and now[1] - before[1] >= 1000 else None

        after = wait_for(sent, what="the datagram to be counted")
        assert after[1] - before[1] < 3000
        assert after[0] - before[0] < 1000
        assert networks.counters(new_job_id()) is None

    on_host(body)


def test_an_interface_goes_with_its_namespace() -> None:
    """When the last descriptor is closed, the kernel removes the interface: nobody need clean up."""

    def body(host: Host) -> None:
        job = host.start(host.networks(), Network.BRIDGE)
        assert job.grant.interface in host.interfaces()
        os.close(job.descriptor)
        wait_for(lambda: job.grant.interface not in host.interfaces(), what="the interface to go")

    on_host(body)


@pytest.mark.parametrize("mode", [Network.ISOLATED, Network.BRIDGE])
def test_release_and_close_leave_the_host_as_it_was(mode: Network) -> None:
    """Interfaces, forwarding and tables are afterwards what they were; release is idempotent."""

    def body(host: Host) -> None:
        before, forwarding = host.interfaces(), Path("/proc/sys/net/ipv4/conf/eth0/forwarding")
        assert forwarding.read_text() == "0\n"
        networks = host.networks()
        jobs = [host.start(networks, mode, owner=owner) for owner in ("alice", "alice", "bob")]
        assert forwarding.read_text() == ("1\n" if mode is Network.BRIDGE else "0\n")
        for job in jobs:
            os.close(job.descriptor)
            run(networks.release(job.id))
            run(networks.release(job.id))
            assert job.grant.interface not in host.interfaces()
        if mode is Network.ISOLATED:
            assert host.interfaces() == before
        run(networks.close())
        assert host.interfaces() == before
        assert forwarding.read_text() == "0\n"
        assert not bench.has_tables(host.names)

    on_host(body)


def test_a_restarted_executor_knows_what_there_is() -> None:
    """Addresses in use, who has which, and the network of living jobs, come from the interfaces alone."""

    def body(host: Host) -> None:
        first = host.networks()
        jobs = [host.start(first, mode) for mode in (Network.BRIDGE, Network.BRIDGE, Network.ISOLATED)]
        second = host.networks()
        assert second.present() == {job.id for job in jobs}
        for job in jobs:
            assert second.reserve(job.id, "alice", job.grant.mode) == job.grant
        new = host.start(second, Network.BRIDGE)  # makes the tables anew, with the ports that are there
        assert new.grant.address not in {job.grant.address for job in jobs}
        for job in (*jobs[:2], new):
            assert bench.reaches(job, WEB) == f"open {HOST}"
        run(second.close())
        assert bench.reaches(new, WEB) == f"open {HOST}"  # a living job keeps what it needs
        for job in (*jobs, new):
            run(second.release(job.id))
        run(second.close())
        assert Path("/proc/sys/net/ipv4/conf/eth0/forwarding").read_text() == "0\n"  # the first one had set it

    on_host(body)


def test_sweep_removes_what_no_living_job_has() -> None:
    """Interfaces and bridges of dead jobs go, also of one whose making was cut short; living jobs stay connected."""

    def body(host: Host) -> None:
        first = host.networks()
        alive, dead = (host.start(first, Network.ISOLATED, owner=owner) for owner in ("alice", "bob"))
        before = host.interfaces()
        with IPRoute() as ip:  # as after a kill between two steps
            ip.link("add", ifname="jvcut", kind="veth", peer={"ifname": "jvpeer"})
            ip.link("set", index=ip.link_lookup(ifname="jvcut")[0], group=host.names.port_group)
            ip.link("add", ifname="jvforeign", kind="bridge")
        second = host.networks()
        assert second.reserve(alive.id, "alice", Network.ISOLATED) == alive.grant
        run(second.sweep(frozenset({alive.id})))
        bob = host.names.owner_bridge("bob")
        assert host.interfaces() == before - {dead.grant.interface, bob} | {"jvforeign"}
        assert second.present() == {alive.id}
        os.close(alive.descriptor)
        wait_for(lambda: not second.present(), what="the interface to go")
        run(second.sweep(frozenset()))
        assert host.interfaces() == {"lo", "eth0", "jvforeign"}

    on_host(body)


def test_two_nodes_do_not_touch_each_other() -> None:
    """A node with another base directory sweeps nothing of this one's, and is told that the subnet is taken."""

    def body(host: Host) -> None:
        networks = host.networks()
        job = host.start(networks, Network.BRIDGE)
        other = KernelNetworks.open(bench.settings_of("/nonexistent/other"))
        assert other.present() == frozenset()
        run(other.sweep(frozenset()))
        run(other.close())
        assert bench.reaches(job, WEB) == f"open {HOST}"
        refused = other.unsupported(Network.BRIDGE)
        assert refused is not None
        assert "overlaps with 10.88.0.0/16" in refused[0]
        assert "joblet.networks.bridge_subnet" in refused[1]
        own = KernelNetworks.open(bench.settings_of("/nonexistent/other", bridge_subnet="10.90.0.0/24"))
        second = host.start(own, Network.BRIDGE)
        assert bench.reaches(second, WEB) == f"open {HOST}"
        host.serve(job)
        assert bench.misses(second, job.grant.address) == "timeout"

    on_host(body)


def test_a_flushed_firewall_is_repaired_by_the_next_job() -> None:
    """Whoever removes all tables of the host closes nothing for long: the next job brings them back, for all."""

    def body(host: Host) -> None:
        networks = host.networks()
        job = host.start(networks, Network.BRIDGE)
        host.remove_tables("inet", "bridge")
        assert bench.reaches(job, GATEWAY, SERVICE_PORT) == "open"
        host.start(networks, Network.BRIDGE)
        assert bench.misses(job, GATEWAY, SERVICE_PORT) == "timeout"
        assert bench.reaches(job, WEB) == f"open {HOST}"

    on_host(body)


def test_a_failing_connect_leaves_nothing() -> None:
    """The reason names step and error, and interfaces, addresses and descriptors are what they were."""

    def body(host: Host) -> None:
        networks = host.networks()
        host.start(networks, Network.BRIDGE)
        job = new_job_id()
        grant = networks.reserve(job, "alice", Network.BRIDGE)
        with IPRoute() as ip:
            ip.link("add", ifname=grant.interface, kind="bridge")
        before, open_before = host.interfaces(), bench.descriptors()
        with pytest.raises(JobletError, match=f"make interface {grant.interface}: File exists") as raised:
            run(networks.connect(job, "alice", grant))
        assert raised.value.reason is Reason.PRECONDITION
        assert host.interfaces() == before  # another's interface of that name included
        assert bench.descriptors() == open_before

    on_host(body)


def test_a_cancelled_connect_leaves_nothing() -> None:
    """Who stops waiting at any moment need not care: no descriptor stays open, and the interface goes."""

    def body(host: Host) -> None:
        networks = host.networks()
        host.start(networks, Network.BRIDGE)
        before, open_before = host.interfaces(), bench.descriptors()

        async def give_up(after_s: float) -> None:
            job = new_job_id()
            grant = networks.reserve(job, "alice", Network.BRIDGE)
            with contextlib.suppress(TimeoutError):
                descriptor = await asyncio.wait_for(networks.connect(job, "alice", grant), after_s)
                assert descriptor is not None
                os.close(descriptor)
            await networks.release(job)

        for step in range(12):
            run(give_up(step * 0.0005))
        wait_for(lambda: host.interfaces() == before, what="the interfaces to go")
        wait_for(lambda: bench.descriptors() == open_before, what="the descriptors to be closed")

    on_host(body)


def test_many_start_at_once() -> None:
    """Eight at a time, four rounds, in both modes: all connected, every address once, nothing left."""

    def body(host: Host) -> None:
        networks = host.networks()
        before = host.interfaces()

        async def round_of(mode: Network) -> set[str]:
            jobs = [new_job_id() for _ in range(8)]
            grants = [networks.reserve(job, f"owner {n % 3}", mode) for n, job in enumerate(jobs)]
            connecting = (
                networks.connect(job, f"owner {n % 3}", grant)
                for n, (job, grant) in enumerate(zip(jobs, grants, strict=True))
            )
            descriptors = await asyncio.gather(*connecting)
            assert networks.present() >= set(jobs)
            for descriptor in descriptors:
                assert descriptor is not None
                os.close(descriptor)
            await asyncio.gather(*map(networks.release, jobs))
            return {grant.address for grant in grants}

        for mode in (Network.BRIDGE, Network.ISOLATED) * 2:
            assert len(run(round_of(mode))) == 8
        assert not networks.present()
        assert presence.owner_bridges(host.names) == ()
        run(networks.close())
        assert host.interfaces() == before

    on_host(body)


def test_capabilities_are_found_by_trying() -> None:
    """All modes work here; without the right to make networks each is missing, with the repair, and nothing raises."""

    def body(host: Host) -> None:
        assert [each.level for each in host.networks(dns=("192.0.2.53",)).capabilities()] == ["enforced"] * 4

        def unprivileged() -> str:
            os.setuid(12345)
            networks = host.networks()
            levels = {each.name: each.level for each in networks.capabilities()}
            assert set(levels.values()) == {"missing"}, levels
            refused = networks.unsupported(Network.BRIDGE)
            assert refused is not None
            assert refused[1] == "run the executor as root, with CAP_NET_ADMIN and CAP_SYS_ADMIN"
            run(networks.sweep(frozenset()))
            run(networks.close())
            return "all right"

        assert bench.in_child(unprivileged) == "all right"

    on_host(body)
