"""Which packets pass: the rules as data. What the kernel makes of them is tested in tests/linux."""

import ipaddress

from services.executor.network import expressions, rules
from services.executor.network.names import Names

NAMES = Names("/opt/joblet", "joblet_0", "jb0", port_group=101, bridge_group=102, owner_group=103)
POLICY = rules.Policy(
    names=NAMES,
    bridge_subnet=ipaddress.IPv4Network("10.88.0.0/16"),
    blocked=(ipaddress.ip_network("169.254.0.0/16"), ipaddress.ip_network("fd00:ec2::254/128")),
    uid_first=100_000,
)
KEY = expressions.sender_key("jv0", bytes.fromhex("066a0a580002"), "10.88.0.2")


def texts(policy: rules.Policy = POLICY) -> dict[str, list[str]]:
    """Every rule as nft(8) would print it, by family and chain."""
    made = rules.tables(policy, senders=(KEY,), uplinks=("eth0",))
    return {
        f"{table.family} {chain.name}": [rule.text for rule in chain.rules] for table in made for chain in table.chains
    }


def test_the_rules() -> None:
    """All of them, in order: a change here is a change of what jobs can reach."""
    assert texts() == {
        "inet input": ["iifgroup 102 drop", "iifgroup 103 drop"],
        "inet forward": [
            "iifgroup 103 oifgroup 103 accept",
            "iifgroup 103 drop",
            "oifgroup 103 drop",
            "iifgroup 102 ip daddr 169.254.0.0/16 drop",
            "iifgroup 102 ip6 daddr fd00:ec2::254/128 drop",
            "iifgroup 102 meta nfproto ipv6 drop",
            "iifgroup 102 oifgroup 102 drop",
            "iifgroup 102 accept",
            "oifgroup 102 ct state established,related accept",
            "oifgroup 102 drop",
            "iifname @uplinks ct state new ct status ! dnat drop",
        ],
        "inet output": [
            "meta skuid >= 100000 ip daddr 169.254.0.0/16 drop",
            "meta skuid >= 100000 ip6 daddr fd00:ec2::254/128 drop",
        ],
        "inet nat": ["ip saddr 10.88.0.0/16 oifgroup != 102 masquerade"],
        "bridge senders": [
            "iifgroup != 101 accept",
            "iifname . ether saddr . ip saddr @senders accept",
            "iifname . ether saddr . arp saddr ip @senders accept",
            "drop",
        ],
    }


def test_nothing_blocked_is_no_rule() -> None:
    """Without blocked networks the host's own packets are not looked at."""
    assert texts(POLICY._replace(blocked=()))["inet output"] == []


def test_keys_have_the_size_of_their_set() -> None:
    """A key of another length would be refused by the kernel, or never match."""
    for table in rules.tables(POLICY, senders=(KEY,), uplinks=("eth0", "a" * 15)):
        for each in table.sets:
            assert each.keys
            assert {len(key) for key in each.keys} == {each.key_bytes}


def test_every_rule_ends_with_a_verdict() -> None:
    """A rule that only matches would change nothing, and nobody would see it."""
    for table in rules.tables(POLICY, senders=(), uplinks=()):
        for chain in table.chains:
            for rule in chain.rules:
                assert rule.parts[-1].text in {"accept", "drop", "masquerade"}
