"""What every `Networks` promises, over the one of the kernel and the one of tests."""

import os
from collections.abc import Callable

import pytest

from common.config.settings import Networks as NetworkSettings
from common.errors import JobletError, Reason
from common.identifiers import new_job_id
from common.messages.jobs import Network
from services.executor.network.addresses import parse_subnet
from services.executor.network.memory import MemoryNetworks
from services.executor.network.networks import Networks
from tests.linux.network_bench import on_host, run

SMALL = "10.88.0.0/29"
"""Room for a gateway and five jobs."""


def over(kind: str, body: Callable[[Networks], None]) -> None:
    """Run `body` with networks of a kind."""
    if kind == "memory":
        body(MemoryNetworks(subnet=parse_subnet(SMALL, "bridge_subnet")))
        return
    if os.geteuid() != 0:
        pytest.skip("needs root")
    assert NetworkSettings().bridge_subnet != SMALL
    on_host(lambda host: body(host.networks(bridge_subnet=SMALL, isolated_subnet="10.89.0.0/29")))


@pytest.fixture(params=["kernel", "memory"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each implementation in turn."""
    return str(request.param)


@pytest.mark.parametrize("mode", list(Network))
def test_from_reservation_to_release(kind: str, mode: Network) -> None:
    """A preview takes nothing, a reservation is kept, what is connected is present and counted, and then nothing is."""

    def body(networks: Networks) -> None:
        job, has_interface = new_job_id(), mode in (Network.ISOLATED, Network.BRIDGE)
        assert networks.unsupported(mode) is None
        expected = networks.preview(job, "alice", mode)
        grant = networks.reserve(job, "alice", mode)
        assert grant == expected
        assert networks.reserve(job, "alice", mode) == grant
        assert bool(grant.address) == bool(grant.interface) == bool(grant.prefix) == has_interface
        assert bool(grant.gateway) == (mode is Network.BRIDGE)
        assert grant.describe()
        assert networks.counters(job) is None
        descriptor = run(networks.connect(job, "alice", grant))
        assert (descriptor is not None) == has_interface
        assert networks.present() == ({job} if has_interface else set())
        assert (networks.counters(job) is not None) == has_interface
        if descriptor is not None:
            os.close(descriptor)
        run(networks.release(job))
        run(networks.release(job))
        assert networks.present() == frozenset()
        assert networks.counters(job) is None
        run(networks.close())

    over(kind, body)


def test_addresses_are_exhausted_and_come_back(kind: str) -> None:
    """The job after the last address is refused, and may try again; what is released can be had again."""

    def body(networks: Networks) -> None:
        jobs = [new_job_id() for _ in range(5)]
        addresses = {networks.reserve(job, "alice", Network.BRIDGE).address for job in jobs}
        assert addresses == {f"10.88.0.{last}" for last in range(2, 7)}
        for refused in (networks.reserve, networks.preview):
            with pytest.raises(JobletError, match="all 5 addresses") as raised:
                refused(new_job_id(), "bob", Network.BRIDGE)
            assert raised.value.reason is Reason.EXHAUSTED
            assert raised.value.retryable
        freed = networks.reserve(jobs[2], "alice", Network.BRIDGE).address
        run(networks.release(jobs[2]))
        assert networks.reserve(new_job_id(), "bob", Network.BRIDGE).address == freed

    over(kind, body)


def test_sweep_keeps_the_living(kind: str) -> None:
    """Jobs that are not alive are released, those that are stay as they are."""

    def body(networks: Networks) -> None:
        alive, dead = new_job_id(), new_job_id()
        descriptors = []
        for job in (alive, dead):
            descriptors.append(run(networks.connect(job, "alice", networks.reserve(job, "alice", Network.ISOLATED))))
        run(networks.sweep(frozenset({alive})))
        assert networks.present() == {alive}
        run(networks.sweep(frozenset()))
        assert networks.present() == frozenset()
        for descriptor in descriptors:
            assert descriptor is not None
            os.close(descriptor)

    over(kind, body)


def test_capabilities_name_every_mode(kind: str) -> None:
    """One capability a mode."""

    def body(networks: Networks) -> None:
        assert [each.name for each in networks.capabilities()] == [f"network.{mode}" for mode in Network]

    over(kind, body)
