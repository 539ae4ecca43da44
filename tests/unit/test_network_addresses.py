"""Which address a job gets."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import JobletError, Reason
from common.identifiers import new_job_id
from services.executor.network.addresses import AddressPool, parse_networks, parse_subnet


def pool(subnet: str = "10.88.0.0/29") -> AddressPool:
    """A pool of five addresses, unless told otherwise."""
    return AddressPool(ipaddress.IPv4Network(subnet))


def test_addresses_are_given_in_turn() -> None:
    """An address that was given back is the last to be given again."""
    addresses, first = pool(), new_job_id()
    assert addresses.gateway == "10.88.0.1"
    assert addresses.take(first) == "10.88.0.2"
    addresses.give_back(first)
    assert [addresses.take(new_job_id()) for _ in range(4)] == [f"10.88.0.{last}" for last in (3, 4, 5, 6)]
    assert addresses.take(new_job_id()) == "10.88.0.2"


def test_one_job_has_one_address() -> None:
    """However often it asks; and a look takes nothing."""
    addresses, job = pool(), new_job_id()
    assert addresses.peek(job) == addresses.peek(new_job_id()) == addresses.take(job) == addresses.take(job)
    assert addresses.peek(job) == "10.88.0.2"
    assert addresses.peek(new_job_id()) == "10.88.0.3"


def test_a_full_pool_refuses() -> None:
    """The reason says that trying later may help; giving back what one does not have changes nothing."""
    addresses, jobs = pool("10.0.0.0/30"), [new_job_id(), new_job_id()]
    assert addresses.take(jobs[0]) == "10.0.0.2"
    addresses.give_back(jobs[1])
    with pytest.raises(JobletError, match=r"all 1 addresses of the network 10\.0\.0\.0/30 are in use") as raised:
        addresses.take(jobs[1])
    assert raised.value.reason is Reason.EXHAUSTED
    addresses.give_back(jobs[0])
    assert addresses.take(jobs[1]) == "10.0.0.2"


def test_what_an_earlier_executor_gave_is_kept() -> None:
    """Restored addresses are not given again; those of another subnet do not matter."""
    addresses, jobs = pool(), [new_job_id() for _ in range(3)]
    addresses.restore(jobs[0], "10.88.0.4")
    for foreign in ("10.99.0.3", "10.88.0.1", "10.88.0.7", "10.88.0.4"):
        addresses.restore(jobs[1], foreign)
    assert addresses.take(jobs[0]) == "10.88.0.4"
    assert addresses.take(jobs[2]) == "10.88.0.5"
    assert addresses.take(jobs[1]) == "10.88.0.6"


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7)), max_size=80))
def test_no_address_has_two_jobs(steps: list[tuple[bool, int]]) -> None:
    """Whatever is taken and given back in any order."""
    addresses, jobs = pool(), [new_job_id() for _ in range(8)]
    held: dict[int, str] = {}
    for take, which in steps:
        if not take:
            addresses.give_back(jobs[which])
            held.pop(which, None)
        elif which in held or len(held) < 5:
            held[which] = addresses.take(jobs[which])
        assert len(set(held.values())) == len(held)
        assert set(held.values()) <= {f"10.88.0.{last}" for last in range(2, 7)}


@pytest.mark.parametrize("text", ["", "10.88.0.1/16", "10.88.0.0/33", "fd00::/64", "10.88.0.0/31", "x"])
def test_a_wrong_subnet_is_refused_by_name(text: str) -> None:
    """The text names the setting."""
    with pytest.raises(JobletError, match=r"joblet\.networks\.bridge_subnet") as raised:
        parse_subnet(text, "bridge_subnet")
    assert raised.value.reason is Reason.INVALID


def test_blocked_networks_are_of_both_families() -> None:
    """And one that is none is refused by the setting's name."""
    assert [network.version for network in parse_networks(("169.254.0.0/16", "fd00:ec2::254/128"), "blocked")] == [4, 6]
    with pytest.raises(JobletError, match=r"joblet\.networks\.blocked"):
        parse_networks(("169.254.0.1/16",), "blocked")
