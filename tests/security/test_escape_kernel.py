"""Escape by system calls: namespaces, mounts, capabilities, keys, devices, terminals, scheduling, other doors.

Each probe is a table of attacks (probes/*.py) that one job tries from inside, and that root tries unprotected: every
attack must fail inside, for the reason that is named here, and must do its harm outside, unless this kernel has nothing
to attack (ENOSYS, ENOENT) or the control stops short of harm (`HARMLESS`).
"""

from typing import Any

import pytest

from tests.e2e.node import Node
from tests.security.probes.loading import probe_in_job, probe_unprotected

EPERM = "EPERM"
HARMLESS = {
    **dict.fromkeys(("accounting", "swap"), "ENOENT"),  # a file that does not exist, looked for only by the privileged
    "reboot": "EINVAL",  # without the magic numbers
    "request_key": "ENOKEY",  # nobody has such a key
    **dict.fromkeys(("TIOCLINUX", "TIOCLINUX, high bits set"), "ENOTTY"),  # which needs a console of the host
    "iopl": "ENOSYS",  # CONFIG_X86_IOPL_IOPERM is off
    **dict.fromkeys(("module", "module load", "kexec"), "ENOSYS"),  # such a kernel takes no modules
    "x32": "ENOSYS",  # CONFIG_X86_X32_ABI is off nearly everywhere
}
"""What a control may meet instead of success."""
NOT_TRIED = frozenset({"module load", "kexec"})
"""Where the kernel has them, a control's bad arguments give one of several errors: anything but EPERM."""
LIMITS = ("NOFILE", "CORE", "MEMLOCK", "MSGQUEUE", "RTPRIO", "NICE", "SIGPENDING")


def wrong(seen: dict[str, str], expected: dict[str, str]) -> dict[str, str]:
    """The attacks that did not end as they should; the default is EPERM."""
    return {name: outcome for name, outcome in seen.items() if outcome != expected.get(name, EPERM)}


def harmed(seen: dict[str, str]) -> dict[str, str]:
    """The attacks that a control could not do, without one of the reasons above."""
    allowed = {name: {"ok", reason} for name, reason in HARMLESS.items()}
    return {
        name: outcome
        for name, outcome in seen.items()
        if outcome not in allowed.get(name, {"ok"}) and not (name in NOT_TRIED and outcome != EPERM)
    }


@pytest.mark.threat("A05")
@pytest.mark.threat("A12")
@pytest.mark.threat("A21")
@pytest.mark.threat("A24")
@pytest.mark.requirement("S1.9")
def test_namespaces_and_mounts(node: Node) -> None:
    """No namespace can be made or entered, nothing mounted, unmounted or changed, by the old calls or the new ones.

    clone3 is not there rather than forbidden: a C library then takes clone, which can be checked.
    """
    assert wrong(probe_in_job(node, "namespaces"), {"clone3 user": "ENOSYS"}) == {}
    assert harmed(probe_unprotected("namespaces")) == {}


@pytest.fixture(scope="module")
def privileges(node: Node) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the probe saw in a job and without protection."""
    return probe_in_job(node, "privileges"), probe_unprotected("privileges")


@pytest.mark.threat("A06")
@pytest.mark.threat("A09")
@pytest.mark.threat("A13")
@pytest.mark.threat("A18")
@pytest.mark.threat("A19")
@pytest.mark.threat("A20")
@pytest.mark.threat("A21")
@pytest.mark.threat("A22")
@pytest.mark.threat("C11")
def test_privileges_and_kernel_interfaces(privileges: tuple[dict[str, str], dict[str, str]]) -> None:
    """No privileged interface of the kernel answers, no id, capability, priority or device is gained.

    The numbers that are wider than the kernel takes them must not slip past the filter (as CVE-2019-10063 did), and
    what comes by the doors of other ABIs dies.
    """
    expected = {
        "nice": "EACCES",  # RLIMIT_NICE
        "uid_map": "EROFS",
        "oom_score_adj": "EROFS",
        "int 0x80": "SIGSYS",
        "x32": "SIGSYS",
    }
    inside, _ = privileges
    assert wrong(inside, expected) == {}


def test_the_same_succeeds_without_protection(privileges: tuple[dict[str, str], dict[str, str]]) -> None:
    """The control of the test above. A hard limit can be raised only where root may: not in every container."""
    _, outside = privileges
    limits = {f"more {name}" for name in LIMITS}
    assert harmed({name: outcome for name, outcome in outside.items() if name not in limits}) == {}


@pytest.mark.threat("A23")
def test_socket_families(node: Node) -> None:
    """Unix, IPv4, IPv6 and netlink for routes; raw and packet sockets, ping and every other family are refused."""
    inside, outside = probe_in_job(node, "sockets"), probe_unprotected("sockets")
    usable = {"unix", "unix datagram", "inet", "inet datagram", "inet6", "netlink route", "unix pair"}
    assert {name for name, outcome in inside.items() if outcome == "ok"} == usable
    expected = {"inet raw": EPERM, "inet6 raw": EPERM, "ping": "EACCES", "ping6": "EACCES"}
    refused = {name: outcome for name, outcome in inside.items() if name not in usable}
    assert {name: said for name, said in refused.items() if said != expected.get(name, "EAFNOSUPPORT")} == {}
    assert {name for name, outcome in outside.items() if outcome == "ok"} >= usable | {"packet", "netlink audit"}
