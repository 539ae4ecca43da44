"""What marks interfaces and tables as one node's."""

from common.identifiers import JobId, new_job_id
from services.executor.network import names

JOB = JobId("6fa459ea-ee8a-4ca4-894e-db77e160355e")


def test_names_fit_and_differ() -> None:
    """No interface's name is longer than the kernel allows, and no two nodes, owners or jobs share one."""
    one, other = names.names_of("/opt/joblet"), names.names_of("/srv/joblet")
    assert one == names.names_of("/opt/../opt/joblet/")
    for node in (one, other):
        for name in (node.bridge, node.owner_bridge("alice"), names.port_name(JOB)):
            assert len(name) <= 15
        assert len({0, node.port_group, node.bridge_group, node.owner_group}) == 4
        assert max(node.port_group, node.bridge_group, node.owner_group) < 2**31
    assert one.table != other.table
    assert one.bridge != other.bridge
    assert one.port_group != other.port_group
    bridges = [node.owner_bridge(owner) for node in (one, other) for owner in ("alice", "bob")]
    assert len(set(bridges)) == 4
    assert len({names.port_name(new_job_id()) for _ in range(1000)}) == 1000


def test_an_alias_is_read_back() -> None:
    """Job and address survive; what is not ours is none."""
    assert names.parse_alias(names.alias(JOB, "10.88.0.5")) == (JOB, "10.88.0.5")
    for foreign in ("", "joblet", f"joblet {JOB}", f"joblet {JOB} 10.88.0.256", f"joblet {'x' * 36} 10.88.0.5"):
        assert names.parse_alias(foreign) is None


def test_an_address_has_one_link_address() -> None:
    """Of one host only (not multicast), and administered locally."""
    address = names.link_address("10.88.0.5")
    assert address == bytes.fromhex("066a0a580005")
    assert address[0] & 0b11 == 0b10
